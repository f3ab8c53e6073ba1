"""Iterative null-space projection (Ravfogel, Elazar, Gonen, Twiton, Goldberg: Null it out: guarding protected attributes by
iterative nullspace projection, 2020, arXiv 2004.07667), with least-squares classifiers.

    repeat:  w = (P Cov(z) P)^+ P Cov(z, c),    P <- P (I - Q Q'),  Q an orthonormal basis of w;    z <- P (z - mean) + mean

The authors train classifiers by gradient descent until they fail; that of least squares has a closed form and is
the same for all who solve it. Every round takes as many dimensions as the concept has parts; `jaxunlearn.concept_erasure` needs
none of them to go. Only the head is edited here: the features in front of it keep the concept.
"""

import jax.numpy as jnp

from jaxunlearn import checks
from jaxunlearn.card import Method
from jaxunlearn.heads.erasure import erase, spanned, without
from jaxunlearn.types import Model, UnlearnFn

METHOD = Method(
    summary="project onto what linear classifiers of a concept do not use (INLP)",
    cites="ravfogel2020null",
    family="representation",
    reads=frozenset({"forget", "layer", "head", "moments"}),
    aliases=("inlp",),
)


def nullspace_projection(model: Model, *, rounds: int = 1, layer: str = "penultimate") -> UnlearnFn:
    """Project features onto what linear classifiers of a concept do not use, round after round.

    The concept, what is read and what makes it stale are as in `jaxunlearn.concept_erasure`.

    Args:
        model, layer: as in `jaxunlearn.concept_erasure`.
        rounds: classifiers, one after the other.

    Returns:
        An `UnlearnFn` without `stats`.

    Raises:
        ValueError: moments that are missing or of another layer, no head, rounds that are no positive integer.

    Example:
        >>> prepared = jax.jit(jaxunlearn.heads.prepare(headed))(headed_variables, data, key)
        >>> result = jax.jit(jaxunlearn.nullspace_projection(headed, rounds=2))(headed_variables, prepared, request, key)
    """
    checks.require_count("rounds", rounds)

    def project(concept):
        kept = jnp.eye(concept.mean.shape[0])
        for _ in range(rounds):
            inverse = jnp.linalg.pinv(kept @ concept.covariance @ kept, rtol=1e-10, hermitian=True)
            kept = kept @ without(spanned(inverse @ (kept @ concept.cross)), concept.mean)[0]
            kept = (kept + kept.T) / 2
        return kept, concept.mean - concept.mean @ kept

    return erase(model, project, layer=layer, reason="nullspace_projection edits the head")
