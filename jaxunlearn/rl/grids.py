"""Grid maps: what can be reached in them, their rewards, and values that are known exactly."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.requests import training_data
from jaxunlearn.rl.environments import Environment
from jaxunlearn.types import Data, Scalar

STEP, BUMP, GOAL = -5.0, -10.0, 100.0  # rewards of a step, of a step against an obstacle, and of reaching the goal
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right, as changes of row and column
NEAR = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
FREE, AIM, BLOCKED = 0.0, 2.0, 3.0  # how cells around the agent look
Observation: TypeAlias = Literal["separable", "local", "cell"]


class Grid(NamedTuple):
    """One map of s = rows x columns cells, numbered row by row; a stack of maps has a leading axis on every leaf."""

    obstacles: Bool[Array, " rows columns"]
    starts: Float[Array, " s"]  # chance of every cell to be the start, up to a factor
    goal: Int[Array, ""]
    transitions: Int[Array, " s a"]  # the next cell


def grid_map(obstacles: Bool[Array, " rows columns"], start: Any, goal: Any) -> Grid:
    """A map from its obstacles.

    Args:
        obstacles: True where no one can stand.
        start, goal: row and column, from 0.

    Returns:
        `Grid`, unpoisoned: a step against an obstacle or off the map leaves the agent where it is.

    Raises:
        ValueError: start or goal off the map.

    Example:
        >>> grid = jaxunlearn.rl.grid_map(jnp.zeros((2, 3), bool), (1, 2), (0, 0))
        >>> int(grid.goal), grid.transitions[5].tolist()
        (0, [2, 5, 4, 5])
    """
    obstacles = jnp.asarray(obstacles, bool)
    rows, columns = obstacles.shape
    _require_places(rows, columns, start=start, goal=goal)

    def lead(cell, action):
        aim, inside = _aim(cell, action, rows, columns)
        return jnp.where(inside & ~obstacles.reshape(-1)[aim], aim, cell)

    (row, column), (goal_row, goal_column) = start, goal
    starts = jax.nn.one_hot(row * columns + column, rows * columns)
    return Grid(obstacles, starts, jnp.int32(goal_row * columns + goal_column), _everywhere(lead, rows * columns))


def _require_places(rows: int, columns: int, **places: Any) -> None:
    """ValueError unless row and column lie on the map: a cell that is not there would be no start, or a goal for ever away."""
    for name, (row, column) in places.items():
        for at, count in ((row, rows), (column, columns)):
            if checks.is_concrete(at) and not 0 <= int(at) < count:
                raise ValueError(f"{name} must be a row and a column of a map of {rows} x {columns} cells, got {row}, {column}")


def _aim(cell: Int[Array, ""], action: Int[Array, ""], rows: int, columns: int) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """The cell that a move aims at, and whether it lies on the map; else it is the cell itself."""
    row, column = jnp.stack([cell // columns, cell % columns]) + jnp.array(MOVES)[action]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return jnp.where(inside, row * columns + column, cell).astype(jnp.int32), inside


def _everywhere(function: Callable[[Any, Any], Any], cells: int) -> Any:
    """A function of cell and action for all of them, [s, a]."""
    every = jax.vmap(jax.vmap(function, (None, 0)), (0, None))
    return every(jnp.arange(cells, dtype=jnp.int32), jnp.arange(len(MOVES)))


def reward_of(grid: Grid, cell: Int[Array, ""], action: Int[Array, ""]) -> Float[Array, ""]:
    """The reward of one action: 100 if it leads to the goal, -10 against an obstacle, else -5.

    Args:
        grid: one map; where its transitions are poisoned, the goal counts where they lead there.
        cell, action: which one.

    Returns:
        Float[].

    Example:
        >>> grid = jaxunlearn.rl.grid_map(jnp.zeros((1, 3), bool), (0, 2), (0, 0))
        >>> [float(jaxunlearn.rl.reward_of(grid, 1, action)) for action in range(4)]
        [-5.0, -5.0, 100.0, -5.0]
    """
    bumps = grid.obstacles.reshape(-1)[_aim(cell, action, *grid.obstacles.shape)[0]]
    return jnp.where(grid.transitions[cell, action] == grid.goal, GOAL, jnp.where(bumps, BUMP, STEP))


def random_map(key: PRNGKeyArray, *, size: int = 10, obstacles: int = 10, start: Any = None, goal: Any = None) -> Grid:
    """A square map with obstacles at random places, drawn again until the goal can be reached from the start.

    Args:
        key: of the draw.
        size: rows and columns.
        obstacles: how many, distinct; at most a quarter of the cells.
        start, goal: row and column; by default the paper's: in the middle of the last row and of the first one.

    Returns:
        `Grid`; `vmap` over keys for many.

    Raises:
        ValueError: more obstacles than a quarter of the cells, with which a way is rare; start or goal off the map.

    Example:
        >>> maps = jax.vmap(jaxunlearn.rl.random_map)(jax.random.split(key, 3))
        >>> maps.obstacles.sum(axis=(1, 2)).tolist()
        [10, 10, 10]
    """
    checks.require_count("size", size, least=2)
    checks.require_count("obstacles", obstacles, least=0)
    if obstacles > size**2 // 4:
        raise ValueError(f"obstacles must be at most a quarter of the {size**2} cells, so that a way is found, got {obstacles}")
    start, goal = (size - 1, size // 2) if start is None else start, (0, size // 2) if goal is None else goal
    _require_places(size, size, start=start, goal=goal)

    def draw(key):
        rank = jax.random.uniform(key, (size, size)).at[tuple(start)].set(2).at[tuple(goal)].set(2)
        return grid_map(rank < jnp.sort(rank.reshape(-1))[obstacles], start, goal)

    def again(carry):
        _, grid = carry
        return ~jnp.any(reachable(grid) & (grid.starts > 0))

    def next_one(carry):
        key, _ = carry
        key, own = jax.random.split(key)
        return key, draw(own)

    return jax.lax.while_loop(again, next_one, next_one((key, None)))[1]


def reachable(grid: Grid) -> Bool[Array, " s"]:
    """Cells from which the goal can be reached, the goal among them.

    Args:
        grid: one map.

    Returns:
        Bool[s].

    Example:
        >>> walled = jnp.array([[False, True, False]])
        >>> jaxunlearn.rl.reachable(jaxunlearn.rl.grid_map(walled, (0, 2), (0, 0))).tolist()
        [True, False, False]
    """
    cells = grid.transitions.shape[0]
    free, at_goal = ~grid.obstacles.reshape(-1), jnp.arange(cells) == grid.goal

    def spread(_, found):
        return found | (free & jnp.any(found[grid.transitions], axis=1))

    return jax.lax.fori_loop(0, cells, spread, at_goal)


def open_cells(grid: Grid) -> Float[Array, " s"]:
    """1 where an agent can be and has something to choose: neither obstacle nor goal, and the goal can be reached; else 0.

    Args:
        grid: one map.

    Returns:
        Float[s]. As `starts` of the map it lets episodes begin anywhere.

    Example:
        >>> grid = jaxunlearn.rl.random_map(key, size=6, obstacles=0)
        >>> float(jaxunlearn.rl.open_cells(grid).sum())
        35.0
    """
    cells = jnp.arange(grid.transitions.shape[0])
    return (reachable(grid) & (cells != grid.goal) & ~grid.obstacles.reshape(-1)).astype(jnp.float32)


def optimal_values(grid: Grid, *, discount: Scalar = 0.99, sweeps: int | None = None) -> Float[Array, " s a"]:
    """Values of all actions under the best policy, by value iteration; by default by as many sweeps as there are cells.

    Exact for cells from which the goal can be reached, because no shortest way is longer; at the goal they are 0.

    Args:
        grid: one map.
        discount: of rewards to come, in [0, 1], may be traced.
        sweeps: fewer of them, static: exact for cells that are as many steps away.

    Returns:
        Float[s, a].

    Example:
        >>> grid = jaxunlearn.rl.grid_map(jnp.zeros((1, 3), bool), (0, 2), (0, 0))
        >>> jaxunlearn.rl.optimal_values(grid, discount=1.0)[2].tolist()
        [90.0, 90.0, 95.0, 90.0]
    """
    return _swept(grid, discount, lambda values: jnp.max(values, axis=1), sweeps)


def policy_values(
    grid: Grid, policy: Float[Array, " s a"], *, discount: Scalar = 0.99, sweeps: int = 200
) -> Float[Array, " s"]:
    """Expected discounted return of a policy from every cell, over so many steps.

    Args:
        grid: one map.
        policy: probability of every action in every cell.
        discount: as for `optimal_values`.
        sweeps: steps that are looked ahead, static.

    Returns:
        Float[s].

    Example:
        >>> grid = jaxunlearn.rl.grid_map(jnp.zeros((1, 2), bool), (0, 1), (0, 0))
        >>> left = jnp.tile(jnp.array([0.0, 0.0, 1.0, 0.0]), (2, 1))
        >>> jaxunlearn.rl.policy_values(grid, left).tolist()
        [0.0, 100.0]
    """
    checks.require_count("sweeps", sweeps)
    values = _swept(grid, discount, lambda values: jnp.sum(policy * values, axis=1), sweeps)
    return jnp.sum(policy * values, axis=1)


def _swept(grid: Grid, discount: Scalar, worth: Callable[[Any], Any], sweeps: int | None = None) -> Float[Array, " s a"]:
    checks.check_range("discount", discount, low=0, high=1)
    cells = grid.transitions.shape[0]
    here = _everywhere(lambda cell, action: reward_of(grid, cell, action), cells)
    ends = jnp.arange(cells) == grid.goal

    def sweep(_, values):
        after = jnp.where(ends, 0, worth(values))
        return jnp.where(ends[:, None], 0, here + discount * after[grid.transitions])

    return jax.lax.fori_loop(0, cells if sweeps is None else sweeps, sweep, jnp.zeros_like(here))


def states(environment: Environment, grids: Grid, *, discount: Scalar = 0.99) -> Data:
    """All states of some maps as training rows, the values of their actions as targets.

    Args:
        environment: of `grid_world`.
        grids: stacked, m maps of s cells.
        discount: of the values.

    Returns:
        `Data` of m s rows, map after map; rows that are no open cells are not present. To revoke a map is to request its rows.

    Example:
        >>> maps = jax.vmap(lambda key: jaxunlearn.rl.random_map(key, size=4, obstacles=2))(jax.random.split(key, 3))
        >>> rows = jaxunlearn.rl.states(jaxunlearn.rl.grid_world(), maps)
        >>> rows.train.inputs.shape, rows.train.targets.shape
        ((48, 32), (48, 4))
    """
    if environment.observe is None:
        raise ValueError("states() needs an environment whose states are numbered, such as grid_world()")
    observe, cells = environment.observe, jnp.arange(grids.transitions.shape[1], dtype=jnp.int32)
    seen = jax.vmap(lambda grid: jax.vmap(observe, (0, None))(cells, grid))(grids)
    values = jax.vmap(lambda grid: optimal_values(grid, discount=discount))(grids)
    inputs, targets, present = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (seen, values, jax.vmap(open_cells)(grids)))
    return training_data(inputs, targets)._replace(present=present)


def grid_world(observation: Observation = "separable") -> Environment:
    """The grid world of the paper; its `params` are a `Grid`.

    Rewards: `STEP` for every step, `BUMP` for one against an obstacle, `GOAL` for the one that reaches the goal and ends the
    episode. The authors' code ends it in every cell of the goal's row, which is not followed.

    Args:
        observation: "separable" tells every state of every map from all others: the obstacles and the place, Float[2 s];
            "local" is what the authors' agents see: row, column and the eight cells around, Float[10], which many maps share;
            "cell" is the number of the cell, Int[], for tables.

    Returns:
        An `Environment` with four actions: up, down, left, right.

    Raises:
        ValueError: another kind of observation.

    Example:
        >>> world = jaxunlearn.rl.grid_world("local")
        >>> obs, state = world.reset(key, jaxunlearn.rl.random_map(key))
        >>> obs.shape
        (10,)
    """
    kinds = {"separable": _separable, "local": _local, "cell": lambda cell, grid: cell}
    if observation not in kinds:
        raise ValueError(f"observation must be one of {', '.join(kinds)}, got {observation!r}")
    observe = kinds[observation]

    def reset(key, params):
        cell = jax.random.categorical(key, jnp.log(params.starts)).astype(jnp.int32)
        return observe(cell, params), cell

    def step(key, state, action, params):
        cell, reward = params.transitions[state, action], reward_of(params, state, action)
        return observe(cell, params), cell, reward, cell == params.goal, {}

    return Environment(reset, step, len(MOVES), observe)


def _separable(cell: Int[Array, ""], grid: Grid) -> Float[Array, " o"]:
    obstacles = grid.obstacles.reshape(-1).astype(jnp.float32)
    return jnp.concatenate([obstacles, jax.nn.one_hot(cell, obstacles.shape[0])])


def _local(cell: Int[Array, ""], grid: Grid) -> Float[Array, " o"]:
    looks = jnp.where(grid.obstacles, BLOCKED, FREE).reshape(-1).at[grid.goal].set(AIM).reshape(grid.obstacles.shape)
    around = jnp.pad(looks, 1, constant_values=BLOCKED)
    row, column = cell // grid.obstacles.shape[1], cell % grid.obstacles.shape[1]
    near = jnp.stack([around[row + 1 + up, column + 1 + right] for up, right in NEAR])
    return jnp.concatenate([jnp.stack([row, column]).astype(jnp.float32), near])
