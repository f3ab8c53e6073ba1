"""One flipped transition, a learner that stands still, and requests side by side."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import rl
from tests.problems import distance
from tests.rl.worlds import WORLD, corridors, optimal, table

MAPS = corridors()
AGENT = optimal(MAPS)
LEFT, RIGHT = 2, 3


def flip():
    """An outer agent that always exchanges left and right beside the goal."""
    order = jnp.tile(jnp.arange(4), (4, 1)).at[1].set(jnp.array([0, 1, RIGHT, LEFT]))
    return rl.Attacker(lambda *_: (), lambda state, policy, key: (order[None], state), lambda state, *_: state)


@cache
def program(steps=400):
    poison = rl.environment_poisoning(WORLD, optax.sgd(1.0), model=table(), num_rounds=1, train_steps=steps, attacker=flip())
    return jax.jit(poison)


def test_one_flip_changes_the_best_action_and_no_other_environment():
    result = program()(AGENT, MAPS, jnp.int32(0), jax.random.key(0))
    before, after = AGENT.params["values"], result.variables.params["values"]
    assert int(jnp.argmax(before[0, 1])) == LEFT
    assert int(jnp.argmax(after[0, 1])) == RIGHT
    poisoned = jax.tree.map(lambda x: x[0], MAPS)._replace(transitions=result.stats["transitions"])
    assert int(jnp.argmax(rl.optimal_values(poisoned)[1])) == RIGHT
    np.testing.assert_allclose(after[0, 1, RIGHT], 100, rtol=1e-3)
    np.testing.assert_allclose(after[1], before[1], atol=1e-3)  # its values are their own targets
    assert result.status == ju.Status.OK
    assert result.stats["divergence"][0] > 1
    assert float(result.stats["changed"][0]) == 2 / 16
    worth = 100 * 0.99 - 5  # of the other map, from its start
    np.testing.assert_allclose(result.stats["retained"][0], worth, rtol=1e-2)


@pytest.mark.slow
def test_requests_side_by_side_equal_single_ones_and_strangers_change_nothing():
    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(program(), (None, None, 0, 0)))(AGENT, MAPS, jnp.array([0, 1, 2]), keys)
    assert together.status.tolist() == [ju.Status.OK, ju.Status.OK, ju.Status.INVALID_ROWS]
    alone = program()(AGENT, MAPS, jnp.int32(1), keys[1])
    values = together.variables.params["values"]
    assert distance(alone.variables.params["values"], values[1]) < 1e-2
    assert distance(values[2], AGENT.params["values"]) == 0
    assert distance(values[0, 1], AGENT.params["values"][1]) < 1e-3
    assert distance(values[1, 0], AGENT.params["values"][0]) < 1e-3


def still(attacker):
    return rl.environment_poisoning(WORLD, optax.sgd(0.0), model=table(), num_rounds=3, train_steps=2, attacker=attacker)


@pytest.mark.parametrize(
    "attacker",
    [rl.random_search(candidates=2), pytest.param(rl.outer_dqn(num_rounds=3), marks=pytest.mark.slow)],
    ids=["search", "dqn"],
)
def test_a_policy_is_at_no_distance_from_itself(attacker):
    result = jax.jit(still(attacker))(AGENT, MAPS, jnp.int32(0), jax.random.key(0))
    assert result.status == ju.Status.UNCHANGED
    np.testing.assert_array_equal(result.stats["divergence"], 0)
    np.testing.assert_allclose(result.stats["reward"], result.stats["retained"], rtol=1e-6)
    assert np.all(np.sort(result.stats["transitions"], axis=1) == np.sort(MAPS.transitions[0], axis=1))


def test_the_outer_agent_learns_which_change_pays():
    attacker = rl.outer_dqn(num_rounds=40, changes=3, epsilon=0.5, discount=0.0, learning_rate=0.01)
    policy = jnp.full((4, 4), 0.25)

    @jax.jit
    def play(key):
        begin_key, key = jax.random.split(key)

        def body(memory, number):
            keys = jax.random.split(jax.random.fold_in(key, number))
            _, memory = attacker.offer(memory, policy, keys[0])
            reward = jnp.where(memory.chosen == 2, 1.0, 0.0)
            return attacker.learn(memory, policy, policy, reward, keys[1]), memory.chosen

        return jax.lax.scan(body, attacker.begin(begin_key, 4, 4), jnp.arange(40))[1]

    chosen = np.asarray(play(jax.random.key(3)))
    assert np.mean(chosen[-15:] == 2) > 0.5


def test_settings_are_checked():
    for name, value in (("temperature", 0.0), ("discount", 1.5), ("divergence_weight", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            rl.environment_poisoning(WORLD, optax.sgd(0.1), model=table(), **{name: value})
    with pytest.raises(ValueError, match="states are numbered"):
        rl.environment_poisoning(WORLD._replace(observe=None), optax.sgd(0.1), model=table())
    assert ju.METHODS["environment_poisoning"].reconstruction


def test_a_map_without_open_cells_has_nothing_to_forget():
    """The agent was trained on cell 0 of it, an obstacle or the goal, and the request was called done."""
    closed = rl.grid_map(jnp.array([[False, True, False, False]]), (0, 3), (0, 0))
    maps = jax.tree.map(lambda x, y: jnp.stack([x, y[1]]), closed, MAPS)
    result = program()(AGENT, maps, jnp.int32(0), jax.random.key(0))
    assert result.status == ju.Status.EMPTY_REQUEST
    assert distance(result.variables, AGENT) == 0
    other = program()(AGENT, maps, jnp.int32(1), jax.random.key(0))
    assert other.status == ju.Status.NOTHING_RETAINED
    assert distance(other.variables.params["values"][0], AGENT.params["values"][0]) == 0
