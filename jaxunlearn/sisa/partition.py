"""Which row belongs to which shard and slice, decided before training and never again.

A partition looks at neither inputs nor targets, nor at who was removed, so that a row leaves no trace in where others lie.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxunlearn import checks, tree
from jaxunlearn.types import Data


class Partition(NamedTuple):
    """S shards of R slices of up to m rows."""

    rows: Int[Array, "S R m"]  # row numbers; -1 in a slot that never held a row, and where the row was removed
    sizes: Int[Array, "S R"]  # slots that held a row when the partition was made, the first ones of each slice

    @property
    def left(self) -> Int[Array, " S"]:
        """Rows of each shard that were not removed."""
        return jnp.sum(self.rows >= 0, axis=(1, 2), dtype=jnp.int32)


def random_partition(data: Data, key: PRNGKeyArray, *, shards: int, slices: int) -> Partition:
    """Rows to shards and slices by chance; sizes differ by one row at most, whatever divides what.

    Args:
        data: its n rows are counted, not read.
        key: typed.
        shards: models that are trained, S.
        slices: steps in which each of them gets to see its rows, R.

    Returns:
        A `Partition` of all n rows, those that are not present included.

    Raises:
        ValueError: a number that is no positive integer; more slices than rows.
        TypeError: no typed key.

    Example:
        >>> partition = jaxunlearn.sisa.random_partition(data, key, shards=4, slices=2)
        >>> partition.rows.shape, partition.sizes.tolist()
        ((4, 2, 8), [[8, 7], [8, 7], [8, 7], [8, 7]])
    """
    rows = _require_room(tree.leading_axis(data.train, "data.train"), shards, slices)
    checks.check_key(key)
    return _laid_out(jax.random.permutation(key, rows), _even(_even(np.array(rows), shards), slices))


def partition_by_rate(
    rates: Float[Array, " n"], key: PRNGKeyArray, *, shards: int, slices: int, least_rows: int | None = None
) -> Partition:
    """Rows that are likely to go lie together, in small shards and late slices.

    With p_i proportional to the rate of row i, one removal costs about `sum_s n_s sum_{i in s} p_i` rows. Rows are sorted by
    rate and cut where `sum sqrt(p_i)` is equal in all shards, which makes this smallest:

        (sum_i sqrt(p_i))^2 / S  <=  n / S, the cost of a random partition,

    equal only for equal rates (own derivation, for many rows). Shards of an equal number of expected requests, as in the
    paper's Algorithm 1, cost n / S. Inside a shard the likeliest rows come last. Models of small shards know little, and where
    rates go with classes, so do shards: look at the accuracy.

    Args:
        rates: expected removals of each row, at least 0; only their proportions count. They may come from what is known of
            groups of people, not from who asked.
        key: decides between equal rates.
        shards, slices: S and R.
        least_rows: of a shard; by default half of an even share.

    Returns:
        A `Partition`.

    Raises:
        ValueError: rates that are negative or not finite, or all zero; sizes that do not fit.
        TypeError: no typed key; inside `jit`, since sizes depend on the rates.

    Example:
        >>> rates = jnp.where(jnp.arange(60) < 6, 0.5, 0.01)  # six people are likely to leave
        >>> partition = jaxunlearn.sisa.partition_by_rate(rates, key, shards=3, slices=2)
        >>> partition.left.tolist()  # they are in the last shard
        [32, 18, 10]
    """
    if not checks.is_concrete(rates):
        raise TypeError("partition_by_rate works on the host: call it outside jit and vmap")
    known = np.asarray(rates, np.float64)
    if known.ndim != 1 or not np.all(np.isfinite(known) & (known >= 0)) or not known.sum() > 0:
        raise ValueError("rates must be one finite number of at least 0 for each row, and not all of them 0")
    rows = _require_room(len(known), shards, slices)
    checks.check_key(key)
    least = max(slices, rows // (2 * shards)) if least_rows is None else least_rows
    checks.require_count("least_rows", least, least=slices)
    if least * shards > rows:
        raise ValueError(f"{rows} rows do not fill {shards} shards of at least {least}: lower least_rows or shards")
    order = np.lexsort((np.asarray(jax.random.uniform(key, (rows,), jnp.float32)), known))
    roots = np.sqrt(known[order])
    total = np.cumsum(roots)
    ends = np.searchsorted(total - roots / 2, total[-1] * np.arange(1, shards) / shards)  # cut at the nearest row
    for shard in range(shards - 1):  # from the left none is too small, from the right there is room for the others
        ends[shard] = max(ends[shard], (ends[shard - 1] if shard else 0) + least)
        ends[shard] = min(ends[shard], rows - (shards - 1 - shard) * least)
    return _laid_out(jnp.asarray(order), _even(np.diff(ends, prepend=0, append=rows), slices))


def without(partition: Partition, retained: Bool[Array, " n"]) -> tuple[Partition, Bool[Array, "S R"]]:
    """The partition with empty slots in place of rows that are not retained, and the slices that lost one by that."""
    rows = partition.rows
    gone = (rows >= 0) & ~retained[jnp.maximum(rows, 0)]
    return partition._replace(rows=jnp.where(gone, -1, rows)), jnp.any(gone, axis=2)


def require_fits(partition: Any, rows: int) -> None:
    """TypeError unless it is a `Partition`, ValueError unless it is one of so many rows, as far as values are known."""
    if not isinstance(partition, Partition):
        raise TypeError(f"expected a Partition such as sisa.random_partition(...), got {type(partition).__name__}")
    form, sizes_form = jnp.shape(partition.rows), jnp.shape(partition.sizes)
    if len(form) != 3 or sizes_form != form[:2]:
        raise ValueError(f"a partition has rows [S, R, m] and sizes [S, R], got shapes {form} and {sizes_form}")
    if not (checks.is_concrete(partition.sizes) and checks.is_concrete(partition.rows)):
        return
    places, sizes = np.asarray(partition.rows), np.asarray(partition.sizes)
    if (held := int(sizes.sum())) != rows:
        raise ValueError(f"the partition is of {held} rows, and the data has {rows}: make one for these data")
    named = np.sort(places[places >= 0])
    if named.size and (named[-1] >= rows or np.any(named[1:] == named[:-1])):
        raise ValueError(f"a partition holds each of the {rows} rows once, numbered from 0; this one repeats or invents some")
    if np.any((places >= 0) & (np.arange(form[2]) >= sizes[..., None])):
        raise ValueError("rows of a slice lie in its first slots, as many as sizes says: others would never be trained on")


def _require_room(rows: int, shards: int, slices: int) -> int:
    checks.require_count("shards", shards)
    checks.require_count("slices", slices)
    if shards * slices > rows:
        raise ValueError(f"{rows} rows do not fill {shards} shards of {slices} slices: take fewer of them")
    return rows


def _even(sizes: np.ndarray, parts: int) -> np.ndarray:
    """Each number as a sum of parts that differ by 1 at most, the larger ones first: [...] -> [..., parts]."""
    return sizes[..., None] // parts + (np.arange(parts) < sizes[..., None] % parts)


def _laid_out(order: Int[Array, " n"], sizes: np.ndarray) -> Partition:
    """Rows in a given order, cut into shards and slices of given sizes."""
    ends = np.cumsum(sizes).reshape(sizes.shape)
    slots = np.arange(sizes.max())
    places = (ends - sizes)[..., None] + slots
    used = slots < sizes[..., None]
    rows = jnp.where(used, order[np.where(used, places, 0)], -1)
    return Partition(rows.astype(jnp.int32), jnp.asarray(sizes, jnp.int32))
