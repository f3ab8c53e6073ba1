"""Who chooses how a revoked environment is changed: the outer agents of environment poisoning.

A change shuffles, in some cells, which action leads where.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.types import Scalar

Orders = Int[Array, "p s a"]  # of p changes: which action's next cell each action gets


class Attacker(NamedTuple):
    """An outer agent; of the changes that it offers the one with the highest reward is made."""

    begin: Callable[[PRNGKeyArray, int, int], Any]  # key, cells, actions -> state
    offer: Callable[[Any, Float[Array, " s a"], PRNGKeyArray], tuple[Orders, Any]]  # state, policy, key -> changes, state
    # state, policy before, policy after, reward, key -> state
    learn: Callable[[Any, Float[Array, " s a"], Float[Array, " s a"], Float[Array, ""], PRNGKeyArray], Any]


def random_orders(key: PRNGKeyArray, cells: int, actions: int, share: Scalar) -> Int[Array, " s a"]:
    """A random order of the actions in a share of the cells, the usual one in the others."""
    cell_key, order_key = jax.random.split(key)
    shuffled = jnp.argsort(jax.random.uniform(order_key, (cells, actions)), axis=1).astype(jnp.int32)
    chosen = jax.random.uniform(cell_key, (cells, 1)) < share
    return jnp.where(chosen, shuffled, jnp.arange(actions, dtype=jnp.int32))


def random_search(*, candidates: int = 4, share: Scalar = 0.5) -> Attacker:
    """Draw some changes in every round and let the rewards decide: an outer agent that has nothing to learn.

    Args:
        candidates: changes that are tried side by side in a round.
        share: of the cells whose actions a change shuffles, in [0, 1].

    Returns:
        An `Attacker` for `environment_poisoning`.

    Example:
        >>> attacker = jaxunlearn.rl.random_search(candidates=3)
        >>> attacker.offer(attacker.begin(key, 9, 4), jnp.ones((9, 4)) / 4, key)[0].shape
        (3, 9, 4)
    """
    checks.require_count("candidates", candidates)
    checks.check_range("share", share, low=0, high=1)

    def offer(state, policy, key):
        keys = jax.random.split(key, candidates)
        return jax.vmap(lambda key: random_orders(key, policy.shape[0], policy.shape[1], share))(keys), state

    return Attacker(lambda key, cells, actions: (), offer, lambda state, *_: state)


class _Memory(NamedTuple):
    """An outer agent that learns, its changes, and all that it saw."""

    params: Any
    optimizer: optax.OptState
    changes: Orders
    chosen: Int[Array, ""]
    policies: Float[Array, "r 2 n"]  # before and after every round
    actions: Int[Array, " r"]
    rewards: Float[Array, " r"]
    rounds: Int[Array, ""]


def outer_dqn(
    *,
    num_rounds: int,
    changes: int = 8,
    share: Scalar = 0.5,
    epsilon: Scalar = 0.1,
    discount: Scalar = 0.9,
    units: int = 32,
    learning_rate: Scalar = 1e-3,
    num_steps: int = 20,
) -> Attacker:
    """The paper's outer agent: epsilon-greedy deep Q-learning over a fixed set of changes, its state the learner's policy.

    Args:
        num_rounds: rounds that it can remember.
        changes: in the set, drawn once.
        share: of the cells whose actions a change shuffles, in [0, 1].
        epsilon: share of random choices.
        discount: of rewards of later rounds.
        units: hidden units of its network.
        learning_rate: of Adam.
        num_steps: updates after every round, on all rounds so far.

    Returns:
        An `Attacker` for `environment_poisoning`, which offers one change in a round.

    Example:
        >>> attacker = jaxunlearn.rl.outer_dqn(num_rounds=3)
        >>> attacker.offer(attacker.begin(key, 9, 4), jnp.ones((9, 4)) / 4, key)[0].shape
        (1, 9, 4)
    """
    for name, value in (("num_rounds", num_rounds), ("changes", changes), ("units", units), ("num_steps", num_steps)):
        checks.require_count(name, value)
    for name, value in (("share", share), ("epsilon", epsilon), ("discount", discount)):
        checks.check_range(name, value, low=0, high=1)
    optimizer = optax.adam(learning_rate)

    def values(params, policy):
        return jax.nn.relu(policy @ params["first"]) @ params["last"]

    def begin(key, cells, actions):
        change_key, first_key, last_key = jax.random.split(key, 3)
        size = cells * actions
        params = {
            "first": jax.random.normal(first_key, (size, units)) / size**0.5,
            "last": jax.random.normal(last_key, (units, changes)) / units**0.5,
        }
        orders = jax.vmap(lambda key: random_orders(key, cells, actions, share))(jax.random.split(change_key, changes))
        seen, nothing = jnp.zeros((num_rounds, 2, size)), jnp.zeros(num_rounds)
        return _Memory(
            params, optimizer.init(params), orders, jnp.int32(0), seen, nothing.astype(jnp.int32), nothing, jnp.int32(0)
        )

    def offer(state, policy, key):
        share_drawn, drawn = jax.random.uniform(key, (2,))
        greedy = jnp.argmax(values(state.params, policy.reshape(-1))).astype(jnp.int32)
        chosen = jnp.where(share_drawn < epsilon, (drawn * changes).astype(jnp.int32), greedy)
        return state.changes[chosen][None], state._replace(chosen=chosen)

    def learn(state, before, after, reward, key):
        at = state.rounds % num_rounds
        state = state._replace(
            policies=state.policies.at[at].set(jnp.stack([before.reshape(-1), after.reshape(-1)])),
            actions=state.actions.at[at].set(state.chosen),
            rewards=state.rewards.at[at].set(reward),
            rounds=state.rounds + 1,
        )
        there = jnp.arange(num_rounds) < state.rounds

        def loss(params, frozen):
            wanted = state.rewards + discount * jnp.max(values(frozen, state.policies[:, 1]), axis=1)
            found = jnp.take_along_axis(values(params, state.policies[:, 0]), state.actions[:, None], axis=1)[:, 0]
            return jnp.sum(jnp.where(there, (found - wanted) ** 2, 0)) / jnp.sum(there)

        def update(_, carry):
            params, optimizer_state = carry
            updates, optimizer_state = optimizer.update(jax.grad(loss)(params, state.params), optimizer_state)
            return optax.apply_updates(params, updates), optimizer_state

        params, optimizer_state = jax.lax.fori_loop(0, num_steps, update, (state.params, state.optimizer))
        return state._replace(params=params, optimizer=optimizer_state)

    return Attacker(begin, offer, learn)
