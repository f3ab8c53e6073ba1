"""Summaries that papers print, from accuracies and attack values. All are functions of scalars or arrays, which broadcast.

u is the unlearned, r the retrained, o the original model; accuracies are fractions. A summary hides the sign of a gap and
the floor to compare with: show it beside `jaxunlearn.audit.run`, not in its place.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


class AverageGap(NamedTuple):
    """What `average_gap` returns."""

    value: Float[Array, "..."]  # in the unit of what went in
    gaps: dict[str, Float[Array, "..."]]  # signed, unlearned minus retrained


def average_gap(candidate: Mapping[str, ArrayLike], reference: Mapping[str, ArrayLike]) -> AverageGap:
    """Mean of absolute gaps to retrained, "Avg. Gap", with the signed gaps it is made of.

    Args:
        candidate: named values of the unlearned model; papers take unlearning accuracy `1 - accuracy(D_f)`, retain accuracy,
            test accuracy and the efficacy of an attack. Run time is no part of it.
        reference: the same of retrained models.

    Returns:
        `AverageGap`, in the unit of the values.

    Raises:
        ValueError: different names, or none.

    References:
        Fan, Liu, Zhang, Wong, Wei, Liu: SalUn, 2024, arXiv 2310.12508.

    Example:
        >>> found = jaxunlearn.audit.average_gap({"UA": 0.1, "RA": 0.9}, {"UA": 0.2, "RA": 1.0})
        >>> round(float(found.value), 3), round(float(found.gaps["UA"]), 3)
        (0.1, -0.1)
    """
    if set(candidate) != set(reference) or not candidate:
        raise ValueError(
            f"average_gap: candidate names {sorted(candidate)}, reference {sorted(reference)}; name the same values"
        )
    gaps = {name: jnp.asarray(candidate[name]) - jnp.asarray(reference[name]) for name in candidate}
    return AverageGap(jnp.mean(jnp.stack([jnp.abs(gap) for gap in gaps.values()]), axis=0), gaps)


def retention(accuracy: ArrayLike, before: ArrayLike) -> Float[Array, "..."]:
    """Share of the original accuracy that is left, `acc_u / acc_o`, on retained or test rows.

    Args:
        accuracy, before: of the unlearned and of the original model, fractions.

    Returns:
        At least 0; 1 where nothing was lost.

    Example:
        >>> float(jaxunlearn.audit.retention(0.4, 0.8))
        0.5
    """
    return jnp.asarray(accuracy) / jnp.asarray(before)


def symmetric_percentage_error(first: ArrayLike, second: ArrayLike) -> Float[Array, "..."]:
    """SAPE, `100 |a - b| / (|a| + |b|)`, 0 where both are 0.

    Args:
        first, second: two values of one unit; their order does not matter.

    Returns:
        In percent, from 0 to 100.

    Example:
        >>> float(jaxunlearn.audit.symmetric_percentage_error(1.0, 3.0))
        50.0
    """
    first, second = jnp.asarray(first, float), jnp.asarray(second, float)
    total = jnp.abs(first) + jnp.abs(second)
    return jnp.where(total == 0, 0, 100 * jnp.abs(first - second) / jnp.where(total == 0, 1, total))


def indiscernibility(attack_accuracy: ArrayLike) -> Float[Array, "..."]:
    """`1 - |a - 1/2| / (1/2)` of a balanced attack: 1 where it guesses, 0 where it is always right or always wrong.

    Args:
        attack_accuracy: a, a fraction, for as many members as non-members.

    Returns:
        In [0, 1].

    Example:
        >>> float(jaxunlearn.audit.indiscernibility(0.75))
        0.5
    """
    return 1 - 2 * jnp.abs(jnp.asarray(attack_accuracy) - 0.5)


def tug_of_war(forget_gap: ArrayLike, retain_gap: ArrayLike, test_gap: ArrayLike) -> Float[Array, "..."]:
    """ToW, `(1 - |d_f|) (1 - |d_r|) (1 - |d_t|)` with gaps d to retrained as fractions; 1 is best.

    ToW-MIA takes the gap of the attack's confidence in place of the forget gap.

    Args:
        forget_gap, retain_gap, test_gap: unlearned minus retrained accuracy, fractions; the sign does not matter.

    Returns:
        In [0, 1].

    References:
        Zhao, Kurmanji, Barbulescu, Triantafillou, Triantafillou: What makes unlearning hard and what to do about it, 2024,
        arXiv 2406.01257.

    Example:
        >>> float(jaxunlearn.audit.tug_of_war(0.5, 0.0, -0.5))
        0.25
    """
    factors = [1 - jnp.abs(jnp.asarray(gap)) for gap in (forget_gap, retain_gap, test_gap)]
    return factors[0] * factors[1] * factors[2]


def adaptive_unlearning_score(
    original_test: ArrayLike, unlearned_test: ArrayLike, unlearned_forget: ArrayLike
) -> Float[Array, "..."]:
    """AUS, `(1 - (acc_o(D_t) - acc_u(D_t))) / (1 + |acc_u(D_t) - acc_u(D_f)|)`, in its form for random rows.

    Args:
        original_test, unlearned_test: accuracies on test rows, fractions.
        unlearned_forget: accuracy on the forget set, a fraction.

    Returns:
        In [0, 2]; 1 where test accuracy is kept and the forget set is known as well as test rows.

    References:
        Cotogni, Bonato, Sabetta, Pelosin, Nicolosi: DUCK, 2023, arXiv 2312.02052.

    Example:
        >>> float(jaxunlearn.audit.adaptive_unlearning_score(0.9, 0.9, 0.9))
        1.0
    """
    original, test, forget = map(jnp.asarray, (original_test, unlearned_test, unlearned_forget))
    return (1 - (original - test)) / (1 + jnp.abs(test - forget))


def nomus(test_accuracy: ArrayLike, attack_accuracy: ArrayLike, *, weight: ArrayLike = 0.5) -> Float[Array, "..."]:
    """NoMUS, `l acc_u(D_t) + (1 - l) (1 - 2 |a - 1/2|)`, with a the accuracy of a balanced attack.

    Args:
        test_accuracy: of the unlearned model, a fraction.
        attack_accuracy: a, a fraction.
        weight: l, in [0, 1].

    Returns:
        In [0, 1].

    References:
        Choi, Na: Towards machine unlearning benchmarks: forgetting the personal identities in facial recognition systems, 2023,
        arXiv 2311.02240.

    Example:
        >>> round(float(jaxunlearn.audit.nomus(0.8, 0.5)), 3)
        0.9
    """
    return jnp.asarray(weight) * jnp.asarray(test_accuracy) + (1 - jnp.asarray(weight)) * indiscernibility(attack_accuracy)


def privacy_leak(auc: ArrayLike, retrained_auc: ArrayLike) -> Float[Array, "..."]:
    """PrivLeak, `100 ((1 - AUC_u) - (1 - AUC_r)) / (1 - AUC_r)`, for attacks whose scores are high for members.

    Args:
        auc: of the attack on the unlearned model, forget set against held-out rows.
        retrained_auc: of the same attack on a retrained model.

    Returns:
        In percent. Negative: under-unlearned; positive: over-unlearned.

    References:
        Shi et al.: MUSE: machine unlearning six-way evaluation for language models, 2024, arXiv 2407.06460.

    Example:
        >>> float(jaxunlearn.audit.privacy_leak(0.75, 0.5))
        -50.0
    """
    unlearned, retrained = 1 - jnp.asarray(auc), 1 - jnp.asarray(retrained_auc)
    return 100 * (unlearned - retrained) / retrained
