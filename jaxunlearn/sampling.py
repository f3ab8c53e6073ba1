"""Which rows count, how they are drawn, and means that padding cannot touch.

The retain set is always `present` minus the request. It is never written down: one of its rows is found from its rank by
binary search, so a run needs `O(k)` memory per request, whatever the size `n` of the data.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt32

from jaxunlearn import meshes, tree
from jaxunlearn.types import Batch, BatchSizes, Data, Examples, ForgetRequest, Split, Weighted

COUNTED = 256  # numbers up to which comparing with each of them is quicker, and compiles quicker, than a binary search


def masked_mean(values: Float[Array, " b"], weights: Float[Array, " b"], *, empty: float) -> Float[Array, ""]:
    """`sum(w x) / sum(w)` over rows with `w > 0`, at least in float32; rows of weight 0 may hold anything, NaN included.

    Args:
        values, weights: one entry per row.
        empty: what comes back without a row: 0 in an objective, NaN in a figure that is then unknown.

    Returns:
        Float[].

    Example:
        >>> from jaxunlearn.sampling import masked_mean
        >>> float(masked_mean(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([1.0, 0.0, 1.0]), empty=0))
        2.0
    """
    dtype = jnp.promote_types(values.dtype, jnp.float32)  # counts and sums of half-precision losses round or overflow
    values, weights = values.astype(dtype), weights.astype(dtype)
    total = jnp.sum(weights)
    mean = jnp.sum(jnp.where(weights > 0, values, 0) * weights) / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, mean, jnp.asarray(empty, dtype))


def row_numbers(request: ForgetRequest) -> Int[Array, " k"]:
    """`request.indices` wide enough to hold the number of rows too, which marks unusable slots."""
    return request.indices.astype(jnp.promote_types(request.indices.dtype, jnp.int32))


def usable_slots(data: Data, request: ForgetRequest) -> Bool[Array, " k"]:
    """Slots that name a present row for the first time; padding, rows out of range and repetitions are left out."""
    num_rows = data.present.shape[0]
    indices = row_numbers(request)
    usable = jnp.asarray((request.weights > 0) & (indices >= 0) & (indices < num_rows))  # NumPy's have no `at`
    usable &= jnp.asarray(data.present)[jnp.where(usable, indices, 0)] > 0
    order = jnp.argsort(jnp.where(usable, indices, num_rows))
    ascending = jnp.where(usable, indices, num_rows)[order]
    first = jnp.concatenate([jnp.ones(1, bool), ascending[1:] != ascending[:-1]])
    return usable.at[order].min(first)


def is_requested(data: Data, request: ForgetRequest, rows: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether each of some row numbers is among the usable slots of a request; `O(log k)` per row."""
    return is_among(asked_rows(data, request), rows) & (rows < data.present.shape[0])


def asked_rows(data: Data, request: ForgetRequest) -> Int[Array, " k"]:
    """The rows of the usable slots in ascending order, behind them the number of rows."""
    return jnp.sort(jnp.where(usable_slots(data, request), row_numbers(request), data.present.shape[0]))


def is_among(ascending: Int[Array, " k"], values: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether each of some values is one of the entries."""
    place = jnp.searchsorted(ascending, values).astype(jnp.int32)
    return ascending[jnp.minimum(place, ascending.shape[0] - 1)] == values


def is_empty(request: ForgetRequest) -> Bool[Array, ""]:
    """Whether a request asks for nothing: no slot in use and no target."""
    targets = [jnp.any(x != 0) for x in jax.tree.leaves(request.target)]
    return ~jnp.any(jnp.stack([jnp.any(request.weights > 0), *targets]))


def forgotten_classes(target: Any, num_classes: int) -> Bool[Array, " c"]:
    """The classes a request names as a whole; none if its target is something else than multi-hot classes."""
    if not (hasattr(target, "dtype") and target.dtype == bool and target.ndim == 1):
        return jnp.zeros(num_classes, bool)
    if target.shape[0] > num_classes:
        raise ValueError(f"request.target names {target.shape[0]} classes, but the model has {num_classes} logits")
    return jnp.pad(target, (0, num_classes - target.shape[0]))


def classes_gone(data: Data, request: ForgetRequest, num_classes: int) -> Bool[Array, " c"]:
    """The classes of which no row stays: those that a request names, and those whose present rows it all holds.

    Args:
        data: with integer targets [n]; its rows are counted once for all requests that share it.
        request: one request.
        num_classes: c.

    Returns:
        Bool[c]; False for a class that had no row.

    Example:
        >>> from jaxunlearn.sampling import classes_gone
        >>> rows = jnp.flatnonzero(data.train.targets == 2)
        >>> classes_gone(data, jaxunlearn.merge(jaxunlearn.from_indices(data, [rows])), 3).tolist()
        [False, False, True]
    """
    targets = jnp.asarray(data.train.targets)
    there = jnp.zeros(num_classes, jnp.int32).at[targets].add(jnp.asarray(data.present) > 0)
    usable = usable_slots(data, request)
    asked = targets[jnp.where(usable, row_numbers(request), 0)]
    gone = jnp.zeros(num_classes, jnp.int32).at[asked].add(usable)
    return (there > 0) & ((gone == there) | forgotten_classes(request.target, num_classes))


def retain_weights(data: Data, request: ForgetRequest) -> Float[Array, " n"]:
    """1 on the retain set, 0 elsewhere. Size n per request: for audits and full-batch sums, not for training loops."""
    rows = jnp.where(usable_slots(data, request), row_numbers(request), data.present.shape[0])
    return jnp.asarray(data.present).at[rows].set(0, mode="drop")


def asked(data: Data, request: ForgetRequest) -> UInt32[Array, " 4"]:
    """128 bits that tell apart which rows a run was asked for and which were present, by their numbers; not what they hold.

    Padding, repeated slots and the order of slots do not count. Good against mistakes, not against an adversary.
    """

    def sums(rows, counts):
        words = tree.mixed(rows.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(1))
        both = jnp.stack([words, tree.mixed(words ^ jnp.uint32(0x5BD1E995))])
        return tree.mixed(jnp.sum(jnp.where(counts, both, 0), axis=1, dtype=jnp.uint32))

    there = jnp.asarray(data.present) > 0
    number = jnp.arange(there.shape[0], dtype=jnp.int32)
    return jnp.concatenate([sums(row_numbers(request), usable_slots(data, request)), sums(number, there)])


def split(data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Split:
    """Prepare one request for sampling; costs `O(k log k)` per request and one shared pass over `present`."""
    capacity = request.indices.shape[0]
    usable = usable_slots(data, request)
    num_forget = jnp.sum(usable, dtype=jnp.int32)
    present_before = jnp.cumsum(data.present > 0, dtype=jnp.int32)
    unreachable = jnp.int32(data.present.shape[0])
    ranks = present_before[jnp.where(usable, row_numbers(request), 0)] - 1
    return Split(
        data=data,
        request=request,
        slots=jnp.argsort(jnp.where(usable, jax.random.uniform(key, (capacity,)), jnp.inf)),
        num_forget=num_forget,
        num_retain=present_before[-1] - num_forget,
        present_before=present_before,
        retained_before=others_before(ranks, usable, unreachable),
        first_present=jnp.minimum(up_to(present_before, jnp.int32(0)), unreachable - 1),
    )


def others_before(places: Int[Array, " k"], usable: Bool[Array, " k"], unreachable: Any) -> Int[Array, " k"]:
    """Places that are not asked for in front of each one that is, ascending; where a slot is not usable, `unreachable`."""
    ascending, number = jnp.sort(jnp.where(usable, places, unreachable)), jnp.arange(places.shape[0], dtype=jnp.int32)
    return jnp.where(number < jnp.sum(usable), ascending - number, unreachable)


def take(examples: Examples, rows: jax.Array, weights: Float[Array, " b"]) -> Examples:
    """Gather rows; those of weight 0 come back as the first one that counts, see `fill`."""
    return fill(jax.tree.map(lambda x: jnp.asarray(x)[rows], examples), weights)


def fill(examples: PyTree, weights: Float[Array, " b"], row: PyTree = None) -> PyTree:
    """Overwrite rows of weight 0 with one that counts, so that what they held reaches no gradient.

    A valid row and not zeros: a model that divides by the norm of its input has no derivative there, and 0 * NaN is NaN.

    Args:
        examples: any tree of leading axis b.
        weights: one per row.
        row: what is written; by default the first row of positive weight. Without one, inexact leaves become zeros.
    """
    if row is None:
        row = first_that_counts(examples, weights)

    def overwrite(x, new):
        return jnp.where((weights > 0).reshape(weights.shape + (1,) * (x.ndim - 1)), x, new)

    return jax.tree.map(overwrite, examples, row)


def first_that_counts(examples: PyTree, weights: Float[Array, " b"]) -> PyTree:
    """The first row of positive weight; where there is none, the first row with zeros in its inexact leaves."""
    some = jnp.any(weights > 0)
    first = jax.lax.argmax((weights > 0).astype(jnp.int32), 0, jnp.int32)  # int32 in every scope of float64

    def pick(x):
        row = jnp.asarray(x)[first]
        return jnp.where(some, row, jnp.zeros_like(row)) if jnp.issubdtype(row.dtype, jnp.inexact) else row

    return jax.tree.map(pick, examples)


def blank(examples: Examples, weights: Float[Array, " b"]) -> Examples:
    """Overwrite the inexact leaves of rows of weight 0 with zeros; for sums of products of rows, not for models."""

    def zero(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.where((weights > 0).reshape(weights.shape + (1,) * (x.ndim - 1)), x, 0)

    return jax.tree.map(zero, examples)


def draw_forget(split: Split, step: jax.Array, size: int) -> Weighted:
    """Rows of the forget set, in passes over one random order: every row is drawn equally often."""
    position = (step * size + jnp.arange(size, dtype=jnp.int32)) % jnp.maximum(split.num_forget, 1)
    slots = split.slots[position]
    weights = jnp.broadcast_to(split.num_forget > 0, (size,)).astype(jnp.float32)
    return Weighted(_drawn(split, row_numbers(split.request)[slots], weights), weights, slots)


def draw_retain(split: Split, key: PRNGKeyArray, size: int) -> Weighted:
    """Rows of the retain set, uniformly with replacement (relative bias at most n / 2^32; `randint` compiles twice as long)."""
    drawn = jax.lax.rem(jax.random.bits(key, (size,), jnp.uint32), jnp.maximum(split.num_retain, 1).astype(jnp.uint32))
    return _retained(split, drawn.astype(jnp.int32))


def spread_retain(split: Split, size: int) -> Weighted:
    """Rows of the retain set at equal distances, no key needed; where it has fewer, some of them come twice."""
    place = jnp.arange(size, dtype=jnp.float32) + 0.5
    ranks = (place * (split.num_retain.astype(jnp.float32) / size)).astype(jnp.int32)
    return _retained(split, jnp.clip(ranks, 0, jnp.maximum(split.num_retain - 1, 0)))


def _retained(split: Split, order: Int[Array, " b"]) -> Weighted:
    """Rows by their places in the retain set."""
    rows = up_to(split.present_before, order + up_to(split.retained_before, order))
    weights = jnp.broadcast_to(split.num_retain > 0, order.shape).astype(jnp.float32)
    return Weighted(_drawn(split, rows, weights), weights, rows)


def up_to(ascending: Int[Array, " m"], values: Int[Array, "..."]) -> Int[Array, "..."]:
    """How many entries are at most each value."""
    if ascending.shape[0] <= COUNTED:
        return jnp.sum(ascending <= values[..., None], axis=-1, dtype=jnp.int32)
    return jnp.searchsorted(ascending, values, side="right").astype(jnp.int32)


def _drawn(split: Split, rows: Int[Array, " b"], weights: Float[Array, " b"]) -> Examples:
    """Rows of one side; a side that has none repeats the first present row, which a model can read."""
    rows = jnp.where(weights > 0, rows, split.first_present)
    some = split.present_before[-1] > 0

    def pick(x):
        found = jnp.asarray(x).at[rows].get(mode="promise_in_bounds", wrap_negative_indices=False)
        return jnp.where(some, found, jnp.zeros_like(found)) if jnp.issubdtype(x.dtype, jnp.inexact) else found

    return meshes.over_rows(jax.tree.map(pick, split.data.train))


def uniform(split: Split, context: Any, step: jax.Array, key: PRNGKeyArray, sizes: BatchSizes) -> Batch:
    """The default sampler: rows of both sides in every step.

    Args:
        split: the training set as the request divides it.
        context: of the method; not read.
        step: Int[], counted from 0; it decides which rows of the forget set come next.
        key: of this step, for rows of the retain set.
        sizes: rows per side, static.

    Returns:
        A `Batch`; a side without rows has weights 0.

    Example:
        >>> def forget_side_only(split, context, step, key, sizes):
        ...     batch = jaxunlearn.uniform(split, context, step, key, sizes)
        ...     return batch._replace(retain=batch.retain._replace(weights=jnp.zeros(sizes.retain)))
        >>> method = jaxunlearn.gradient_difference(model, optax.sgd(0.1))._replace(sample=forget_side_only)
        >>> result = jaxunlearn.iterate(method, num_steps=2, batch_size=8)(variables, data, request, key)
        >>> result.stats["retain_loss"].tolist()
        [0.0, 0.0]
    """
    return Batch(draw_forget(split, step, sizes.forget), draw_retain(split, key, sizes.retain))


def forget_rows(data: Data, request: ForgetRequest) -> Weighted:
    """The forget set of one request, row by row: the usable slots with weight 1, all others repeat one of them with weight 0,
    or the first present row where there is none.

    Args:
        data: the training data.
        request: one request, indices of shape [k].

    Returns:
        `Weighted` with k rows, in the order of the request's slots.

    Raises:
        ValueError: stacked requests.

    Example:
        >>> part = jaxunlearn.forget_rows(data, request)
        >>> losses = model.loss(model.forward(variables, part.examples.inputs), part.examples)
        >>> losses.shape == part.weights.shape == request.indices.shape
        True
    """
    if jnp.ndim(request.indices) != 1:
        raise ValueError(
            f"expected one request of shape [k], got indices of shape {jnp.shape(request.indices)}; use jax.vmap for many"
        )
    usable = usable_slots(data, request)
    weights = usable.astype(jnp.float32)
    is_present = jnp.asarray(data.present) > 0
    present = jax.lax.argmax(is_present.astype(jnp.int32), 0, jnp.int32)  # read where no slot is usable
    counts = jnp.where(jnp.any(usable), usable, jnp.any(is_present))
    examples = meshes.over_rows(take(data.train, jnp.where(usable, row_numbers(request), present), counts))
    return Weighted(examples, weights, jnp.arange(usable.shape[0], dtype=jnp.int32))
