"""Membership inference by the loss: can the forget set be told from rows the model never saw?

The score of a row is minus its loss; rows of the forget set are the members, unseen rows the non-members (Yeom, Giacomelli,
Fredrikson, Jha: Privacy risk in machine learning: analyzing the connection to overfitting, 2018, arXiv 1709.01604).
All thresholds are tried here, instead of the mean training loss alone.

A row that left no trace in a model and was drawn like the unseen rows scores as they do, and the area under the ROC curve is
0.5. The aim is not 0.5, though, but what a retrained model scores on the same rows: a forgotten class, and rows that are easier
or harder than the unseen ones, are told apart by a model that never saw them.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxunlearn import checks
from jaxunlearn.audit.statistics.checks import require_disjoint
from jaxunlearn.audit.statistics.intervals import auc_interval
from jaxunlearn.evaluation import evaluate, map_rows
from jaxunlearn.proportions import Interval, clopper_pearson
from jaxunlearn.sampling import forget_rows
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Scalar, Variables


class Scores(NamedTuple):
    """Membership scores, higher for members; rows of weight 0 may hold anything. Unpack it: `auc(*scores)`."""

    members: Float[Array, " k"]
    member_weights: Float[Array, " k"]
    nonmembers: Float[Array, " m"]
    nonmember_weights: Float[Array, " m"]


class Roc(NamedTuple):
    """Points of a ROC curve, from (0, 0) to (1, 1); rows at or above a threshold count as members."""

    fpr: Float[Array, " p"]
    tpr: Float[Array, " p"]
    thresholds: Float[Array, " p"]


class AtFpr(NamedTuple):
    """What `tpr_at_fpr` returns."""

    tpr: Interval
    threshold: Float[Array, ""]  # members at or above it are found; inf where none is
    fpr: Float[Array, ""]  # share of non-members at or above it, at most the one asked for


class MembershipInference(NamedTuple):
    """What `loss_attack` returns."""

    auc: Interval
    tpr: Interval  # true-positive rate at the false-positive rate asked for
    num_members: Float[Array, ""]
    num_nonmembers: Float[Array, ""]


def auc(
    member_scores: Float[Array, " k"],
    member_weights: Float[Array, " k"],
    nonmember_scores: Float[Array, " m"],
    nonmember_weights: Float[Array, " m"],
) -> Float[Array, ""]:
    """Area under the ROC curve: `P(member > non-member) + P(member = non-member) / 2`, the Mann-Whitney statistic.

    Exact with ties; `O((k + m) log m)` by sorting.

    Args:
        member_scores, nonmember_scores: any order; infinite scores are fine.
        member_weights, nonmember_weights: weights of the draws; rows of weight 0 may hold anything, NaN included.

    Returns:
        Float[], in [0, 1]. NaN without a member, without a non-member, or with a NaN score of positive weight.

    Raises:
        ValueError: scores and weights of different shapes.

    References:
        Hanley, McNeil: The meaning and use of the area under a receiver operating characteristic (ROC) curve, 1982,
        doi 10.1148/radiology.143.1.7063747.

    Example:
        >>> float(jaxunlearn.audit.auc(jnp.array([2.0, 1.0]), jnp.ones(2), jnp.array([1.0, 0.0]), jnp.ones(2)))
        0.875
    """
    members, nonmembers = _select(member_scores, member_weights), _select(nonmember_scores, nonmember_weights)
    ascending, below = _cumulative(nonmembers, nonmember_weights)
    strictly = below[jnp.searchsorted(ascending, members, side="left")]
    with_ties = below[jnp.searchsorted(ascending, members, side="right")]
    beaten = jnp.sum(member_weights * (strictly + with_ties) / 2 / below[-1]) / jnp.sum(member_weights)
    return jnp.where(_all_known(members, nonmembers), beaten, jnp.nan)


def tpr_at_fpr(
    member_scores: Float[Array, " k"],
    member_weights: Float[Array, " k"],
    nonmember_scores: Float[Array, " m"],
    nonmember_weights: Float[Array, " m"],
    fpr: Scalar = 0.01,
    level: float = 0.95,
) -> AtFpr:
    """Largest true-positive rate of a threshold whose false-positive rate is at most `fpr`.

    A member is found if the share of non-members that score as high or higher is at most `fpr`. Ties are never split. With
    fewer than `1 / fpr` non-members it must beat them all.

    Args:
        member_scores, member_weights, nonmember_scores, nonmember_weights: as in `auc`.
        fpr: in [0, 1], may be traced.
        level: confidence level of the interval.

    Returns:
        `AtFpr`, its interval by Clopper and Pearson, with the members as trials: weights are to be 0 and 1. The threshold
        counts as fixed; that it was chosen on the non-members at hand is not in the interval. Without a member the estimate is
        NaN and the limits are 0 and 1; without a non-member or with a NaN score all are NaN.

    Raises:
        ValueError: `fpr` outside [0, 1], a level outside (0, 1), scores and weights of different shapes.

    References:
        Carlini, Chien, Nasr, Song, Terzis, Tramer: Membership inference attacks from first principles, 2022,
        arXiv 2112.03570.

    Example:
        >>> scores = jnp.array([3.0, 1.0]), jnp.ones(2), jnp.array([2.0, 0.0]), jnp.ones(2)
        >>> found = jaxunlearn.audit.tpr_at_fpr(*scores)
        >>> float(found.tpr.estimate), float(found.threshold), float(found.fpr)
        (0.5, 3.0, 0.0)
    """
    checks.check_range("fpr", fpr, low=0, high=1)
    members, nonmembers = _select(member_scores, member_weights), _select(nonmember_scores, nonmember_weights)
    rate = _share_from(nonmembers, nonmember_weights, members)
    rounding = 4 * jnp.finfo(rate.dtype).eps
    is_found = (rate <= fpr * (1 + rounding)) & (member_weights > 0)
    defined = _all_known(members, nonmembers) & jnp.any(nonmember_weights > 0)
    found = jnp.where(defined, jnp.sum(jnp.where(is_found, member_weights, 0)), jnp.nan)
    threshold = jnp.min(jnp.where(is_found, members, jnp.inf))
    reached = jnp.max(jnp.where(is_found, rate, 0))
    interval = clopper_pearson(found, jnp.sum(member_weights), level)
    return AtFpr(interval, *(jnp.where(defined, x, jnp.nan) for x in (threshold, reached)))


def roc_curve(
    member_scores: Float[Array, " k"],
    member_weights: Float[Array, " k"],
    nonmember_scores: Float[Array, " m"],
    nonmember_weights: Float[Array, " m"],
) -> Roc:
    """The whole ROC curve, for plots.

    Args:
        member_scores, member_weights, nonmember_scores, nonmember_weights: as in `auc`.

    Returns:
        Roc with `1 + k + m` points, both rates ascending. Tied scores repeat a point, and rows of weight 0 repeat (1, 1),
        so straight lines between the points bound the area `auc`. A rate is NaN where its side has no row or a NaN score.

    Raises:
        ValueError: scores and weights of different shapes.

    Example:
        >>> curve = jaxunlearn.audit.roc_curve(jnp.array([1.0]), jnp.ones(1), jnp.array([0.0]), jnp.ones(1))
        >>> curve.tpr.tolist(), curve.fpr.tolist()
        ([0.0, 1.0, 1.0], [0.0, 0.0, 1.0])
    """
    members, nonmembers = _select(member_scores, member_weights), _select(nonmember_scores, nonmember_weights)
    pooled = jnp.concatenate([members, nonmembers])
    counts = jnp.concatenate([member_weights, nonmember_weights]) > 0
    thresholds = jnp.sort(jnp.where(counts, pooled, -jnp.inf), descending=True)

    def rates(scores, weights):
        shares = jnp.concatenate([jnp.zeros(1, thresholds.dtype), _share_from(scores, weights, thresholds)])
        return jnp.where(_all_known(members, nonmembers), shares, jnp.nan)

    thresholds_from_none = jnp.concatenate([jnp.full(1, jnp.inf, thresholds.dtype), thresholds])
    return Roc(rates(nonmembers, nonmember_weights), rates(members, member_weights), thresholds_from_none)


def loss_scores(
    model: Model,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    test: Examples,
    *,
    chunk: int | None = None,
) -> Scores:
    """Minus the loss of every row of the forget set (members) and of every unseen row (non-members).

    Args:
        model, variables, data, request, test, chunk: as in `loss_attack`.

    Returns:
        `Scores`, in the unit of the loss; a slot that names no present row has weight 0.

    Raises:
        ValueError: as `loss_attack`.

    Example:
        >>> scores = jaxunlearn.audit.loss_scores(model, variables, data, request, test)
        >>> scores.members.shape, scores.nonmembers.shape
        ((16,), (20,))
    """
    require_disjoint("loss_attack", members=data.train, nonmembers=test)

    def score(examples: Examples) -> Float[Array, " b"]:
        return -evaluate(model, variables, examples)[1]

    forgotten = forget_rows(data, request)
    unseen = map_rows(score, test, chunk=chunk)
    return Scores(map_rows(score, forgotten.examples, chunk=chunk), forgotten.weights, unseen, jnp.ones(unseen.shape[0]))


def loss_attack(
    model: Model,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    test: Examples,
    *,
    fpr: Scalar = 0.01,
    level: float = 0.95,
    chunk: int | None = None,
) -> MembershipInference:
    """Attack a model with the loss: how well is the forget set told from unseen rows?

    Compare with retrained models on the same rows. An area above theirs is under-unlearned: the rows still fit better.
    An area below is over-unlearned: they fit worse than rows never seen, which an attacker detects by the opposite score.

    Args:
        model: `forward` in evaluation mode, and `loss`.
        variables: the model under attack.
        data: the training data that the request refers to.
        request: one request; its usable rows are the members.
        test: rows no model was trained on, drawn like the forgotten ones; the non-members.
        fpr: false-positive rate at which `tpr` is read, in [0, 1].
        level: confidence level of the intervals.
        chunk: rows that go through the model together; `None` takes all.

    Returns:
        MembershipInference. An empty request has no members, so `auc` and the estimate of `tpr` are NaN: undefined, not 0.
        The intervals take rows as independent draws and the model as fixed, see `auc_interval` and `tpr_at_fpr`.

    Raises:
        ValueError: stacked requests, a loss that is not one value per row, `fpr` or `level` out of range, a bad chunk, test
            rows that are training rows as well (where values are known).

    References:
        Yeom, Giacomelli, Fredrikson, Jha: Privacy risk in machine learning: analyzing the connection to overfitting, 2018,
        arXiv 1709.01604.

    Example:
        >>> attack = jaxunlearn.audit.loss_attack(model, variables, data, request, test)
        >>> bool(attack.auc.low <= attack.auc.estimate)
        True
    """
    scores = loss_scores(model, variables, data, request, test, chunk=chunk)
    num_members, num_nonmembers = jnp.sum(scores.member_weights), jnp.sum(scores.nonmember_weights)
    area = auc_interval(auc(*scores), num_members, num_nonmembers, level)
    return MembershipInference(area, tpr_at_fpr(*scores, fpr=fpr, level=level).tpr, num_members, num_nonmembers)


def _select(scores: Float[Array, " k"], weights: Float[Array, " k"]) -> Float[Array, " k"]:
    if jnp.ndim(scores) != 1 or jnp.shape(scores) != jnp.shape(weights):
        raise ValueError(f"scores and weights must be of one shape [k], got {jnp.shape(scores)} and {jnp.shape(weights)}")
    return jnp.where(weights > 0, scores, 0)


def _all_known(*scores: Float[Array, " k"]) -> Bool[Array, ""]:
    return ~jnp.any(jnp.isnan(jnp.concatenate(scores)))


def _cumulative(scores: Float[Array, " m"], weights: Float[Array, " m"]) -> tuple[Float[Array, " m"], Float[Array, " m+1"]]:
    """Scores in ascending order, and the weight of the first 0, 1, ..., m of them."""
    order = jnp.argsort(scores)
    weights = jnp.where(weights > 0, weights, 0)[order]
    return scores[order], jnp.concatenate([jnp.zeros(1, weights.dtype), jnp.cumsum(weights)])


def _share_from(scores: Float[Array, " m"], weights: Float[Array, " m"], thresholds: Float[Array, " p"]) -> Float[Array, " p"]:
    """Share of the weight with `score >= threshold`."""
    ascending, below = _cumulative(scores, weights)
    return (below[-1] - below[jnp.searchsorted(ascending, thresholds, side="left")]) / below[-1]
