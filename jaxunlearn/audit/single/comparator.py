"""Comparator score: can one threshold on a plain score tell an unlearned from a retrained model on the forget set?

After Unlearning Comparator (Lee et al., 2025, arXiv 2508.12730), a reconstruction from its definition. It takes the *smaller*
of the two log-ratios of an attack where the 2023 competition takes the larger, which makes it the milder test. It looks at one
model of each kind; `jaxunlearn.audit.forgetting_quality` looks at many models for each row, and sees what this averages out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import checks
from jaxunlearn.audit.single.scores import entropy
from jaxunlearn.audit.statistics.checks import require_equal, require_numbers

ATTACKS = ("entropy high", "entropy low", "confidence high", "confidence low")


class ComparatorScore(NamedTuple):
    """What `comparator_score` returns."""

    quality: Float[Array, ""]  # 1 minus the strongest attack; 1 is not told apart
    attacks: Float[Array, " 4"]  # strength of each of `ATTACKS`, in [0, 1]


def comparator_score(
    candidate_logits: Float[Array, "k c"], reference_logits: Float[Array, "k c"], *, temperature: float = 2.0
) -> ComparatorScore:
    """One minus the strength of the best threshold on entropy or confidence.

        strength = max over thresholds of 1 - 2^-epsilon,
        epsilon = max(0, min(log((1 - FPR) / FNR), log((1 - FNR) / FPR)))

    An attack takes a row for one of the unlearned model if its score lies at or above a threshold (high), or at or below it
    (low); thresholds are all scores that occur. An attack that is never wrong has strength 1. Two samples of k rows of one
    distribution do not score 1 either: compare with the value between two retrained models.

    Args:
        candidate_logits: of the unlearned model on the forget set.
        reference_logits: of a retrained model on the same rows.
        temperature: divides logits before the entropy is taken; the confidence is the largest probability at temperature 1.

    Returns:
        `ComparatorScore`, float32; NaN if a logit is.

    Raises:
        ValueError: logits that are not [rows, classes] of the same rows, NaN, or a temperature that is not positive.

    Example:
        >>> logits = 3 * jax.random.normal(key, (50, 4))
        >>> found = jaxunlearn.audit.comparator_score(logits, logits)
        >>> far = jaxunlearn.audit.comparator_score(logits / 100, logits)
        >>> float(found.quality), bool(far.quality < 0.3)
        (1.0, True)
    """
    candidate, reference = jnp.asarray(candidate_logits), jnp.asarray(reference_logits)
    if candidate.ndim != 2 or reference.ndim != 2:
        raise ValueError(f"comparator_score: expected logits [rows, classes], got {candidate.shape} and {reference.shape}")
    require_equal("comparator_score", "rows", candidate.shape[0], reference.shape[0])
    require_equal("comparator_score", "classes", candidate.shape[1], reference.shape[1])
    require_numbers("comparator_score", **{"candidate logits": candidate, "reference logits": reference})
    checks.check_range("temperature", temperature, low=1e-6)
    scores = [(entropy(x / temperature), jnp.max(jax.nn.log_softmax(x), axis=-1)) for x in (candidate, reference)]
    pairs = [
        (sign * first, sign * second) for first, second in zip(*scores, strict=True) for sign in (1, -1)
    ]  # in the order of ATTACKS
    attacks = jnp.stack([_strength(*pair) for pair in pairs])
    return ComparatorScore(1 - jnp.max(attacks), attacks)


def _strength(candidate: Float[Array, " k"], reference: Float[Array, " k"]) -> Float[Array, ""]:
    """Strength of the best threshold that takes high scores for the candidate."""
    thresholds = jnp.concatenate([candidate, reference])
    missed, rejected = (jnp.searchsorted(jnp.sort(x), thresholds, side="left") / x.size for x in (candidate, reference))
    wrong = 1 - rejected  # of the reference, taken for the candidate
    epsilon = jnp.minimum(jnp.log((1 - wrong) / missed), jnp.log((1 - missed) / wrong))
    strength = 1 - 2 ** -jnp.maximum(jnp.where(jnp.isnan(epsilon), 0, epsilon), 0)
    return jnp.where(jnp.isnan(jnp.sum(thresholds)), jnp.nan, jnp.max(strength))
