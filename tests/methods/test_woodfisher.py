"""WoodFisher: the recursion against dense inverses, and the influence step that is taken with it."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.woodfisher import inverse_blocks
from tests.curvature.toys import DATA, FLAT, GONE, KEPT, KEY, MODEL, ROWS, VARIABLES, explicit, flat, gradients
from tests.problems import lane

DAMPING = 0.02


@pytest.fixture(autouse=True, scope="module")
def in_float64():
    with jax.enable_x64(True):
        yield


@cache
def program(block_size, chunk=16):
    options = {"damping": DAMPING, "block_size": block_size, "chunk": chunk}
    return jax.jit(lambda rows, weights: inverse_blocks(MODEL, VARIABLES, rows, weights, **options))


def inverted(block_size, rows=ROWS, weights=KEPT, chunk=16):
    return np.asarray(program(block_size, chunk)(rows, jnp.asarray(weights)))


def test_one_block_is_the_inverse_of_the_damped_empirical_fisher_matrix():
    expected = np.linalg.inv(explicit("empirical", KEPT) + DAMPING * np.eye(64))
    for size in (64, 1000):
        (found,) = inverted(size)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
        assert np.array_equal(found, found.T)


def test_smaller_blocks_are_inverses_of_the_diagonal_blocks_and_the_last_one_is_filled_up():
    dense, found = explicit("empirical", KEPT) + DAMPING * np.eye(64), inverted(25)
    assert found.shape == (3, 25, 25)
    for place, block in enumerate(found):
        inside = slice(25 * place, min(25 * (place + 1), 64))
        size = inside.stop - inside.start
        np.testing.assert_allclose(block[:size, :size], np.linalg.inv(dense[inside, inside]), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(block[size:, size:], np.eye(25 - size) / DAMPING)
        assert not block[:size, size:].any()


def test_the_order_of_rows_and_the_chunks_do_not_matter():
    order = np.random.default_rng(0).permutation(60)
    whole = inverted(25)
    for found in (inverted(25, jax.tree.map(lambda x: x[order], ROWS), KEPT[order]), inverted(25, chunk=7)):
        np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-9)


def test_rows_that_do_not_count_change_nothing_whatever_they_hold():
    broken = ROWS._replace(inputs=np.where(KEPT[:, None] > 0, ROWS.inputs, np.nan))
    assert np.array_equal(inverted(25, broken), inverted(25))
    np.testing.assert_allclose(inverted(25, weights=np.zeros(60)), np.broadcast_to(np.eye(25) / DAMPING, (3, 25, 25)))


def test_the_step_is_alpha_times_the_inverse_of_the_retained_matrix():
    requests = ju.from_indices(DATA, [GONE, [7]], capacity=8)

    def unlearn(damping, request):
        return ju.woodfisher(MODEL, alpha=0.7, damping=damping, block_size=64, chunk=16)(VARIABLES, DATA, request, KEY)

    results = jax.jit(jax.vmap(unlearn, (None, 0)))(0.01, requests)
    assert not results.status.any()
    for place, rows in enumerate((GONE, [7])):
        weights = np.ones(60)
        weights[rows] = 0
        slope = np.average(gradients(), axis=0, weights=weights)
        pull = gradients()[rows].sum(axis=0) / 60 - len(rows) / 60 * slope
        step = 0.7 * np.linalg.solve(explicit("empirical", weights) + 0.01 * np.eye(64), pull)
        np.testing.assert_allclose(flat(lane(results.variables, place)), FLAT + step, rtol=1e-8, atol=1e-10)
        assert float(results.stats["step_norm"][place]) == pytest.approx(np.linalg.norm(step))


def test_single_precision_keeps_the_inverse_close():
    with jax.enable_x64(False):
        rows, variables = jax.tree.map(lambda x: jnp.asarray(x, np.float32), (ROWS.inputs, VARIABLES))
        examples = ju.Examples(rows, jnp.asarray(ROWS.targets))
        weights = jnp.asarray(KEPT, np.float32)
        (found,) = jax.jit(lambda v: inverse_blocks(MODEL, v, examples, weights, damping=1e-3, block_size=64))(variables)
        assert found.dtype == jnp.float32
    expected = np.linalg.inv(explicit("empirical", KEPT) + 1e-3 * np.eye(64))
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("options", [{"damping": 0.0}, {"alpha": -1.0}, {"block_size": 0}, {"chunk": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ju.woodfisher(MODEL, **options)
