"""Floors and verdicts: is a difference larger than retrained models show among themselves?

Perfect unlearning does not score 0, and not 1: it scores what one retrained ensemble scores against another, the *floor* of a
metric. What doing nothing scores is its *ceiling*. A permutation test decides whether unlearned models differ from retrained
ones: if unlearning were perfect, it would not matter which of all these models are called unlearned, and the value would be
one of many that random labels give. The test is exact at any number of models and for any distribution of the metric.
"""

from enum import IntEnum
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.audit.statistics.checks import require_models
from jaxunlearn.audit.statistics.resampling import (
    Models,
    Statistic,
    central,
    count_models,
    evaluate,
    identity,
    relabelled,
    resampled,
    spread_around,
)
from jaxunlearn.proportions import Interval, clopper_pearson


class Verdict(IntEnum):
    """Where a candidate stands."""

    INSIDE = 0
    UNDER = 1
    OVER = 2
    MIXED = 3


MESSAGES = {
    Verdict.INSIDE: "inside the floor: this metric does not tell it from retrained models, with this many models",
    Verdict.UNDER: "under-unlearned: off the floor, on the side of the original",
    Verdict.OVER: "over-unlearned: off the floor, on the side away from the original (Streisand effect)",
    Verdict.MIXED: "off the floor, but on no side: some rows are left and others driven out, or only the spread differs",
}


class Judgement(NamedTuple):
    """One metric of one candidate, beside its floor and its ceiling."""

    value: Interval  # candidate against reference, with a bootstrap interval over models
    floor: Interval  # mean and central part of retrained against retrained
    ceiling: Float[Array, ""]  # original against reference
    sign: Float[Array, ""]  # 1 on the side of the original, -1 on the other
    p_value: Float[Array, ""]
    side_p_value: Float[Array, ""]  # of the shift, whose side is told from chance below alpha; NaN without a shift
    verdict: Int[Array, ""]  # a `Verdict`


def judge(
    statistic: Statistic,
    candidate: Models,
    reference: Models,
    original: Models,
    key: PRNGKeyArray,
    *,
    held_out: Models | None = None,
    shift: Statistic | None = None,
    alpha: float = 0.05,
    num_permutations: int = 199,
    num_bootstraps: int = 200,
) -> Judgement:
    """Value, floor, ceiling and verdict of one statistic.

    Args:
        statistic: a function `(candidate, reference) -> Float[]` of two sets of models of any sizes. Larger means further
            apart, unless it is signed, see `shift`.
        candidate: what is known of n unlearned models, e.g. margins [n, e] or accuracies [n]; a tree of arrays with models on
            the leading axis.
        reference: the same of m retrained models.
        original: the same of models before unlearning.
        key: one typed key, for permutations and resamples.
        held_out: further retrained models, at least n, so that the floor is that of ensembles of n and m models. Without them
            it is that of halves of the reference.
        shift: a signed statistic that says on which side of the reference the candidate lies, compared with the original. Where
            it is within what random labels give there is no side, and the verdict is MIXED.
            Without it `statistic` itself is signed, a gap for instance, and both its tails count.
        alpha: level of the test, in (0, 1); the false-positive rate is at most that.
        num_permutations: how many random labels.
        num_bootstraps: how many resamples of the models, for the interval, see `bootstrap`.

    Returns:
        `Judgement` of scalars, in the unit of the statistic. The verdict is -1 where the statistic is NaN.

    Raises:
        ValueError: fewer models or permutations than the level needs, or a level outside (0, 1).

    Example:
        >>> gap = lambda candidate, reference: jnp.mean(candidate) - jnp.mean(reference)
        >>> retrained, unlearned, original = jax.random.normal(key, (3, 40)) + jnp.array([[0.0], [1.0], [2.0]])
        >>> found = jaxunlearn.audit.judge(gap, unlearned, retrained, original, key)
        >>> jaxunlearn.audit.Verdict(int(found.verdict)).name
        'UNDER'
    """
    _check(candidate, reference, alpha, num_permutations, two_sided=shift is None)
    size, rest = count_models(candidate), count_models(reference)
    if held_out is not None:
        require_models("judge (held out)", count_models(held_out), size)
    permuting, drawing, splitting = jax.random.split(key, 3)
    # one pool and one pair of sizes for as many values as possible, so that the statistic is compiled once
    parts = {"candidate": candidate, "reference": reference}
    draws = {
        "value": identity(size, rest),
        "permuted": relabelled(permuting, num_permutations, size, rest),
        "resampled": resampled(drawing, num_bootstraps, size, rest),
    }
    if held_out is not None:
        parts["held out"] = _first(held_out, size)
        # behind the candidates: references, and as many held out as candidates
        draws["floor"] = jax.tree.map(lambda models: models + size, relabelled(splitting, num_permutations, size, rest))
    if count_models(original) == size:
        start = sum(map(count_models, parts.values()))
        parts["original"] = original
        draws["ceiling"] = (jnp.arange(start, start + size)[None], jnp.arange(size, size + rest)[None])
    values = dict(zip(draws, evaluate(statistic, list(parts.values()), list(draws.values())), strict=True))
    value = values["value"][0]
    if held_out is not None:
        floor = central(values["floor"])
    else:
        floor = floor_of(statistic, reference, splitting, num_splits=num_permutations)
    ceiling = values["ceiling"][0] if "ceiling" in values else statistic(original, reference)
    p_value = _p_value(value, values["permuted"], two_sided=shift is None)
    side = (value, ceiling) if shift is None else (shift(candidate, reference), shift(original, reference))
    sign = jnp.sign(side[0]) * jnp.sign(side[1])
    verdict = jnp.where(sign >= 0, int(Verdict.UNDER), int(Verdict.OVER))
    side_p_value = jnp.full_like(p_value, jnp.nan)
    if shift is not None:
        shifts = evaluate(shift, [candidate, reference], [draws["value"], draws["permuted"]])
        side_p_value = _p_value(shifts[0][0], shifts[1], two_sided=True)
        verdict = jnp.where(side_p_value <= alpha, verdict, int(Verdict.MIXED))
    return Judgement(
        value=spread_around(value, values["resampled"], min(size, rest)),
        floor=floor,
        ceiling=ceiling,
        sign=sign,
        p_value=p_value,
        side_p_value=side_p_value,
        verdict=jnp.where(jnp.isnan(p_value), -1, jnp.where(p_value > alpha, int(Verdict.INSIDE), verdict)),
    )


def permutation_p_value(
    statistic: Statistic,
    candidate: Models,
    reference: Models,
    key: PRNGKeyArray,
    *,
    num_permutations: int = 199,
    two_sided: bool = False,
) -> Float[Array, ""]:
    """Probability of a value as extreme as this one if it does not matter which models are called candidates.

        p = (1 + #{T_b >= T}) / (B + 1),    T_b under B random labels; two-sided: twice the smaller tail

    If candidates are exchangeable with references, P[p <= a] <= a for every a, at any number of models. A single candidate is
    ranked among all models, without random labels.

    Args:
        statistic, candidate, reference: as in `judge`.
        key: one typed key, for the labels.
        num_permutations: B.
        two_sided: count both tails.

    Returns:
        Float[], in (0, 1]. NaN if the statistic is.

    Raises:
        ValueError: arrays without a common leading axis.

    Example:
        >>> gap = lambda candidate, reference: jnp.mean(candidate) - jnp.mean(reference)
        >>> p = jaxunlearn.audit.permutation_p_value(gap, jnp.arange(20.0) + 40, jnp.arange(20.0), key)
        >>> round(float(p), 3)
        0.005
    """
    size, rest = count_models(candidate), count_models(reference)
    draws = [identity(size, rest), relabelled(key, num_permutations, size, rest)]
    values = evaluate(statistic, [candidate, reference], draws)
    return _p_value(values[0][0], values[1], two_sided=two_sided)


def floor_of(
    statistic: Statistic,
    retrained: Models,
    key: PRNGKeyArray,
    *,
    size: int | None = None,
    num_splits: int = 199,
    level: float = 0.95,
) -> Interval:
    """What the statistic is between retrained models: its mean and its central part over random splits in two.

    Metrics of distributions are larger for fewer models, so a floor is valid for its own numbers of models only.

    Args:
        statistic: as in `judge`.
        retrained: what is known of at least four retrained models.
        key: one typed key, for the splits.
        size: how many models play the candidate, by default half of them.
        num_splits: how many random splits.
        level: share of the splits in the central part, in (0, 1).

    Returns:
        `Interval` of scalars: mean, lower and upper end of the central part, in the unit of the statistic.

    Raises:
        ValueError: fewer than four models.

    Example:
        >>> distance = lambda candidate, reference: jnp.abs(jnp.mean(candidate) - jnp.mean(reference))
        >>> floor = jaxunlearn.audit.floor_of(distance, jax.random.normal(key, (100,)), key)
        >>> bool(floor.low < floor.estimate) and bool(floor.estimate < floor.high)
        True
    """
    models = count_models(retrained)
    require_models("floor_of", models, 4)
    size = models // 2 if size is None else size
    (values,) = evaluate(statistic, [retrained], [relabelled(key, num_splits, size, models - size)])
    return central(values, level)


def false_positive_rate(
    statistic: Statistic,
    held_out: Models,
    reference: Models,
    key: PRNGKeyArray,
    *,
    size: int = 1,
    two_sided: bool = False,
    alpha: float = 0.05,
    num_candidates: int = 50,
    num_permutations: int = 99,
) -> Interval:
    """How often the test takes truly retrained models for unlearned ones, with Clopper-Pearson limits.

    Candidates are random sets of `size` held-out models; with `size=1` every held-out model once. Sets of several models
    overlap, so their limits are too narrow.

    Args:
        statistic, reference, alpha, num_permutations: as in `judge`.
        held_out: retrained models that are not in the reference.
        key: one typed key, for sets and labels.
        size: models per candidate.
        two_sided: count both tails, as `judge` does without `shift`.
        num_candidates: how many sets, where `size` is above 1.

    Returns:
        `Interval` of fractions in [0, 1]; the aim is at most `alpha`.

    Raises:
        ValueError: fewer held-out models than `size`, or fewer models or permutations than the level needs.

    Example:
        >>> gap = lambda candidate, reference: jnp.mean(candidate) - jnp.mean(reference)
        >>> held_out, reference = jax.random.normal(key, (2, 50))
        >>> rate = jaxunlearn.audit.false_positive_rate(gap, held_out, reference, key, two_sided=True)
        >>> bool(rate.low <= 0.05)
        True
    """
    held_out = jax.tree.map(jnp.asarray, held_out)
    count = count_models(held_out)
    checks.require_count("size", size)
    if size > count:
        raise ValueError(f"false_positive_rate: candidates of {size} models need as many held-out ones, got {count}")
    choosing, permuting = jax.random.split(key)
    if size == 1:
        sets = jnp.arange(count)[:, None]
    else:
        draws = jax.random.uniform(choosing, (num_candidates, count))
        sets = jnp.argsort(draws, axis=1)[:, :size]
    _check(jax.tree.map(lambda x: x[sets[0]], held_out), reference, alpha, num_permutations, two_sided=two_sided)

    rest = count_models(reference)
    keys = jax.random.split(permuting, len(sets))
    labels = jax.vmap(lambda key: relabelled(key, num_permutations, size, rest))(keys)

    def is_told(drawn: tuple) -> jax.Array:
        rows, *labels = drawn
        candidate = jax.tree.map(lambda x: x[rows], held_out)
        values = evaluate(statistic, [candidate, reference], [identity(size, rest), (labels[0], labels[1])])
        return _p_value(values[0][0], values[1], two_sided=two_sided) <= alpha

    told = jax.lax.map(is_told, (sets, *labels))
    return clopper_pearson(jnp.sum(told), len(sets))


def _p_value(value: Float[Array, ""], draws: Float[Array, " b"], *, two_sided: bool) -> Float[Array, ""]:
    above = (1 + jnp.sum(draws >= value)) / (draws.size + 1)
    below = (1 + jnp.sum(draws <= value)) / (draws.size + 1)
    p_value = jnp.minimum(2 * jnp.minimum(above, below), 1) if two_sided else above
    return jnp.where(jnp.isnan(value) | jnp.any(jnp.isnan(draws)), jnp.nan, p_value)


def _first(models: Models, count: int) -> Models:
    return jax.tree.map(lambda x: x[:count], models)


def _check(candidate: Models, reference: Models, alpha: float, num_permutations: int, *, two_sided: bool) -> None:
    """ValueError unless a p-value can be as small as alpha."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a level such as 0.05, got {alpha}")
    needed = (2 if two_sided else 1) / alpha
    if num_permutations + 1 < needed:
        raise ValueError(f"a level of {alpha} needs at least {round(needed) - 1} permutations, got {num_permutations}")
    models, size = count_models(candidate) + count_models(reference), count_models(candidate)
    if size == 1 and models < needed:
        raise ValueError(
            f"one model at a level of {alpha} needs at least {round(needed) - 1} retrained models, got {models - 1}"
        )
    require_models("judge", min(size, count_models(reference)), 1)
