"""Building data and requests on the host, where bad input can still be refused with a clear error.

Requests come stacked: `indices` and `weights` have shape [R, k], ready for `batched` and `streamed`. The capacity `k`
is rounded up to a bucket, so that a service compiles a handful of programs whatever sizes people ask for.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxunlearn import checks, sampling, slots, tree
from jaxunlearn.types import Data, Examples, ForgetRequest

Rows: TypeAlias = Sequence[int] | np.ndarray

CAPACITIES = tuple(4**power for power in range(2, 13))  # 16, 64, 256, ... 16,777,216


def training_data(inputs: PyTree, targets: PyTree, *, extra: dict[str, PyTree] | None = None) -> Data:
    """Data in which every row is present.

    Args:
        inputs, targets: pytrees of arrays with one leading axis `n`.
        extra: what else methods read, by slot, e.g. `{"attributes": values}`; see `jaxunlearn.slots`.

    Returns:
        `Data` with `present` Float[n], all ones.

    Raises:
        ValueError: leading axes differ, there is no row, or `extra` has a key that is no slot.

    Example:
        >>> jaxunlearn.training_data(jnp.ones((5, 2)), jnp.zeros(5, int)).present.shape
        (5,)
    """
    examples = jax.tree.map(jnp.asarray, Examples(inputs, targets))
    rows = tree.leading_axis(examples, "the training data")
    if rows == 0:
        raise ValueError("the training data has no rows")
    slots.check_known(extra or {})
    return Data(examples, jnp.ones(rows), dict(extra or {}))


def _present(data: Data) -> np.ndarray:
    if not checks.is_concrete(data.present):
        raise TypeError("requests are built on the host: call this outside jit and vmap")
    rows = tree.leading_axis(data.train, "data.train")
    present = np.asarray(data.present)
    if present.shape != (rows,):
        raise ValueError(f"data.present must have shape ({rows},), one entry per training row, got {present.shape}")
    return present > 0


def _checked(rows: Any, present: np.ndarray, where: str) -> np.ndarray:
    try:
        array = np.asarray(rows)
    except ValueError as error:
        raise ValueError(f"{where}: expected a flat list of row numbers; give a list of such lists") from error
    if array.ndim != 1:
        raise ValueError(
            f"{where}: expected a flat list of row numbers, got shape {array.shape}; from_indices takes a list of such "
            "lists, so one request is written [[3, 5]]"
        )
    if array.size == 0:
        raise ValueError(f"{where} is empty: leave it out, or use empty_request() where nothing is to be forgotten")
    if array.dtype == bool:
        raise ValueError(f"{where} is a mask; pass np.flatnonzero(mask)")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{where}: row numbers must be integers, got {array.dtype}; convert them with astype(int)")
    strays = array[(array < 0) | (array >= len(present))]
    if strays.size:
        raise ValueError(f"{where}: rows {_some(strays)} are outside the {len(present)} rows of the training data")
    unique, counts = np.unique(array, return_counts=True)
    if unique.size < array.size:
        raise ValueError(f"{where}: rows {_some(unique[counts > 1])} appear more than once; pass np.unique(rows)")
    absent = array[~present[array]]
    if absent.size:
        raise ValueError(f"{where}: rows {_some(absent)} were already removed (data.present is 0); leave them out")
    return array


def _some(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:5].tolist())) + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def _stack(lists: Sequence[np.ndarray], capacity: int | None, targets: PyTree = ()) -> ForgetRequest:
    largest = max(map(len, lists))
    if capacity is None:
        capacity = bucket(largest)
    elif capacity < largest:
        raise ValueError(f"capacity {capacity} is too small for a request of {largest} rows; pass at least {largest}, or None")
    indices = np.zeros((len(lists), capacity), np.int32)
    weights = np.zeros((len(lists), capacity), np.float32)
    for place, rows in enumerate(lists):
        indices[place, : len(rows)] = rows
        weights[place, : len(rows)] = 1
    return ForgetRequest(jnp.asarray(indices), jnp.asarray(weights), targets)


def bucket(size: int, capacities: Sequence[int] = CAPACITIES) -> int:
    """Smallest capacity that holds `size` rows; ValueError if none does."""
    for capacity in sorted(capacities):
        if size <= capacity:
            return capacity
    raise ValueError(f"no capacity of {tuple(capacities)} holds a request of {size} rows; add a larger one")


def _listed(lists: Iterable[Any], what: str) -> list[Any]:
    lists = list(lists)
    if not lists:
        raise ValueError(f"no {what}: expected at least one request")
    if sets := sorted({type(item).__name__ for item in lists if isinstance(item, set | frozenset | dict)}):
        raise ValueError(f"expected lists of {what}, got a {sets[0]}; pass sorted(...) of it")
    if any(np.isscalar(item) or getattr(item, "ndim", 1) == 0 for item in lists):
        raise ValueError(f"expected a list of requests, each a list of {what}; one request is written [[3, 5]]")
    return lists


def from_indices(data: Data, rows: Iterable[Rows], *, capacity: int | None = None) -> ForgetRequest:
    """Requests from row numbers.

    Args:
        data: the training data, to check against.
        rows: one list of row numbers per request.
        capacity: slots per request; by default the smallest bucket that holds the largest one.

    Returns:
        `ForgetRequest` with `indices` Int[R, capacity], in the order of the lists, and `weights` Float[R, capacity].

    Raises:
        ValueError: rows out of range, repeated, already removed, not integers; an empty list; a capacity too small.

    Example:
        >>> jaxunlearn.from_indices(data, [[0, 3], [4]]).indices.shape
        (2, 16)
    """
    present = _present(data)
    lists = _listed(rows, "row numbers")
    return _stack([_checked(item, present, f"request {place}") for place, item in enumerate(lists)], capacity)


def from_classes(
    data: Data, classes: Iterable[Sequence[int]], *, num_classes: int | None = None, capacity: int | None = None
) -> ForgetRequest:
    """Requests for whole classes: all present rows whose target is one of the request's classes.

    Args:
        data: its `train.targets` must be one array of integer labels, shape [n].
        classes: one list of labels per request, e.g. `[[0], [3, 8]]`.
        num_classes: width `c` of the multi-hot target; by default the largest label plus one.
        capacity: as in `from_indices`.

    Returns:
        `ForgetRequest` with `indices` Int[R, capacity], `weights` Float[R, capacity] and `target` Bool[R, c].

    Raises:
        ValueError: labels that are not integers, unknown or repeated classes, an empty list, a capacity too small.

    Example:
        >>> jaxunlearn.from_classes(data, [[0], [1, 2]]).target.tolist()
        [[True, False, False], [False, True, True]]
    """
    present = _present(data)
    labels = _labels(data.train.targets, len(present), "data.train.targets")
    known = np.unique(labels[present])
    width = int(labels.max()) + 1 if num_classes is None else num_classes
    if labels.min() < 0 or width <= labels.max():
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, so they do not fit num_classes={width}")
    chosen = _listed(classes, "classes")
    lists = _rows_of(labels, present, known, chosen, "classes")
    multi_hot = np.zeros((len(chosen), width), bool)
    for place, wanted in enumerate(chosen):
        multi_hot[place, np.asarray(wanted)] = True
    return _stack(lists, capacity, jnp.asarray(multi_hot))


def from_groups(data: Data, groups: Any, chosen: Iterable[Sequence[Any]], *, capacity: int | None = None) -> ForgetRequest:
    """Requests for whole groups, e.g. all rows of a person.

    Args:
        data: the training data.
        groups: the group of every row, shape [n]; integers or strings.
        chosen: one list of groups per request.
        capacity: as in `from_indices`.

    Returns:
        `ForgetRequest` with `indices` Int[R, capacity] and `weights` Float[R, capacity].

    Raises:
        ValueError: unknown or repeated groups, a wrong number of rows, an empty list, a capacity too small.

    Example:
        >>> people = [f"person {row % 7}" for row in range(60)]
        >>> int(jaxunlearn.from_groups(data, people, [["person 3"]]).weights.sum())
        9
    """
    present = _present(data)
    groups = np.asarray(groups)
    if groups.shape != present.shape:
        raise ValueError(f"groups must name the group of each of the {len(present)} rows, got shape {groups.shape}")
    nameless = np.flatnonzero([group is None or group != group for group in groups.tolist()])  # NaN differs from itself
    if nameless.size:
        raise ValueError(f"groups names no group for rows {_some(nameless)} (None or NaN); give each of them one of its own")
    return _stack(_rows_of(groups, present, np.unique(groups[present]), _listed(chosen, "groups"), "groups"), capacity)


def from_attributes(data: Data, attributes: Iterable[Sequence[int]]) -> ForgetRequest:
    """Requests for attributes of all rows, which forget no row; for `attribute_unlearning`.

    Args:
        data: its `extra["attributes"]` is Int[n, A].
        attributes: one list of columns per request, e.g. `[[0], [1, 2]]`.

    Returns:
        `ForgetRequest` of one empty slot whose `target` is Bool[R, A].

    Raises:
        ValueError: no attributes in the data, columns that are unknown or repeated, an empty list.

    Example:
        >>> values = {"attributes": jnp.zeros((5, 3), int)}
        >>> five_rows = jaxunlearn.training_data(jnp.ones((5, 2)), jnp.zeros(5, int), extra=values)
        >>> jaxunlearn.from_attributes(five_rows, [[0], [1, 2]]).target.tolist()
        [[True, False, False], [False, True, True]]
    """
    values: Any = slots.ATTRIBUTES.get(data)
    if np.ndim(values) != 2:
        raise ValueError(f"data.extra['attributes'] must be integers [n, A], got shape {np.shape(values)}")
    columns = np.arange(values.shape[1])
    lists = _rows_of(columns, np.ones(columns.shape, bool), columns, _listed(attributes, "attributes"), "attributes")
    return _stack([np.zeros(0, int)] * len(lists), 1, jnp.asarray([np.isin(columns, wanted) for wanted in lists]))


def _labels(targets: Any, rows: int, name: str) -> np.ndarray:
    labels = np.asarray(targets) if not isinstance(targets, dict | tuple | list) else np.empty(0)
    if labels.shape != (rows,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name} must be one array of {rows} integer labels; use from_indices or from_groups for other targets"
        )
    return labels


def _rows_of(values: np.ndarray, present: np.ndarray, known: np.ndarray, chosen: list, what: str) -> list[np.ndarray]:
    lists = []
    for place, wanted in enumerate(chosen):
        wanted = np.asarray(wanted)
        if wanted.size == 0:
            raise ValueError(f"request {place} names no {what}: leave it out, or use empty_request()")
        if np.unique(wanted).size < wanted.size:
            raise ValueError(f"request {place} names some {what} more than once: {wanted.tolist()}")
        unknown = wanted[~np.isin(wanted, known)]
        if unknown.size:
            raise ValueError(f"request {place}: no present row has {what} {_some(unknown)}; there are {_some(known)}")
        lists.append(np.flatnonzero(np.isin(values, wanted) & present))
    return lists


def empty_request(capacity: int = 1) -> ForgetRequest:
    """One request that asks for nothing; `retrain` with it is training.

    Args:
        capacity: its slots, all unused.

    Returns:
        One `ForgetRequest`, `indices` Int[capacity].

    Raises:
        ValueError: a capacity that is not a positive integer.

    Example:
        >>> jaxunlearn.empty_request(3).weights.tolist()
        [0.0, 0.0, 0.0]
    """
    checks.require_count("capacity", capacity)
    return ForgetRequest(jnp.zeros(capacity, jnp.int32), jnp.zeros(capacity))


class Bucket(NamedTuple):
    """Requests of one capacity and where they stood in the list they came from."""

    positions: list[int]
    requests: ForgetRequest


def buckets(data: Data, rows: Iterable[Rows], *, capacities: Sequence[int] = CAPACITIES) -> list[Bucket]:
    """Group requests of very different sizes by capacity: one compiled program per bucket, little padding.

    Args:
        data: the training data, to check against.
        rows: one list of row numbers per request.
        capacities: the sizes that a bucket may have.

    Returns:
        One `Bucket` per capacity that is in use, the smallest first: `positions` in the list, and stacked `requests`.

    Raises:
        ValueError: as `from_indices`, or no capacity is large enough.

    Example:
        >>> found = jaxunlearn.buckets(data, [range(40), [1], [2, 3]], capacities=(4, 64))
        >>> [(bucket.positions, bucket.requests.indices.shape) for bucket in found]
        [([1, 2], (2, 4)), ([0], (1, 64))]
    """
    present = _present(data)
    lists = [_checked(item, present, f"request {place}") for place, item in enumerate(_listed(rows, "row numbers"))]
    places: dict[int, list[int]] = {}
    for place, item in enumerate(lists):
        places.setdefault(bucket(len(item), capacities), []).append(place)
    return [Bucket(group, _stack([lists[place] for place in group], capacity)) for capacity, group in sorted(places.items())]


def merge(requests: ForgetRequest, *, capacity: int | None = None) -> ForgetRequest:
    """One request for everything that stacked requests ask for; what a service answers and publishes.

    Args:
        requests: stacked, `indices` Int[R, k]. Rows that several of them name are taken once.
        capacity: slots of the merged request; by default the smallest bucket that holds it.

    Returns:
        One `ForgetRequest` (no leading axis) whose target is the element-wise maximum of theirs.

    Raises:
        ValueError: one request instead of stacked ones; a capacity too small.
        TypeError: inside `jit` or `vmap`.

    Example:
        >>> merged = jaxunlearn.merge(jaxunlearn.from_indices(data, [[1, 2], [2, 3]]))
        >>> merged.indices[merged.weights > 0].tolist()
        [1, 2, 3]
    """
    if not checks.is_concrete(requests.indices):
        raise TypeError("merge works on the host: call it outside jit and vmap")
    if jnp.ndim(requests.indices) != 2:
        raise ValueError(f"merge takes stacked requests, indices of shape [R, k], got {jnp.shape(requests.indices)}")
    rows = np.unique(np.asarray(requests.indices)[np.asarray(requests.weights) > 0])
    target = jax.tree.map(lambda x: jnp.max(x, axis=0), requests.target)
    if rows.size == 0:
        return empty_request(capacity or 1)._replace(target=target)
    merged = _stack([rows], capacity)
    return ForgetRequest(merged.indices[0], merged.weights[0], target)


def remove(data: Data, request: ForgetRequest) -> Data:
    """Data without the rows of one request (`present` cleared); what a stream does after each answer. Pure.

    Args:
        data: the training data.
        request: one request, `indices` Int[k]; rows that are gone already do not matter.

    Returns:
        `Data` with another `present`.

    Raises:
        ValueError: stacked requests.

    Example:
        >>> float(jaxunlearn.remove(data, request).present.sum())  # two of 60 rows
        58.0
    """
    if jnp.ndim(request.indices) != 1:
        raise ValueError(f"remove takes one request, got indices of shape {jnp.shape(request.indices)}; merge() them first")
    return data._replace(present=sampling.retain_weights(data, request))
