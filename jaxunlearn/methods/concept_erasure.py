"""LEACE, least-squares concept erasure (Belrose, Schneider-Joseph, Ravfogel, Cotterell, Raff, Biderman: LEACE: perfect linear
concept erasure in closed form, 2023, arXiv 2306.03819).

    z <- z - W^+ P W (z - mean),    W = Cov(z)^{-1/2},  P the orthogonal projection onto the columns of W Cov(z, c)

Afterwards features and concept are uncorrelated on the training rows, so that no linear probe of least squares, and no linear
classifier with a convex loss, does better than a constant; of all affine maps that achieve it, this one moves features least.
Only the head is edited here: the features in front of it keep the concept.
"""

import jax.numpy as jnp

from jaxunlearn.card import Method
from jaxunlearn.curvature.spectral import without_derivative
from jaxunlearn.heads.erasure import erase, spanned
from jaxunlearn.types import Model, UnlearnFn

METHOD = Method(
    summary="make a concept linearly unreadable in front of the head (LEACE)",
    cites="belrose2023leace",
    family="representation",
    reads=frozenset({"forget", "layer", "head", "moments"}),
    aliases=("leace",),
)


def concept_erasure(model: Model, *, layer: str = "penultimate") -> UnlearnFn:
    """Erase a concept from what the head sees, in closed form.

    The concept is the classes that `request.target` names, else membership in the request. Reads slot `moments`, see
    `jaxunlearn.prepare`; no row of the retain set is read. Runs in float64.

    Args:
        model: with a head and `features[layer]`.
        layer: what the head acts on.

    Returns:
        An `UnlearnFn` without `stats`. The status is STALE where the moments belong to other weights in front of the head, or
        to other rows.

    Raises:
        ValueError: moments that are missing or of another layer, no head.

    Example:
        >>> unlearn = jaxunlearn.concept_erasure(headed)
        >>> ready = jax.jit(jaxunlearn.prepare(unlearn))(headed_variables, data, key)
        >>> result = jax.jit(unlearn)(headed_variables, ready, request, key)
    """

    def leace(concept):
        values, vectors = jnp.linalg.eigh(without_derivative(concept.covariance))
        real = values > values[-1] * values.shape[0] * jnp.finfo(values.dtype).eps
        root = jnp.where(real, jnp.sqrt(jnp.where(real, values, 1)), 0)
        whiten = vectors * jnp.where(real, 1 / jnp.where(real, root, 1), 0) @ vectors.T
        colour = vectors * root @ vectors.T
        basis = spanned(whiten @ concept.cross)
        removed = colour @ basis @ basis.T @ whiten  # acts on columns
        return jnp.eye(removed.shape[0]) - removed.T, removed @ concept.mean

    return erase(model, leace, layer=layer, reason="concept_erasure edits the head")
