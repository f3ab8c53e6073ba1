"""Values of a statistic over random choices of models: bootstrap intervals, and the draws that tests and floors are made of.

All draws are index sets into one pool of models, so that a statistic is compiled once for all of them. Draws are jitted by
themselves: several statistics of as many models share them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from scipy import stats

from jaxunlearn import tree
from jaxunlearn.proportions import Interval

Models: TypeAlias = PyTree  # what is known of some models: arrays with models on the leading axis
Statistic: TypeAlias = Callable[[Models, Models], jax.Array]  # (candidate, reference) -> Float[""]
Draws: TypeAlias = tuple[Int[Array, "k n"], Int[Array, "k m"]]  # which models of a pool play candidates and references


def bootstrap(
    statistic: Statistic,
    candidate: Models,
    reference: Models,
    key: PRNGKeyArray,
    *,
    num_bootstraps: int = 200,
    level: float = 0.95,
) -> Interval:
    """The statistic with a bootstrap interval over both sets of models; examples are fixed.

    Resampling makes ties, which metrics of distributions take for distance. Only the spread of the resamples is used
    therefore: the limits are as far from the value as the quantiles of the resamples are from their mean, on the other side,
    widened for few models by `sqrt(n / (n - 1))` (resamples vary less than models do) and by Student's quantile over the normal
    one, n the smaller number of models.

    Args:
        statistic, candidate, reference: as in `judge`.
        key: one typed key, for the resamples.
        num_bootstraps: how many resamples.
        level: confidence level, in (0, 1).

    Returns:
        `Interval` of scalars, in the unit of the statistic; the limits are NaN if a side has one model only.

    Raises:
        ValueError: arrays without a common leading axis.

    Example:
        >>> gap = lambda candidate, reference: jnp.mean(candidate) - jnp.mean(reference)
        >>> interval = jaxunlearn.audit.bootstrap(gap, jnp.arange(20.0) + 40, jnp.arange(20.0), key)
        >>> float(interval.estimate)
        40.0
    """
    size, rest = count_models(candidate), count_models(reference)
    draws = [identity(size, rest), resampled(key, num_bootstraps, size, rest)]
    values = evaluate(statistic, [candidate, reference], draws)
    return spread_around(values[0][0], values[1], min(size, rest), level)


def crossed_bootstrap(
    statistic: Statistic,
    candidate: Models,
    reference: Models,
    key: PRNGKeyArray,
    *,
    num_bootstraps: int = 200,
    level: float = 0.95,
) -> Interval:
    """As `bootstrap`, over models and examples: what other models *and* other rows of the same kind might have shown.

    Rows of a group are drawn once for candidate and reference, since both were asked about the same ones. The interval speaks
    of rows like these; for the very rows of a request `bootstrap` is narrower, and right.

    Args:
        statistic: as in `judge`.
        candidate, reference: dictionaries with one entry per group of examples, whose leaves are [models, examples, ...].
        key: one typed key, for the resamples.
        num_bootstraps: how many resamples.
        level: confidence level, in (0, 1).

    Returns:
        `Interval` of scalars, in the unit of the statistic; the limits are NaN if a side has one model only.

    Raises:
        ValueError: groups of other names or numbers of examples on the two sides.

    References:
        Owen: The pigeonhole bootstrap, 2007, doi 10.1214/07-AOAS122.

    Example:
        >>> gap = lambda candidate, reference: jnp.mean(candidate["forget"]) - jnp.mean(reference["forget"])
        >>> unlearned, retrained = jax.random.normal(key, (2, 30, 50))
        >>> interval = jaxunlearn.audit.crossed_bootstrap(gap, {"forget": unlearned + 1}, {"forget": retrained}, key)
        >>> bool(interval.low < 1 < interval.high)
        True
    """
    counts = [{name: _examples(group, name) for name, group in side.items()} for side in (candidate, reference)]
    if counts[0] != counts[1]:
        raise ValueError(f"crossed_bootstrap: both sides need the same groups and examples, got {counts[0]} and {counts[1]}")
    size, rest = count_models(candidate), count_models(reference)
    first, second, rows = _crossed(key, num_bootstraps, size, rest, tuple(counts[0].items()))
    values = _values_over_rows(statistic, (candidate, reference), (first, second - size, rows))
    return spread_around(values[0], values[1:], min(size, rest), level)


@partial(jax.jit, static_argnums=0)
def _values_over_rows(statistic: Statistic, sides: tuple, draws: tuple) -> Float[Array, " k"]:
    def one(draw: tuple) -> jax.Array:
        *models, examples = draw
        return statistic(
            *[
                {name: jax.tree.map(lambda x, n=name, m=m: x[m][:, examples[n]], group) for name, group in side.items()}
                for side, m in zip(sides, models, strict=True)
            ]
        )

    return jax.lax.map(one, draws)


def evaluate(statistic: Statistic, parts: Sequence[Models], draws: Sequence[Draws]) -> list[Float[Array, " k"]]:
    """The statistic of every draw from one pool of models, one vector per kind of draw."""

    values = _values(statistic, _joined(tuple(parts)), _joined(tuple(draws)))
    ends = np.cumsum([len(rows) for rows, _ in draws])
    return jnp.split(values, ends[:-1])


@partial(jax.jit, static_argnums=0)  # one program for one statistic, however often it is asked for
def _values(statistic: Statistic, pool: Models, draws: Draws) -> Float[Array, " k"]:
    return jax.lax.map(lambda rows: statistic(*[jax.tree.map(lambda x, m=m: x[m], pool) for m in rows]), draws)


@jax.jit
def _joined(parts: Sequence[Models]) -> Models:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def identity(size: int, rest: int) -> Draws:
    """The first `size` models against the others."""
    return jnp.arange(size)[None], jnp.arange(size, size + rest)[None]


@partial(jax.jit, static_argnums=(1, 2, 3))
def relabelled(key: PRNGKeyArray, draws: int, size: int, rest: int) -> Draws:
    """Random labels, as many of each kind as before; if there is one candidate, every other model takes its place in turn."""
    if size == 1:
        first = jnp.arange(1, rest + 1)[:, None]
        second = jnp.arange(rest)[None] + (jnp.arange(rest)[None] >= first)
        return first, second
    order = jnp.argsort(jax.random.uniform(key, (draws, size + rest)), axis=1)
    return order[:, :size], order[:, size:]


@partial(jax.jit, static_argnums=(1, 2, 3))
def resampled(key: PRNGKeyArray, draws: int, size: int, rest: int) -> Draws:
    """Models of each kind drawn with replacement."""
    first, second = jax.random.split(key)
    return _integers(first, draws, size), size + _integers(second, draws, rest)


def _integers(key: PRNGKeyArray, draws: int, count: int) -> Int[Array, "k n"]:
    """As many integers below `count` per draw, with a relative bias of at most count / 2^32; `randint` compiles far longer."""
    return (jax.random.bits(key, (draws, count)) % jnp.uint32(count)).astype(jnp.int32)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _crossed(key: PRNGKeyArray, draws: int, size: int, rest: int, counts: tuple) -> tuple:
    """Draws of models, and of the examples of every group; the first one is everything once."""
    drawing, *keys = jax.random.split(key, 1 + len(counts))
    first, second = _joined((identity(size, rest), resampled(drawing, draws, size, rest)))
    rows = {
        name: jnp.concatenate([jnp.arange(count)[None], _integers(key, draws, count)])
        for key, (name, count) in zip(keys, counts, strict=True)
    }
    return first, second, rows


@partial(jax.jit, static_argnums=1)
def central(draws: Float[Array, " b"], level: float = 0.95) -> Interval:
    """Mean and central part of some values."""
    tail = (1 - level) / 2
    return Interval(jnp.mean(draws), jnp.quantile(draws, tail), jnp.quantile(draws, 1 - tail))


def spread_around(value: Float[Array, ""], around: Float[Array, " b"], models: int, level: float = 0.95) -> Interval:
    """A value with the spread of its resamples, widened for few models as `bootstrap` says; no limits for a single one."""
    if models < 2:
        return Interval(value, jnp.full_like(value, jnp.nan), jnp.full_like(value, jnp.nan))
    mean, low, high = central(around, level)
    quantile = (1 + level) / 2
    wider = math.sqrt(models / (models - 1)) * float(stats.t.ppf(quantile, models - 1) / stats.norm.ppf(quantile))
    return Interval(value, value - wider * (high - mean), value + wider * (mean - low))


def count_models(models: Models) -> int:
    """How many models there are; ValueError without a common leading axis."""
    return tree.leading_axis(models, "models")


def _examples(group: PyTree, name: str) -> int:
    shapes = {jnp.shape(x)[:2] for x in jax.tree.leaves(group)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"arrays of group {name!r} must share their leading axes [models, examples], got {sorted(shapes)}")
    return next(iter(shapes))[1]
