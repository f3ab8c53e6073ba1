"""Amnesiac unlearning (Graves, Nagisetty, Ganesh: Amnesiac machine learning, AAAI 2021, arXiv 2010.10981).

    w <- w - sum of the recorded updates of all training steps whose batch held a forgotten row

Training must have been recorded: `record` trains and keeps every update, which costs the weights times the steps. What
later steps made of the removed ones stays, so it is exact only for the last steps of training. A row that was in many
batches takes much of the training with it: the paper then fine-tunes, `then(amnesiac(model), finetune(...))`.

A step that held a row which is gone already was undone when that row went. Streams and merged requests therefore agree
exactly, and nothing is subtracted twice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxunlearn import risk
from jaxunlearn.driver import Augment, Updated, iterate, one_shot
from jaxunlearn.exact import retrain
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.types import Model, UnlearnFn


class Updates(NamedTuple):
    """What a recorded training leaves in `Data.extra["updates"]`."""

    rows: Int[Array, "steps b"]  # of `data.train`, -1 where a batch had none
    changes: PyTree  # of the weights, each leaf [steps, ...]


def record(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    augment: Augment | None = None,
    bn: BatchNormPolicy = "retain",
) -> UnlearnFn:
    """Training that keeps the update of every step; the weights are those of `jaxunlearn.retrain`.

    Args:
        model: needs `init`.
        optimizer: any optax transformation.
        num_steps, batch_size, augment: see `jaxunlearn.iterate`.
        bn: which passes may move BatchNorm statistics.

    Returns:
        An `UnlearnFn` whose `Result.extra["updates"]` is an `Updates`; hand it on in `Data.extra`.

    Raises:
        ValueError: the model has no `init`, or it makes variables of another form than the ones passed in.

    Example:
        >>> train = jaxunlearn.closed_form.amnesiac.record(model, optax.sgd(0.1), num_steps=20, batch_size=8)
        >>> trained = train(variables, data, jaxunlearn.empty_request(), key)
        >>> recorded = data._replace(extra={**data.extra, **trained.extra})
        >>> result = jaxunlearn.amnesiac(model)(trained.variables, recorded, request, key)
    """
    training = retrain.unlearner(model, optimizer, bn=bn)

    def step(state, context, batch, key):
        after, stats = training.step(state, context, batch, key)
        rows = jnp.where(batch.retain.weights > 0, batch.retain.slots, -1)
        changes = optax.tree.sub(after.variables.params, state.variables.params)
        return after, {**stats, "updates": Updates(rows, changes)}

    train = iterate(training._replace(step=step), num_steps, batch_size=batch_size, augment=augment)

    def recorded(variables, data, request, key):
        result = train(variables, data, request, key)
        stats = dict(result.stats)
        return result._replace(extra={"updates": stats.pop("updates")}, stats=stats)

    return recorded


def amnesiac(model: Model) -> UnlearnFn:
    """Subtract the recorded updates of every training step that saw a forgotten row.

    Reads `data.extra["updates"]`, see `record`. Model state (running statistics) stays as it is.

    Args:
        model: any; it is not run.

    Returns:
        An `UnlearnFn`; `stats`: `undone` Int[], the number of steps taken back.

    Raises:
        ValueError: training was not recorded, or its record belongs to a model of another form.

    Example:
        >>> unlearn = jaxunlearn.amnesiac(model)
    """
    del model

    def undo(variables, data, request, key):
        updates = data.extra.get("updates")
        if not isinstance(updates, Updates):
            raise ValueError(
                "amnesiac needs the updates of training in data.extra['updates']: train with "
                "jaxunlearn.closed_form.amnesiac.record(...) and put its result's extra into data.extra"
            )
        shapes = [jax.tree.map(jnp.shape, variables.params), jax.tree.map(lambda x: x.shape[1:], updates.changes)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"data.extra['updates'] was recorded on weights {shapes[1]}, these are {shapes[0]}")
        held = updates.rows >= 0
        undone_before = jnp.any(held & (data.present[updates.rows] <= 0), axis=1)
        undo = jnp.any(held & risk.is_requested(data, request, updates.rows), axis=1) & ~undone_before

        def subtract(weights, changes):
            total = jnp.tensordot(undo.astype(changes.dtype), changes, axes=1, precision=jax.lax.Precision.HIGHEST)
            return (weights - total).astype(weights.dtype)

        params = jax.tree.map(subtract, variables.params, updates.changes)
        return Updated(variables._replace(params=params), {"undone": jnp.sum(undo, dtype=jnp.int32)})

    return one_shot(undo)
