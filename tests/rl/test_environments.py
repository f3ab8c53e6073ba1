"""Episodes: what is masked, what is drawn, and environments of others."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import rl
from tests.rl.worlds import corridors

CELLS = rl.grid_world("cell")
MAPS = corridors()
KEYS = jax.random.split(jax.random.key(0), 6)


def left(key, cell):
    return jnp.int32(2)


def wander(key, cell):
    return jax.random.randint(key, (), 0, 4)


@jax.jit
def wandering(grid, key):
    return rl.rollout(CELLS, grid, wander, key, num_steps=30)


def test_nothing_counts_behind_the_end():
    one = jax.tree.map(lambda x: x[0], MAPS)
    for steps, value, finished in ((2, -10, False), (3, 90, True), (8, 90, True)):
        found = rl.rollout(CELLS, one, left, KEYS[0], num_steps=steps)
        assert (float(found.value), bool(found.finished), int(found.length)) == (value, finished, min(steps, 3))
        assert found.alive.tolist() == [True] * min(steps, 3) + [False] * (steps - min(steps, 3))
    assert found.states[:3].tolist() == [3, 2, 1]


@pytest.mark.slow
def test_side_by_side_equals_one_by_one():
    many = jax.jit(
        jax.vmap(jax.vmap(lambda grid, key: rl.rollout(CELLS, grid, wander, key, num_steps=30), (None, 0)), (0, None))
    )
    together = many(MAPS, KEYS)
    for place in range(2):
        alone = wandering(jax.tree.map(lambda x, place=place: x[place], MAPS), KEYS[3])
        for first, second in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_array_equal(first, second[place, 3])
    assert len(np.unique(together.value)) > 2


def test_episodes_start_where_the_map_says():
    one = jax.tree.map(lambda x: x[0], MAPS)
    anywhere = one._replace(starts=rl.open_cells(one))
    first = jax.vmap(lambda key: CELLS.reset(key, anywhere)[1])(jax.random.split(jax.random.key(1), 60))
    assert set(first.tolist()) == {1, 2, 3}


def test_epsilon_is_the_share_of_random_actions():
    act = jax.vmap(rl.epsilon_greedy(lambda obs: jnp.arange(4.0), 0.4), (0, None))
    actions = act(jax.random.split(jax.random.key(2), 4000), None)
    assert float(jnp.mean(actions == 3)) == pytest.approx(0.7, abs=0.03)
    assert set(actions.tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="epsilon must lie in"):
        rl.epsilon_greedy(lambda obs: obs, 1.5)


@pytest.mark.skipif(find_spec("gymnax") is None, reason="gymnax is not installed")
def test_an_environment_of_gymnax():
    import gymnax

    environment, params = gymnax.make("CartPole-v1")
    world = rl.from_gymnax(environment)
    assert world.num_actions == 2
    run = jax.jit(lambda key: rl.rollout(world, params, lambda key, obs: jnp.int32(1), key, num_steps=40))
    found = run(KEYS[0])
    assert found.finished
    assert 5 <= int(found.length) < 20  # it falls
    assert float(found.value) == int(found.length)
    model = ju.Model(lambda v, obs, train=False, key=None: ju.Outputs(obs @ v.params["w"]), ju.losses.squared_error)
    import optax

    train = rl.dqn(model, world, optax.adam(0.01), num_steps=20)
    stacked = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), params)
    _, stats = jax.jit(train)(ju.Variables({"w": jnp.zeros((4, 2))}), stacked, jnp.ones(2), KEYS[0])
    assert jnp.all(jnp.isfinite(stats["loss"]))
