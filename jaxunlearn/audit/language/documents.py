"""What features still know of documents: is a text nearest to its own document, or class?"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn import checks, tree


def nearest_mean_accuracy(
    bank: Float[Array, "n d"],
    labels: Int[Array, " n"],
    queries: Float[Array, "e d"],
    targets: Int[Array, " e"],
    *,
    num_classes: int,
    bank_weights: Float[Array, " n"] | None = None,
    query_weights: Float[Array, " e"] | None = None,
) -> Float[Array, ""]:
    """Share of queries whose nearest mean, by the cosine, is that of their own class; a document is a class of its pieces.

    Args:
        bank, labels: features and classes (or documents) of the n rows that means are taken of.
        queries, targets: of the e rows that are looked up, e.g. other pieces of forgotten documents.
        num_classes: c.
        bank_weights, query_weights: 1 for rows that count, 0 for others, which may hold anything.

    Returns:
        Float[], a fraction in [0, 1]; NaN if no query counts, or where a feature that counts is. Ties go to the smallest
        label; a class without a row is never the nearest.

    Raises:
        ValueError: different numbers of features and labels.

    Example:
        >>> z = jnp.eye(3)
        >>> float(jaxunlearn.audit.language.nearest_mean_accuracy(z, jnp.arange(3), z, jnp.array([0, 1, 1]), num_classes=3))
        0.666...
    """
    checks.require_count("num_classes", num_classes)
    tree.leading_axis((bank, labels), "bank and labels")
    tree.leading_axis((queries, targets), "queries and targets")
    counts = jnp.ones(bank.shape[0]) if bank_weights is None else jnp.asarray(bank_weights)
    asked = (jnp.ones(queries.shape[0]) if query_weights is None else jnp.asarray(query_weights)) > 0
    members = jax.nn.one_hot(labels, num_classes) * (counts > 0)[:, None]
    known = jnp.where((counts > 0)[:, None], bank, 0).astype(jnp.promote_types(bank.dtype, jnp.float32))
    means = jnp.dot(members.T, known, precision="highest")  # their lengths do not matter to a cosine
    means = means / jnp.maximum(jnp.linalg.norm(means, axis=1, keepdims=True), jnp.finfo(means.dtype).tiny)
    cosines = jnp.dot(jnp.where(asked[:, None], queries, 0).astype(means.dtype), means.T, precision="highest")
    nearest = jnp.argmax(jnp.where(jnp.sum(members, axis=0) > 0, cosines, -jnp.inf), axis=1)
    broken = jnp.any(jnp.isnan(cosines), axis=1)  # `argmax` takes NaN for the largest
    return jnp.sum(jnp.where(asked, jnp.where(broken, jnp.nan, nearest == targets), 0)) / jnp.sum(asked)
