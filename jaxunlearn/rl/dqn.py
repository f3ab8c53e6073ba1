"""Deep Q-learning (Mnih et al.: Human-level control through deep reinforcement learning, 2015) as one pure function.

    L(w) = mean over a batch of the replay of ( Q_w(s, a) - r - discount max_a' Q_target(s', a') )^2

The agent makes a step in every environment at once, so that environments are interleaved and none is learnt last. The replay is
a ring of arrays, all of it inside one `lax.scan`: `vmap` trains many agents, with other seeds or without other environments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks
from jaxunlearn.rl.environments import Environment
from jaxunlearn.sampling import fill, masked_mean
from jaxunlearn.types import Model, Scalar, Variables


class _Replay(NamedTuple):
    """The last transitions; those that were not written yet have weight 0."""

    obs: PyTree
    action: Int[Array, " c"]
    reward: Float[Array, " c"]
    after: PyTree
    ends: Float[Array, " c"]
    weights: Float[Array, " c"]


class _Run(NamedTuple):
    variables: Variables
    target: PyTree
    optimizer: optax.OptState
    replay: _Replay
    places: tuple[PyTree, PyTree, Int[Array, " m"]]  # observation, state and age of the episode in every environment


Train = Callable[[Variables, Any, Float[Array, " m"], PRNGKeyArray], tuple[Variables, dict[str, jax.Array]]]


def dqn(
    model: Model,
    environment: Environment,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    horizon: int = 100,
    capacity: int = 1000,
    batch_size: int = 32,
    discount: Scalar = 0.99,
    epsilon: tuple[Scalar, Scalar] = (1.0, 0.05),
    target_rate: Scalar = 1.0,
) -> Train:
    """Train an agent by deep Q-learning in many environments at once.

    Args:
        model: its logits are action values, [b, actions]; its loss is not read.
        environment: functions of every environment.
        optimizer: any optax transformation.
        num_steps: steps in each environment, and updates; static.
        horizon: steps after which an episode is cut off; the value of where it stands still counts.
        capacity: transitions that are kept, at least one for every environment.
        batch_size: transitions of an update.
        discount: of rewards to come.
        epsilon: share of random actions at the start and at the end, with a line between.
        target_rate: how far the values that are learnt from follow the agent in every step: 1 is no target network, as in the
            code of Reinforcement Unlearning; 0.01 learns more steadily.

    Returns:
        `(variables, params, weights, key) -> (Variables, stats)`: `params` of m environments, stacked; `weights` Float[m], 0
        for those that the agent must not learn from, whose observations and rewards may be anything. Per-step `stats`: `loss`
        and `finished` (episodes that ended by themselves, in environments that count) Float[].

    Raises:
        ValueError: sizes that are no positive integers; at trace time, less room than environments.

    Example:
        >>> maps = jax.vmap(lambda key: jaxunlearn.rl.random_map(key, size=3, obstacles=1))(jax.random.split(key, 2))
        >>> agent = jaxunlearn.Model(
        ...     lambda v, obs, train=False, key=None: jaxunlearn.Outputs(obs @ v.params["w"]), jaxunlearn.losses.squared_error
        ... )
        >>> train = jaxunlearn.rl.dqn(agent, jaxunlearn.rl.grid_world(), optax.adam(0.1), num_steps=5)
        >>> start = jaxunlearn.Variables({"w": jnp.zeros((18, 4))})
        >>> learnt, stats = jax.jit(train)(start, maps, jnp.ones(2), key)
        >>> stats["loss"].shape
        (5,)
    """
    for name, value in (("num_steps", num_steps), ("horizon", horizon), ("capacity", capacity), ("batch_size", batch_size)):
        checks.require_count(name, value)
    checks.check_range("discount", discount, low=0, high=1)
    checks.check_range("target_rate", target_rate, low=0, high=1)
    for share in epsilon:
        checks.check_range("epsilon", share, low=0, high=1)
    optimizer = optax.with_extra_args_support(optimizer)

    def values(variables: Variables, obs: PyTree):
        return model.forward(variables, obs, train=False).logits

    def train(variables: Variables, params: Any, weights: Float[Array, " m"], key: PRNGKeyArray):
        checks.check_variables(variables)
        checks.check_key(key)
        count = weights.shape[0]
        if count > capacity:
            raise ValueError(f"capacity must be at least the number of environments, {count}, got {capacity}")
        reset = jax.vmap(environment.reset)
        first_key, key = jax.random.split(key)
        obs, state = reset(jax.random.split(first_key, count), params)

        def room(x):
            return jnp.zeros((capacity, *x.shape[1:]), x.dtype)

        empty = jnp.zeros(capacity)
        replay = _Replay(jax.tree.map(room, obs), empty.astype(jnp.int32), empty, jax.tree.map(room, obs), empty, empty)
        places = obs, state, jnp.zeros(count, jnp.int32)

        def act(run: _Run, step, key):
            obs, state, age = run.places
            keys = jax.random.split(key, 4)
            share = epsilon[0] + (epsilon[1] - epsilon[0]) * step / num_steps
            any_action = (jax.random.uniform(keys[0], (count,)) * environment.num_actions).astype(jnp.int32)
            greedy = jnp.argmax(values(run.variables, obs), axis=1).astype(jnp.int32)
            action = jnp.where(jax.random.uniform(keys[1], (count,)) < share, any_action, greedy)
            after_obs, after, reward, done, _ = jax.vmap(environment.step)(
                jax.random.split(keys[2], count), state, action, params
            )
            at = (step * count + jnp.arange(count)) % capacity
            entry = _Replay(obs, action, reward.astype(jnp.float32), after_obs, done.astype(jnp.float32), weights)
            replay = jax.tree.map(lambda ring, x: ring.at[at].set(x), run.replay, entry)
            over, fresh = done | (age + 1 >= horizon), reset(jax.random.split(keys[3], count), params)

            def restart(new, old):
                return jnp.where(over.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

            obs, state = jax.tree.map(restart, fresh, (after_obs, after))
            places = obs, state, jnp.where(over, 0, age + 1)
            return run._replace(replay=replay, places=places), jnp.sum(jnp.where(weights > 0, done, 0))

        def learn(run: _Run, step, key):
            draw_key, forward_key = jax.random.split(key)
            written = jnp.minimum((step + 1) * count, capacity)
            drawn = (jax.random.uniform(draw_key, (batch_size,)) * written).astype(jnp.int32)
            batch = jax.tree.map(lambda x: x[drawn], run.replay)
            # what does not count, and what stands behind an end, may hold anything, NaN included, and reaches no gradient
            obs, reward = fill((batch.obs, batch.reward), batch.weights)
            after = values(run.variables._replace(params=run.target), batch.after)
            wanted = reward + discount * jnp.where(batch.ends > 0, 0, jnp.max(after, axis=1))
            wanted = jnp.where(batch.weights > 0, wanted, 0)

            def loss_at(params):
                outputs = model.forward(run.variables._replace(params=params), obs, train=True, key=forward_key)
                chosen = jnp.take_along_axis(outputs.logits, batch.action[:, None], axis=1)[:, 0]
                return masked_mean((chosen - wanted) ** 2, batch.weights, empty=0), outputs.state

            params = run.variables.params
            (loss, state), slope = jax.value_and_grad(loss_at, has_aux=True)(params)
            updates, optimizer_state = optimizer.update(
                slope, run.optimizer, params, value=loss, grad=slope, value_fn=lambda x: loss_at(x)[0]
            )
            params = optax.apply_updates(params, updates)
            target = jax.tree.map(lambda old, new: (old + target_rate * (new - old)).astype(old.dtype), run.target, params)
            return run._replace(variables=Variables(params, state), target=target, optimizer=optimizer_state), loss

        def body(run: _Run, step):
            act_key, learn_key = jax.random.split(jax.random.fold_in(key, step))
            run, finished = act(run, step, act_key)
            run, loss = learn(run, step, learn_key)
            return run, {"loss": loss, "finished": finished.astype(jnp.float32)}

        begun = _Run(variables, variables.params, optimizer.init(variables.params), replay, places)
        run, stats = jax.lax.scan(body, begun, jnp.arange(num_steps, dtype=jnp.int32))
        checks.check_same(variables, run.variables)
        return run.variables, stats

    return train
