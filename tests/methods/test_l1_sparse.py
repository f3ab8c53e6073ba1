"""The penalty, and how it fades."""

import jax
import jax.numpy as jnp
import pytest

from tests.methods.runs import MODEL, VARIABLES, answer, sweep_equals_single_runs
from tests.problems import distance


def test_without_penalty_it_is_finetuning():
    assert distance(answer("l1_sparse", gamma=0.0).variables, answer("finetune").variables) == 0


def test_it_adds_the_sign_and_lets_it_fade():
    plain = answer("finetune", steps=1).variables.params
    first = answer("l1_sparse", gamma=0.5, steps=1)
    expected = jax.tree.map(lambda p, w: p - 0.1 * 0.5 * jnp.sign(w), plain, VARIABLES.params)
    assert distance(first.variables.params, expected) < 1e-6
    assert float(first.stats["loss"][0]) == float(answer("finetune", steps=1).stats["loss"][0])  # that without the penalty


@pytest.mark.parametrize("steps", [6, 3])
def test_nothing_but_the_penalty_moves_a_model_whose_loss_is_flat(steps):
    start = jax.tree.map(lambda x: jnp.where(x > 0, x + 1, x - 1), VARIABLES)
    shrunk = answer("l1_sparse", start, gamma=0.2, steps=steps, static={"model": FLAT}).variables.params
    faded = sum(1 - step / steps for step in range(steps))
    assert distance(shrunk, jax.tree.map(lambda w: w - 0.1 * 0.2 * faded * jnp.sign(w), start.params)) < 1e-6


def test_a_parameter_at_zero_stays_there():
    start = jax.tree.map(jnp.zeros_like, VARIABLES)
    assert distance(answer("l1_sparse", start, gamma=0.2, static={"model": FLAT}).variables, start) == 0


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("l1_sparse", gamma=[0.01, 0.1])


FLAT = MODEL._replace(loss=lambda outputs, examples: 0 * outputs.logits[:, 0])
