"""Class erasure by prototypes, with one projection (mean projection: Haghighatkhah, Fokkens, Sommerauer, Speckmann, Verbeek:
Better hit the nail on the head than beat around the bush: removing protected attributes with a single projection, 2022, arXiv
2212.04273).

    z <- z - Q Q' (z - mean_rest),    Q an orthonormal basis of  mean_c - mean_rest  for the forgotten classes c

The prototype of a forgotten class is moved onto the mean of all other rows, as far as means can tell them apart. Only the head
is edited here: the features in front of it keep the class.
"""

from jaxunlearn.features.erasure import erase, spanned, without
from jaxunlearn.types import Model, UnlearnFn


def prototype_erasure(model: Model, *, layer: str = "penultimate") -> UnlearnFn:
    """Take the directions from retained features to the prototypes of forgotten classes away from what the head sees.

    Args:
        model, layer: as in `jaxunlearn.concept_erasure`, and what is read too. A request that names no class has one prototype.

    Returns:
        An `UnlearnFn` without `stats`.

    Raises:
        ValueError: moments that are missing, no head.

    Example:
        >>> prepared = jaxunlearn.features.prepare(headed)(headed_variables, data, key)
        >>> result = jaxunlearn.prototype_erasure(headed)(headed_variables, prepared, request, key)
    """

    def project(concept):
        return without(spanned(concept.prototypes), concept.rest)

    return erase(model, project, layer=layer, reason="prototype_erasure edits the head")
