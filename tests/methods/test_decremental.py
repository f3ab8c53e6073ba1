"""A table of action values, whose answer is known, and the derivative at 0."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import MODEL, REQUEST, VARIABLES, answer, descended, one_step, sweep_equals_single_runs
from tests.problems import NUM_FEATURES, distance, lane, normalized_network

STATES, ACTIONS, STEPS = 12, 3, 600


def table():
    """A model in which every state has its own values."""

    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(variables.params["values"][inputs])

    return ju.Model(forward, lambda outputs, examples: jnp.mean((outputs.logits - examples.targets[:, None]) ** 2, axis=1))


def tabular(dtype=jnp.float32):
    values = 2 * jax.random.normal(jax.random.key(0), (STATES, ACTIONS))
    data = ju.training_data(jnp.arange(STATES), jnp.max(values, axis=1))
    return ju.Variables({"values": values.astype(dtype)}), data


@cache
def program():
    method = ju.decremental(table(), optax.sgd(optax.linear_schedule(0.2, 0.0, STEPS)))
    return jax.jit(ju.iterate(method, STEPS, batch_size=4, retain_batch_size=8))


def forgotten(rows, variables=None):
    before, data = tabular() if variables is None else (variables, tabular()[1])
    request = lane(ju.from_indices(data, [rows], capacity=STATES), 0) if rows else ju.empty_request(STATES)
    return before, program()(before, data, request, jax.random.key(1))


def test_values_of_the_revoked_states_go_to_zero_and_no_other_one_moves():
    rows = [1, 5, 7]
    variables, result = forgotten(rows)
    after, others = result.variables.params["values"], np.setdiff1d(np.arange(STATES), rows)
    assert jnp.max(jnp.abs(after[jnp.array(rows)])) < 2e-3
    np.testing.assert_array_equal(after[others], variables.params["values"][others])
    assert result.stats["drift"].max() == 0
    first = np.abs(variables.params["values"][np.array(rows)]).max(axis=1)
    assert first.min() <= result.stats["largest_value"][0] <= first.max()


def test_an_empty_request_changes_nothing():
    variables, result = forgotten([])
    assert distance(variables, result.variables) == 0
    assert result.status == ju.Status.EMPTY_REQUEST


def test_retained_values_have_no_slope_where_the_agent_is_the_trained_one():
    alone = answer("decremental", retain_weight=0.0, steps=1).variables
    assert distance(answer("decremental", retain_weight=5.0, steps=1).variables, alone) == 0
    assert distance(alone, VARIABLES) > 1e-4


def test_a_step_descends_on_both_terms():
    nudged = jax.tree.map(lambda x: x + 0.3, VARIABLES)
    params, batch, stats = one_step(ju.decremental(MODEL, optax.sgd(0.1), retain_weight=2.0), nudged)
    kept, gone = batch.retain.examples.inputs, batch.forget.examples.inputs

    def loss(params):
        now, trained = MODEL.forward(ju.Variables(params), kept).logits, MODEL.forward(VARIABLES, kept).logits
        values = MODEL.forward(ju.Variables(params), gone).logits
        return jnp.mean(jnp.max(jnp.abs(values), axis=1)) + 2 * jnp.mean(jnp.max(jnp.abs(now - trained), axis=1))

    assert float(stats["loss"]) == pytest.approx(float(jax.jit(loss)(nudged.params)), rel=1e-5)
    assert distance(params, descended(nudged.params, loss)) < 1e-5


def test_a_value_of_exactly_zero_is_left_alone():
    zeros, result = forgotten([2, 3], jax.tree.map(jnp.zeros_like, tabular()[0]))
    assert distance(zeros, result.variables) == 0
    assert result.status == ju.Status.UNCHANGED


def test_all_rows_and_one_row():
    for rows in (list(range(STATES)), [4]):
        before, result = forgotten(rows)
        first, last = (jnp.abs(x.params["values"][jnp.array(rows)]).max(axis=1).mean() for x in (before, result.variables))
        assert last < 0.3 * first
        assert (result.status == ju.Status.NOTHING_RETAINED) == (len(rows) == STATES)


@pytest.mark.slow
def test_half_precision():
    before, result = forgotten([1, 5, 7], tabular(jnp.bfloat16)[0])
    values = result.variables.params["values"]
    assert values.dtype == jnp.bfloat16
    assert jnp.max(jnp.abs(values[jnp.array([1, 5, 7])])) < 0.2
    np.testing.assert_array_equal(values[8:], before.params["values"][8:])


def test_only_the_retain_side_moves_statistics_of_batch_norm():
    model = normalized_network()
    variables, data = model.init(jax.random.key(0)), ju.training_data(jnp.ones((20, NUM_FEATURES)), jnp.zeros(20, jnp.int32))
    unlearn = ju.iterate(ju.decremental(model, optax.sgd(0.01)), 2, batch_size=4)
    assert jax.jit(unlearn)(variables, data, REQUEST, jax.random.key(1)).variables.state["count"] == 2


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("decremental", retain_weight=[0.5, 4.0])


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="retain_weight must lie in"):
        ju.decremental(MODEL, optax.sgd(0.1), retain_weight=-1.0)
