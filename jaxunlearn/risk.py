"""Weighting: which rows count, how they are drawn, and means that padding cannot touch.

The retain set is always `present` minus the request. It is never written down: a retained row is found
from its rank by binary search, so a run needs `O(k)` memory a request, whatever the size `n` of the data.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import tree
from jaxunlearn.types import (
    Batch,
    BatchSizes,
    Data,
    Examples,
    ForgetRequest,
    Model,
    Outputs,
    Scalar,
    Split,
    Variables,
    Weighted,
)

BatchNormPolicy: TypeAlias = Literal["frozen", "retain", "all"]


def weighted_mean(values: Float[Array, "b"], weights: Float[Array, "b"]) -> Float[Array, ""]:
    """`sum(w x) / max(sum(w), 1)` over rows with `w > 0`; rows of weight 0 may hold anything, NaN included."""
    dtype = jnp.promote_types(values.dtype, jnp.float32)  # counts and sums of half-precision losses round or overflow
    values, weights = values.astype(dtype), weights.astype(dtype)
    return jnp.sum(jnp.where(weights > 0, values, 0) * weights) / jnp.maximum(jnp.sum(weights), 1)


def row_numbers(request: ForgetRequest) -> Int[Array, "k"]:
    """`request.indices` wide enough to hold the number of rows too, which marks unusable slots."""
    return request.indices.astype(jnp.promote_types(request.indices.dtype, jnp.int32))


def usable_slots(data: Data, request: ForgetRequest) -> Bool[Array, "k"]:
    """Slots that name a present row for the first time; padding, strays and repetitions are out."""
    num_rows = data.present.shape[0]
    indices = row_numbers(request)
    usable = (request.weights > 0) & (indices >= 0) & (indices < num_rows)
    usable &= data.present[jnp.where(usable, indices, 0)] > 0
    order = jnp.argsort(jnp.where(usable, indices, num_rows))
    ascending = jnp.where(usable, indices, num_rows)[order]
    first = jnp.concatenate([jnp.ones(1, bool), ascending[1:] != ascending[:-1]])
    return usable.at[order].min(first)


def is_requested(data: Data, request: ForgetRequest, rows: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether each of some row numbers is among the usable slots of a request; `O(log k)` a row."""
    unreachable = data.present.shape[0]
    asked = jnp.sort(jnp.where(usable_slots(data, request), row_numbers(request), unreachable))
    place = jnp.searchsorted(asked, rows).astype(jnp.int32)
    return (asked[jnp.minimum(place, asked.shape[0] - 1)] == rows) & (rows < unreachable)


def is_empty(request: ForgetRequest) -> Bool[Array, ""]:
    """Whether a request asks for nothing: no used slot and no target."""
    targets = [jnp.any(x != 0) for x in jax.tree.leaves(request.target)]
    return ~jnp.any(jnp.stack([jnp.any(request.weights > 0), *targets]))


def forgotten_classes(target: Any, num_classes: int) -> Bool[Array, "c"]:
    """The classes a request names as a whole; none if its target is something else than multi-hot classes."""
    if not (hasattr(target, "dtype") and target.dtype == bool and target.ndim == 1):
        return jnp.zeros(num_classes, bool)
    if target.shape[0] > num_classes:
        raise ValueError(f"request.target names {target.shape[0]} classes, but the model has {num_classes} logits")
    return jnp.pad(target, (0, num_classes - target.shape[0]))


def retain_weights(data: Data, request: ForgetRequest) -> Float[Array, "n"]:
    """1 on retained rows, 0 elsewhere. Size n a request: for audits and full-batch sums, not for training loops."""
    rows = jnp.where(usable_slots(data, request), row_numbers(request), data.present.shape[0])
    return data.present.at[rows].set(0, mode="drop")


def split(data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Split:
    """Prepare one request for sampling; costs `O(k log k)` a request and one shared pass over `present`."""
    capacity = request.indices.shape[0]
    usable = usable_slots(data, request)
    num_forget = jnp.sum(usable, dtype=jnp.int32)
    present_before = jnp.cumsum(data.present > 0, dtype=jnp.int32)
    unreachable = jnp.int32(data.present.shape[0])
    ranks = jnp.sort(jnp.where(usable, present_before[jnp.where(usable, row_numbers(request), 0)] - 1, unreachable))
    position = jnp.arange(capacity, dtype=jnp.int32)
    return Split(
        data=data,
        request=request,
        slots=jnp.argsort(jnp.where(usable, jax.random.uniform(key, (capacity,)), jnp.inf)),
        num_forget=num_forget,
        num_retain=present_before[-1] - num_forget,
        present_before=present_before,
        retained_before=jnp.where(position < num_forget, ranks - position, unreachable),
    )


def take(examples: Examples, rows: jax.Array, weights: Float[Array, "b"]) -> Examples:
    """Gather rows; those of weight 0 come back as zeros, so that what they held reaches no gradient."""
    return blank(jax.tree.map(lambda x: jnp.asarray(x)[rows], examples), weights)


def blank(examples: Examples, weights: Float[Array, "b"]) -> Examples:
    """Overwrite the inexact leaves of rows of weight 0 with zeros."""

    def zero(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.where((weights > 0).reshape(weights.shape + (1,) * (x.ndim - 1)), x, 0)

    return jax.tree.map(zero, examples)


def draw_forget(split: Split, step: jax.Array, size: int) -> Weighted:
    """Rows of the request, in passes over one random order: every row is drawn equally often."""
    position = (step * size + jnp.arange(size, dtype=jnp.int32)) % jnp.maximum(split.num_forget, 1)
    slots = split.slots[position]
    weights = jnp.broadcast_to(split.num_forget > 0, (size,)).astype(jnp.float32)
    rows = jnp.where(weights > 0, row_numbers(split.request)[slots], 0)
    return Weighted(take(split.data.train, rows, weights), weights, slots)


def draw_retain(split: Split, key: PRNGKeyArray, size: int) -> Weighted:
    """Retained rows, uniformly with replacement (relative bias at most n / 2^32; `randint` compiles twice as long)."""
    drawn = jax.random.bits(key, (size,)) % jnp.maximum(split.num_retain, 1).astype(jnp.uint32)
    drawn = drawn.astype(jnp.int32)
    rank = drawn + jnp.searchsorted(split.retained_before, drawn, side="right").astype(jnp.int32)
    rows = jnp.searchsorted(split.present_before, rank, side="right").astype(jnp.int32)
    weights = jnp.broadcast_to(split.num_retain > 0, (size,)).astype(jnp.float32)
    return Weighted(take(split.data.train, jnp.where(weights > 0, rows, 0), weights), weights, rows)


def uniform(split: Split, context: Any, step: jax.Array, key: PRNGKeyArray, sizes: BatchSizes) -> Batch:
    """The default sampler: both sides in every step."""
    return Batch(draw_forget(split, step, sizes.forget), draw_retain(split, key, sizes.retain))


class Pass(NamedTuple):
    """One training pass over a weighted batch."""

    outputs: Outputs
    losses: Float[Array, "b"]  # the model's loss, one value a row
    weights: Float[Array, "b"]

    @property
    def loss(self) -> Float[Array, ""]:
        """Weighted mean of the model's loss."""
        return self.mean(self.losses)

    def mean(self, values: Float[Array, "b"]) -> Float[Array, ""]:
        """Weighted mean of other values of the same rows."""
        return weighted_mean(values, self.weights)


def train_pass(
    model: Model,
    variables: Variables,
    part: Weighted,
    key: PRNGKeyArray,
    *,
    side: Literal["forget", "retain"],
    bn: BatchNormPolicy,
) -> tuple[Pass, Variables]:
    """Run the model in training mode on one side of a batch.

    Returns the pass and the variables with the model state that survives it: `bn` names the passes that may
    move BatchNorm statistics ("frozen": none, "retain": retained rows only, "all"); a batch without a
    counting row never does.
    """
    outputs = model.forward(variables, part.examples.inputs, train=True, key=key)
    losses = model.loss(outputs, part.examples)
    if jnp.shape(losses) != part.weights.shape:
        raise ValueError(
            f"model.loss must return one value a row, shape {part.weights.shape}, got {jnp.shape(losses)}; leave out the mean"
        )
    if bn == "all" or bn == side:
        variables = variables._replace(state=_moved_state(variables.state, outputs.state, jnp.any(part.weights > 0)))
    return Pass(outputs, losses, part.weights), variables


def both_passes(
    model: Model, variables: Variables, batch: Batch, key: PRNGKeyArray, *, bn: BatchNormPolicy
) -> tuple[Pass, Pass, Variables]:
    """Training passes over the retained and over the forgotten rows of a batch, and the variables that survive them."""
    retain_key, forget_key = jax.random.split(key)
    retain, moved = train_pass(model, variables, batch.retain, retain_key, side="retain", bn=bn)
    forget, moved = train_pass(model, moved, batch.forget, forget_key, side="forget", bn=bn)
    return retain, forget, moved


def _moved_state(old: PyTree, new: PyTree, counts: Bool[Array, ""]) -> PyTree:
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ValueError(
            "forward(train=True) must return the whole model state in Outputs.state: "
            f"expected {jax.tree.structure(old)}, got {jax.tree.structure(new)}"
        )
    return tree.select(counts, new, old)


def penalty(model: Model, params: PyTree) -> Scalar:
    """The regularizer that was part of the training objective, 0 if there was none."""
    return model.regularizer(params) if model.regularizer is not None else 0.0
