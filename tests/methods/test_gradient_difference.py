"""Limits and objective of the difference."""

import jax.numpy as jnp
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import MODEL, VARIABLES, answer, descended, forget_losses, one_step, sweep_equals_single_runs
from tests.problems import distance


def test_all_weight_on_one_side_is_that_sides_method():
    assert distance(answer("gradient_difference", alpha=1.0).variables, answer("finetune").variables) < 1e-6
    assert distance(answer("gradient_difference", alpha=0.0).variables, answer("gradient_ascent").variables) < 1e-6


def test_it_follows_its_objective():
    params, batch, stats = one_step(ju.gradient_difference(MODEL, optax.sgd(0.1), alpha=0.7))
    retain = batch.retain.examples

    def retain_loss(params):
        return jnp.mean(ju.losses.cross_entropy(MODEL.forward(ju.Variables(params), retain.inputs), retain))

    expected = descended(VARIABLES.params, lambda p: 0.7 * retain_loss(p) - 0.3 * jnp.mean(forget_losses(p)))
    assert distance(params, expected) < 1e-6
    assert float(stats["loss"]) == pytest.approx(float(0.7 * stats["retain_loss"] - 0.3 * stats["forget_loss"]), rel=1e-5)
    assert float(stats["forget_loss"]) == pytest.approx(float(jnp.mean(forget_losses(VARIABLES.params))), rel=1e-5)


def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("gradient_difference", alpha=[0.5, 0.9])
