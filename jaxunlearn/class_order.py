"""Rows in the order of their classes, for draws within a class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxunlearn import sampling
from jaxunlearn.types import Data, ForgetRequest


class ByClass(NamedTuple):
    """Rows in the order of their classes."""

    order: Int[Array, " n"]  # row numbers; those that do not count stand last
    first: Int[Array, " c"]  # place of the first row of each class
    size: Int[Array, " c"]  # rows of each class


class RetainedByClass(NamedTuple):
    """The retain set of one request in the order of its classes, without writing it down."""

    order: Int[Array, " n"]  # of all present rows, the same for every request
    retained_before: Int[Array, " k"]  # retained rows in front of each forgotten one, ascending
    first: Int[Array, " c"]  # rank of the first retained row of each class
    size: Int[Array, " c"]  # retained rows of each class


def by_class(
    labels: Int[Array, " n"], counts: Bool[Array, " n"], num_classes: int, order: Int[Array, " n"] | None = None
) -> ByClass:
    """Sort rows by class; a row whose label is no class does not count.

    Args:
        labels: one class per row.
        counts: which rows are wanted.
        num_classes: c.
        order: of the rows within their class; by default as they stand.

    Returns:
        `ByClass`.

    Example:
        >>> from jaxunlearn.class_order import by_class
        >>> found = by_class(jnp.array([1, 0, 1, 1]), jnp.array([True, True, False, True]), 2)
        >>> found.order.tolist(), found.first.tolist(), found.size.tolist()
        ([1, 0, 3, 2], [0, 1], [1, 2])
    """
    labels = jnp.asarray(labels).astype(jnp.int32)  # labels of few bits cannot hold c
    names = jnp.where(counts & (labels >= 0) & (labels < num_classes), labels, num_classes)
    order = jnp.arange(labels.shape[0], dtype=jnp.int32) if order is None else order.astype(jnp.int32)
    size = jnp.zeros(num_classes, jnp.int32).at[names].add(1, mode="drop")
    return ByClass(order[jnp.argsort(names[order], stable=True)], jnp.cumsum(size) - size, size)


def retained_by_class(data: Data, request: ForgetRequest, num_classes: int) -> RetainedByClass:
    """Prepare the retain set of one request for draws within a class.

    All requests that share the rows share one order of them, which is random within a class and always the same; a request
    itself costs `O(k log k)`.

    Args:
        data: with integer targets [n].
        request: one request.
        num_classes: c.

    Returns:
        `RetainedByClass`, for `row_of_class`.

    Example:
        >>> from jaxunlearn.class_order import retained_by_class, row_of_class
        >>> retained = retained_by_class(data, request, 3)
        >>> rows = row_of_class(retained, jnp.full(5, 2), jnp.arange(5))
        >>> data.train.targets[rows].tolist()
        [2, 2, 2, 2, 2]
    """
    targets, rows = jnp.asarray(data.train.targets), data.present.shape[0]
    shuffled = jnp.asarray(np.random.default_rng(0).permutation(rows))
    order, _, there = by_class(targets, jnp.asarray(data.present) > 0, num_classes, shuffled)
    place = jnp.zeros(rows, jnp.int32).at[order].set(jnp.arange(rows, dtype=jnp.int32), unique_indices=True)
    usable = sampling.usable_slots(data, request)
    asked = jnp.where(usable, sampling.row_numbers(request), 0)
    gone = by_class(targets[asked], usable, num_classes).size
    return RetainedByClass(
        order=order,
        retained_before=sampling.others_before(place[asked], usable, rows),
        first=jnp.cumsum(there - gone) - (there - gone),
        size=there - gone,
    )


def row_of_class(retained: RetainedByClass, classes: Int[Array, "..."], places: Int[Array, "..."]) -> Int[Array, "..."]:
    """Numbers of retained rows by their class and their place in it, which must be below the size of the class."""
    ranks = retained.first[classes] + places
    return retained.order.at[ranks + sampling.up_to(retained.retained_before, ranks)].get(mode="clip")


def turns_by_label(labels: Int[Array, " b"], counts: Bool[Array, " b"]) -> Int[Array, " b"]:
    """An order of rows that takes the first one of each label, then the second one of each that has more, and so on.

    Args:
        labels: of the rows.
        counts: which rows count; the others come last.

    Returns:
        Int[b], a permutation.

    Example:
        >>> from jaxunlearn.class_order import turns_by_label
        >>> turns_by_label(jnp.array([0, 0, 0, 1, 2]), jnp.array([True, True, True, True, False])).tolist()
        [0, 3, 1, 2, 4]
    """
    place = jnp.arange(labels.shape[0], dtype=jnp.int32)
    order = jnp.lexsort((labels, ~counts))
    starts = jnp.concatenate([jnp.ones(1, bool), jnp.diff(labels[order]) != 0])
    turn = place - jax.lax.cummax(jnp.where(starts, place, 0))
    return order[jnp.lexsort((order, jnp.where(counts[order], turn, place.shape[0])))]
