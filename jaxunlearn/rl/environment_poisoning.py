"""Environment poisoning (Ye, Zhu, Zhu, Wang, Gao, Shi, Shen, Zhou, Xue: Reinforcement unlearning, NDSS 2025, arXiv 2312.15910):
an agent forgets an environment by learning on in a version of it that is changed round after round. A reconstruction.

In round i an outer agent sees the policy pi_i of the learner and changes which next state follows an action in the revoked
environment; the learner trains in what it became, and the outer agent gets

    R_i = divergence_weight mean_{s revoked} KL( pi_i(.|s) || pi_{i+1}(.|s) )
          + return_weight (mean discounted return of pi_{i+1} in the other environments),    pi = softmax(Q / temperature).

The loop and the two terms are those of the paper as a review and a class project tell them; the paper itself was not read, nor
its set of changes. The second term is written there as a sum of immediate rewards `pi(a|s) r(s, a)`, which hardly depends
on the policy where every step costs the same; here it is the exact return from the start. The learner draws states and
actions of both sides equally often and regresses on `r + discount max Q_i(s', .)`, Q_i frozen for the round, instead of
running episodes. It keeps training in the other environments as well, since a network that trains in one map only forgets all.

The authors' code (github.com/cp-lab-uts/Reinforcement-Unlearning) has no outer agent, no reward and no change of a transition:
it permutes three cells of the observation in a map that training never saw.

It needs control over the dynamics of the revoked environment. What the agent knows at the end is a wrong map, which is not what
an agent knows that never saw it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxunlearn import checks, status, tree
from jaxunlearn.card import Method
from jaxunlearn.rl.attackers import Attacker, random_search
from jaxunlearn.rl.environments import Environment
from jaxunlearn.rl.grids import Grid, open_cells, policy_values, reward_of
from jaxunlearn.sampling import masked_mean
from jaxunlearn.types import Model, Result, Scalar, Variables

METHOD = Method(
    summary="learn on in a revoked environment whose transitions are changed round after round",
    cites="ye2025reinforcement",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    takes="environment",
    reconstruction=True,
)


class _Places(NamedTuple):
    """Where pairs of map and cell are drawn from: open ones first."""

    order: Int[Array, " n"]
    total: Int[Array, ""]

    def draw(self, key: PRNGKeyArray, size: int) -> Int[Array, " b"]:
        place = (jax.random.uniform(key, (size,)) * self.total).astype(jnp.int32)
        return self.order[jnp.minimum(place, self.total - 1)]


def _among(weights: Float[Array, " n"]) -> _Places:
    return _Places(jnp.argsort(weights <= 0).astype(jnp.int32), jnp.maximum(jnp.sum(weights > 0, dtype=jnp.int32), 1))


def environment_poisoning(
    environment: Environment,
    optimizer: optax.GradientTransformation,
    *,
    model: Model,
    num_rounds: int = 5,
    train_steps: int = 100,
    batch_size: int = 32,
    attacker: Attacker | None = None,
    divergence_weight: Scalar = 0.5,
    return_weight: Scalar = 1.0,
    temperature: Scalar = 1.0,
    discount: Scalar = 0.99,
) -> Callable[[Variables, Grid, Int[Array, ""], PRNGKeyArray], Result]:
    """Change the revoked environment round after round and let the agent learn on in what it becomes.

    Args:
        environment: of `grid_world`: states are numbered, and `params.transitions` says where they lead.
        optimizer: of the learner, any optax transformation; its state goes on from round to round.
        model: its logits are action values, [b, actions].
        num_rounds: changes that are made; static.
        train_steps: updates of the learner in a round; static.
        batch_size: rows of each side in an update.
        attacker: who changes the environment; by default `random_search()`, `outer_dqn` is the paper's.
        divergence_weight, return_weight: of the two terms of its reward, at least 0, may be traced.
        temperature: of the policies that it looks at, positive, may be traced.
        discount: of rewards to come.

    Returns:
        `poison(variables, grids, revoked, key) -> Result`, pure: `grids` of m maps, stacked, and the number of the one that is
        revoked. For many requests, `vmap` over `revoked` and `key`, or `jaxunlearn.batched`. A number that is none of the maps
        changes nothing and is INVALID_ROWS, a map without open cells is EMPTY_REQUEST. `stats`: `reward`, `divergence`,
        `retained` (return elsewhere), `changed` (share of the transitions that are poisoned) and `loss` Float[num_rounds],
        `transitions` Int[s, a] as they are at the end, `moved` Float[] (share of the numbers in the variables that changed).

    Raises:
        ValueError: a setting out of its range; an environment whose states are not numbered.

    Example:
        >>> maps = jax.vmap(lambda key: jaxunlearn.rl.random_map(key, size=3, obstacles=1))(jax.random.split(key, 2))
        >>> agent = jaxunlearn.Model(
        ...     lambda v, obs, train=False, key=None: jaxunlearn.Outputs(obs @ v.params["w"]), jaxunlearn.losses.squared_error
        ... )
        >>> world, start = jaxunlearn.rl.grid_world(), jaxunlearn.Variables({"w": jnp.zeros((18, 4))})
        >>> poison = jaxunlearn.rl.environment_poisoning(world, optax.adam(0.1), model=agent, num_rounds=2, train_steps=3)
        >>> result = jax.jit(poison)(start, maps, jnp.int32(0), key)
        >>> result.stats["reward"].shape, result.stats["transitions"].shape
        ((2,), (9, 4))
    """
    for name, value in (("num_rounds", num_rounds), ("train_steps", train_steps), ("batch_size", batch_size)):
        checks.require_count(name, value)
    for name, value in (("divergence_weight", divergence_weight), ("return_weight", return_weight)):
        checks.check_range(name, value, low=0)
    checks.check_range("temperature", temperature, low=1e-6)
    checks.check_range("discount", discount, low=0, high=1)
    if environment.observe is None:
        raise ValueError(
            "environment_poisoning changes a table of transitions: it takes grid_world(), whose states are numbered"
        )
    observe, optimizer, outer = environment.observe, optax.with_extra_args_support(optimizer), attacker or random_search()

    def values(variables: Variables, obs):
        return model.forward(variables, obs, train=False).logits

    def poison(variables: Variables, grids: Grid, revoked: Int[Array, ""], key: PRNGKeyArray) -> Result:
        checks.check_variables(variables)
        checks.check_key(key)
        maps, cells, actions = grids.transitions.shape
        known = (revoked >= 0) & (revoked < maps)
        own = jax.tree.map(lambda x: jnp.asarray(x)[jnp.where(known, revoked, 0)], grids)
        seen = jax.vmap(lambda grid: jax.vmap(observe, (0, None))(jnp.arange(cells, dtype=jnp.int32), grid))(grids)
        seen = jax.tree.map(lambda x: x.reshape(maps * cells, *x.shape[2:]), seen)
        opened, stays = jax.vmap(open_cells)(grids), jnp.arange(maps) != revoked
        here, others = _among(open_cells(own)), _among((opened * stays[:, None]).reshape(-1))

        some, others_left = jnp.any(open_cells(own) > 0), jnp.any(opened * stays[:, None] > 0)
        counts = jnp.repeat(jnp.stack([some, others_left]).astype(jnp.float32), batch_size)  # a side may have no cell to draw

        def at(places):
            return jax.tree.map(lambda x: x[places], seen)

        def transition(transitions, place, action):
            """Next place, reward and whether that is the goal; only the revoked map is not as it was."""
            number, cell = place // cells, place % cells
            grid = jax.tree.map(lambda x: jnp.asarray(x)[number], grids)
            grid = grid._replace(transitions=jnp.where(number == revoked, transitions, grid.transitions))
            after = grid.transitions[cell, action]
            return number * cells + after, reward_of(grid, cell, action), after == grid.goal

        def trained(transitions, variables, optimizer_state, key):
            frozen = variables

            def update(carry, step):
                variables, optimizer_state = carry
                keys = jax.random.split(jax.random.fold_in(key, step), 4)
                forget = revoked * cells + here.draw(keys[0], batch_size)
                places = jnp.concatenate([forget, others.draw(keys[1], batch_size)])
                action = (jax.random.uniform(keys[2], (2 * batch_size,)) * actions).astype(jnp.int32)
                after, reward, ends = jax.vmap(transition, (None, 0, 0))(transitions, places, action)
                wanted = reward + discount * jnp.where(ends, 0, jnp.max(values(frozen, at(after)), axis=1))

                def loss_at(params):
                    outputs = model.forward(variables._replace(params=params), at(places), train=True, key=keys[3])
                    chosen = jnp.take_along_axis(outputs.logits, action[:, None], axis=1)[:, 0]
                    return masked_mean((chosen - wanted) ** 2, counts, empty=0), outputs.state

                params = variables.params
                (loss, state), slope = jax.value_and_grad(loss_at, has_aux=True)(params)
                updates, optimizer_state = optimizer.update(
                    slope, optimizer_state, params, value=loss, grad=slope, value_fn=lambda x: loss_at(x)[0]
                )
                return (Variables(optax.apply_updates(params, updates), state), optimizer_state), loss

            (variables, optimizer_state), losses = jax.lax.scan(update, (variables, optimizer_state), jnp.arange(train_steps))
            return variables, optimizer_state, jnp.mean(losses)

        def policies(variables):
            logits = values(variables, seen).reshape(maps, cells, actions) / temperature
            return jax.nn.log_softmax(logits.astype(jnp.float32))

        def judged(before, variables):
            """The two terms of the reward, and the new policy."""
            after = policies(variables)
            first, last = before[revoked], after[revoked]
            far = masked_mean(jnp.sum(jnp.exp(first) * (first - last), axis=1), open_cells(own), empty=0)
            worth = jax.vmap(lambda grid, policy: policy_values(grid, policy, discount=discount))(grids, jnp.exp(after))
            gained = jnp.sum(worth * grids.starts, axis=1) / jnp.sum(grids.starts, axis=1)
            return far, masked_mean(gained, stays.astype(jnp.float32), empty=0), after

        def one_round(carry, number):
            variables, optimizer_state, transitions, before, memory = carry
            offer_key, train_key, learn_key = jax.random.split(jax.random.fold_in(key, number), 3)
            orders, memory = outer.offer(memory, jnp.exp(before[revoked]), offer_key)
            tables = jax.vmap(lambda order: jnp.take_along_axis(transitions, order, axis=1))(orders)
            tried, states, losses = jax.vmap(trained, (0, None, None, None))(tables, variables, optimizer_state, train_key)
            divergence, retained, after = jax.vmap(judged, (None, 0))(before, tried)
            reward = divergence_weight * divergence + return_weight * retained
            best = jnp.argmax(jnp.where(jnp.isnan(reward), -jnp.inf, reward))
            (variables, optimizer_state, transitions, after), told = jax.tree.map(
                lambda x: x[best],
                ((tried, states, tables, after), {"divergence": divergence, "retained": retained, "loss": losses}),
            )
            memory = outer.learn(memory, jnp.exp(before[revoked]), jnp.exp(after[revoked]), reward[best], learn_key)
            changed = jnp.mean((transitions != own.transitions).astype(jnp.float32))
            return (variables, optimizer_state, transitions, after, memory), {
                **told,
                "reward": reward[best],
                "changed": changed,
            }

        begin_key, key = jax.random.split(key)
        memory = outer.begin(begin_key, cells, actions)
        begun = variables, optimizer.init(variables.params), own.transitions, policies(variables), memory
        (after, _, transitions, _, _), stats = jax.lax.scan(one_round, begun, jnp.arange(num_rounds, dtype=jnp.int32))
        checks.check_same(variables, after)
        after = tree.select(known & some, after, variables)
        moved = tree.share_changed(variables, after)
        code = status.combine(
            EMPTY_REQUEST=~some,
            INVALID_ROWS=~known,
            UNCHANGED=known & some & (moved == 0),
            NOTHING_RETAINED=known & some & ~others_left,
            NONFINITE=~tree.all_finite(after),
        )
        return Result(after, code, {**stats, "transitions": transitions, "moved": moved})

    return poison
