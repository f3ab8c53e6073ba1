"""The noise is standard normal times sigma."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

import jaxunlearn as ju
from jaxunlearn import convex
from tests.problems import PROBLEM, blobs, distance, lane, network

KEY = jax.random.key(3)
DATA, MODEL = blobs(), network()
VARIABLES = MODEL.init(KEY)
REQUEST = lane(ju.from_indices(DATA, [[1]]), 0)


@jax.jit
def perturbed(sigma, keys):
    return jax.vmap(lambda key: ju.output_perturbation(MODEL, sigma=sigma)(VARIABLES, DATA, REQUEST, key))(keys)


def test_perturbation_is_standard_normal_times_sigma():
    results = perturbed(0.3, jax.random.split(KEY, 4000))
    for before, after in zip(jax.tree.leaves(VARIABLES), jax.tree.leaves(results.variables), strict=True):
        noise = (after - before) / 0.3
        count = noise.size
        assert abs(float(noise.mean())) < 4 / count**0.5
        assert abs(float(noise.var()) - 1) < 4 * (2 / count) ** 0.5
    leaves = [jnp.ravel(x[0] - y) for x, y in zip(*map(jax.tree.leaves, (results.variables, VARIABLES)), strict=True)]
    assert float(results.stats["noise_norm"][0]) == pytest.approx(float(jnp.linalg.norm(jnp.concatenate(leaves))), rel=1e-5)


def test_without_noise_nothing_changes_and_sigma_is_a_factor():
    keys = jax.random.split(KEY, 4000)
    assert distance(lane(perturbed(0.0, keys).variables, 0), VARIABLES) == 0
    one, two = (jax.tree.map(lambda x, y: x[0] - y, perturbed(sigma, keys).variables, VARIABLES) for sigma in (0.1, 0.2))
    assert distance(jax.tree.map(lambda x: 2 * x, one), two) < 1e-6
    fixed = ju.output_perturbation(MODEL, sigma=0.2)(VARIABLES, DATA, REQUEST, keys[0])  # a constant of the program
    assert distance(jax.tree.map(jnp.subtract, fixed.variables, VARIABLES), two) < 1e-6


@pytest.mark.parametrize("compile", [jax.jit, lambda function: function], ids=["jit", "no jit"])
def test_noise_goes_onto_a_certified_removal_in_a_session_of_float32(compile):
    """64 draws of 12 weights, each of which is the removal's plus noise of the scale that was asked for."""
    problem, data = PROBLEM, blobs()
    optimum, request = convex.fit(problem, data, row_norm=None), lane(ju.from_indices(data, [[1, 2]]), 0)
    removal = convex.newton_removal(problem)
    exact = jax.jit(removal)(optimum, data, request, KEY).variables.params["kernel"]
    noisy = ju.then(removal, ju.output_perturbation(problem.model, sigma=0.1))
    if compile is jax.jit:
        many = ju.batched(noisy, in_axes=(None, None, None, 0), chunk=64)
        drawn = jax.jit(many)(optimum, data, request, jax.random.split(KEY, 64)).variables.params["kernel"]
    else:
        drawn = np.stack(
            [noisy(optimum, data, request, jax.random.key(place)).variables.params["kernel"] for place in range(3)]
        )
    assert drawn.dtype == np.float64
    z = (np.asarray(drawn) - np.asarray(exact)) / 0.1
    assert kstest(z.ravel(), "norm").pvalue > 0.01
    assert len(np.unique(z)) == z.size
