"""An attacker on agents that know all, and nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import rl

MAPS = jax.jit(jax.vmap(lambda key: rl.random_map(key, size=5, obstacles=4)))(jax.random.split(jax.random.key(0), 6))
KEYS = jax.random.split(jax.random.key(1), 6)


@jax.jit
def search(policies):
    def one(policy, grid, key):
        return rl.environment_inference(policy, grid, key, generations=40, population=40)

    return jax.vmap(one)(policies, MAPS, KEYS)


@pytest.mark.slow
def test_the_map_shows_in_what_the_best_agent_does_and_not_in_random_actions():
    values = jax.vmap(rl.optimal_values)(MAPS)
    best = values >= values.max(axis=2, keepdims=True) - 1e-3
    knows = search(best / best.sum(axis=2, keepdims=True))
    assert knows.score.mean() > 0.3
    assert np.all(knows.obstacles.sum(axis=(1, 2)) == 4)
    nothing = search(jnp.full((6, 25, 4), 0.25))
    np.testing.assert_array_equal(nothing.score, 0)
    np.testing.assert_allclose(nothing.fitness, 0, atol=1e-6)
    assert nothing.f1.mean() < 0.45  # 4 of 23 cells are obstacles


def test_an_odd_population_is_refused():
    with pytest.raises(ValueError, match="population must be even"):
        rl.environment_inference(jnp.ones((25, 4)), jax.tree.map(lambda x: x[0], MAPS), KEYS[0], population=5)
