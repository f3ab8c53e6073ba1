"""What answering a request would do, before it is done: alternatives side by side, of which nothing is kept but numbers."""

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import requests
from jaxunlearn.batching import batched
from jaxunlearn.evaluation import evaluate
from jaxunlearn.sampling import forget_rows, masked_mean
from jaxunlearn.types import Data, ForgetRequest, Model, UnlearnFn, Variables

TOGETHER = 16  # alternatives per call


class Effect(NamedTuple):
    """One alternative: the model without the rows of one record id."""

    seconds: float  # its share of a call
    loss_before: float | None  # mean loss of its rows; None without a model
    loss_after: float | None
    stats: dict[str, float]  # what the method reports of it, e.g. distance_bound


def effects(
    unlearn: UnlearnFn,
    model: Model | None,
    variables: Variables,
    data: Data,
    rows: Sequence[Sequence[int]],
    key: Any,
) -> list[Effect]:
    """Answer each list of rows by itself, from the same weights, and look at the results.

    Args:
        unlearn: a method that `vmap` takes.
        model: whose loss is looked at, if any.
        variables: the weights to start from.
        data: as the method needs it, prepared at these weights.
        rows: lists of present rows, at least one in each.
        key: one typed key.

    Returns:
        One `Effect` per list. Lists of one size class are answered 16 at a time by one program.

    Raises:
        ValueError: as `jaxunlearn.from_indices`.

    Example:
        >>> from jaxunlearn.answering.effects import effects
        >>> found = effects(jaxunlearn.output_perturbation(model, sigma=0.1), model, variables, data, [[0], [1, 2]], key)
        >>> len(found), found[0].loss_before != found[0].loss_after
        (2, True)
    """
    found: dict[int, Effect] = {}
    wide = any(np.dtype(leaf.dtype) == np.float64 for leaf in jax.tree.leaves(variables.params))
    for bucket in requests.buckets(data, rows) if rows else []:
        for start in range(0, len(bucket.positions), TOGETHER):
            places = bucket.positions[start : start + TOGETHER]
            part = jax.tree.map(lambda x, at=start: _filled(np.asarray(x)[at : at + TOGETHER]), bucket.requests)
            with jax.enable_x64(wide):
                keys, look = jax.random.split(key, TOGETHER), _look(unlearn, model)
                jax.block_until_ready(look(variables, data, part, keys))  # compiled, and not timed
                begun = time.perf_counter()
                values = jax.device_get(look(variables, data, part, keys))
            seconds = (time.perf_counter() - begun) / len(places)
            for lane, place in enumerate(places):
                losses, stats = jax.tree.map(lambda x, lane=lane: float(x[lane]), values)
                before, after = losses or (None, None)
                found[place] = Effect(seconds, before, after, stats)
    return [found[place] for place in range(len(rows))]


def _filled(part: np.ndarray) -> jax.Array:
    """Repeat the last entry, so that every call has one shape."""
    return jnp.asarray(np.concatenate([part, np.repeat(part[-1:], TOGETHER - len(part), axis=0)]))


@lru_cache(maxsize=4)
def _look(unlearn: UnlearnFn, model: Model | None) -> Any:
    answer = batched(unlearn, chunk=TOGETHER)

    def loss(variables: Variables, data: Data, request: ForgetRequest) -> jax.Array:
        part = forget_rows(data, request)
        return masked_mean(evaluate(model, variables, part.examples)[1], part.weights, empty=jnp.nan)  # type: ignore[arg-type]

    @jax.jit
    def look(variables, data, asked, keys):
        result = answer(variables, data, asked, keys)
        stats = {name: x for name, x in result.stats.items() if jnp.ndim(x) == 1}
        if model is None:
            return (), stats
        before = jax.vmap(lambda request: loss(variables, data, request))(asked)
        after = jax.vmap(lambda weights, request: loss(weights, data, request))(result.variables, asked)
        return (before, after), stats

    return look
