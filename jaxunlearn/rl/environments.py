"""Environments as pure functions, and episodes in them.

    obs, state = environment.reset(key, params)
    obs, state, reward, done, info = environment.step(key, state, action, params)

These are the signatures of gymnax, without its restarts: `done` says that the episode ended by itself, and whoever runs it
stops there or after its own number of steps. `params` is what tells one environment of a kind from another, such as a map, so
that `vmap` over `params` runs in many of them. `from_gymnax` makes one of gymnax's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks
from jaxunlearn.types import Scalar

Policy: TypeAlias = Callable[[PRNGKeyArray, PyTree], Int[Array, ""]]  # key and observation -> action


class Environment(NamedTuple):
    """A kind of environment; those whose states are numbered have `observe`, and `params.transitions` says where they lead."""

    reset: Callable[[PRNGKeyArray, Any], tuple[PyTree, PyTree]]
    step: Callable[[PRNGKeyArray, PyTree, Int[Array, ""], Any], tuple[PyTree, PyTree, Float[Array, ""], Bool[Array, ""], Any]]
    num_actions: int
    observe: Callable[[Int[Array, ""], Any], PyTree] | None = None


class Rollout(NamedTuple):
    """One episode; behind its end nothing counts."""

    value: Float[Array, ""]  # sum of rewards (the return)
    finished: Bool[Array, ""]  # it ended by itself, which in a grid is at the goal
    length: Int[Array, ""]
    states: PyTree  # in front of every step, leading axis num_steps
    actions: Int[Array, " t"]
    alive: Bool[Array, " t"]  # steps that were made


def from_gymnax(environment: Any) -> Environment:
    """One of gymnax's environments, of any version: without its restarts and without its limit on steps.

    Args:
        environment: what `gymnax.make` returns first; its second value are `params`.

    Returns:
        An `Environment`.

    Example:
        >>> class Coin:  # an environment in the manner of gymnax
        ...     num_actions = 2
        ...     def reset_env(self, key, params): return jnp.zeros(1), jnp.int32(0)
        ...     def step_env(self, key, state, action, params): return jnp.ones(1), state + 1, 1.0, state >= params, {}
        >>> coin = jaxunlearn.rl.from_gymnax(Coin())
        >>> episode = jaxunlearn.rl.rollout(coin, 3, lambda key, obs: jnp.int32(0), key, num_steps=9)
        >>> int(episode.length), float(episode.value)
        (4, 4.0)
    """

    def step(key, state, action, params):
        obs, state, reward, done, *rest = environment.step_env(key, state, action, params)
        return obs, state, jnp.asarray(reward, jnp.float32), jnp.asarray(done, bool), rest[-1]

    return Environment(environment.reset_env, step, environment.num_actions)


def rollout(environment: Environment, params: Any, policy: Policy, key: PRNGKeyArray, *, num_steps: int) -> Rollout:
    """One episode of at most so many steps; `vmap` over keys gives many, and over `params` in many environments.

    Args:
        environment: its functions.
        params: which one of the kind.
        policy: `(key, observation) -> action`.
        key: of the episode.
        num_steps: static length; what comes behind the end of the episode is masked.

    Returns:
        `Rollout`.

    Example:
        >>> grid = jaxunlearn.rl.random_map(key, size=5, obstacles=3)
        >>> world = jaxunlearn.rl.grid_world("cell")
        >>> best = jaxunlearn.rl.optimal_values(grid, discount=0.99)
        >>> episode = jaxunlearn.rl.rollout(world, grid, lambda key, cell: jnp.argmax(best[cell]), key, num_steps=30)
        >>> bool(episode.finished), float(episode.value) == 100 - 5 * (int(episode.length) - 1)
        (True, True)
    """
    checks.require_count("num_steps", num_steps)
    reset_key, key = jax.random.split(key)
    first = environment.reset(reset_key, params)

    def body(carry, step):
        (obs, state), alive, total = carry
        act_key, step_key = jax.random.split(jax.random.fold_in(key, step))
        action = policy(act_key, obs)
        after_obs, after, reward, done, _ = environment.step(step_key, state, action, params)
        total += jnp.where(alive, reward, 0)
        return ((after_obs, after), alive & ~done, total), (state, action, alive)

    begin = (first, jnp.array(True), jnp.float32(0))
    (_, alive, total), (states, actions, made) = jax.lax.scan(body, begin, jnp.arange(num_steps))
    return Rollout(total, ~alive, jnp.sum(made, dtype=jnp.int32), states, actions, made)


def epsilon_greedy(values: Callable[[PyTree], Float[Array, " a"]], epsilon: Scalar) -> Policy:
    """The action of the largest value, or with probability epsilon any action.

    Args:
        values: observation -> value of every action.
        epsilon: in [0, 1], may be traced.

    Returns:
        A policy for `rollout`.

    Example:
        >>> policy = jaxunlearn.rl.epsilon_greedy(lambda obs: jnp.array([0.0, 2.0, 1.0]), 0.0)
        >>> int(policy(key, None))
        1
    """
    checks.check_range("epsilon", epsilon, low=0, high=1)

    def act(key, obs):
        found = values(obs)
        share, any_action = jax.random.uniform(key, (2,))
        drawn = jnp.minimum((any_action * found.shape[0]).astype(jnp.int32), found.shape[0] - 1)
        return jnp.where(share < epsilon, drawn, jnp.argmax(found).astype(jnp.int32))

    return act
