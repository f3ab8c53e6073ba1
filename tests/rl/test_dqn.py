"""One update against its equation, and a map that is learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import rl
from tests.problems import distance
from tests.rl.worlds import WORLD, corridors, linear, table

MAPS = corridors()


def test_an_update_is_a_step_towards_reward_and_best_value():
    one = jax.tree.map(lambda x: x[:1], MAPS)
    values = jax.random.normal(jax.random.key(0), (2, 4, 4))
    train = rl.dqn(table(), WORLD, optax.sgd(0.1), num_steps=1, capacity=1, batch_size=3, epsilon=(0.0, 0.0))
    after, stats = jax.jit(train)(ju.Variables({"values": values}), one, jnp.ones(1), jax.random.key(1))
    action = int(jnp.argmax(values[0, 3]))
    following = int(one.transitions[0, 3, action])
    wanted = float(-5 + 0.99 * values[0, following].max())
    expected = values.at[0, 3, action].add(0.2 * (wanted - values[0, 3, action]))
    np.testing.assert_allclose(after.params["values"], expected, rtol=1e-5)
    assert float(stats["loss"][0]) == pytest.approx(float((wanted - values[0, 3, action]) ** 2), rel=1e-5)


@pytest.mark.slow
def test_environments_without_weight_are_not_learnt_and_many_runs_equal_single_ones():
    train = rl.dqn(table(), WORLD, optax.sgd(0.5), num_steps=60, capacity=40, horizon=9)
    start, keys = ju.Variables({"values": jnp.zeros((2, 4, 4))}), jax.random.split(jax.random.key(2))
    weights = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    together, _ = jax.jit(jax.vmap(train, (None, None, 0, 0)))(start, MAPS, weights, keys)
    values = together.params["values"]
    assert jnp.all(values[0, 1] == 0)
    assert jnp.any(values[1, 1] != 0)
    alone = jax.jit(train)(start, MAPS, weights[1], keys[1])[0]
    assert distance(alone.params["values"], values[1]) < 1e-3


def test_what_does_not_count_may_be_nan():
    """Rewards and observations of an environment without weight, and what is seen behind an end."""

    def reset(key, spoilt):
        return jax.random.normal(key, (2,)), jnp.int32(0)

    def step(key, state, action, spoilt):
        obs, done = jax.random.normal(key, (2,)), state >= 2
        obs = jnp.where(done | spoilt, jnp.nan, obs)
        return obs, state + 1, jnp.where(spoilt, jnp.nan, 1.0), done, {}

    agent = ju.Model(lambda v, obs, train=False, key=None: ju.Outputs(obs @ v.params["w"]), ju.losses.squared_error)
    train = rl.dqn(agent, rl.Environment(reset, step, 2), optax.sgd(0.1), num_steps=12, capacity=7, batch_size=5)
    start, weights = ju.Variables({"w": jnp.zeros((2, 2))}), jnp.array([1.0, 0.0])
    learnt, stats = jax.jit(train)(start, jnp.array([False, True]), weights, jax.random.key(0))
    assert jnp.all(jnp.isfinite(learnt.params["w"]))
    assert jnp.all(jnp.isfinite(stats["loss"]))
    assert jnp.any(learnt.params["w"] != 0)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="discount must lie in"):
        rl.dqn(table(), WORLD, optax.sgd(0.1), num_steps=3, discount=1.1)
    train = rl.dqn(table(), WORLD, optax.sgd(0.1), num_steps=3, capacity=1)
    with pytest.raises(ValueError, match="at least the number of environments, 2, got 1"):
        jax.eval_shape(train, ju.Variables({"values": jnp.zeros((2, 4, 4))}), MAPS, jnp.ones(2), jax.random.key(0))


@pytest.mark.slow
def test_a_small_map_is_learnt():
    grid = rl.grid_map(jnp.array([[False, False, False], [False, True, False], [True, False, False]]), (2, 1), (0, 0))
    anywhere = jax.tree.map(lambda x: x[None], grid._replace(starts=rl.open_cells(grid)))
    model, start = linear(9)
    train = rl.dqn(model, WORLD, optax.adam(2.0), num_steps=1500, horizon=20, target_rate=0.05)
    learnt, stats = jax.jit(train)(start, anywhere, jnp.ones(1), jax.random.key(0))
    best, opened = rl.optimal_values(grid), np.asarray(rl.open_cells(grid)) > 0
    seen = jax.vmap(lambda cell: WORLD.observe(cell, grid))(jnp.arange(9))
    actions = np.asarray(jnp.argmax(model.forward(learnt, seen).logits, axis=1))
    chosen = np.asarray(best)[np.arange(9), actions]
    assert (np.abs(chosen - best.max(axis=1)) < 1e-3)[opened].all()
    assert stats["finished"][-300:].sum() > stats["finished"][:300].sum()
