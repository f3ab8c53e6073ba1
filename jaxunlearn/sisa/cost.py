"""What training and removals cost, in row visits: known before the run, to be compared with `stats["visits"]`.

Slice r is trained on again when a removed row lies in slices 1..r of its shard. With n_r rows in these that is
`e_r (n_r - removed)` visits. For one removal of any row this comes to the share `(2/3 + 1/(3 R)) / S` of a training, for
many epochs (authors' analysis).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxunlearn import checks
from jaxunlearn.sisa.partition import Partition
from jaxunlearn.sisa.training import Trainer


class Cost(NamedTuple):
    """Row visits of training, and of answering requests that come in together."""

    training: int
    expected: float  # of the answer
    share: float  # expected / training
    bound: int  # of the answer, whichever rows are asked for


def expected_cost(trainer: Trainer, partition: Partition, *, requests: int = 1, rates: Any = None) -> Cost:
    """Row visits before anything is run.

    Args:
        trainer: how shards are trained.
        partition: of the rows; that of an answer, `variables.state.partition`, counts rows that are left.
        requests: rows that are asked for, drawn independently and answered together.
        rates: probabilities of rows up to a factor, [n]; by default rows are equally likely.

    Returns:
        A `Cost`. Requests that come one after another cost about as often one alone, and at most `bound` for one each.

    Raises:
        ValueError: `requests` is no positive integer; rates of another number of rows, negative or all zero; no row left.

    Example:
        >>> trainer = jaxunlearn.sisa.trainer(model, optax.sgd(0.1), epochs=9, batch_size=8)
        >>> partition = jaxunlearn.sisa.random_partition(data, key, shards=5, slices=2)
        >>> cost = jaxunlearn.sisa.expected_cost(trainer, partition)
        >>> cost.training, round(cost.share, 3), round((2 / 3 + 1 / 6) / 5, 3)
        (540, 0.15, 0.167)
    """
    checks.require_count("requests", requests)
    rows, epochs = np.asarray(partition.rows), trainer.slice_epochs(partition.rows.shape[1])
    every = int(np.asarray(partition.sizes).sum())
    known = np.ones(every) if rates is None else np.asarray(rates, np.float64)
    if known.shape != (every,) or not np.all(np.isfinite(known) & (known >= 0)):
        raise ValueError(f"rates must be a finite number of at least 0 for each of the {every} rows")
    chance = np.where(rows >= 0, known[np.maximum(rows, 0)], 0.0)
    if not chance.sum() > 0:
        raise ValueError("no row that is left has a rate above 0")
    chance = chance / chance.sum()
    inside = np.cumsum(chance.sum(axis=2), axis=1)  # [S, R], of slices up to each
    count = np.cumsum((rows >= 0).sum(axis=2), axis=1)
    removed = np.cumsum((1 - (1 - chance) ** requests).sum(axis=2), axis=1)
    expected = float(np.sum(epochs * (count * (1 - np.clip(1 - inside, 0, 1) ** requests) - removed)))
    of_shards = _training(trainer, partition)
    training = int(of_shards.sum())
    return Cost(training, expected, expected / training, int(np.sort(of_shards)[::-1][:requests].sum()))


def visits_of(trainer: Trainer, partition: Partition, rows: Any) -> Int[np.ndarray, " S"]:
    """Row visits of each shard when certain rows are removed together: what `stats["visits"]` will be.

    Args:
        trainer, partition: as for `expected_cost`.
        rows: their numbers; those that were removed before count for nothing.

    Returns:
        Int[S].

    Example:
        >>> trainer = jaxunlearn.sisa.trainer(model, optax.sgd(0.1), epochs=3, batch_size=8)
        >>> partition = jaxunlearn.sisa.random_partition(data, key, shards=4, slices=2)
        >>> jaxunlearn.sisa.visits_of(trainer, partition, partition.rows[1, 1, :2]).tolist()  # 2 epochs on 15 - 2 rows
        [0, 26, 0, 0]
    """
    held = np.asarray(partition.rows)
    gone = np.isin(held, np.asarray(rows).ravel()) & (held >= 0)
    count = np.cumsum(((held >= 0) & ~gone).sum(axis=2), axis=1)
    hit = np.cumsum(gone.sum(axis=2), axis=1) > 0
    return np.sum(trainer.slice_epochs(held.shape[1]) * count * hit, axis=1)


def slow_down_attack(trainer: Trainer, partition: Partition, size: int) -> Int[np.ndarray, " k"]:
    """The rows whose removal costs most: one in the first slice of every shard that has rows left, the dearest shards first.

    Someone who knows the partition can ask for them. Together they cost `expected_cost(..., requests=size).bound`, less the
    visits of the rows themselves: never more than `size` shards, nor than a training of all. One after another each costs
    one shard at most. So to wait for requests and answer them together bounds what an attack can do.

    Args:
        trainer, partition: as for `expected_cost`.
        size: rows to ask for, k, at most the number of shards; further rows make the answer cheaper.

    Returns:
        Int[k], row numbers; fewer where fewer shards have a row left.

    Raises:
        ValueError: a size that is no positive integer or above the number of shards.

    Example:
        >>> trainer = jaxunlearn.sisa.trainer(model, optax.sgd(0.1), epochs=3, batch_size=8)
        >>> partition = jaxunlearn.sisa.random_partition(data, key, shards=4, slices=2)
        >>> rows = jaxunlearn.sisa.slow_down_attack(trainer, partition, 2)
        >>> int(jaxunlearn.sisa.visits_of(trainer, partition, rows).sum())
        84
        >>> jaxunlearn.sisa.expected_cost(trainer, partition, requests=2).bound  # two shards, two rows of 4 visits more
        92
    """
    checks.require_count("size", size)
    held = np.asarray(partition.rows)
    held = held.reshape(len(held), -1)  # in order of slices; where the first one is empty, the next one costs as much
    if size > len(held):
        raise ValueError(f"an attack asks for one row of each of {len(held)} shards at most, got size={size}")
    dearest = np.argsort(-_training(trainer, partition), kind="stable")
    found = [int(held[shard][held[shard] >= 0][0]) for shard in dearest if np.any(held[shard] >= 0)]
    return np.asarray(found[:size], np.int32)


def _training(trainer: Trainer, partition: Partition) -> Int[np.ndarray, " S"]:
    """Row visits that training each shard takes."""
    count = np.cumsum((np.asarray(partition.rows) >= 0).sum(axis=2), axis=1)
    return np.sum(trainer.slice_epochs(count.shape[1]) * count, axis=1)
