"""Environment inference: what an agent's actions give away about the map that it learnt them in.

The paper (Ye et al., NDSS 2025, arXiv 2312.15910) measures forgetting by such an attack; its procedure was not read. The one
here is a population search for the map whose best actions the agent takes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.rl.grids import Grid, grid_map, optimal_values


class Inference(NamedTuple):
    """What the attacker found."""

    score: Float[Array, ""]  # F1 of the obstacles, less that of the same search on a policy that acts at random
    f1: Float[Array, ""]
    fitness: Float[Array, ""]  # of the map that it settled for
    obstacles: Bool[Array, " rows columns"]


def environment_inference(
    policy: Float[Array, " s a"],
    grid: Grid,
    key: PRNGKeyArray,
    *,
    generations: int = 50,
    population: int = 200,
    sweeps: int | None = None,
    discount: float = 0.99,
) -> Inference:
    """Search for the map that explains an agent's actions.

    The attacker knows start, goal and the number of obstacles, and sees what the agent does in every cell, obstacles among
    them. The fitness of a map is the mean over its free cells of the probability that the agent puts on the map's best
    actions, less what acting at random puts there. The better half of every generation stays, and every one of it begets a
    map with an obstacle moved.

    Args:
        policy: probability of every action in every cell.
        grid: the true map.
        key: of the search; a policy that acts at random is searched with the same one.
        generations, population: of the search, static; the population is even.
        sweeps: of value iteration for every candidate; by default as many as there are cells, which is exact.
        discount: that the agent is taken to have.

    Returns:
        `Inference`; a score of 0 is chance. `vmap` over agents, maps and keys.

    Raises:
        ValueError: sizes that are no positive integers, an odd population.

    Example:
        >>> grid = jaxunlearn.rl.random_map(key, size=4, obstacles=2)
        >>> found = jaxunlearn.rl.environment_inference(jnp.full((16, 4), 0.25), grid, key, generations=2, population=4)
        >>> float(found.score)
        0.0
    """
    for name, value in (("generations", generations), ("population", population)):
        checks.require_count(name, value)
    if population % 2:
        raise ValueError(f"population must be even, as its better half stays, got {population}")
    shape, cells = grid.obstacles.shape, grid.obstacles.size
    truth = grid.obstacles.reshape(-1)
    free = (grid.starts <= 0) & (jnp.arange(cells) != grid.goal)  # where an obstacle can be
    count = jnp.sum(truth)

    def fitness(policy, obstacles):
        guess = grid_map(obstacles.reshape(shape), (0, 0), (0, 0))._replace(starts=grid.starts, goal=grid.goal)
        values = optimal_values(guess, discount=discount, sweeps=sweeps)
        best = values >= jnp.max(values, axis=1, keepdims=True) - 1e-3
        gain = jnp.sum(best * policy, axis=1) - jnp.mean(best, axis=1)
        weights = ~obstacles & (jnp.arange(cells) != grid.goal)
        return jnp.sum(weights * gain) / jnp.maximum(jnp.sum(weights), 1)

    def drawn(key):
        rank = jnp.where(free, jax.random.uniform(key, (cells,)), 2)
        return rank < jnp.sort(rank)[count]

    def moved(key, obstacles):
        """One obstacle taken away, and one put elsewhere."""
        first, last = jax.random.uniform(key, (2, cells))
        gone = jnp.argmax(jnp.where(obstacles, 1 + first, first * 0))
        new = jnp.argmax(jnp.where(free & ~obstacles, 1 + last, last * 0))
        return obstacles.at[gone].set(False).at[new].set(count > 0)  # where there is none, none is put

    def search(policy, key):
        begin_key, key = jax.random.split(key)
        maps = jax.vmap(drawn)(jax.random.split(begin_key, population))
        worth = jax.vmap(fitness, (None, 0))
        half = population // 2

        def generation(carry, number):
            maps, found = carry
            parents = jnp.argsort(-found)[:half]
            kept = maps[parents]
            children = jax.vmap(moved)(jax.random.split(jax.random.fold_in(key, number), half), kept)
            return (jnp.concatenate([kept, children]), jnp.concatenate([found[parents], worth(policy, children)])), None

        (maps, found), _ = jax.lax.scan(generation, (maps, worth(policy, maps)), jnp.arange(generations))
        return maps[jnp.argmax(found)], jnp.max(found)

    def f1(guess):
        hits = jnp.sum(guess & truth)
        return 2 * hits / jnp.maximum(jnp.sum(guess) + count, 1)

    best, fit = search(policy, key)
    chance, _ = search(jnp.full_like(policy, 1 / policy.shape[1]), key)
    return Inference(f1(best) - f1(chance), f1(best), fit, best.reshape(shape))
