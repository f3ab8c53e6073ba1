"""The leading eigenspace of some features, and how much of others lies in it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.types import Scalar


class Eigenspace(NamedTuple):
    """Eigenvectors of a second moment, and how much of each counts; of fixed shape, whatever their number."""

    directions: Float[Array, "r D"]  # orthonormal, r = min(m, D), largest eigenvalue first
    shares: Float[Array, " r"]  # in [0, 1]


def eigenspace(
    features: Float[Array, "m D"],
    weights: Float[Array, " m"],
    *,
    energy: Scalar = 0.95,
    rank: int | None = None,
    ridge: Scalar | None = None,
) -> Eigenspace:
    """The fewest eigenvectors of `C = sum w z z' / sum w` that hold a share of its trace; not differentiable.

    Args:
        features: rows of weight 0 may hold anything, NaN included.
        weights: of the rows.
        energy: share of the trace, in [0, 1].
        rank: the first `rank` instead. Directions that no row has are never among them.
        ridge: all of them instead, with shares `c / (c + ridge)` of their eigenvalues c.

    Returns:
        An `Eigenspace` of `min(m, D)` directions.

    Example:
        >>> rows = jnp.array([[3.0, 0.0], [0.0, 1.0]])
        >>> jaxunlearn.heads.eigenspace(rows, jnp.ones(2), energy=0.9).shares.tolist()
        [1.0, 0.0]
    """
    scaled = jnp.where((weights > 0)[:, None], features * jnp.sqrt(weights)[:, None].astype(features.dtype), 0)
    # singular vectors of the rows: the rows of a batch are often fewer than the features, and nothing is squared
    _, singular, directions = jnp.linalg.svd(jax.lax.stop_gradient(scaled), full_matrices=False)
    values = singular**2 / jnp.maximum(jnp.sum(weights), 1).astype(singular.dtype)
    if ridge is not None:
        return Eigenspace(directions, values / (values + ridge))
    found = singular > singular[0] * max(scaled.shape) * jnp.finfo(singular.dtype).eps
    if rank is not None:
        kept = jnp.arange(values.shape[0]) < rank
    else:
        kept = jnp.cumsum(values) - values < energy * jnp.sum(values) * (1 - 1e-6)
    return Eigenspace(directions, (found & kept).astype(values.dtype))


def alignment(features: Float[Array, "b D"], weights: Float[Array, " b"], space: Eigenspace) -> Float[Array, ""]:
    """`sum_i share_i ||Z u_i||^2 / ||Z||^2`, in [0, 1]; 1 where all features are 0.

    Features that all collapse onto a mean of the space score 1 too, so look at a linear probe as well.

    Args:
        features: rows of weight 0 may hold anything, NaN included.
        weights: of the rows.
        space: see `eigenspace`.

    Returns:
        Float[].

    Example:
        >>> space = jaxunlearn.heads.eigenspace(jnp.array([[1.0, 0.0]]), jnp.ones(1))
        >>> round(float(jaxunlearn.heads.alignment(jnp.array([[3.0, 4.0]]), jnp.ones(1), space)), 6)  # 9 / 25
        0.36
    """
    features = jnp.where((weights > 0)[:, None], features, 0)
    weights = weights.astype(features.dtype)
    inside = weights @ jnp.dot(features, space.directions.T, precision="highest") ** 2 @ space.shares
    total = weights @ jnp.sum(features**2, axis=-1)
    return jnp.where(total > 0, inside / jnp.where(total > 0, total, 1), 1)
