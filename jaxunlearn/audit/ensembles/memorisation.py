"""Which rows a training memorises (Feldman: Does learning require memorization? A short tale about a long tail, 2020, arXiv
1906.05271)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxunlearn.audit.statistics.checks import require_models, require_numbers
from jaxunlearn.checks import is_concrete


class Memorisation(NamedTuple):
    """Estimates with their standard errors over models."""

    estimate: Float[Array, " e"]
    standard_error: Float[Array, " e"]


def memorisation(values: Float[Array, "m e"], members: Bool[Array, "m e"]) -> Memorisation:
    """How much better a row is predicted by models that saw it.

        mem(x) = E[value(x) | x in the training set] - E[value(x) | not],    value = 1 for a right answer, 0 for a wrong one

    Args:
        values: of m models that were trained on random subsets, 1 where the prediction is right; any other measure per row
            will do, e.g. the probability of the true class, which is less noisy.
        members: which models saw which row.

    Returns:
        `Memorisation`: the estimate, in [-1, 1] for right answers, and its standard error; NaN for a row with fewer than two
        models on a side.

    Raises:
        ValueError: shapes that do not fit, NaN, or concrete members with fewer than two models on a side of every row.

    Example:
        >>> members = jnp.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
        >>> found = jaxunlearn.audit.memorisation(jnp.where(members, 1.0, jnp.array([0.0, 1.0])), members)
        >>> found.estimate.tolist()
        [1.0, 0.0]
    """
    values, members = jnp.asarray(values, float), jnp.asarray(members, bool)
    if values.ndim != 2 or values.shape != members.shape:
        raise ValueError(f"memorisation: expected values and members [models, rows], got {values.shape} and {members.shape}")
    require_numbers("memorisation", values=values)
    if is_concrete(members):
        seen = np.asarray(members).sum(axis=0)
        require_models("memorisation", int(np.minimum(seen, members.shape[0] - seen).max()), 2)
    means, variances = [], []
    for side in (members, ~members):
        count = side.sum(axis=0)
        mean = jnp.sum(jnp.where(side, values, 0), axis=0) / count
        squares = jnp.sum(jnp.where(side, (values - mean) ** 2, 0), axis=0)
        means.append(mean)
        variances.append(jnp.where(count > 1, squares / (count - 1) / count, jnp.nan))
    error = jnp.sqrt(variances[0] + variances[1])
    return Memorisation(jnp.where(jnp.isnan(error), jnp.nan, means[0] - means[1]), error)
