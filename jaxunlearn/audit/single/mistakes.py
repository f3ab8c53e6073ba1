"""Which mistakes a classifier makes, and what they cost: accuracy weighs a missed disease like a false alarm.

Falcao and Cordeiro (Does machine unlearning preserve clinical safety?, 2026) report that unlearning can raise the share of
missed positives while averages of gaps look fine. The aim of every value here is that of retrained models: put it beside
them, and beside retrained models again, with `jaxunlearn.audit.judge`. The form with a cost matrix is a reconstruction.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxunlearn import checks
from jaxunlearn.audit.statistics.checks import require_finite
from jaxunlearn.evaluation import class_labels, class_logits


def confusion_matrix(
    logits: Float[Array, "b c"], targets: Int[Array, " b"], weights: Float[Array, " b"] | None = None
) -> Float[Array, "c c"]:
    """How many rows of each class (first axis) are predicted as each class (second axis).

    Args:
        logits: of b rows; equal logits count for the lowest class. One logit per row, [b] or [b, 1], is that of class 1 of two.
        targets: their labels.
        weights: counts, 1 each by default; rows of weight 0 may hold anything, NaN included.

    Returns:
        Sums of weights. All NaN if a logit of a row that counts is NaN: a broken model has not forgotten.

    Raises:
        ValueError: shapes that do not fit, targets that are no integers or that name a class without a logit.

    Example:
        >>> jaxunlearn.audit.confusion_matrix(jnp.eye(2), jnp.array([0, 0])).tolist()
        [[1.0, 1.0], [0.0, 0.0]]
    """
    labels = class_labels(jnp.asarray(targets))
    logits = class_logits(jnp.asarray(logits), labels)
    weights = jnp.ones(labels.shape) if weights is None else jnp.asarray(weights)
    if logits.ndim != 2 or not logits.shape[0] == labels.shape[0] == weights.shape[0]:
        raise ValueError(
            f"expected logits [b, c], labels [b] and weights [b], got {logits.shape}, {labels.shape} and {weights.shape}; "
            "use jax.vmap for many models"
        )
    classes, counts = logits.shape[-1], weights > 0
    if checks.is_concrete(labels) and checks.is_concrete(counts):
        checks.require_labels("targets", np.asarray(labels)[np.asarray(counts)], classes)
    weights = jnp.where(counts, weights, 0).astype(jnp.float32)
    true, predicted = (jax.nn.one_hot(x, classes) for x in (labels, jnp.argmax(logits, axis=-1)))
    total = jnp.einsum("bi,bj->ij", true * weights[:, None], predicted, precision=jax.lax.Precision.HIGHEST)
    broken = jnp.any(counts & jnp.any(jnp.isnan(logits), axis=-1))
    return jnp.where(broken, jnp.nan, total)


def false_negative_rates(
    logits: Float[Array, "b c"], targets: Int[Array, " b"], weights: Float[Array, " b"] | None = None
) -> Float[Array, " c"]:
    """For each class, the share of its rows that are predicted as another one.

    Args:
        logits, targets, weights: as in `confusion_matrix`.

    Returns:
        Fractions in [0, 1]; NaN for a class without a row.

    Raises:
        ValueError: as `confusion_matrix`.

    Example:
        >>> jaxunlearn.audit.false_negative_rates(jnp.eye(2), jnp.array([0, 0])).tolist()
        [0.5, nan]
    """
    found = confusion_matrix(logits, targets, weights)
    of_class = jnp.sum(found, axis=1)
    return jnp.where(of_class == 0, jnp.nan, 1 - jnp.diagonal(found) / jnp.where(of_class == 0, 1, of_class))


def expected_cost(
    logits: Float[Array, "b c"],
    targets: Int[Array, " b"],
    costs: Float[Array, "c c"],
    weights: Float[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """`sum_i w_i costs[y_i, argmax_j logits_ij] / sum_i w_i`: what the answers of a classifier cost per row.

    Args:
        logits, targets, weights: as in `confusion_matrix`.
        costs: of predicting the second class for a row of the first one, in a unit of the user's; see `error_costs`. It may be
            traced. With 0 on the diagonal and 1 elsewhere the result is one minus the accuracy.

    Returns:
        Float[], in the unit of the costs. NaN if no row counts.

    Raises:
        ValueError: costs that are not [c, c], or not finite; as `confusion_matrix`.

    Example:
        >>> costs = jaxunlearn.audit.error_costs(2, {0: 10.0})
        >>> float(jaxunlearn.audit.expected_cost(jnp.eye(2), jnp.array([0, 0]), costs))
        5.0
    """
    found = confusion_matrix(logits, targets, weights)
    costs = jnp.asarray(costs, jnp.float32)
    if costs.shape != found.shape:
        raise ValueError(f"expected costs of shape {found.shape}, true class by predicted class, got {costs.shape}")
    require_finite("expected_cost", costs=costs)
    total = jnp.sum(found)
    return jnp.where(total == 0, jnp.nan, jnp.sum(found * costs) / jnp.where(total == 0, 1, total))


def error_costs(num_classes: int, missed: Mapping[int, float]) -> Float[np.ndarray, "c c"]:
    """Costs for `expected_cost`: right answers cost nothing, wrong ones 1, and missing certain classes more.

    Args:
        num_classes: c, at least 2.
        missed: by class, what it costs to take a row of it for another one.

    Returns:
        Costs, true class by predicted class.

    Raises:
        ValueError: fewer than two classes, a class out of range, a cost that is negative or not finite.

    Example:
        >>> jaxunlearn.audit.error_costs(2, {1: 5.0}).tolist()
        [[0.0, 1.0], [5.0, 0.0]]
    """
    checks.require_count("num_classes", num_classes, least=2)
    costs = 1 - np.eye(num_classes, dtype=np.float32)
    for label, cost in missed.items():
        if not (0 <= label < num_classes and 0 <= cost < np.inf):
            raise ValueError(f"expected classes 0 to {num_classes - 1} with finite costs from 0 on, got {{{label}: {cost}}}")
        costs[label] *= np.float32(cost)
    return costs
