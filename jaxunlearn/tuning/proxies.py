"""Proxy requests: requests like the real one, for rows that stay, to which the right answer may be looked at."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.requests import from_classes, from_groups, from_indices, remove
from jaxunlearn.types import Data, Examples, ForgetRequest

TRIES = 200  # to give the counts of a request to other classes at random


class Proxies(NamedTuple):
    """Requests to which the right answer is known, and what else is known of them."""

    requests: ForgetRequest  # [p, k]
    alike: Float[np.ndarray, "p m"]  # weights of test rows, with which their classes are as frequent as in the request
    gone: Float[np.ndarray, " p"]  # share of the requested rows whose class goes with them
    gone_of_test: Float[np.ndarray, " p"]  # share of test rows of such classes


def described(requests: ForgetRequest, data: Data, test: Examples, *, classes: int | None) -> Proxies:
    """Which test rows are like those of each request, and which classes go.

    Args:
        requests: stacked, [p, k].
        data, test: training rows and held-out ones.
        classes: how many there are; None for other tasks, where all test rows are alike.

    Raises:
        ValueError: no test row of any class that a request takes rows of.
    """
    count, rows = len(requests.indices), len(jax.tree.leaves(test)[0])
    if classes is None:
        return Proxies(requests, np.ones((count, rows), np.float32), np.zeros(count), np.zeros(count))
    labels, held_out, present = (np.asarray(x) for x in (data.train.targets, test.targets, data.present))
    there, of_test = np.bincount(labels[present > 0], minlength=classes), np.bincount(held_out, minlength=classes)
    alike, gone, gone_of_test = [], [], []
    for place in range(count):
        own = np.unique(np.asarray(requests.indices[place])[np.asarray(requests.weights[place]) > 0])
        taken = np.bincount(labels[own[present[own] > 0]], minlength=classes)
        weights = np.where(of_test > 0, taken / np.maximum(of_test, 1), 0)
        if not weights.any():
            raise ValueError(f"test holds no row of the classes of request {place}: pass more of them, or give proxies=")
        goes = (taken > 0) & (taken == there)
        alike.append((weights / weights.max())[held_out])
        gone.append(taken[goes].sum() / taken.sum())
        gone_of_test.append(of_test[goes].sum() / of_test.sum())
    return Proxies(requests, np.asarray(alike, np.float32), np.asarray(gone), np.asarray(gone_of_test))


def proxy_requests(data: Data, request: ForgetRequest, count: int, key: PRNGKeyArray, *, groups: Any = None) -> ForgetRequest:
    """Requests of the same kind and size, for rows that the request leaves.

    - A request for whole classes (it has a `target`): as many other classes.
    - With `groups`: the groups without a requested row whose sizes are nearest to that of the request, in random order.
    - Else rows: with classes as targets, as many rows of as many classes, each at random among the classes that hold enough.

    Proxies may share rows with each other, never with the request.

    Args:
        data: the training data.
        request: one request.
        count: of proxies.
        key: one typed key.
        groups: the group of every row, [n], e.g. who it is of.

    Returns:
        Stacked requests of the request's own capacity, or a larger one where they need it.

    Raises:
        ValueError: stacked requests, one without rows, or too few rows, classes or groups left.
        TypeError: inside `jit` or `vmap`.

    Example:
        >>> proxies = jaxunlearn.proxy_requests(data, request, 3, key)
        >>> proxies.indices.shape[0], proxies.weights.sum(axis=1).tolist()
        (3, [2.0, 2.0, 2.0])
    """
    checks.check_key(key)
    checks.require_count("count", count)
    if not checks.is_concrete((request, data.present)):
        raise TypeError("proxy_requests works on the host: call it outside jit and vmap")
    if np.ndim(request.indices) != 1:
        raise ValueError(f"proxy_requests takes one request, got indices of shape {np.shape(request.indices)}")
    left = remove(data, request)
    stays = np.asarray(left.present) > 0
    asked = np.flatnonzero((np.asarray(data.present) > 0) & ~stays)
    if not asked.size:
        raise ValueError("the request holds no present row, so nothing is like it")
    if asked.size >= stays.sum():
        raise ValueError(f"the request leaves {stays.sum()} rows, too few for proxies of its {asked.size} rows")
    random = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    capacity = int(np.shape(request.indices)[0])
    target = jax.tree.leaves(request.target)
    if groups is not None:
        made = from_groups(left, groups, [[group] for group in _nearest(np.asarray(groups), stays, asked, count, random)])
    elif target and np.any(target[0]):
        others = _other_classes(left, np.asarray(data.train.targets)[asked], np.asarray(target[0]), count, random)
        made = from_classes(left, others, num_classes=len(target[0]))
    else:
        made = from_indices(left, [_rows(np.asarray(data.train.targets), stays, asked, random) for _ in range(count)])
        made = made._replace(target=jax.tree.map(lambda x: np.zeros((count, *np.shape(x)), bool), request.target))
    return _of_capacity(made, capacity)


def _of_capacity(requests: ForgetRequest, least: int) -> ForgetRequest:
    used = int(np.asarray(requests.weights).sum(axis=1).max())
    have = requests.indices.shape[1]
    wanted = least if used <= least else have

    def fit(x: Any) -> Any:
        return np.pad(np.asarray(x)[:, :wanted], [(0, 0), (0, max(0, wanted - have))])

    return ForgetRequest(fit(requests.indices), fit(requests.weights), requests.target)


def _nearest(groups: np.ndarray, stays: np.ndarray, asked: np.ndarray, count: int, random: np.random.Generator) -> list[Any]:
    if groups.shape != stays.shape:
        raise ValueError(f"groups must name the group of each of the {len(stays)} rows, got shape {groups.shape}")
    names, sizes = np.unique(groups[stays], return_counts=True)
    free = ~np.isin(names, groups[asked])
    if free.sum() < count:
        raise ValueError(f"{free.sum()} groups hold no requested row, fewer than the {count} proxies")
    names, sizes = names[free], sizes[free]
    order = np.lexsort((random.random(len(names)), np.abs(sizes - asked.size)))
    return random.permutation(names[order[:count]]).tolist()


def _other_classes(left: Data, held: np.ndarray, gone: np.ndarray, count: int, random: np.random.Generator) -> list[list[int]]:
    """As many classes as the request takes rows of; `held` are the labels of its rows."""
    labels = np.asarray(left.train.targets)[np.asarray(left.present) > 0]
    others = np.setdiff1d(np.unique(labels), np.flatnonzero(gone))
    together = np.intersect1d(np.flatnonzero(gone), held).size
    if len(others) <= together:
        raise ValueError(f"{len(others)} other classes are left, and proxies of {together} must leave some: give proxies=")
    found: list[list[int]] = []
    for _ in range(TRIES * count):
        wanted = sorted(random.choice(others, together, replace=False).tolist())
        if wanted not in found:
            found.append(wanted)
        if len(found) == count:
            return found
    raise ValueError(f"only {len(found)} ways are left to choose {together} other classes, fewer than the {count} proxies")


def _rows(targets: np.ndarray, stays: np.ndarray, asked: np.ndarray, random: np.random.Generator) -> np.ndarray:
    if targets.shape != stays.shape or not np.issubdtype(targets.dtype, np.integer):
        return random.choice(np.flatnonzero(stays), asked.size, replace=False)
    wanted = np.unique(targets[asked], return_counts=True)[1]
    classes, available = np.unique(targets[stays], return_counts=True)
    for _ in range(TRIES):
        chosen = random.permutation(len(classes))[: len(wanted)]
        if len(chosen) == len(wanted) and np.all(available[chosen] >= wanted):
            break
    else:  # the largest counts to the largest classes
        chosen = np.argsort(-available)[: len(wanted)]
        wanted = np.minimum(np.sort(wanted)[::-1][: len(chosen)], available[chosen])
    parts = [
        random.choice(np.flatnonzero(stays & (targets == classes[place])), number, replace=False)
        for place, number in zip(chosen, wanted, strict=True)
    ]
    rows = np.concatenate(parts)
    rest = np.setdiff1d(np.flatnonzero(stays), rows)
    return np.concatenate([rows, random.choice(rest, asked.size - len(rows), replace=False)])
