"""How much the features of the forget set and of the retain set have in common.

Zhao, Kurmanji, Barbulescu, Triantafillou, Triantafillou: What makes unlearning hard and what to do about it, 2024, arXiv
2406.01257.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxunlearn.audit.statistics.checks import require_numbers


def entanglement(features: Float[Array, "n d"], forgotten: Bool[Array, " n"], *, reference: bool = False) -> Float[Array, ""]:
    """Spread within forget set and retain set against the distance between them, in features of the original model.

        (mean_{D_r} ||z - mu_r||^2 + mean_{D_f} ||z - mu_f||^2) / ((||mu_r - mu||^2 + ||mu_f - mu||^2) / 2)

    with mu the mean of all rows. Higher is more entangled: the sets lie in each other.

    Args:
        features: of all n rows, e.g. penultimate ones.
        forgotten: which rows are in the forget set.
        reference: take mu as the mean of the two means, as the published code does.

    Returns:
        Float[], at least 0; infinite where both sets have one mean. NaN if a set is empty.

    Raises:
        ValueError: shapes that do not fit, or NaN.

    Example:
        >>> features = jnp.array([[0.0], [2.0], [10.0], [12.0]])
        >>> round(float(jaxunlearn.audit.entanglement(features, jnp.array([1, 1, 0, 0], bool))), 3)
        0.08
    """
    features, forgotten = jnp.asarray(features), jnp.asarray(forgotten, bool)
    if features.ndim != 2 or forgotten.shape != features.shape[:1]:
        raise ValueError(f"entanglement: expected features [n, d] and forgotten [n], got {features.shape}, {forgotten.shape}")
    require_numbers("entanglement", features=features)
    means, within = [], 0
    for side in (forgotten, ~forgotten):
        weights = side / side.sum()
        means.append(weights @ features)
        within = within + weights @ jnp.sum((features - means[-1]) ** 2, axis=1)
    middle = (means[0] + means[1]) / 2 if reference else features.mean(axis=0)
    between = sum(jnp.sum((mean - middle) ** 2) for mean in means) / 2
    return within / between
