"""Maps against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import rl
from jaxunlearn.rl import grids
from tests.rl.worlds import corridors

KEYS = jax.random.split(jax.random.key(0), 20)
MAPS = jax.jit(jax.vmap(lambda key: rl.random_map(key, size=6, obstacles=9)))(KEYS)
DISCOUNT = 0.99


def test_values_of_an_empty_map_follow_from_the_distance():
    grid = rl.grid_map(jnp.zeros((4, 5), bool), (3, 0), (1, 2))
    found = np.asarray(jax.jit(rl.optimal_values)(grid))
    row, column = np.divmod(np.arange(20), 5)
    distance = np.abs(row - 1) + np.abs(column - 2)
    ways = np.asarray(grid.transitions)
    left = distance[ways]  # steps from where an action leads
    expected = np.where(left == 0, 100, -5 + DISCOUNT * (600 * DISCOUNT ** (left - 1.0) - 500))
    expected[grid.goal] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_maps_have_their_obstacles_and_a_way():
    assert MAPS.obstacles.sum(axis=(1, 2)).tolist() == [9] * 20
    assert len(np.unique(np.asarray(MAPS.obstacles).reshape(20, -1), axis=0)) == 20
    blocked = MAPS.obstacles.reshape(20, -1)
    for grid in (jax.tree.map(lambda x, place=place: x[place], MAPS) for place in range(20)):
        start = int(jnp.argmax(grid.starts))
        found, seen = [start], {start}
        for cell in found:  # by hand
            for after in np.asarray(grid.transitions[cell]):
                if int(after) not in seen:
                    seen.add(int(after))
                    found.append(int(after))
        assert int(grid.goal) in seen
        assert not np.asarray(grid.obstacles).reshape(-1)[list(seen)].any()
        assert set(np.flatnonzero(rl.reachable(grid))) - {int(grid.goal)} == seen - {int(grid.goal)}
    assert not jnp.any(blocked[jnp.arange(20), MAPS.goal])


def test_value_iteration_is_a_fixed_point_and_its_policy_is_worth_its_values():
    values = jax.jit(jax.vmap(rl.optimal_values))(MAPS)
    best = jax.nn.one_hot(jnp.argmax(values, axis=2), 4)
    worth = jax.jit(jax.vmap(lambda grid, policy: rl.policy_values(grid, policy, sweeps=60)))(MAPS, best)
    opened = np.asarray(jax.vmap(rl.open_cells)(MAPS)) > 0
    np.testing.assert_allclose(np.asarray(worth)[opened], np.asarray(values.max(axis=2))[opened], rtol=1e-4)


def test_rewards():
    grid = rl.grid_map(jnp.array([[False, False], [True, False]]), (1, 1), (0, 0))
    found = grids._everywhere(lambda cell, action: rl.reward_of(grid, cell, action), 4)
    up, down, left, right = range(4)
    assert [float(found[3, up]), float(found[3, left]), float(found[3, right])] == [-5, -10, -5]
    assert [float(found[1, left]), float(found[1, down])] == [100, -5]
    assert grid.transitions[3].tolist() == [1, 3, 3, 3]


def test_what_agents_see():
    grid = rl.grid_map(jnp.array([[False, True], [False, False]]), (1, 1), (0, 0))
    separable, local, cell = (rl.grid_world(kind).observe(jnp.int32(2), grid) for kind in ("separable", "local", "cell"))
    assert separable.tolist() == [0, 1, 0, 0, 0, 0, 1, 0]
    assert local.tolist() == [1, 0, 3, 2, 3, 3, 0, 3, 3, 3]
    assert cell == 2
    with pytest.raises(ValueError, match="separable, local, cell, got 'other'"):
        rl.grid_world("other")


def test_states_are_rows():
    data = rl.states(rl.grid_world(), corridors())
    assert data.present.tolist() == [0, 1, 1, 1, 0, 1, 1, 0]
    assert len(np.unique(data.train.inputs, axis=0)) == 8
    np.testing.assert_allclose(data.train.targets[1], [-5 + 99, -5 + 99, 100, -5 + 0.99 * 94], rtol=1e-6)


def test_too_many_obstacles_are_refused():
    with pytest.raises(ValueError, match="at most a quarter of the 9 cells"):
        rl.random_map(KEYS[0], size=3, obstacles=3)


@pytest.mark.parametrize("place", [(-1, 0), (0, 3), (3, 0)])
def test_places_off_the_map_are_refused(place):
    """With them a map was drawn for ever, or began where no start is."""
    for name in ("start", "goal"):
        places = {"start": (2, 1), "goal": (0, 1), name: place}
        with pytest.raises(ValueError, match=f"{name} must be a row and a column of a map of 3 x 3"):
            rl.random_map(KEYS[0], size=3, obstacles=1, **places)
        with pytest.raises(ValueError, match=f"{name} must be a row and a column of a map of 3 x 3"):
            rl.grid_map(jnp.zeros((3, 3), bool), places["start"], places["goal"])
