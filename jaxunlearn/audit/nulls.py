"""Null floors and verdicts: is a difference larger than retrained models show among themselves?

A metric of perfect unlearning is not 0, and not 1: it is what one retrained ensemble scores against another, its *floor*.
What doing nothing scores is its *ceiling*. Whether unlearned models can be told from retrained ones is decided by a
permutation test: if unlearning were perfect, it would not matter which of all these models are called unlearned, so that the
value is one of many that random labels give. The test is exact at any number of models, and needs no law of the metric.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import tree
from jaxunlearn.audit.checks import require_models
from jaxunlearn.audit.intervals import Interval, clopper_pearson

Models: TypeAlias = PyTree  # what is known of some models: arrays with models on the leading axis
Statistic: TypeAlias = Callable[[Models, Models], jax.Array]  # (candidate, reference) -> Float[""]


class Verdict(IntEnum):
    """Where a candidate stands."""

    INSIDE = 0
    UNDER = 1
    OVER = 2


MESSAGES = {
    Verdict.INSIDE: "inside the floor: not told from retrained models by this metric with this many models",
    Verdict.UNDER: "under-unlearned: off the floor, on the side of the original",
    Verdict.OVER: "over-unlearned: off the floor, on the side away from the original (Streisand effect)",
}


class Judgement(NamedTuple):
    """One metric of one candidate, beside its floor and its ceiling."""

    value: Interval  # candidate against reference, with a bootstrap interval over models
    floor: Interval  # mean and central part of retrained against retrained
    ceiling: Float[Array, ""]  # original against reference
    sign: Float[Array, ""]  # 1 on the side of the original, -1 on the other
    p_value: Float[Array, ""]
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
        statistic: compares two sets of models of any sizes. Larger is further apart, unless it is its own `shift`.
        candidate: what is known of the unlearned models, e.g. margins [n, e] or accuracies [n].
        reference: the same of the retrained models.
        original: the same of models before unlearning.
        key: of permutations and resamples.
        held_out: further retrained models, as many as candidates or more, so that the floor is that of ensembles of the size
            of candidate and reference. Without them it is that of halves of the reference.
        shift: a signed statistic that says on which side of the reference the candidate lies, compared with the original.
            Without it `statistic` itself is signed, a gap for instance, and both tails of it count.
        alpha: level of the test; the false-positive rate is at most that.
        num_permutations: random labels.
        num_bootstraps: resamples of the models, for the interval, see `bootstrap`.

    Returns:
        `Judgement`.

    Raises:
        ValueError: fewer models or permutations than the level needs.

    Example:
        >>> gap = lambda candidate, reference: jnp.mean(candidate) - jnp.mean(reference)
        >>> retrained, unlearned, original = jax.random.normal(key, (3, 40)) + jnp.array([[0.0], [1.0], [2.0]])
        >>> found = jaxunlearn.audit.judge(gap, unlearned, retrained, original, key)
        >>> jaxunlearn.audit.Verdict(int(found.verdict)).name
        'UNDER'
    """
    _check(candidate, reference, alpha, num_permutations, two_sided=shift is None)
    size, rest = _count(candidate), _count(reference)
    if held_out is not None:
        require_models("judge (held out)", _count(held_out), size)
    permuting, resampling, splitting = jax.random.split(key, 3)
    # All values are of one pool and one pair of sizes, so that the statistic is compiled once.
    pool = _joined(candidate, reference, *([] if held_out is None else [_first(held_out, size)]))
    draws = [_identity(size, rest), _relabelled(permuting, num_permutations, size, rest)]
    draws.append(_resampled(resampling, num_bootstraps, size, rest))
    if held_out is not None:
        first, second = _relabelled(splitting, num_permutations, size, rest)
        draws.append((first + size, second + size))  # behind the candidates: references, and as many held out as candidates
    values = _evaluate(statistic, pool, draws)
    value, permuted, resampled = values[0][0], values[1], values[2]
    floor = (
        _central(values[3]) if held_out is not None else floor_of(statistic, reference, splitting, num_splits=num_permutations)
    )
    p_value = _p_value(value, permuted, two_sided=shift is None)
    ceiling = statistic(original, reference)
    side = (value, ceiling) if shift is None else (shift(candidate, reference), shift(original, reference))
    sign = jnp.sign(side[0]) * jnp.sign(side[1])
    verdict = jnp.where(sign >= 0, int(Verdict.UNDER), int(Verdict.OVER))
    return Judgement(
        value=_spread_around(value, resampled, min(size, rest)),
        floor=floor,
        ceiling=ceiling,
        sign=sign,
        p_value=p_value,
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

    If candidates are exchangeable with references, P[p <= a] <= a for every a, at any number of models. One candidate is
    ranked among all models, without random labels.

    Args:
        statistic, candidate, reference: as in `judge`.
        key: of the labels.
        num_permutations: B.
        two_sided: count both tails.

    Returns:
        In (0, 1]. NaN if the statistic is.

    Example:
        >>> gap = lambda candidate, reference: jnp.mean(candidate) - jnp.mean(reference)
        >>> p = jaxunlearn.audit.permutation_p_value(gap, jnp.arange(20.0) + 40, jnp.arange(20.0), key)
        >>> round(float(p), 3)
        0.005
    """
    size, rest = _count(candidate), _count(reference)
    draws = [_identity(size, rest), _relabelled(key, num_permutations, size, rest)]
    values = _evaluate(statistic, _joined(candidate, reference), draws)
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

    Metrics of distributions are larger for fewer models, so that a floor belongs to its numbers of models.

    Args:
        statistic: as in `judge`.
        retrained: at least four models.
        key: of the splits.
        size: models that play the candidate; half of them by default.
        num_splits: how many.
        level: of the central part.

    Example:
        >>> distance = lambda candidate, reference: jnp.abs(jnp.mean(candidate) - jnp.mean(reference))
        >>> floor = jaxunlearn.audit.floor_of(distance, jax.random.normal(key, (100,)), key)
        >>> bool(floor.low < floor.estimate) and bool(floor.estimate < floor.high)
        True
    """
    models = _count(retrained)
    require_models("floor_of", models, 4)
    size = models // 2 if size is None else size
    (values,) = _evaluate(statistic, retrained, [_relabelled(key, num_splits, size, models - size)])
    return _central(values, level)


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

    Resampling adds ties, which metrics of distributions take for distance, so that only the spread of the resamples is used:
    the limits are as far from the value as the resamples' quantiles are from their mean, turned round.

    Args:
        statistic, candidate, reference: as in `judge`.
        key: of the resamples.
        num_bootstraps: how many.
        level: confidence level.

    Returns:
        `Interval`; limits of one model are NaN.

    Example:
        >>> gap = lambda candidate, reference: jnp.mean(candidate) - jnp.mean(reference)
        >>> interval = jaxunlearn.audit.bootstrap(gap, jnp.arange(20.0) + 40, jnp.arange(20.0), key)
        >>> float(interval.estimate)
        40.0
    """
    size, rest = _count(candidate), _count(reference)
    draws = [_identity(size, rest), _resampled(key, num_bootstraps, size, rest)]
    values = _evaluate(statistic, _joined(candidate, reference), draws)
    return _spread_around(values[0][0], values[1], min(size, rest), level)


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
    of rows like these; for the very rows of a request `bootstrap` is the narrower and right one.

    Args:
        statistic: as in `judge`.
        candidate, reference: a dict with an entry a group of examples; its leaves are [models, examples, ...].
        key: of the resamples.
        num_bootstraps: how many.
        level: confidence level.

    Returns:
        `Interval`; limits of one model are NaN.

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
    size, rest = _count(candidate), _count(reference)
    drawing, *keys = jax.random.split(key, 1 + len(counts[0]))
    first, second = _resampled(drawing, num_bootstraps, size, rest)
    rows = {
        name: jax.random.randint(key, (num_bootstraps, count), 0, count)
        for key, (name, count) in zip(keys, counts[0].items(), strict=True)
    }

    def one(draw: tuple) -> jax.Array:
        sides = ((candidate, draw[0]), (reference, draw[1] - size))
        return statistic(
            *[
                {name: jax.tree.map(lambda x, n=name, m=models: x[m][:, draw[2][n]], group) for name, group in side.items()}
                for side, models in sides
            ]
        )

    values = jax.lax.map(one, (first, second, rows))
    return _spread_around(statistic(candidate, reference), values, min(size, rest), level)


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
    """How often genuinely retrained models are told from retrained models, with Clopper-Pearson limits.

    Candidates are random sets of `size` held-out models; with `size=1` every held-out model once. Sets of several models
    overlap, so that their limits are too narrow.

    Args:
        statistic, reference, two_sided, alpha, num_permutations: as in `judge`.
        held_out: retrained models that are not in the reference.
        key: of sets and labels.
        size: models a candidate.
        num_candidates: sets, where `size` is above 1.

    Raises:
        ValueError: fewer held-out models than `size`, or fewer models or permutations than the level needs.

    Example:
        >>> gap = lambda candidate, reference: jnp.mean(candidate) - jnp.mean(reference)
        >>> held_out, reference = jax.random.normal(key, (2, 50))
        >>> rate = jaxunlearn.audit.false_positive_rate(gap, held_out, reference, key, two_sided=True)
        >>> bool(rate.low <= 0.05)
        True
    """
    count = _count(held_out)
    tree.require_count("size", size)
    if size > count:
        raise ValueError(f"false_positive_rate: candidates of {size} models need as many held-out ones, got {count}")
    choosing, permuting = jax.random.split(key)
    if size == 1:
        sets = jnp.arange(count)[:, None]
    else:
        draws = jax.random.uniform(choosing, (num_candidates, count))
        sets = jnp.argsort(draws, axis=1)[:, :size]
    _check(jax.tree.map(lambda x: x[sets[0]], held_out), reference, alpha, num_permutations, two_sided=two_sided)

    def is_told(pair: tuple) -> jax.Array:
        rows, key = pair
        candidate = jax.tree.map(lambda x: x[rows], held_out)
        options = {"num_permutations": num_permutations, "two_sided": two_sided}
        return permutation_p_value(statistic, candidate, reference, key, **options) <= alpha

    told = jax.lax.map(is_told, (sets, jax.random.split(permuting, len(sets))))
    return clopper_pearson(jnp.sum(told), len(sets))


Draws: TypeAlias = tuple[Int[Array, "k n"], Int[Array, "k m"]]  # which models of a pool play candidates and references


def _evaluate(statistic: Statistic, pool: Models, draws: list[Draws]) -> list[Float[Array, "k"]]:
    """The statistic of every draw, a vector for each kind of draw."""
    first, second = (jnp.concatenate(parts) for parts in zip(*draws, strict=True))

    def take(rows: Int[Array, "n"]) -> Models:
        return jax.tree.map(lambda x: x[rows], pool)

    def one(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        return statistic(take(rows[0]), take(rows[1]))

    values = jax.lax.map(one, (first, second))
    ends = np.cumsum([len(rows) for rows, _ in draws])
    return jnp.split(values, ends[:-1])


def _identity(size: int, rest: int) -> Draws:
    return jnp.arange(size)[None], jnp.arange(size, size + rest)[None]


def _relabelled(key: PRNGKeyArray, draws: int, size: int, rest: int) -> Draws:
    """Random labels, as many of each kind as before; for one candidate all the others in turn."""
    if size == 1:
        first = jnp.arange(1, rest + 1)[:, None]
        second = jnp.arange(rest)[None] + (jnp.arange(rest)[None] >= first)
        return first, second
    order = jnp.argsort(jax.random.uniform(key, (draws, size + rest)), axis=1)
    return order[:, :size], order[:, size:]


def _resampled(key: PRNGKeyArray, draws: int, size: int, rest: int) -> Draws:
    """Each kind with replacement."""
    first, second = jax.random.split(key)
    return jax.random.randint(first, (draws, size), 0, size), size + jax.random.randint(second, (draws, rest), 0, rest)


def _p_value(value: Float[Array, ""], draws: Float[Array, "b"], *, two_sided: bool) -> Float[Array, ""]:
    above = (1 + jnp.sum(draws >= value)) / (draws.size + 1)
    below = (1 + jnp.sum(draws <= value)) / (draws.size + 1)
    p_value = jnp.minimum(2 * jnp.minimum(above, below), 1) if two_sided else above
    return jnp.where(jnp.isnan(value) | jnp.any(jnp.isnan(draws)), jnp.nan, p_value)


def _central(draws: Float[Array, "b"], level: float = 0.95) -> Interval:
    tail = (1 - level) / 2
    return Interval(jnp.mean(draws), jnp.quantile(draws, tail), jnp.quantile(draws, 1 - tail))


def _spread_around(value: Float[Array, ""], resampled: Float[Array, "b"], models: int, level: float = 0.95) -> Interval:
    if models < 2:
        return Interval(value, jnp.full_like(value, jnp.nan), jnp.full_like(value, jnp.nan))
    mean, low, high = _central(resampled, level)
    return Interval(value, value - (high - mean), value + (mean - low))


def _joined(*models: Models) -> Models:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *models)


def _first(models: Models, count: int) -> Models:
    return jax.tree.map(lambda x: x[:count], models)


def _count(models: Models) -> int:
    return tree.leading_axis(models, "models")


def _examples(group: PyTree, name: str) -> int:
    shapes = {jnp.shape(x)[:2] for x in jax.tree.leaves(group)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"arrays of group {name!r} must share their leading axes [models, examples], got {sorted(shapes)}")
    return next(iter(shapes))[1]


def _check(candidate: Models, reference: Models, alpha: float, num_permutations: int, *, two_sided: bool) -> None:
    """ValueError unless a p-value can be as small as alpha."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a level such as 0.05, got {alpha}")
    needed = (2 if two_sided else 1) / alpha
    if num_permutations + 1 < needed:
        raise ValueError(f"a level of {alpha} needs at least {round(needed) - 1} permutations, got {num_permutations}")
    models, size = _count(candidate) + _count(reference), _count(candidate)
    if size == 1 and models < needed:
        raise ValueError(
            f"one model at a level of {alpha} needs at least {round(needed) - 1} retrained models, got {models - 1}"
        )
    require_models("judge", min(size, _count(reference)), 1)
