"""An attack on a certificate: what an observer of many releases can prove about its epsilon."""

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxunlearn import checks
from jaxunlearn.proportions import Interval, clopper_pearson


class _Counts(NamedTuple):
    """How often an event happened in either world, out of as many draws."""

    more: Float[Array, "..."]  # where it is meant to be likely
    less: Float[Array, "..."]


def epsilon_lower_bound(
    first: Float[Array, " m"], second: Float[Array, " m"], *, delta: ArrayLike, level: float = 0.95
) -> Float[Array, ""]:
    """Largest epsilon that a threshold test on releases from two worlds disproves, with confidence.

    If the worlds are (epsilon, delta) close, every event T has `P[T] <= e^epsilon Q[T] + delta`, so that

        epsilon >= ln((P[T] - delta) / Q[T]),    T = {score >= t} or {score < t}, P and Q either way round.

    The first half of each sample chooses T, the second half is counted, and Clopper-Pearson limits stand for the two
    probabilities. With probability `level` the bound holds. A bound above what a certificate says disproves the
    certificate; one below proves nothing, since another score or more draws may show more.

    Args:
        first: scores of independent releases of one world, e.g. of a removal with fresh noise each. For Gaussian noise the
            projection on the line between the two means is the strongest score. Not sorted: the halves must be alike.
        second: the same of the other, e.g. of retraining.
        delta: of the certificate; may be traced.
        level: confidence level of the bound.

    Returns:
        Float[], at least 0; 0 where nothing was shown. NaN if a score is.

    Raises:
        ValueError: scores that are not vectors of at least four numbers, delta outside [0, 1], or a level outside (0, 1).

    References:
        Jagielski, Ullman, Oprea: Auditing differentially private machine learning, 2020, arXiv 2006.07709.

    Example:
        >>> removed, retrained = jax.random.normal(key, (2, 10_000))
        >>> float(jaxunlearn.audit.epsilon_lower_bound(removed, retrained, delta=1e-5)) < 0.2
        True
        >>> float(jaxunlearn.audit.epsilon_lower_bound(removed + 2, retrained, delta=1e-5)) > 2
        True
    """
    more, less, unknown = _counted(first, second, delta, level, _plain_worth)
    bound = jnp.where(more.low > delta, jnp.log(jnp.maximum(more.low - delta, 1e-30) / less.high), 0)
    return jnp.where(unknown, jnp.nan, jnp.maximum(bound, 0))


def _plain_worth(low: Array, high: Array, delta: ArrayLike) -> Array:
    return jnp.log(jnp.maximum(low - delta, 1e-30) / jnp.maximum(high, 1e-30))


def gaussian_epsilon_lower_bound(
    first: Float[Array, " m"], second: Float[Array, " m"], *, delta: ArrayLike, level: float = 0.95
) -> Float[Array, ""]:
    """As `epsilon_lower_bound`, for releases that carry Gaussian noise: sharper, as one threshold says all of a Gaussian.

    If the worlds are no easier to tell apart than N(0, 1) and N(mu, 1), every event T has

        mu >= Phi^{-1}(P[T]) - Phi^{-1}(Q[T]),    delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)

    so that an event in the middle, which is seen often and known well, bounds epsilon in the tail. That the noise is Gaussian
    is an assumption: the bound disproves the scale of such noise, not a certificate of another mechanism.

    Args:
        first, second, delta, level: as in `epsilon_lower_bound`.

    Returns:
        Float[], at least 0; 0 where nothing was shown. NaN if a score is.

    Raises:
        ValueError: as `epsilon_lower_bound`.

    References:
        Nasr, Hayes, Steinke, Balle, Tramer, Jagielski, Carlini, Terzis: Tight auditing of differentially private machine
        learning, 2023, arXiv 2302.07956; Dong, Roth, Su: Gaussian differential privacy, 2022, arXiv 1905.02383.

    Example:
        >>> removed, retrained = jax.random.normal(key, (2, 10_000))
        >>> float(jaxunlearn.audit.gaussian_epsilon_lower_bound(removed + 1, retrained, delta=1e-5)) > 3
        True
    """
    more, less, unknown = _counted(first, second, delta, level, _gaussian_worth)
    mu = jnp.maximum(_quantile(more.low) - _quantile(less.high), 0)
    return jnp.where(unknown, jnp.nan, _gaussian_epsilon(mu, delta))


def _counted(
    first: Array, second: Array, delta: ArrayLike, level: float, worth: Callable
) -> tuple[Interval, Interval, Bool[Array, ""]]:
    """How likely the event that looked best in one half is in the other: in the world where it is meant to be, and not."""
    first, second = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in map(jnp.asarray, (first, second)))
    if first.ndim != 1 or second.ndim != 1 or min(first.size, second.size) < 4:
        raise ValueError(f"expected two vectors of at least four scores, got shapes {first.shape} and {second.shape}")
    checks.check_range("delta", delta, low=0, high=1)
    if not 0 < level < 1:
        raise ValueError(f"level is a fraction between 0 and 1 such as 0.95, got {level}")
    halves = [(x[: x.size // 2], x[x.size // 2 :]) for x in (first, second)]
    (choose_first, test_first), (choose_second, test_second) = halves
    thresholds = _thresholds(choose_first, choose_second)
    counts = _events(choose_first, choose_second, thresholds)
    shown = worth(*_limits(counts, choose_first.size, choose_second.size, level), delta)
    kind, place = jnp.unravel_index(jnp.argmax(shown), shown.shape)
    chosen = _events(test_first, test_second, thresholds[place][None])
    swapped = kind % 2 == 1
    sizes = test_first.size, test_second.size
    more = clopper_pearson(chosen.more[kind, 0], jnp.where(swapped, sizes[1], sizes[0]), level)
    less = clopper_pearson(chosen.less[kind, 0], jnp.where(swapped, sizes[0], sizes[1]), level)
    return more, less, jnp.isnan(jnp.sum(first) + jnp.sum(second))


def _gaussian_worth(low: Array, high: Array, delta: ArrayLike) -> Array:
    return _quantile(low) - _quantile(high)


def _quantile(share: Array) -> Array:
    """Standard normal quantile, within the range of float32."""
    return jax.scipy.stats.norm.ppf(jnp.clip(share, 1e-30, 1 - 1e-7))


def _gaussian_epsilon(mu: Array, delta: ArrayLike) -> Float[Array, ""]:
    """Epsilon of mu-Gaussian differential privacy, by bisection from below."""

    def spent(epsilon: Array) -> Array:
        scale = jnp.maximum(mu, 1e-6)
        far = jax.scipy.stats.norm.logcdf(-scale / 2 - epsilon / scale)
        return jax.scipy.stats.norm.cdf(scale / 2 - epsilon / scale) - jnp.exp(epsilon + far)

    def halve(ends: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = ends
        middle = (low + high) / 2
        above = spent(middle) > delta
        return (jnp.where(above, middle, low), jnp.where(above, high, middle)), None

    start = jnp.zeros_like(mu), mu**2 / 2 + 10 * mu
    (low, _), _ = jax.lax.scan(halve, start, length=60)
    return low


def _thresholds(first: Float[Array, " m"], second: Float[Array, " m"]) -> Float[Array, " t"]:
    """Quantiles of the scores, dense in both tails."""
    pooled = jnp.sort(jnp.concatenate([first, second]))
    steps = jnp.unique(jnp.round(jnp.geomspace(1, pooled.size / 2, 200)).astype(int), size=200, fill_value=1)
    return pooled[jnp.concatenate([steps - 1, pooled.size - steps])]


def _events(first: Float[Array, " m"], second: Float[Array, " m"], thresholds: Float[Array, " t"]) -> _Counts:
    """Counts [4, t] of: above in the first world, above in the second, below in the first, below in the second."""
    below = [jnp.searchsorted(jnp.sort(x), thresholds, side="left") for x in (first, second)]
    above = [x.size - counts for x, counts in zip((first, second), below, strict=True)]
    more = jnp.stack([*above, *below])
    less = jnp.stack([above[1], above[0], below[1], below[0]])
    return _Counts(more.astype(first.dtype), less.astype(first.dtype))


def _limits(counts: _Counts, first: int, second: int, level: float) -> tuple[Float[Array, "4 t"], Float[Array, "4 t"]]:
    """Least and largest probability of each event in the two worlds, with Wilson's limits, which are cheap."""
    swapped = (jnp.arange(4) % 2 == 1)[:, None]
    low, _ = _wilson(counts.more, jnp.where(swapped, second, first), level)
    _, high = _wilson(counts.less, jnp.where(swapped, first, second), level)
    return low, high


def _wilson(successes: Array, trials: Array, level: float) -> tuple[Array, Array]:
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = successes / trials, z**2 / trials
    half = jnp.sqrt(share * (1 - share) * spread + spread**2 / 4)
    return (share + spread / 2 - half) / (1 + spread), (share + spread / 2 + half) / (1 + spread)
