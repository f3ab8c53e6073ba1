"""Oracle matching and RUM: identities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.problems import PROBLEM, blobs, distance, lane, linear_regression, network, regression_data, trained

KEY = jax.random.key(0)
DATA, MODEL = blobs(), network()
RETRAIN = ju.retrain(MODEL, optax.sgd(0.1), num_steps=3, batch_size=8)
REQUEST = lane(ju.from_indices(DATA, [[3, 14, 15, 26, 5, 35]], capacity=8), 0)


def identity(variables, data, request, key):
    return ju.Result(variables, jnp.int32(0), {}, {})


def match(**options):
    return jax.jit(ju.oracle_matching(MODEL, optax.sgd(0.02), num_steps=40, batch_size=8, **options))


def test_a_model_that_is_its_own_oracle_stays():
    variables = MODEL.init(KEY)
    result = match(oracle=identity, num_oracles=2)(variables, DATA, REQUEST, KEY)
    assert distance(result.variables, variables) < 1e-6
    np.testing.assert_allclose(result.stats["loss"], 0, atol=1e-10)


def test_outputs_move_to_the_mean_of_the_oracles():
    variables = MODEL.init(jax.random.key(1))
    other = MODEL.init(jax.random.key(2))
    result = match(oracle=lambda variables, data, request, key: identity(other, data, request, key), num_oracles=1)(
        variables, DATA, REQUEST, KEY
    )

    def gap(one, two):
        logits = [ju.audit.predict(MODEL, x, DATA.train) for x in (one, two)]
        centred = [x - x.mean(axis=1, keepdims=True) for x in logits]
        return float(jnp.mean((centred[0] - centred[1]) ** 2))

    assert gap(result.variables, other) < 0.3 * gap(variables, other)


def test_alpha_one_reads_the_distance_on_retained_rows_only():
    variables = MODEL.init(KEY)
    result = match(oracle=RETRAIN, num_oracles=2, alpha=1.0)(variables, DATA, REQUEST, KEY)
    np.testing.assert_allclose(result.stats["loss"], result.stats["retain_distance"], rtol=1e-6)


def test_oracle_matching_refuses_bad_numbers():
    with pytest.raises(ValueError, match="num_oracles must be"):
        match(oracle=RETRAIN, num_oracles=0)
    with pytest.raises(ValueError, match="alpha must lie"):
        match(oracle=RETRAIN, alpha=2.0)


# RUM


def scored(data, scores=None):
    rows = data.present.shape[0]
    scores = jnp.asarray(np.random.default_rng(0).permutation(rows), jnp.float32) if scores is None else scores
    return data._replace(extra={**data.extra, "memorisation": scores})


SCORED = scored(DATA)


def test_exact_removal_of_all_parts_is_that_of_the_whole():
    remove = ju.newton_removal(PROBLEM, steps=3)
    start = trained("newton_removal")
    whole = jax.jit(remove)(start, SCORED, REQUEST, KEY)
    # The last part retains what the whole request retains, and three Newton steps reach the optimum from anywhere near.
    by_parts = jax.jit(ju.rum([remove, remove, remove]))(start, SCORED, REQUEST, KEY)
    assert distance(whole.variables, by_parts.variables) < 1e-6


def test_parts_are_equal_ranges_of_memorisation():
    result = ju.rum([None, None, None])(MODEL.init(KEY), SCORED, REQUEST, KEY)
    part, rows = np.asarray(result.stats["part"]), np.asarray(REQUEST.indices)[:6]
    order = rows[np.argsort(np.asarray(SCORED.extra["memorisation"])[rows])]
    assert [sorted(rows[part[:6] == place]) for place in range(3)] == [sorted(order[2 * p : 2 * p + 2]) for p in range(3)]
    assert part[6:].tolist() == [-1, -1]


def test_null_parts_leave_the_model_and_their_rows_are_retained_by_nobody():
    variables = MODEL.init(KEY)
    nothing = ju.rum([None, None])(variables, SCORED, REQUEST, KEY)
    assert distance(nothing.variables, variables) == 0
    rows = REQUEST.indices[:6]
    low = rows[np.argsort(np.asarray(SCORED.extra["memorisation"])[np.asarray(rows)])[:3]]
    broken = SCORED._replace(train=SCORED.train._replace(inputs=SCORED.train.inputs.at[low].set(jnp.nan)))
    unlearn = ju.finetune(MODEL, optax.sgd(0.1), num_steps=5, batch_size=16)
    run = jax.jit(ju.rum([None, unlearn]))
    assert int(run(variables, broken, REQUEST, KEY).status) == ju.Status.OK
    assert distance(run(variables, broken, REQUEST, KEY).variables, run(variables, SCORED, REQUEST, KEY).variables) == 0


def test_one_part_is_the_method_itself():
    unlearn = ju.gradient_difference(MODEL, optax.sgd(0.1), num_steps=3, batch_size=4)
    variables = MODEL.init(KEY)
    alone = jax.jit(unlearn)(variables, SCORED, REQUEST, jax.random.split(KEY, 1)[0])
    assert distance(jax.jit(ju.rum([unlearn]))(variables, SCORED, REQUEST, KEY).variables, alone.variables) == 0


def test_batched_equals_single_and_the_order_of_slots_does_not_matter():
    unlearn = ju.gradient_difference(MODEL, optax.sgd(0.1), num_steps=3, batch_size=4)
    variables, keys = MODEL.init(KEY), jax.random.split(KEY, 2)
    requests = ju.from_indices(DATA, [[3, 14, 15, 26, 5], [40]])
    many = jax.jit(ju.batched(ju.rum([unlearn, None, unlearn]), chunk=2))(variables, SCORED, requests, keys)
    for position in range(2):
        one = jax.jit(ju.rum([unlearn, None, unlearn]))(variables, SCORED, lane(requests, position), keys[position])
        assert distance(lane(many.variables, position), one.variables) < 1e-6
    turned = jax.tree.map(lambda x: x[::-1], lane(requests, 0))
    part = ju.rum([None, None])(variables, SCORED, turned, KEY).stats["part"]
    assert part[::-1].tolist() == ju.rum([None, None])(variables, SCORED, lane(requests, 0), KEY).stats["part"].tolist()


def test_the_status_names_empty_and_invalid_requests():
    run, variables = ju.rum([None]), MODEL.init(KEY)
    assert int(run(variables, SCORED, ju.empty_request(4), KEY).status) == ju.Status.EMPTY_REQUEST
    gone = ju.remove(SCORED, REQUEST)
    assert int(run(variables, gone, REQUEST, KEY).status) == ju.Status.INVALID_ROWS


def test_rum_refuses_missing_scores_and_no_parts():
    with pytest.raises(ValueError, match=r"needs data\.extra"):
        ju.rum([None])(MODEL.init(KEY), DATA, REQUEST, KEY)
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        ju.rum([None])(MODEL.init(KEY), scored(DATA, jnp.ones(3)), REQUEST, KEY)
    with pytest.raises(ValueError, match="needs an unlearner or None"):
        ju.rum([])


def test_regression_by_parts_descends_for_each_part():
    data, model = scored(regression_data()), linear_regression()
    unlearn = partial(ju.gradient_ascent, model, optax.sgd(0.01), num_steps=1, batch_size=4)()
    result = jax.jit(ju.rum([unlearn, unlearn]))(model.init(KEY), data, REQUEST, KEY)
    assert {name.split("/")[0] for name in result.stats} == {"part", "0", "1"}


def test_rows_without_a_score_are_the_last_part():
    rows = np.asarray(REQUEST.indices)[:6]
    unknown = scored(DATA, SCORED.extra["memorisation"].at[rows[:2]].set(jnp.nan))
    part = ju.rum([None, None, None])(MODEL.init(KEY), unknown, REQUEST, KEY).stats["part"][:6]
    assert sorted(part.tolist()) == [0, 0, 1, 1, 2, 2]
    assert part[:2].tolist() == [2, 2]


def test_narrow_row_numbers_and_raw_keys_are_treated_as_everywhere():
    many = scored(blobs(rows=200))
    narrow = REQUEST._replace(indices=REQUEST.indices.astype(jnp.int8))
    unlearn = ju.gradient_difference(MODEL, optax.sgd(0.1), num_steps=1, batch_size=4)
    assert int(ju.rum([unlearn, unlearn])(MODEL.init(KEY), many, narrow, KEY).status) == ju.Status.OK
    with pytest.raises(TypeError, match="key"):
        ju.rum([None])(MODEL.init(KEY), many, REQUEST, jnp.zeros(2, jnp.uint32))
