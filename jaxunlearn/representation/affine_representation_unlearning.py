"""Representation Unlearning of an affine map in closed form, from second moments (objective: Almudevar, Ortega, 2026, arXiv
2601.21564, see `jaxunlearn.representation_unlearning`; the closed form is derived here).

With h(z) = (z, 1), Theta = [A b], J = diag(1, .., 1, 0), the expected loss is quadratic in Theta:

    S = a (E_r[h h'] + s^2 J) + beta (E_f[h h'] + s^2 J),    B = a E_r[z h'] + beta mu E_f[h]'
    Theta = (B + lambda Theta_0) (S + lambda I)^{-1},   lambda = ridge tr(S) / (D + 1)

Retained moments are those of all rows less those of the request, so that no retained row is read. The ridge pulls towards the
map that is there (the identity): S is singular where features collapse to few directions, and in the zero-shot regime always;
the solution of minimum norm would forget what no term speaks about, even at beta = 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import tree
from jaxunlearn.driver import Updated, one_shot
from jaxunlearn.features.maps import affine_map, placed
from jaxunlearn.features.moments import (
    MOMENTS,
    checked_kernel,
    features_of_request,
    moments_of,
    require_head,
    second_moments,
)
from jaxunlearn.precision import in_float64
from jaxunlearn.representation.representation_unlearning import (
    LATER_NOISE_SCALE,
    Regime,
    Retention,
    class_counts,
    class_shares,
)
from jaxunlearn.types import Model, Scalar, UnlearnFn


def affine_representation_unlearning(
    model: Model,
    *,
    beta: Scalar,
    regime: Regime = "standard",
    noise_scale: Scalar = LATER_NOISE_SCALE,
    retention: Retention = "per_dimension",
    ridge: Scalar = 1e-6,
    layer: str = "penultimate",
    carry: bool = False,
) -> UnlearnFn:
    """The optimum of `jaxunlearn.representation_unlearning` for an affine map: one solve a request, and no retained row.

    Needs `data.extra["moments"]` of `jaxunlearn.features.prepare`. Runs in float64; `vmap` over beta is a sweep,
    around a `batched` with a chunk of all requests: a loop inside a `vmap` would leave the float64 scope, which is an error.

    Args:
        model: with a head and `features[layer]`; the map is folded into the head, or stored in an inserted affine one.
        beta, regime, noise_scale, retention, layer: as in `jaxunlearn.representation_unlearning`.
        ridge: relative size of the pull towards the map that is there, above 0, may be traced.
        carry: return moments without the forgotten rows in `Result.extra`, for streams; otherwise those that were prepared
            stay.

    Returns:
        An `UnlearnFn`; `stats`: `loss`, `retain_loss`, `forget_loss` Float64[] at the solution, expected over noise, and
        `sink` Int[], the class that everything forgotten is pulled to; if that is a forgotten class, nothing is forgotten.

    Raises:
        ValueError: moments that are missing, no head, bad options.

    Example:
        >>> prepared = jaxunlearn.features.prepare(headed)(headed_variables, data, key)
        >>> unlearn = jaxunlearn.affine_representation_unlearning(headed, beta=0.1)
        >>> result = unlearn(headed_variables, prepared, request, key)
    """
    tree.check_range("beta", beta, low=0)
    tree.check_range("noise_scale", noise_scale, low=0)
    tree.check_range("ridge", ridge, low=0)
    if regime not in ("standard", "zero_shot") or retention not in ("per_dimension", "summed"):
        raise ValueError(
            f"regime must be standard or zero_shot, retention per_dimension or summed; got {regime!r}, {retention!r}"
        )
    head = require_head(model, "affine_representation_unlearning edits the head")

    def remove(variables, data, request, key):
        part = features_of_request(model, variables, data, request, layer)
        total, gone = moments_of(data), second_moments(part.examples.inputs, part.weights)
        width = total.shape[0] - 1
        kernel, bias = checked_kernel(head, variables, width)
        if regime == "standard":
            scale = 1 / width if retention == "per_dimension" else 1.0
            kept, everything = _mean(total - gone), _mean(total)
        else:
            scale = 1.0
            everything_share, kept_share = class_shares(class_counts(data, bias.shape[0]), request)
            kept, everything = second_moments(kernel.T, kept_share), second_moments(kernel.T, everything_share)
        forgotten = _mean(gone)
        centre = everything[:width, width]
        there, offset = affine_map(variables, width)
        start = jnp.concatenate([there.T, offset[:, None]], axis=1).astype(jnp.float64)
        noise = noise_scale**2 * jnp.diag(jnp.append(jnp.ones(width), 0))
        weighed = scale * (kept + noise) + beta * (forgotten + noise)
        wanted = scale * kept[:width] + beta * jnp.outer(centre, forgotten[width])
        shift = ridge * jnp.trace(weighed) / (width + 1)
        factor = jax.scipy.linalg.cho_factor(weighed + shift * jnp.eye(width + 1), lower=True)
        theta = jax.scipy.linalg.cho_solve(factor, (wanted + shift * start).T).T
        image = wanted + shift * (start - theta)  # theta @ weighed
        spread, size = jnp.trace(everything[:width, :width]), jnp.trace(kept[:width, :width])
        loss = jnp.sum((image - 2 * wanted) * theta) + scale * size + beta * spread
        forget = jnp.sum((theta @ (forgotten + noise)) * theta) + spread
        forget -= 2 * jnp.sum(theta * jnp.outer(centre, forgotten[width]))
        layers = [{"kernel": theta[:, :width].T, "bias": theta[:, width]}]
        after = placed(head, variables, layers)
        sink = jax.lax.argmax(centre.astype(kernel.dtype) @ kernel + bias, 0, jnp.int32)
        stats = {"loss": loss, "retain_loss": loss - beta * forget, "forget_loss": forget, "sink": sink}
        return Updated(after, stats, {MOMENTS: total - gone} if carry else {})

    return in_float64(one_shot(remove))


def _mean(total: Float[Array, "h h"]) -> Float[Array, "h h"]:
    """Second moments of a row; zeros of no rows."""
    return total / jnp.maximum(total[-1, -1], 1)
