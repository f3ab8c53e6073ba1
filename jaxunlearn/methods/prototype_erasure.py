"""Class erasure by prototypes, with one projection (mean projection: Haghighatkhah, Fokkens, Sommerauer, Speckmann, Verbeek:
Better hit the nail on the head than beat around the bush: removing protected attributes with a single projection, 2022, arXiv
2212.04273).

    z <- z - Q Q' (z - mean_rest),    Q an orthonormal basis of  mean_c - mean_rest  for the forgotten classes c

The prototype of a forgotten class is moved onto the mean of all other rows, as far as means can tell them apart. Only the head
is edited here: the features in front of it keep the class.
"""

from jaxunlearn.card import Method
from jaxunlearn.heads.erasure import erase, spanned, without
from jaxunlearn.types import Model, UnlearnFn

METHOD = Method(
    summary="move prototypes of forgotten classes onto the mean of the rest",
    cites="haghighatkhah2022better",
    family="representation",
    reads=frozenset({"forget", "layer", "head", "moments"}),
    aliases=("mean_projection",),
)


def prototype_erasure(model: Model, *, layer: str = "penultimate") -> UnlearnFn:
    """Take the directions from the mean of the rest to the prototypes of the forgotten classes away from what the head sees.

    The concept, what is read and what makes it stale are as in `jaxunlearn.concept_erasure`; a request that names no class has
    one prototype.

    Args:
        model, layer: as in `jaxunlearn.concept_erasure`.

    Returns:
        An `UnlearnFn` without `stats`.

    Raises:
        ValueError: moments that are missing or of another layer, no head.

    Example:
        >>> unlearn = jaxunlearn.prototype_erasure(headed)
        >>> ready = jax.jit(jaxunlearn.prepare(unlearn))(headed_variables, data, key)
        >>> result = jax.jit(unlearn)(headed_variables, ready, request, key)
    """

    def project(concept):
        return without(spanned(concept.prototypes), concept.rest)

    return erase(model, project, layer=layer, reason="prototype_erasure edits the head")
