"""Amnesiac unlearning (Graves, Nagisetty, Ganesh: Amnesiac machine learning, AAAI 2021, arXiv 2010.10981).

    w <- w - sum of the recorded updates of all training steps whose batch held a row of the forget set

Training must have been recorded: `record` trains and keeps every update, which costs the parameters times the steps. What
later steps made of the removed ones stays, so it is exact only for the last steps of training. A row that was in many
batches takes much of the training with it: the paper then fine-tunes, `then(amnesiac(model), iterate(finetune(...), ...))`.

A step that held a row which is gone already was undone when that row went. Streams and merged requests therefore agree
exactly, and nothing is subtracted twice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxunlearn import sampling
from jaxunlearn.card import Method
from jaxunlearn.loop.iterate import Augment, iterate
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.methods.retrain import retrain
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.slots import UPDATES
from jaxunlearn.status import combine
from jaxunlearn.types import Model, Result, UnlearnFn

METHOD = Method(
    summary="subtract the recorded updates of batches that held rows of the forget set",
    cites="graves2021amnesiac",
    family="closed form",
    reads=frozenset({"updates"}),
    search={"learning_rate": (0.001, 0.003, 0.01, 0.02, 0.04)},
)


class Updates(NamedTuple):
    """What a recorded training leaves in `Data.extra["updates"]`."""

    rows: Int[Array, "steps b"]  # of `data.train`, -1 where a batch had none
    changes: PyTree  # of the parameters, each leaf [steps, ...]


def record(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    augment: Augment | None = None,
    bn: BatchNormPolicy = "retain",
) -> UnlearnFn:
    """Training that keeps the update of every step; the model is that of `jaxunlearn.retrain`.

    Args:
        model: needs `init`.
        optimizer: any optax transformation.
        num_steps, batch_size, augment: see `jaxunlearn.iterate`.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `UnlearnFn`, whose `stats` are those of `jaxunlearn.iterate` and of `jaxunlearn.retrain` and whose `Result.extra`
        fills slot `updates`: hand it on in `Data.extra`.

    Raises:
        ValueError: the model has no `init`; at trace time, `init` makes variables of another form than the ones passed in.

    Example:
        >>> train = jaxunlearn.record(model, optax.sgd(0.1), num_steps=20, batch_size=8)
        >>> trained = jax.jit(train)(variables, data, jaxunlearn.empty_request(), key)
        >>> recorded = data._replace(extra={**data.extra, **trained.extra})
        >>> result = jax.jit(jaxunlearn.amnesiac(model))(trained.variables, recorded, request, key)
    """
    training = retrain(model, optimizer, bn=bn)

    def step(state, context, batch, key):
        after, stats = training.step(state, context, batch, key)
        rows = jnp.where(batch.retain.weights > 0, batch.retain.slots, -1)
        changes = optax.tree.sub(after.variables.params, state.variables.params)
        return after, {**stats, "updates": Updates(rows, changes)}

    train = iterate(training._replace(step=step), num_steps, batch_size=batch_size, augment=augment)

    def recorded(variables, data, request, key):
        result = train(variables, data, request, key)
        stats = dict(result.stats)
        made = UPDATES.made(stats.pop("updates"), at=result.variables.params, data=data)
        return result._replace(extra={UPDATES.name: made}, stats=stats)

    return recorded


def amnesiac(model: Model) -> UnlearnFn:
    """Subtract the recorded updates of every training step that saw a row of the forget set.

    Reads slot `updates`, see `jaxunlearn.record`. The state (running statistics) stays as it is.

    Args:
        model: any; it is not run.

    Returns:
        An `UnlearnFn`; `stats`: `undone` Int[], the number of steps taken back.

    Raises:
        ValueError: at trace time, training was not recorded, or its record belongs to a model of another form.

    Example:
        >>> train = jaxunlearn.record(model, optax.sgd(0.1), num_steps=20, batch_size=8)
        >>> trained = jax.jit(train)(variables, data, jaxunlearn.empty_request(), key)
        >>> recorded = data._replace(extra={**data.extra, **trained.extra})
        >>> result = jax.jit(jaxunlearn.amnesiac(model))(trained.variables, recorded, request, key)
        >>> 0 <= int(result.stats["undone"]) <= 20
        True
    """
    del model

    def undo(variables, data, request, key):
        updates, stale = UPDATES.read(data, at=variables.params)
        shapes = [jax.tree.map(jnp.shape, variables.params), jax.tree.map(lambda x: x.shape[1:], updates.changes)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"data.extra['updates'] was recorded on parameters {shapes[1]}, these are {shapes[0]}")
        held = updates.rows >= 0
        undone_before = jnp.any(held & (data.present[updates.rows] <= 0), axis=1)
        undo = jnp.any(held & sampling.is_requested(data, request, updates.rows), axis=1) & ~undone_before

        def subtract(parameter, changes):
            total = jnp.tensordot(undo.astype(changes.dtype), changes, axes=1, precision=jax.lax.Precision.HIGHEST)
            return (parameter - total).astype(parameter.dtype)

        params = jax.tree.map(subtract, variables.params, updates.changes)
        # steps undone before moved the parameters: the recorded ones are then as wrong as foreign ones otherwise
        code = combine(STALE=stale != jnp.any(undone_before))
        return Result(variables._replace(params=params), code, {"undone": jnp.sum(undo, dtype=jnp.int32)})

    return one_shot(undo, on_empty=METHOD.on_empty, may_rest=True)
