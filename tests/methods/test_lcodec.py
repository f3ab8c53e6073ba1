"""The dependence statistic against its definition, the choice of units, and the step on them alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.lcodec import conditional_dependence, dependence, foci, perturbed
from tests.curvature.toys import explicit, flat, gradients
from tests.problems import blobs, lane, network, trained

KEY = jax.random.key(3)
DATA, MODEL, VARIABLES = blobs(), network(), trained("lcodec")
REQUEST = lane(ju.from_indices(DATA, [[3, 4, 5]]), 0)
RNG = np.random.default_rng(0)


def by_hand(z, y, given=None):
    """Both statistics, in loops over rows."""
    count = len(y)
    ranks, above = np.array([np.sum(y <= v) for v in y]), np.array([np.sum(y >= v) for v in y])

    def nearest(x, i):
        gaps = np.sum((x - x[i]) ** 2, axis=1)
        gaps[i] = np.inf
        return int(np.argmin(gaps))

    if given is None:
        near = [nearest(z, i) for i in range(count)]
        top = sum(count * min(ranks[i], ranks[near[i]]) - above[i] ** 2 for i in range(count))
        return top / sum(a * (count - a) for a in above)
    both = np.concatenate([given, z], axis=1)
    n, m = ([nearest(x, i) for i in range(count)] for x in (given, both))
    top = sum(min(ranks[i], ranks[m[i]]) - min(ranks[i], ranks[n[i]]) for i in range(count))
    return top / sum(ranks[i] - min(ranks[i], ranks[n[i]]) for i in range(count))


def counts(y):
    return jnp.asarray([np.sum(y <= v) for v in y]), jnp.asarray([np.sum(y >= v) for v in y])


def near_in(x):
    distances = np.sum((x[:, None] - x[None]) ** 2, axis=-1)
    return jnp.asarray(np.argmin(distances + np.diag(np.full(len(x), np.inf)), axis=1))


@pytest.mark.parametrize("ties", [False, True])
def test_dependence_is_as_defined(ties):
    x, z = RNG.normal(size=(60, 1)), RNG.normal(size=(60, 2))
    y = np.maximum(x[:, 0] + z[:, 1] ** 2, 1 if ties else -np.inf)
    ranks, above = counts(y)
    assert float(dependence(ranks, above, near_in(z))) == pytest.approx(by_hand(z, y), rel=1e-5)
    both = np.concatenate([x, z], axis=1)
    found = conditional_dependence(ranks, near_in(x), near_in(both))
    assert float(found) == pytest.approx(by_hand(z, y, x), rel=1e-5)


def test_dependence_is_1_for_functions_and_0_for_strangers():
    z, stranger = RNG.normal(size=(2, 1000, 1))
    y = np.sin(2 * z[:, 0])
    ranks, above = counts(y)
    assert float(dependence(ranks, above, near_in(z))) > 0.97
    assert abs(float(dependence(ranks, above, near_in(stranger)))) < 0.1
    assert float(conditional_dependence(ranks, near_in(z), near_in(np.concatenate([z, stranger], axis=1)))) < 0
    constant = jnp.full(5, 5)
    assert float(dependence(constant, constant, jnp.array([1, 0, 1, 2, 3]))) == 0
    assert float(conditional_dependence(constant, *[jnp.array([1, 0, 1, 2, 3])] * 2)) == 0


def test_what_the_loss_depends_on_is_chosen():
    z = RNG.normal(size=(400, 9)).astype(np.float32)
    losses = z[:, 2] + 2 * np.abs(z[:, 7])
    scaled = z * np.geomspace(1e-2, 1e2, 9, dtype=np.float32)  # spreads do not count
    scaled[:, 4] = 3.0
    chosen = foci(jnp.asarray(scaled), jnp.asarray(losses), max_units=2)
    assert np.flatnonzero(chosen).tolist() == [2, 7]
    assert int(foci(jnp.asarray(scaled), jnp.asarray(losses), max_units=20).sum()) < 9
    assert not jnp.any(foci(jnp.zeros((10, 3)), jnp.arange(10.0), max_units=2))


def test_rows_are_perturbed_in_turn_whatever_the_padding():
    part = ju.Weighted(jax.tree.map(lambda x: x[:5], DATA.train), jnp.array([0.0, 1, 0, 1, 0]), jnp.arange(5))
    seen = perturbed(part, 4, 0.0, KEY)
    assert jnp.array_equal(seen.inputs, DATA.train.inputs[jnp.array([1, 3, 1, 3])])
    packed = jax.tree.map(lambda x: x[jnp.array([1, 3])], part)
    noisy, same = (perturbed(p, 200, 0.5, KEY) for p in (part, packed))
    assert jnp.array_equal(noisy.inputs, same.inputs)
    assert float(jnp.std(noisy.inputs - perturbed(part, 200, 0.0, KEY).inputs)) == pytest.approx(0.5, rel=0.1)
    whole = part._replace(examples=part.examples._replace(inputs=jnp.ones((5, 2), int)))
    with pytest.raises(TypeError, match="no floating-point"):
        perturbed(whole, 4, 0.1, KEY)


def test_the_step_solves_on_the_chosen_units_and_leaves_the_rest():
    unlearn = jax.jit(ju.lcodec(MODEL, damping=0.1, draws=60, max_units=3, rtol=1e-5, max_steps=200))
    result = ju.check(unlearn(VARIABLES, DATA, REQUEST, KEY))
    assert 0 < int(result.stats["units"]) <= 3
    step = jax.tree.map(lambda x, y: np.asarray(x - y, float), result.variables.params, VARIABLES.params)
    moved = {name: np.any(x != 0, axis=0) for name, x in step.items()}  # by units
    assert int(moved["body"].sum() + moved["head"].sum()) == int(result.stats["units"])
    assert np.array_equal(moved["body"], moved["bias"])
    kept = np.ones(60)
    kept[[3, 4, 5]] = 0
    inside = flat({name: np.broadcast_to(moved[name], x.shape) for name, x in step.items()}).astype(bool)
    matrix = explicit("ggn", kept)[np.ix_(inside, inside)] + 0.1 * np.eye(inside.sum())
    expected = np.linalg.solve(matrix, gradients()[[3, 4, 5]].sum(axis=0)[inside] / 57)
    np.testing.assert_allclose(flat(step)[inside], expected, rtol=1e-3, atol=1e-6)


def test_bad_input_is_refused():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"damping": -1.0}, "damping"),
        ({"damping": 0.1, "draws": 2}, "draws"),
        ({"damping": 0.1, "max_units": 0}, "max_units"),
        ({"damping": 0.1, "solver": "representation"}, "chosen units alone"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            ju.lcodec(MODEL, **options)


def test_units_of_groups_are_units_and_kernels_in_two_forms_are_refused():
    def forward(variables, inputs, *, train=False, key=None):
        x, p = inputs.reshape(-1, 2, 2), variables.params
        hidden = jnp.tanh(jnp.einsum("bhk,hkc->bhc", x, p["heads"]) + p["bias"])
        last = p["o"] if "o" in p else p["heads"].swapaxes(1, 2)
        return ju.Outputs(jnp.einsum("bhc,hck->bk", hidden, last))

    model = ju.Model(forward, ju.losses.cross_entropy)
    rng = np.random.default_rng(0)
    params = {"heads": rng.normal(size=(2, 2, 3)), "bias": rng.normal(size=(2, 3)), "o": rng.normal(size=(2, 3, 3))}
    params = {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}
    data = DATA._replace(train=DATA.train._replace(inputs=jnp.tile(DATA.train.inputs, 2)[:, :4]))
    unlearn = jax.jit(ju.lcodec(model, damping=0.1, draws=60, max_units=3, max_steps=200))
    result = unlearn(ju.Variables(params), data, REQUEST, KEY)
    moved = {name: np.asarray(x != params[name]) for name, x in result.variables.params.items()}
    units = moved["heads"].any(axis=1)
    assert 0 < int(result.stats["units"]) == int(units.sum() + moved["o"].any(axis=(0, 1)).sum())
    np.testing.assert_array_equal(moved["bias"], units)
    tied = {name: x for name, x in params.items() if name != "o"}
    with pytest.raises(ValueError, match="parameters heads are used in several forms or in a loop"):
        jax.eval_shape(unlearn, ju.Variables(tied), data, REQUEST, KEY)
