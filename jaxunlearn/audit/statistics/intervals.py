"""Confidence intervals: for means over seeds and for areas under ROC curves. Those of proportions are in `proportions`.

`level` is the two-sided confidence level, a static number in (0, 1).
"""

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxunlearn.proportions import Interval, check_level, inexact


def t_interval(values: Float[Array, "..."], axis: int = 0, level: float = 0.95) -> Interval:
    """Student's interval for a mean: `mean +- t s / sqrt(m)`, with m values and m - 1 degrees of freedom.

    Args:
        values: independent repetitions along `axis`, e.g. one metric for m seeds. NaN gives NaN.
        axis: the axis to average over.
        level: confidence level.

    Returns:
        Interval without `axis`, in the unit of the values. One repetition has no spread: its limits are NaN.

    Raises:
        ValueError: no value along `axis`, or a level outside (0, 1).

    References:
        Student: The probable error of a mean, 1908, doi 10.1093/biomet/6.1.1.

    Example:
        >>> interval = jaxunlearn.audit.t_interval(jnp.array([1.0, 2.0, 3.0]))
        >>> print(f"{interval.estimate:.1f} [{interval.low:.2f}, {interval.high:.2f}]")
        2.0 [-0.48, 4.48]
    """
    from scipy.special import stdtrit

    check_level(level)
    values = inexact(values)
    count = values.shape[axis]
    if count == 0:
        raise ValueError(f"no value along axis {axis} of shape {values.shape}: an interval needs at least one")
    mean = jnp.mean(values, axis=axis)
    if count == 1:
        return Interval(mean, jnp.full_like(mean, jnp.nan), jnp.full_like(mean, jnp.nan))
    half = float(stdtrit(count - 1, (1 + level) / 2)) * jnp.std(values, axis=axis, ddof=1) / count**0.5
    return Interval(mean, mean - half, mean + half)


def crossed_interval(
    values: Float[Array, "s r"], level: float = 0.95, *, within: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """Interval for the mean over a population of training seeds and a population of requests, crossed.

    Values of one seed resemble each other, and so do values of one request; an interval that takes all of them as independent
    is too narrow. With `s_1^2` the variance of the means of seeds and `s_2^2` that of the means of requests,

        mean +- t sqrt(s_1^2 / S + s_2^2 / R),    min(S, R) - 1 degrees of freedom.

    Both variances hold a part of the residual, and the degrees of freedom are those of the smaller sample, so the interval is
    rather too wide than too narrow.

    Args:
        values: one metric for s seeds and r requests. NaN gives NaN.
        level: confidence level.
        within: where values can lie, e.g. (0, 1) for shares; the limits are cut there, and cover as before.

    Returns:
        Interval of scalars, in the unit of the values. With a single seed (or request) it speaks of the other population only;
        with one value its limits are NaN.

    Raises:
        ValueError: values that are not [S, R], no value, or a level outside (0, 1).

    References:
        Owen: The pigeonhole bootstrap, 2007, arXiv 0712.1111 (variance of a mean of crossed random effects).

    Example:
        >>> interval = jaxunlearn.audit.crossed_interval(jnp.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]))
        >>> float(interval.estimate)
        2.5
    """
    values = inexact(values)
    if values.ndim != 2:
        raise ValueError(f"expected values of shape [seeds, requests], got {values.shape}")
    seeds, requests = values.shape
    if 1 in (seeds, requests) or 0 in (seeds, requests):
        return _cut(t_interval(values.reshape(-1), level=level), within)
    from scipy.special import stdtrit

    check_level(level)
    mean = jnp.mean(values)
    variance = jnp.var(jnp.mean(values, axis=1), ddof=1) / seeds + jnp.var(jnp.mean(values, axis=0), ddof=1) / requests
    half = float(stdtrit(min(seeds, requests) - 1, (1 + level) / 2)) * jnp.sqrt(variance)
    return _cut(Interval(mean, mean - half, mean + half), within)


def _cut(interval: Interval, within: tuple[float, float]) -> Interval:
    return interval._replace(low=jnp.maximum(interval.low, within[0]), high=jnp.minimum(interval.high, within[1]))


def auc_interval(auc: ArrayLike, num_members: ArrayLike, num_nonmembers: ArrayLike, level: float = 0.95) -> Interval:
    """Newcombe's score interval for an area under the ROC curve, his method 5.

    The limits solve `(auc - A)^2 = z^2 V(A)` for A below and above `auc`, where

        V(A) = A (1 - A) [1 + N (1 - A)/(2 - A) + N A/(1 + A)] / (m n),    N = (m + n)/2 - 1,

    is the variance of Hanley and McNeil with N in place of m - 1 and n - 1. The limits stay within [0, 1] and keep their
    width at 0 and 1, where Wald's interval shrinks to a point.

    Simulated coverage at level 0.95 is 94 to 98 % for Gaussian scores, areas from 0.5 to 0.97 and sizes from 15 to 2000,
    equal or not; 91 to 100 % for exponential scores, the extremes for very unequal sizes.

    Rows count as independent draws, and the model as fixed. Near-copies among the rows make the interval too narrow; how
    the model varies with its seed is not in it: for that, take `t_interval` over seeds.

    Args:
        auc: Mann-Whitney estimates in [0, 1], any shape.
        num_members: m, broadcast against `auc`.
        num_nonmembers: n, broadcast against `auc`.
        level: confidence level.

    Returns:
        Interval; all NaN without a member or without a non-member.

    Raises:
        ValueError: a level outside (0, 1).

    References:
        Newcombe: Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2: asymptotic
        methods and evaluation, 2006, doi 10.1002/sim.2324.
        Hanley, McNeil: The meaning and use of the area under a receiver operating characteristic (ROC) curve, 1982,
        doi 10.1148/radiology.143.1.7063747.

    Example:
        >>> interval = jaxunlearn.audit.auc_interval(1.0, 10, 10)
        >>> print(f"[{interval.low:.2f}, {interval.high:.2f}]")
        [0.80, 1.00]
    """
    check_level(level)
    auc, m, n = jnp.broadcast_arrays(inexact(auc), inexact(num_members), inexact(num_nonmembers))
    z = NormalDist().inv_cdf((1 + level) / 2)
    larger = (m + n) / 2 - 1

    def is_rejected(area):
        variance = area * (1 - area) * (1 + larger * (1 - area) / (2 - area) + larger * area / (1 + area)) / (m * n)
        return (auc - area) ** 2 > z**2 * variance

    def limit(outside):
        def halve(_, ends):
            rejected, accepted = ends
            middle = (rejected + accepted) / 2
            out = is_rejected(middle)
            return jnp.where(out, middle, rejected), jnp.where(out, accepted, middle)

        return jax.lax.fori_loop(0, 64, halve, (jnp.full_like(auc, outside), auc))[1]

    defined = (m > 0) & (n > 0) & ~jnp.isnan(auc)
    return jax.tree.map(lambda x: jnp.where(defined, x, jnp.nan), Interval(auc, limit(0), limit(1)))
