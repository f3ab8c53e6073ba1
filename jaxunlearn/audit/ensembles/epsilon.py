"""An attack on a certificate: what an observer of many releases can prove about its epsilon."""

from statistics import NormalDist
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxunlearn import checks
from jaxunlearn.audit.statistics.intervals import clopper_pearson


class _Counts(NamedTuple):
    """How often an event happened in either world, out of as many draws."""

    more: Float[Array, "..."]  # where it is meant to be likely
    less: Float[Array, "..."]


def epsilon_lower_bound(
    first: Float[Array, "m"], second: Float[Array, "m"], *, delta: ArrayLike, level: float = 0.95
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
    first, second = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in map(jnp.asarray, (first, second)))
    if first.ndim != 1 or second.ndim != 1 or min(first.size, second.size) < 4:
        raise ValueError(f"expected two vectors of at least four scores, got shapes {first.shape} and {second.shape}")
    checks.check_range("delta", delta, low=0, high=1)
    if not 0 < level < 1:
        raise ValueError(f"level is a fraction between 0 and 1 such as 0.95, got {level}")
    halves = [(x[: x.size // 2], x[x.size // 2 :]) for x in (first, second)]
    (choose_first, test_first), (choose_second, test_second) = halves
    thresholds = _thresholds(choose_first, choose_second)
    shown = _worth(_events(choose_first, choose_second, thresholds), choose_first.size, choose_second.size, delta, level)
    kind, place = jnp.unravel_index(jnp.argmax(shown), shown.shape)
    chosen = _events(test_first, test_second, thresholds[place][None])
    more, less = chosen.more[kind, 0], chosen.less[kind, 0]
    swapped = kind % 2 == 1
    sizes = test_first.size, test_second.size
    low = clopper_pearson(more, jnp.where(swapped, sizes[1], sizes[0]), level).low
    high = clopper_pearson(less, jnp.where(swapped, sizes[0], sizes[1]), level).high
    bound = jnp.where(low > delta, jnp.log(jnp.maximum(low - delta, 1e-30) / high), 0)
    return jnp.where(jnp.isnan(jnp.sum(first) + jnp.sum(second)), jnp.nan, jnp.maximum(bound, 0))


def _thresholds(first: Float[Array, "m"], second: Float[Array, "m"]) -> Float[Array, "t"]:
    """Quantiles of the scores, dense in both tails."""
    pooled = jnp.sort(jnp.concatenate([first, second]))
    steps = jnp.unique(jnp.round(jnp.geomspace(1, pooled.size / 2, 200)).astype(int), size=200, fill_value=1)
    return pooled[jnp.concatenate([steps - 1, pooled.size - steps])]


def _events(first: Float[Array, "m"], second: Float[Array, "m"], thresholds: Float[Array, "t"]) -> _Counts:
    """Counts [4, t] of: above in the first world, above in the second, below in the first, below in the second."""
    below = [jnp.searchsorted(jnp.sort(x), thresholds, side="left") for x in (first, second)]
    above = [x.size - counts for x, counts in zip((first, second), below, strict=True)]
    more = jnp.stack([*above, *below])
    less = jnp.stack([above[1], above[0], below[1], below[0]])
    return _Counts(more.astype(first.dtype), less.astype(first.dtype))


def _worth(counts: _Counts, first: int, second: int, delta: ArrayLike, level: float) -> Float[Array, "4 t"]:
    """What each event would show, with Wilson's limits, which are cheap."""
    swapped = (jnp.arange(4) % 2 == 1)[:, None]
    low, _ = _wilson(counts.more, jnp.where(swapped, second, first), level)
    _, high = _wilson(counts.less, jnp.where(swapped, first, second), level)
    return jnp.log(jnp.maximum(low - delta, 1e-30) / jnp.maximum(high, 1e-30))


def _wilson(successes: Array, trials: Array, level: float) -> tuple[Array, Array]:
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = successes / trials, z**2 / trials
    half = jnp.sqrt(share * (1 - share) * spread + spread**2 / 4)
    return (share + spread / 2 - half) / (1 + spread), (share + spread / 2 + half) / (1 + spread)
