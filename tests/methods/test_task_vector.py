"""Negation of a fine-tuning."""

import jax
import jax.numpy as jnp
import pytest

from tests.methods.runs import KEY, VARIABLES, answer, forget_losses, sweep_equals_single_runs
from tests.problems import distance, normalized_network


def test_one_step_is_gradient_ascent():
    one = answer("task_vector", scale=0.5, steps=1).variables
    assert distance(one, answer("gradient_ascent", rate=0.05, steps=1).variables) < 1e-6


def test_it_negates_the_tuning():
    tuned = VARIABLES.params
    slope = jax.jit(jax.grad(lambda params: jnp.mean(forget_losses(params))))
    for _ in range(6):
        tuned = jax.tree.map(lambda p, g: p - 0.1 * g, tuned, slope(tuned))
    expected = jax.tree.map(lambda w, v: w - 0.7 * (v - w), VARIABLES.params, tuned)
    assert distance(answer("task_vector", scale=0.7).variables.params, expected) < 1e-5
    assert distance(answer("task_vector", scale=0.0).variables, VARIABLES) == 0


def test_it_keeps_the_state():
    model = normalized_network()
    start = model.init(KEY)
    result = answer("task_vector", start, static={"model": model})
    assert distance(result.variables.state, start.state) == 0
    assert distance(result.variables.params, start.params) > 0


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("task_vector", scale=[0.3, 0.6])
