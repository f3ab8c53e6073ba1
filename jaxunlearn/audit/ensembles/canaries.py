"""Canaries: rows that were put in, or left out, by a coin each, and what their scores prove about epsilon.

One model that was trained once on a random half of the canaries is enough for `one run`, and so is one release. The other two
methods want scores that are independent: a model each, or one world each as in an attack on a certificate.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxunlearn import checks
from jaxunlearn.certificates.calibration import epsilon_of
from jaxunlearn.proportions import check_level, upper_limit

CanaryMethod: TypeAlias = Literal["rates", "one run", "gaussian"]
HALVINGS, HIGHEST = 60, 64.0  # epsilons that counts of canaries can show are below 40


class CanaryBound(NamedTuple):
    """What scores of canaries prove."""

    epsilon: Float[Array, ""]  # lower bound, 0 where nothing was shown, NaN if a score is
    threshold: Float[Array, ""]  # scores from here on are called included


class _Counts(NamedTuple):
    """Of every threshold that is looked at."""

    thresholds: Float[Array, " t"]
    missed: Float[Array, " t"]  # included canaries below it
    cleared: Float[Array, " t"]  # excluded canaries below it
    used: Bool[Array, " t"]
    included: int
    excluded: int


def canary_epsilon(
    included: Float[Array, " m"],
    excluded: Float[Array, " n"],
    *,
    delta: ArrayLike,
    method: CanaryMethod = "one run",
    threshold: ArrayLike | Literal["split", "all", "frontier"] = "split",
    level: float = 0.95,
) -> CanaryBound:
    """Lower bound of epsilon from scores of canaries; high scores speak for rows that were put in.

    With limits of Clopper and Pearson for the false negative rate `b` and the false positive rate `a`, each upwards:

        rates       epsilon >= ln((1 - b - delta) / a)
        gaussian    mu >= Phi^{-1}(1 - a) - Phi^{-1}(b), and epsilon follows from mu: for Gaussian noise only
        one run     of r rows called included v were, and (epsilon, delta) is disproved if this is below 1 - level:
                    P[B >= v] + 2 (m + n) delta max_i P[v > B >= v - i] / i,    B ~ Binomial(r, 1 / (1 + e^{-epsilon}))

    Args:
        included: scores of canaries that were put in. Not sorted: a split takes the first half of each to choose.
        excluded: scores of canaries that were left out. For `one run` coins decided, one per canary.
        delta: of the claim; positive for `gaussian`; may be traced.
        method: see above.
        threshold: `split` chooses it by the first half of the scores and counts the second half; `all` tries every score and
            divides `1 - level` by their number; a number is one that was chosen before. `frontier` divides by the corners of
            the concave hull of the counts only, as jax_privacy does. These are chosen after the scores were seen, so that the
            level is not proved.
        level: confidence level of the bound; static.

    Returns:
        `CanaryBound`, float64. jax_privacy's `epsilon_from_gdp` takes the absolute value of mu, by which loose limits of
        equal worlds become a large epsilon; here it is 0.

    Raises:
        ValueError: scores that are no vectors of at least four numbers, a delta or level out of range, an unknown method or
            threshold.

    References:
        Jagielski, Ullman, Oprea: Auditing differentially private machine learning, 2020, arXiv 2006.07709 (rates). Steinke,
        Nasr, Jagielski: Privacy auditing with one (1) training run, 2023, arXiv 2305.08846 (one run). Nasr et al.: Tight
        auditing of differentially private machine learning, 2023, arXiv 2302.07956 (gaussian).

    Example:
        >>> included, excluded = jax.random.normal(key, (2, 500)) + jnp.array([[3.0], [0.0]])
        >>> float(jaxunlearn.audit.canary_epsilon(included, excluded, delta=1e-5).epsilon) > 1.5
        True
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if isinstance(threshold, str) and threshold not in ("split", "all", "frontier"):
        raise ValueError(f"threshold must be a number, 'split', 'all' or 'frontier', got {threshold!r}")
    shapes = jnp.shape(included), jnp.shape(excluded)
    if any(len(shape) != 1 or shape[0] < 4 for shape in shapes):
        raise ValueError(f"expected two vectors of at least four scores, got shapes {shapes[0]} and {shapes[1]}")
    checks.check_range("delta", delta, low=np.finfo(float).tiny if method == "gaussian" else 0, high=1)
    check_level(level)
    bound = METHODS[method]
    with jax.enable_x64(True):
        ins, outs, delta = (jnp.asarray(x).astype(jnp.float64) for x in (included, excluded, delta))
        doubt = 1 - level
        if threshold == "split":
            chosen = bound(_frontier(ins[: ins.size // 2], outs[: outs.size // 2]), doubt, delta).threshold
            found = bound(_at(ins[ins.size // 2 :], outs[outs.size // 2 :], chosen), doubt, delta)
        elif isinstance(threshold, str):
            counts = _frontier(ins, outs)
            found = bound(counts, doubt / (ins.size + outs.size if threshold == "all" else jnp.sum(counts.used)), delta)
        else:
            found = bound(_at(ins, outs, jnp.asarray(threshold).astype(jnp.float64)), doubt, delta)
        unknown = jnp.isnan(jnp.sum(ins) + jnp.sum(outs))
        return CanaryBound(jnp.where(unknown, jnp.nan, found.epsilon), found.threshold)


def _rates(counts: _Counts, doubt: Array | float) -> tuple[Float[Array, " t"], Float[Array, " t"]]:
    """Upper limits of false negative and false positive rate."""
    both = jnp.stack([counts.missed, counts.excluded - counts.cleared])
    missed, wrong = upper_limit(both, jnp.array([[counts.included], [counts.excluded]]), doubt / 2)
    return missed, wrong


def _by_rates(counts: _Counts, doubt: Array | float, delta: Array) -> CanaryBound:
    missed, wrong = _rates(counts, doubt)
    shown = counts.used & (1 - missed > delta)
    return _best(counts, jnp.where(shown, jnp.log(jnp.where(shown, 1 - missed - delta, 1) / wrong), -jnp.inf))


def _by_gaussian(counts: _Counts, doubt: Array | float, delta: Array) -> CanaryBound:
    missed, wrong = _rates(counts, doubt)
    shown = counts.used & (jnp.maximum(missed, wrong) < 1 - delta)
    inside = [jnp.where(shown, x, 0.5) for x in (missed, wrong)]
    best = _best(counts, jnp.where(shown, norm.isf(inside[1]) - norm.ppf(inside[0]), -jnp.inf))
    return best._replace(epsilon=epsilon_of(1.0, best.epsilon, delta))


def _best(counts: _Counts, worth: Float[Array, " t"]) -> CanaryBound:
    best, last = jnp.max(worth), worth.size - 1  # argmax is lowered in the precision of the session, not of the call
    first = jnp.min(jnp.where(worth == best, jnp.arange(worth.size), last))
    place = jnp.where(best > -jnp.inf, first, jnp.sum(counts.used) - 1)
    return CanaryBound(jnp.maximum(best, 0), counts.thresholds[place])


def _by_one_run(counts: _Counts, doubt: Array | float, delta: Array) -> CanaryBound:
    right, wrong = counts.included - counts.missed, counts.excluded - counts.cleared
    called, total = right + wrong, counts.included + counts.excluded
    number = jnp.arange(total + 1.0)

    def probability(epsilon, called, right):
        rest = jnp.maximum(called - number, 0)
        ways = gammaln(called + 1) - gammaln(number + 1) - gammaln(rest + 1)
        mass = jnp.exp(ways - number * jnp.logaddexp(0.0, -epsilon) - rest * jnp.logaddexp(0.0, epsilon))
        tail = jnp.cumsum(jnp.where(number <= called, mass, 0)[::-1])[::-1]  # P[B >= number]
        at = tail[right.astype(int)]
        below = number < right
        spread = jnp.where(below, (tail - at) / jnp.where(below, right - number, 1), 0)
        return at + jnp.max(spread) * delta * 2 * total

    def better(best, threshold):
        called, right, used, place = threshold

        def search():
            def halve(_, ends):
                low, high = ends
                middle = (low + high) / 2
                disproved = probability(middle, called, right) < doubt
                return jnp.where(disproved, middle, low), jnp.where(disproved, high, middle)

            return jax.lax.fori_loop(0, HALVINGS, halve, (best[0], jnp.float64(HIGHEST)))[0], place

        promising = used & (called > 0) & (probability(best[0], called, right) < doubt)
        return jax.lax.cond(promising, search, lambda: best), None

    # from the best precision on, so that few thresholds are searched
    order = jnp.argsort(jnp.where(counts.used, upper_limit(wrong, jnp.maximum(called, 1), doubt), 2))
    start = jnp.float64(0), jnp.sum(counts.used) - 1
    each = called[order], right[order], counts.used[order], order
    epsilon, place = jax.lax.scan(better, start, each)[0]
    return CanaryBound(epsilon, counts.thresholds[place])


METHODS: dict[str, Callable[[_Counts, Array | float, Array], CanaryBound]] = {
    "rates": _by_rates,
    "one run": _by_one_run,
    "gaussian": _by_gaussian,
}


def _at(included: Array, excluded: Array, threshold: Float[Array, ""]) -> _Counts:
    missed, cleared = (jnp.sum(x < threshold).astype(jnp.float64)[None] for x in (included, excluded))
    return _Counts(threshold[None], missed, cleared, jnp.array([True]), included.size, excluded.size)


def _frontier(included: Array, excluded: Array) -> _Counts:
    """Corners of the concave hull of the counts: no threshold between two of them is better than a coin that takes either."""
    scores = jnp.concatenate([jnp.sort(jnp.concatenate([included, excluded])), jnp.array([jnp.inf])])
    missed, cleared = (jnp.searchsorted(jnp.sort(x), scores).astype(jnp.float64) for x in (included, excluded))
    known = jnp.concatenate([jnp.array([True]), scores[1:] > scores[:-1]])  # equal scores are one threshold
    places = jnp.arange(scores.size)

    def corner(place):
        across, up = missed - missed[place], cleared - cleared[place]
        slope = jnp.where(across == 0, jnp.inf, up / jnp.where(across == 0, 1, across))
        before = jnp.min(jnp.where(known & (places < place), slope, jnp.inf))
        after = jnp.max(jnp.where(known & (places > place), slope, -jnp.inf))
        return known[place] & ((place == 0) | (place == scores.size - 1) | (before > after))

    corners = jax.lax.map(corner, places)
    most = min(
        scores.size, 8 + int(4 * max(included.size, excluded.size) ** (2 / 3))
    )  # corners of a lattice polygon: four times what theory allows
    chosen = jnp.nonzero(corners, size=most, fill_value=scores.size - 1)[0]
    used = jnp.arange(most) < jnp.sum(corners)
    return _Counts(scores[chosen], missed[chosen], cleared[chosen], used, included.size, excluded.size)
