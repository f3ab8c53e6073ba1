"""What linear erasures share: the moments of a concept, and the affine map that is folded into the head.

A concept is what the request is about: one indicator for each class that its target names, or else whether a row belongs to the
request. Its moments are those of the request's rows, so that with prepared moments no row of the retain set is read.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import sampling
from jaxunlearn.heads.maps import affine_map, placed, require_head
from jaxunlearn.heads.moments import checked_kernel, features_of_request, moments_of, prepare
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.status import combine
from jaxunlearn.types import Model, Result, UnlearnFn


class Concept(NamedTuple):
    """Moments of features z and indicators c of m parts of a concept, over all present rows; float64."""

    mean: Float[Array, " D"]
    covariance: Float[Array, "D D"]
    cross: Float[Array, "D m"]  # covariance of z and c
    prototypes: Float[Array, "D m"]  # mean of the rows with c = 1, less that of the rest; 0 for an empty part
    rest: Float[Array, " D"]  # mean of the rows without the concept


Eraser = Callable[[Concept], tuple[Float[Array, "D D"], Float[Array, " D"]]]  # z -> z A + b


def erase(model: Model, eraser: Eraser, *, layer: str, reason: str) -> UnlearnFn:
    """The method that folds an affine map of features into the head."""
    head = require_head(model, reason)

    def remove(variables, data, request, key):
        part, features_stale = features_of_request(model, variables, data, request, layer)
        total, moments_stale = moments_of(model, variables, data, layer)
        width = total.shape[0] - 1
        _, bias = checked_kernel(head, variables, width)
        behind, offset = affine_map(variables, width)
        indicators = _indicators(part, sampling.forgotten_classes(request.target, bias.shape[0]))
        kernel, shift = eraser(_concept(total, part.examples.inputs.astype(jnp.float64), indicators))
        # in front of a map that earlier requests left, as folding into the head is
        layers = [{"kernel": kernel @ behind, "bias": shift @ behind + offset}]
        return Result(placed(head, variables, layers), combine(STALE=features_stale | moments_stale))

    return in_float64(one_shot(remove, model=model, prepare=prepare(model, layer=layer)))


def _indicators(part, classes) -> Float[Array, "k m"]:
    """One column per forgotten class and, where the target names none, one for the request as a whole."""
    member = part.weights > 0
    labels = part.examples.targets
    whole = member & ~jnp.any(classes)
    if getattr(labels, "ndim", 0) != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        return whole[:, None].astype(jnp.float64)
    named = (labels[:, None] == jnp.arange(classes.shape[0])) & classes & member[:, None]
    return jnp.concatenate([named, whole[:, None]], axis=1).astype(jnp.float64)


def _concept(total: Float[Array, "h h"], z: Float[Array, "k D"], indicators: Float[Array, "k m"]) -> Concept:
    width, count = total.shape[0] - 1, total[-1, -1]
    mean = total[:width, width] / count
    covariance = total[:width, :width] / count - jnp.outer(mean, mean)
    sums, counts = z.T @ indicators, jnp.sum(indicators, axis=0)
    others = (total[:width, width] - jnp.sum(sums, axis=1)) / jnp.maximum(count - jnp.sum(counts), 1)
    prototypes = jnp.where(counts > 0, sums / jnp.maximum(counts, 1) - others[:, None], 0)
    return Concept(mean, covariance, (sums - mean[:, None] * counts) / count, prototypes, others)


def spanned(directions: Float[Array, "D m"]) -> Float[Array, "D m"]:
    """Orthonormal columns that span given ones, zeros for what is linearly dependent."""
    left, sizes, _ = jnp.linalg.svd(directions, full_matrices=False)
    return left * (sizes > 1e-9 * jnp.maximum(sizes[0], jnp.finfo(sizes.dtype).tiny))


def without(directions: Float[Array, "D m"], around: Float[Array, " D"]) -> tuple[Float[Array, "D D"], Float[Array, " D"]]:
    """`z -> z - Q Q' (z - around)` for orthonormal columns Q."""
    removed = directions @ directions.T
    return jnp.eye(removed.shape[0]) - removed, around @ removed
