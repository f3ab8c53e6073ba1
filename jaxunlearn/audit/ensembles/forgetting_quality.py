"""Forgetting quality of the 2023 machine unlearning competition.

Triantafillou et al.: Are we making progress in unlearning? Findings from the first NeurIPS unlearning competition, 2024, arXiv
2406.09073. An attacker sees one margin of one row of the forget set and says whether the model was unlearned or retrained;
the success of the best simple rule becomes an epsilon, and epsilons become points.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn import checks
from jaxunlearn.audit.statistics.checks import require_finite, require_margins
from jaxunlearn.audit.statistics.ordering import keys_of, values_of
from jaxunlearn.precision import in_float64

CAP = 50.0  # largest epsilon
PER_UNIT = 100  # thresholds per unit of the margin
BUFFER = 2.0  # how far intervals reach beyond the distribution that they are meant to catch
NARROW = 0.01  # ratio of ranges below which a distribution counts as a point
BUCKET = 0.5  # width of a range of epsilons that get equal points
BLOCK = 64  # examples side by side


class ForgettingQuality(NamedTuple):
    """What `forgetting_quality` returns."""

    score: Float[Array, ""]  # F, mean of the points
    epsilons: Float[Array, " e"]  # of the best attack on each example, at most 50
    points: Float[Array, " e"]  # 2^-floor(2 epsilon), 0 where epsilon is more than the number of models can show


@in_float64
def forgetting_quality(
    candidate_margins: Float[Array, "n e"], reference_margins: Float[Array, "m e"], *, delta: float = 1e-5
) -> ForgettingQuality:
    """How hard it is to tell unlearned from retrained models by the margin of one row.

        epsilon = max over attacks of max(log((1 - delta - FPR) / FNR), log((1 - delta - FNR) / FPR)),
        F = mean over examples of 2^-floor(2 epsilon)

    Attacks are all thresholds on a grid of 100 per unit, for the distribution with the larger median, and all intervals on such
    grids that reach 2 beyond the distribution with the smaller range. Rules that are never wrong give epsilon 50; rules that
    are never wrong in one direction only are left out, since too few models may be the reason; a distribution whose range is
    below 1 % of the other's gives 50.

    It is not 1 for perfect unlearning: with equal Gaussian distributions of margins it is about 0.2 for 64 to 512 models of
    each kind. Compare with the value between two retrained ensembles.

    The published grids are made of rounded numbers, and have 400 or 401 places depending on rounding; here they are exact and
    have 400. Counts are the published ones otherwise.

    Args:
        candidate_margins: of n unlearned models on the forget set, see `jaxunlearn.audit.margins`.
        reference_margins: of m retrained models; the competition had 512 of each.
        delta: as above, in [0, 1].

    Returns:
        `ForgettingQuality`, float32; NaN for examples with a margin that is not finite. An example that no rule is left for has
        epsilon 0.

    Raises:
        ValueError: margins that are not [models, examples], different examples, fewer than four models, margins that are
            not finite, a delta out of range.

    Example:
        >>> retrained, other = jax.random.normal(key, (2, 64, 5))
        >>> quality = jaxunlearn.audit.forgetting_quality(other + 1, retrained)
        >>> bool(quality.score < jaxunlearn.audit.forgetting_quality(other, retrained).score)
        True
    """
    candidate, compared = require_margins("forgetting_quality", candidate_margins, reference_margins, least=4)
    require_finite("forgetting_quality", **{"candidate margins": candidate, "reference margins": compared})
    checks.check_range("delta", delta, low=0, high=1)
    by_example = candidate.T.astype(jnp.float64), compared.T.astype(jnp.float64)
    epsilons = jax.lax.map(lambda pair: _epsilon(pair[0], pair[1], delta), by_example, batch_size=BLOCK)
    # Two counts as small as the smaller ensemble bound what it can show.
    last = math.ceil(math.log(min(candidate.shape[0], compared.shape[0]) - 1)) / BUCKET
    bucket = jnp.floor(epsilons / BUCKET)
    points = jnp.where(bucket + 1 <= last, 2.0**-bucket, jnp.where(jnp.isnan(epsilons), jnp.nan, 0))
    return jax.tree.map(lambda x: x.astype(jnp.float32), ForgettingQuality(points.mean(), epsilons, points))


def competition_score(
    score: ArrayLike,
    retain_accuracies: tuple[ArrayLike, ArrayLike],
    test_accuracies: tuple[ArrayLike, ArrayLike],
) -> Float[Array, ""]:
    """The competition's final score, `F (RA_u / RA_r) (TA_u / TA_r)`.

    Args:
        score: F of `forgetting_quality`.
        retain_accuracies, test_accuracies: pairs of mean accuracies, of the unlearned and of the retrained models.

    Returns:
        At least 0; shapes broadcast.

    Example:
        >>> float(jaxunlearn.audit.competition_score(0.5, (0.9, 1.0), (0.8, 0.8))).__round__(3)
        0.45
    """
    (retain, retain_reference), (test, test_reference) = retain_accuracies, test_accuracies
    return jnp.asarray(score) * (jnp.asarray(retain) / retain_reference) * (jnp.asarray(test) / test_reference)


def _epsilon(candidate: Float[Array, " n"], compared: Float[Array, " m"], delta: float) -> Float[Array, ""]:
    ranges = jnp.ptp(candidate), jnp.ptp(compared)
    point = jnp.minimum(*ranges) < NARROW * jnp.maximum(*ranges)
    apart = (jnp.maximum(*ranges) == 0) & (candidate[0] != compared[0])
    ratios = _threshold_ratio(candidate, compared, delta), _interval_ratio(candidate, compared, delta)
    epsilon = jnp.clip(jnp.log(jnp.maximum(*ratios)), 0, CAP)
    epsilon = jnp.where(point | apart, CAP, epsilon)
    return jnp.where(jnp.isfinite(candidate.sum() + compared.sum()), epsilon, jnp.nan)


def _ratio(true: Int[Array, " t"], false: Int[Array, " t"], first: int, second: int, delta: float) -> Float[Array, " t"]:
    """`e^epsilon` of rules that claim `true` of `first` and `false` of `second` models, 1 for those that are left out."""
    missed, alarms = (first - true).astype(jnp.float32), false.astype(jnp.float32)
    miss_rate, alarm_rate = missed / first, alarms / second
    both = jnp.maximum((1 - delta - alarm_rate) / miss_rate, (1 - delta - miss_rate) / alarm_rate)
    return jnp.where((missed == 0) | (alarms == 0), jnp.where(missed + alarms == 0, jnp.inf, 1), both)


def _threshold_ratio(candidate: Float[Array, " n"], compared: Float[Array, " m"], delta: float) -> Float[Array, ""]:
    """Rules "at least t" for the distribution with the larger median, t on a grid over the pooled range.

    Counts change between neighbouring margins only, so it is enough to know between which of them the grid has a place.
    """
    total = candidate.size + compared.size
    # The last bit of a key says whose margin it is; in margins that come in float32 that bit is always 0.
    whose = jnp.repeat(jnp.array([1, 0]), jnp.array([candidate.size, compared.size]), total_repeat_length=total)
    keys = jnp.sort((keys_of(jnp.concatenate([candidate, compared])) & ~1) | whose)
    first = keys & 1 == 1
    values = values_of(jnp.where(keys < 0, keys | 1, keys & ~1), candidate.dtype)
    low, span = values[0], values[-1] - values[0]
    places = jnp.ceil(span * PER_UNIT)
    step = span / jnp.maximum(places - 1, 1)
    reached = jnp.where(values == values[-1], places, jnp.floor((values - low) / step) + 1)
    has_place = jnp.concatenate([jnp.array([False]), reached[1:] > reached[:-1]])
    before = jnp.cumsum(first) - first  # candidates below each margin
    true, false = candidate.size - before, compared.size - (jnp.arange(values.size) - before)
    swapped = _median(values, ~first, compared.size) > _median(values, first, candidate.size)
    ratios = jnp.where(
        swapped,
        _ratio(false, true, compared.size, candidate.size, delta),
        _ratio(true, false, candidate.size, compared.size, delta),
    )
    return jnp.max(ratios, where=has_place, initial=1)


def _median(values: Float[Array, " v"], chosen: Bool[Array, " v"], size: int) -> Float[Array, ""]:
    """Of the chosen ones among ascending values, `size` of them."""
    rank = jnp.cumsum(chosen)
    middle = chosen & ((rank == (size + 1) // 2) | (rank == size // 2 + 1))
    return jnp.sum(jnp.where(middle, values, 0)) * (0.5 if size % 2 == 0 else 1)


def _interval_ratio(candidate: Float[Array, " n"], compared: Float[Array, " m"], delta: float) -> Float[Array, ""]:
    """Rules "within [l, r]" for the distribution with the smaller range.

    With the step `d` of both grids, right ends are `max - 2 + i d` and left ends `min - 4 + (i + j) d`, so that twice as many
    left ends as places serve all pairs.
    """
    places = int(2 * BUFFER * PER_UNIT)
    step = 2 * BUFFER / (places - 1)

    def one_way(narrow, other):
        first_right, first_left = narrow.max() - BUFFER, narrow.min() - 2 * BUFFER
        up_to, below = [], []
        for margins in (narrow, other):
            up_to.append(_at_most(jnp.ceil((margins - first_right) / step), places))
            # A left end that is the smallest margin itself is a tie by construction, and includes it.
            left = jnp.where(margins == narrow.min(), places, jnp.floor((margins - first_left) / step) + 1)
            below.append(_at_most(left, 2 * places))

        def widen(best, place):
            claimed = [
                jnp.maximum(ends[place] - jax.lax.dynamic_slice_in_dim(starts, place, places), 0)
                for ends, starts in zip(up_to, below, strict=True)
            ]
            return jnp.maximum(best, _ratio(claimed[0], claimed[1], narrow.size, other.size, delta)), None

        best, _ = jax.lax.scan(widen, jnp.ones(places, jnp.float32), jnp.arange(places))
        return best.max()

    wider = jnp.ptp(candidate) >= jnp.ptp(compared)
    if candidate.size == compared.size:
        return one_way(jnp.where(wider, compared, candidate), jnp.where(wider, candidate, compared))
    return jnp.where(wider, one_way(compared, candidate), one_way(candidate, compared))


def _at_most(places: Float[Array, " n"], size: int) -> Int[Array, " size"]:
    """How many of the places are at most 0, 1, ... size - 1."""
    found = jnp.clip(places, 0, size).astype(jnp.int32)
    return jnp.cumsum(jnp.zeros(size + 1, jnp.int32).at[found].add(1))[:size]
