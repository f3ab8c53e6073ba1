"""Membership inference on texts: scores of a row, higher for members, and how they tell the forget set from held-out texts.

Loss: `mean_log_probability`. Forget set and held-out texts that differ in date, source or format are told apart by a model that
never saw either of them: what a retrained model scores is the aim, not an area of 0.5.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxunlearn.audit.language.tokens import mean_log_probability, require_fit
from jaxunlearn.audit.single.membership import auc, roc_curve, tpr_at_fpr
from jaxunlearn.audit.single.summary import privacy_leak
from jaxunlearn.audit.statistics.intervals import Interval, auc_interval
from jaxunlearn.types import Scalar


class Attack(NamedTuple):
    """What `attack` returns."""

    auc: Interval
    tpr: Interval  # true-positive rate at the false-positive rate asked for; ties are never split
    interpolated_tpr: Float[Array, ""]  # the same on straight lines between points of the ROC curve, as papers report it


def min_k(scores: Float[Array, "... t"], labels: Int[Array, "... t"], *, share: float = 0.2) -> Float[Array, "..."]:
    """Mean of the lowest scores of a row's tokens: min-k of log-probabilities, min-k++ of `token_scores`.

    `max(1, floor(share * length))` tokens, as in OpenUnlearning; MUSE's code has NaN where that floor is 0.

    Args:
        scores: from `token_log_probabilities` (min-k) or `token_scores` (min-k++).
        labels: what counts.
        share: of the tokens, in (0, 1], static; MUSE reports 0.4.

    Returns:
        Higher for members (published codes have minus it); NaN for a row of which nothing counts.

    Raises:
        ValueError: shapes that do not fit, a share outside (0, 1].

    References:
        Shi, Ajith, Xia, Huang, Liu, Blevins, Chen, Zettlemoyer: Detecting pretraining data from large language models, 2024,
        arXiv 2310.16789; for min-k++ see `token_scores`.

    Example:
        >>> scores = jnp.array([[-1.0, -4.0, -2.0, -9.0]])
        >>> jaxunlearn.audit.language.min_k(scores, jnp.array([[0, 0, 0, -1]]), share=0.7).tolist()
        [-3.0]
    """
    if not 0 < share <= 1:
        raise ValueError(f"min_k: share must lie in (0, 1], got {share}")
    scores, counted = require_fit("min_k", scores, labels)
    # rounded as Python rounds, for every length a row can have
    lowest = jnp.asarray(np.maximum(1, [int(length * share) for length in range(scores.shape[-1] + 1)]))
    number = jnp.sum(counted, axis=-1)
    taken = lowest[number]
    ascending = jnp.sort(jnp.where(counted, scores, jnp.inf), axis=-1)
    chosen = jnp.where(jnp.arange(scores.shape[-1]) < taken[..., None], ascending, 0)
    broken = jnp.any(counted & jnp.isnan(scores), axis=-1)  # NaN sorts behind all numbers
    return jnp.where((number > 0) & ~broken, jnp.sum(chosen, axis=-1) / taken, jnp.nan)


def zlib_lengths(texts: Sequence[str | bytes]) -> Float[np.ndarray, " n"]:
    """Bytes of each text when it is compressed by zlib, on the host.

    Args:
        texts: strings, or bytes.

    Returns:
        float32, one length per text.

    Example:
        >>> float(jaxunlearn.audit.language.zlib_lengths(["a" * 100])[0])
        12.0
    """
    return np.array([len(zlib.compress(text.encode() if isinstance(text, str) else text)) for text in texts], np.float32)


def zlib_score(
    log_probabilities: Float[Array, "... b t"], labels: Int[Array, "... b t"], lengths: Float[Array, " b"]
) -> Float[Array, "... b"]:
    """Mean log-probability over the compressed length: a text that is easy for any reader is no member for being probable.

    Args:
        log_probabilities: from `token_log_probabilities`.
        labels: what counts.
        lengths: from `zlib_lengths`.

    Returns:
        Higher for members, in nats per token and byte; NaN for a row of which nothing counts.

    Raises:
        ValueError: shapes that do not fit.

    References:
        Carlini, Tramer, Wallace, Jagielski, Herbert-Voss, Lee, Roberts, Brown, Song, Erlingsson, Oprea, Raffel: Extracting
        training data from large language models, 2021, arXiv 2012.07805.

    Example:
        >>> jaxunlearn.audit.language.zlib_score(jnp.full((1, 2), -3.0), jnp.zeros((1, 2), int), jnp.array([12.0])).tolist()
        [-0.25]
    """
    return mean_log_probability(log_probabilities, labels) / jnp.asarray(lengths)


def attack(
    members: Float[Array, " k"],
    nonmembers: Float[Array, " m"],
    member_weights: Float[Array, " k"] | None = None,
    nonmember_weights: Float[Array, " m"] | None = None,
    *,
    fpr: Scalar = 0.01,
    level: float = 0.95,
) -> Attack:
    """How well one score tells members from others.

    Args:
        members: scores of the forget set, higher for members.
        nonmembers: of held-out texts.
        member_weights, nonmember_weights: 1 for rows that count, 0 for others, which may hold anything.
        fpr: false-positive rate at which `tpr` is read, in [0, 1].
        level: confidence level.

    Returns:
        `Attack`. Intervals take rows as independent and the model as fixed.

    Raises:
        ValueError: as `jaxunlearn.audit.tpr_at_fpr`.

    Example:
        >>> float(jaxunlearn.audit.language.attack(jnp.array([2.0, 1.0]), jnp.array([1.0, 0.0])).auc.estimate)
        0.875
    """
    weights = [
        jnp.ones(jnp.shape(x)) if w is None else jnp.asarray(w)
        for x, w in ((members, member_weights), (nonmembers, nonmember_weights))
    ]
    scores = jnp.asarray(members), weights[0], jnp.asarray(nonmembers), weights[1]
    area = auc_interval(auc(*scores), jnp.sum(weights[0]), jnp.sum(weights[1]), level)
    curve = roc_curve(*scores)
    return Attack(area, tpr_at_fpr(*scores, fpr=fpr, level=level).tpr, jnp.interp(fpr, curve.fpr, curve.tpr))


def muse_privacy_leak(
    forget: Float[Array, " k"],
    held_out: Float[Array, " m"],
    retrained_forget: Float[Array, " k"],
    retrained_held_out: Float[Array, " m"],
) -> Float[Array, ""]:
    """MUSE's PrivLeak from scores of both models, `min_k(..., share=0.4)` in the paper.

    `100 (A_u - A_r) / A_r` with A the area as MUSE's code takes it, of held-out texts *above* the forget set, which is 1 minus
    the usual one; see `jaxunlearn.audit.privacy_leak`.

    Args:
        forget, held_out: scores of the unlearned model, higher for members.
        retrained_forget, retrained_held_out: the same of a retrained model.

    Returns:
        In percent. Negative: under-unlearned; positive: over-unlearned. Infinite or NaN if the retrained model tells all texts.

    Raises:
        ValueError: scores that are not [k] and [m].

    References:
        Shi et al.: MUSE: machine unlearning six-way evaluation for language models, 2024, arXiv 2407.06460.

    Example:
        >>> low, high = jnp.array([0.0, 1.0]), jnp.array([2.0, 3.0])
        >>> float(jaxunlearn.audit.language.muse_privacy_leak(high, low, low, low))
        -100.0
    """

    def area(members: Array, others: Array) -> Float[Array, ""]:
        return auc(members, jnp.ones(jnp.shape(members)), others, jnp.ones(jnp.shape(others)))

    return privacy_leak(area(forget, held_out), area(retrained_forget, retrained_held_out))
