"""Ascent is descent on the forget set with the sign flipped."""

import jax
import jax.numpy as jnp
import pytest

from tests.methods.runs import VARIABLES, answer, forget_losses
from tests.problems import distance


def test_it_climbs_the_loss_of_the_forget_set():
    # One batch holds the whole request.
    result = answer("gradient_ascent")
    params = VARIABLES.params
    climb = jax.jit(jax.grad(lambda params: jnp.mean(forget_losses(params))))
    for _ in range(6):
        params = jax.tree.map(lambda p, g: p + 0.1 * g, params, climb(params))
    assert distance(result.variables.params, params) < 1e-5
    assert float(result.stats["loss"][0]) == pytest.approx(float(jnp.mean(forget_losses(VARIABLES.params))), rel=1e-5)
