"""Parts of a request by memorisation: which rows are in them, what is retained, and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.problems import PROBLEM, blobs, distance, lane, linear_regression, network, nudge, regression_data, trained

KEY = jax.random.key(0)
DATA, MODEL = blobs(), network()
VARIABLES = MODEL.init(KEY)
REQUEST = lane(ju.from_indices(DATA, [[3, 14, 15, 26, 5, 35]], capacity=8), 0)
SCORES = jnp.asarray(np.random.default_rng(0).permutation(60), jnp.float32)
UNLEARN = nudge()


def parts_of(request, scores=SCORES, count=3, data=DATA):
    return ju.rum([None] * count, scores)(VARIABLES, data, request, KEY).stats["part"]


def test_exact_removal_of_all_parts_is_that_of_the_whole():
    remove = ju.convex.newton_removal(PROBLEM, steps=3)
    start = trained("newton_removal")
    whole = jax.jit(remove)(start, DATA, REQUEST, KEY)
    # The last part retains what the whole request retains, and three Newton steps reach the optimum from anywhere near.
    by_parts = jax.jit(ju.rum([remove, remove], SCORES))(start, DATA, REQUEST, KEY)
    assert distance(whole.variables, by_parts.variables) < 1e-6


def test_parts_are_equal_ranges_of_memorisation():
    part, rows = np.asarray(parts_of(REQUEST)), np.asarray(REQUEST.indices)[:6]
    order = rows[np.argsort(np.asarray(SCORES)[rows])]
    assert [sorted(rows[part[:6] == place]) for place in range(3)] == [sorted(order[2 * p : 2 * p + 2]) for p in range(3)]
    assert part[6:].tolist() == [-1, -1]


def test_parts_without_a_method_leave_the_model_and_their_rows_are_in_no_retain_set():
    nothing = ju.rum([None, None], SCORES)(VARIABLES, DATA, REQUEST, KEY)
    assert distance(nothing.variables, VARIABLES) == 0
    rows = REQUEST.indices[:6]
    low = rows[np.argsort(np.asarray(SCORES)[np.asarray(rows)])[:3]]
    broken = DATA._replace(train=DATA.train._replace(inputs=DATA.train.inputs.at[low].set(jnp.nan)))
    run = jax.jit(ju.rum([None, UNLEARN], SCORES))
    result = run(VARIABLES, broken, REQUEST, KEY)
    assert int(result.status) == ju.Status.OK
    assert distance(result.variables, run(VARIABLES, DATA, REQUEST, KEY).variables) == 0


@pytest.fixture(scope="module")
def requests():
    return ju.from_indices(DATA, [[3, 14, 15, 26, 5], [40]])


def test_one_part_is_the_method_itself():
    alone = jax.jit(UNLEARN)(VARIABLES, DATA, REQUEST, jax.random.split(KEY, 1)[0])
    assert distance(jax.jit(ju.rum([UNLEARN], SCORES))(VARIABLES, DATA, REQUEST, KEY).variables, alone.variables) == 0


def test_batched_equals_single(requests):
    keys, method = jax.random.split(KEY, 2), ju.rum([UNLEARN, None, UNLEARN], SCORES)
    many = jax.jit(ju.batched(method, chunk=2))(VARIABLES, DATA, requests, keys)
    single = jax.jit(method)
    for position in range(2):
        one = single(VARIABLES, DATA, lane(requests, position), keys[position])
        assert distance(lane(many.variables, position), one.variables) < 1e-6
    assert {name.split("/")[0] for name in many.stats} == {"part", "0", "2"}


def test_the_order_of_slots_does_not_matter(requests):
    turned = jax.tree.map(lambda x: x[::-1], lane(requests, 0))
    assert parts_of(turned, count=2)[::-1].tolist() == parts_of(lane(requests, 0), count=2).tolist()


def test_the_status_names_empty_and_invalid_requests():
    run = ju.rum([None], SCORES)
    assert int(run(VARIABLES, DATA, ju.empty_request(4), KEY).status) == ju.Status.EMPTY_REQUEST
    gone = ju.remove(DATA, REQUEST)
    assert int(run(VARIABLES, gone, REQUEST, KEY).status) == ju.Status.INVALID_ROWS


def test_other_scores_no_parts_and_unfinished_methods_are_refused():
    with pytest.raises(ValueError, match=r"one score per training row, shape \(60,\), got \(3,\)"):
        parts_of(REQUEST, jnp.ones(3))
    with pytest.raises(ValueError, match="needs one method or None per part"):
        ju.rum([], SCORES)
    with pytest.raises(TypeError, match=r"rum takes a finished method.*write rum\(jaxunlearn\.iterate\(unlearner"):
        ju.rum([None, ju.finetune(MODEL, optax.sgd(0.1))], SCORES)


def test_regression_by_parts_descends_for_each_part():
    data, model = regression_data(), linear_regression()
    unlearn = ju.iterate(ju.gradient_ascent(model, optax.sgd(0.01)), num_steps=1, batch_size=4)
    result = jax.eval_shape(ju.rum([unlearn, unlearn], SCORES), model.init(KEY), data, REQUEST, KEY)
    assert {name.split("/")[0] for name in result.stats} == {"part", "0", "1"}


def test_rows_without_a_score_are_the_last_part():
    rows = np.asarray(REQUEST.indices)[:6]
    part = parts_of(REQUEST, SCORES.at[rows[:2]].set(jnp.nan))[:6]
    assert sorted(part.tolist()) == [0, 0, 1, 1, 2, 2]
    assert part[:2].tolist() == [2, 2]


def test_narrow_row_numbers_and_raw_keys_are_treated_as_everywhere():
    many, scores = blobs(rows=200), jnp.arange(200.0)
    narrow = REQUEST._replace(indices=REQUEST.indices.astype(jnp.int8))
    assert int(jax.jit(ju.rum([UNLEARN, UNLEARN], scores))(VARIABLES, many, narrow, KEY).status) == ju.Status.OK
    assert parts_of(narrow, scores, data=many).tolist() == parts_of(REQUEST, scores, data=many).tolist()
    with pytest.raises(TypeError, match="key"):
        ju.rum([None], scores)(VARIABLES, many, REQUEST, jnp.zeros(2, jnp.uint32))
