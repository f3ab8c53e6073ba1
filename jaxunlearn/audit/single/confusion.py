"""Interclass confusion: was a model cured of two classes that were mixed up on purpose?

Goel, Prabhu, Sanyal, Lim, Torr, Kumaraguru: Towards adversarial evaluations for inexact machine unlearning, 2023, arXiv
2201.06640. Labels of some rows of two classes are swapped before training, and those rows are forgotten. A reconstruction from
the definition, not compared with the authors' code.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxunlearn.audit.statistics.checks import require_numbers


def interclass_confusion(
    logits: Float[Array, "... n c"], targets: Int[Array, " n"], classes: tuple[int, int]
) -> Float[Array, "..."]:
    """Share of the rows of two classes that are predicted as the other one.

    Args:
        logits: of the forget set or of test rows; leading axes, such as models, are kept.
        targets: their right labels, known on the host; logits may be traced.
        classes: the two that were swapped.

    Returns:
        A fraction in [0, 1], one per leading entry. The aim is the retrained model's value.

    Raises:
        ValueError: shapes that do not fit, equal classes, no row of them, NaN.

    Example:
        >>> logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
        >>> float(jaxunlearn.audit.interclass_confusion(logits, jnp.array([0, 0, 2]), (0, 1)))
        0.5
    """
    logits, labels = jnp.asarray(logits), np.asarray(targets)
    if logits.ndim < 2 or labels.shape != logits.shape[-2:-1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"interclass_confusion: expected logits [..., n, c], labels [n], got {logits.shape} and {labels.shape}"
        )
    first, second = classes
    chosen = (labels == first) | (labels == second)
    if first == second or not chosen.any():
        raise ValueError(f"interclass_confusion: expected rows of two different classes, got {chosen.sum()} rows of {classes}")
    require_numbers("interclass_confusion", logits=logits)
    other = np.where(labels[chosen] == first, second, first)
    return jnp.mean(jnp.argmax(logits[..., chosen, :], axis=-1) == other, axis=-1)
