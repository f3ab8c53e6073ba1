"""Networks along their training and along their unlearning: what a hypernetwork is trained on."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

import jaxunlearn as ju
from experiments.common.denoiser import Pairs
from experiments.common.running import reusable
from jaxunlearn import hypernetworks

TOGETHER = 8  # networks that train side by side on a device
SHARES = {"training": 0.25, "unlearning": 0.5, "retraining": 0.25}  # of pairs


class Plan(NamedTuple):
    """How networks are made."""

    optimizer: optax.GradientTransformation  # of training and retraining
    num_steps: int
    batch_size: int
    every: int  # steps between two checkpoints
    lambdas: Sequence[float]  # weights of the forget set, in steps that unlearn
    tail_steps: int
    tail_rate: float
    most_loss: float  # of the forget set; a network beyond it is left out


class Runs(NamedTuple):
    """Checkpoints as vectors, not scaled; the last one of a run is the network that it ends at."""

    trained: Float[Any, "s p v"]  # of every seed
    retrained: Float[Any, "s r p v"]  # without each class, with the same seed
    seconds_per_run: float


def saved(unlearner: ju.Unlearner, num_steps: int, every: int, batch_size: int) -> Callable[..., Float[Array, "p v"]]:
    """`(variables, data, request, key) -> checkpoints` of a run, the last one at its end."""

    def step(state, context, batch, key):
        state, stats = unlearner.step(state, context, batch, key)
        return state, {**stats, "vector": hypernetworks.to_vector(unlearner.finalize(state, context).params)}

    run = ju.iterate(unlearner._replace(step=step, judged=None), num_steps, batch_size=batch_size)

    def vectors(variables, data, request, key):
        return run(variables, data, request, key).stats["vector"][(num_steps - 1) % every :: every]

    return vectors


def train_all(
    model: ju.Model, like: ju.Variables, data: ju.Data, requests: ju.ForgetRequest, keys: PRNGKeyArray, plan: Plan,
    *, chunk: int | None, mesh: Mesh | None,
) -> Runs:  # fmt: skip
    """Train a network with every key, and retrain it for every request, with checkpoints, in one compiled call."""
    optimizer = plan.optimizer
    vectors = saved(ju.retrain(model, optimizer), plan.num_steps, plan.every, plan.batch_size)
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), requests)
    asked = jax.tree.map(lambda *x: jnp.concatenate(x), nothing, requests)
    count, kinds = len(keys), len(asked.weights)
    every = jax.tree.map(lambda x: jnp.tile(x, (count, *[1] * (x.ndim - 1))), asked)
    run = reusable(vectors, chunk=chunk or TOGETHER, mesh=mesh)
    done = run([(like, data, every, jnp.repeat(keys, kinds))])
    found = done.result[0].reshape(count, kinds, *done.result.shape[2:])
    return Runs(found[:, 0], found[:, 1:], done.run_seconds / (count * kinds))


def unlearn_all(
    model: ju.Model, originals: ju.Variables, data: ju.Data, requests: ju.ForgetRequest, key: PRNGKeyArray, plan: Plan,
    *, chunk: int | None, mesh: Mesh | None,
) -> Float[Any, "s r l p v"]:  # fmt: skip
    """From every network, for every request and every lambda: descend on `loss(retain) - lambda loss(forget)`."""
    every = max(plan.tail_steps // 6, 1)

    def vectors(variables, data, request, key):
        rows, share = request
        method = ju.gradient_difference(model, optax.adam(plan.tail_rate), alpha=1 / (1 + share))
        return saved(method, plan.tail_steps, every, plan.batch_size)(variables, data, rows, key)

    shape = len(jax.tree.leaves(originals)[0]), len(requests.weights), len(plan.lambdas)
    seed, request, share = (x.ravel() for x in np.indices(shape))
    asked = jax.tree.map(lambda x: x[request], requests), jnp.asarray(plan.lambdas, jnp.float32)[share]
    run = reusable(vectors, in_axes=(0, None, 0, 0), chunk=chunk or TOGETHER, mesh=mesh)
    done = run([(jax.tree.map(lambda x: x[seed], originals), data, asked, jax.random.split(key, len(seed)))])
    return done.result[0].reshape(*shape, *done.result.shape[2:])


def class_losses(
    model: ju.Model, like: ju.Variables, data: ju.Data, vectors: Float[Any, "n v"], num_classes: int
) -> Float[Any, "n c"]:
    """Mean loss of every network on the training rows of each class."""
    members = jax.nn.one_hot(data.train.targets, num_classes)

    @jax.jit
    def run(vectors):
        def one(vector):
            variables = like._replace(params=hypernetworks.to_params(vector, like.params))
            losses = model.loss(model.forward(variables, data.train.inputs), data.train)
            return losses @ members / jnp.sum(members, axis=0)

        return jax.lax.map(one, vectors, batch_size=64)

    return np.asarray(run(jnp.asarray(vectors)))


def paired(
    model: ju.Model, like: ju.Variables, data: ju.Data, runs: Runs, tails: Float[Any, "s r l p v"], plan: Plan, num_classes: int
) -> Pairs:
    """Pairs of three kinds: along a training; from its end along a run that unlearns; from its end along the retraining.

    A request of place r is for class r. A goal may be the start itself, so that a prompt can ask for no change.
    """
    parts = [runs.trained, runs.retrained, tails]
    vectors = np.concatenate([x.reshape(-1, x.shape[-1]) for x in parts])
    losses = class_losses(model, like, data, vectors, num_classes)
    offsets = np.cumsum([0, *(int(np.prod(x.shape[:-1])) for x in parts)])
    trained, retrained, unlearnt = (
        np.arange(first, end).reshape(x.shape[:-1]) for first, end, x in zip(offsets[:-1], offsets[1:], parts, strict=True)
    )
    classes, ends = np.arange(retrained.shape[1]), trained[:, -1, None, None, None]
    first, last = np.triu_indices(trained.shape[1])
    moved = np.concatenate([np.broadcast_to(ends, (*unlearnt.shape[:-1], 1)), unlearnt], axis=-1)
    kinds = {
        "training": _table(trained[:, first, None], trained[:, last, None], classes),
        "unlearning": _table(ends, moved, classes[:, None, None]),
        "retraining": _table(ends[..., 0], retrained, classes[:, None]),
    }
    sound = np.all(np.isfinite(vectors), axis=1) & np.all(np.isfinite(losses), axis=1)
    kept = {
        name: table[sound[table[:, 1]] & (losses[table[:, 1], table[:, 2]] <= plan.most_loss)] for name, table in kinds.items()
    }
    kept = {name: table for name, table in kept.items() if len(table)}
    counts = np.bincount(np.asarray(data.train.targets), minlength=num_classes).astype(np.float32)
    return Pairs(vectors, losses, counts, list(kept.values()), [SHARES[name] for name in kept])


def _table(*columns: Int[Any, "..."]) -> Int[Any, "m 3"]:
    return np.stack([x.ravel() for x in np.broadcast_arrays(*columns)], axis=1)
