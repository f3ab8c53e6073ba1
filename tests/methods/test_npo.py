"""Limits in beta, and the damping of single rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import MODEL, VARIABLES, answer, descended, forget_losses, one_step, sweep_equals_single_runs
from tests.problems import distance


def test_with_small_beta_it_is_gradient_difference():
    small = answer("npo", beta=1e-5, retain_weight=3.0, rate=0.025).variables
    assert distance(small, answer("gradient_difference", alpha=0.75).variables) < 1e-4
    alone = answer("npo", beta=1e-5, retain_weight=0.0).variables
    assert distance(alone, answer("gradient_ascent").variables) < 1e-4


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_first_step_is_ascent_whatever_beta_is(beta):
    first = answer("npo", beta=beta, retain_weight=0.0, steps=1).variables
    assert distance(first, answer("gradient_ascent", steps=1).variables) < 1e-6


def test_each_row_is_damped_by_its_own_likelihood_ratio():
    nudged = jax.tree.map(lambda x: x - 0.4, VARIABLES)
    params, _, stats = one_step(ju.npo(MODEL, optax.sgd(0.1), beta=1.5, retain_weight=0.0), nudged)
    log_ratio = forget_losses(VARIABLES.params) - forget_losses(nudged.params)
    ratio = jnp.exp(1.5 * log_ratio)
    damping = 2 * ratio / (1 + ratio)
    expected = descended(nudged.params, lambda params: -jnp.mean(damping * forget_losses(params)))
    assert np.ptp(damping) > 0.1
    assert distance(params, expected) < 1e-6
    assert float(stats["log_ratio"]) == pytest.approx(float(log_ratio.mean()), rel=1e-5)


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("npo", beta=[0.2, 2.0], retain_weight=[1.0, 0.5])


@pytest.mark.parametrize("setting", ["beta", "retain_weight"])
def test_what_is_no_number_is_named(setting):
    with pytest.raises(TypeError, match=f"{setting} must be a number in .*, got None"):
        ju.npo(MODEL, optax.sgd(0.1), **{setting: None})
