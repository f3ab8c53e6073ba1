"""Representation Unlearning of an affine map in closed form, from second moments (objective: Almudevar, Ortega, 2026, arXiv
2601.21564, see `jaxunlearn.representation_unlearning`; the closed form is derived here).

With h(z) = (z, 1), Theta = [A b], J = diag(1, .., 1, 0), the expected loss is quadratic in Theta:

    S = a (E_r[h h'] + s^2 J) + beta (E_f[h h'] + s^2 J),    B = a E_r[z h'] + beta mu E_f[h]'
    Theta = (B + lambda Theta_0) (S + lambda I)^{-1},   lambda = ridge tr(S) / (D + 1)

Moments of the retain set are those of all rows less those of the request, so that no row of the retain set is read. The ridge
pulls towards the map that is there (the identity): S is singular where features collapse to few directions, and always in the
zero-shot regime; the solution of minimum norm would forget what no term speaks about, even at beta = 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import checks
from jaxunlearn.card import Method
from jaxunlearn.heads.maps import affine_map, placed, require_head
from jaxunlearn.heads.moments import (
    body,
    checked_kernel,
    features_of_request,
    moments_of,
    prepare,
    second_moments,
)
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.methods.representation_unlearning import (
    LATER_NOISE_SCALE,
    Regime,
    Retention,
    class_counts,
    class_shares,
)
from jaxunlearn.precision import in_float64
from jaxunlearn.sampling import retain_weights
from jaxunlearn.slots import MOMENTS
from jaxunlearn.status import combine
from jaxunlearn.types import Model, Result, Scalar, UnlearnFn

METHOD = Method(
    summary="the best affine map of representation unlearning, in closed form",
    cites="almudevar2026representation",
    family="representation",
    reads=frozenset({"forget", "layer", "head", "moments"}),
    search={"beta": (0.0001, 0.001, 0.01, 0.1, 1.0)},
)


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
    """The optimum of `jaxunlearn.representation_unlearning` for an affine map: one solve per request, no retained row.

    Reads slot `moments`, see `jaxunlearn.prepare`. Runs in float64. A `vmap` over beta is a sweep; inside it `batched` needs a
    chunk of all requests, since a loop inside a `vmap` would leave the float64 scope, which is an error.

    Args:
        model: with a head and `features[layer]`; the map is folded into the head, or stored in an inserted affine one.
        beta, regime, noise_scale, retention, layer: as in `jaxunlearn.representation_unlearning`.
        ridge: relative size of the pull towards the map that is there, above 0, may be traced.
        carry: return moments of the retain set in `Result.extra`, for streams; otherwise those that were prepared stay, and are
            STALE from the second request of a stream on.

    Returns:
        An `UnlearnFn`; `stats`: `loss`, `retain_loss`, `forget_loss` Float64[] at the solution, expected over noise, and
        `sink` Int[], the class that the forget set is pulled to; if that is a class to be forgotten, nothing is forgotten.

    Raises:
        ValueError: moments that are missing or of another layer, no head, a setting out of its range.

    Example:
        >>> unlearn = jaxunlearn.affine_representation_unlearning(headed, beta=0.1)
        >>> ready = jax.jit(jaxunlearn.prepare(unlearn))(headed_variables, data, key)
        >>> result = jax.jit(unlearn)(headed_variables, ready, request, key)
    """
    checks.check_range("beta", beta, low=0)
    checks.check_range("noise_scale", noise_scale, low=0)
    checks.check_range("ridge", ridge, low=0)
    if regime not in ("standard", "zero_shot") or retention not in ("per_dimension", "summed"):
        raise ValueError(
            f"regime must be standard or zero_shot, retention per_dimension or summed; got {regime!r}, {retention!r}"
        )
    head = require_head(model, "affine_representation_unlearning edits the head")

    def remove(variables, data, request, key):
        part, features_stale = features_of_request(model, variables, data, request, layer)
        total, moments_stale = moments_of(model, variables, data, layer)
        gone = second_moments(part.examples.inputs, part.weights)
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
        extra = {}
        if carry:
            left = data._replace(present=retain_weights(data, request))
            extra[MOMENTS.name] = MOMENTS.made(total - gone, at=body(model, after, layer), data=left, how=f"layer {layer!r}")
        return Result(after, combine(STALE=features_stale | moments_stale), stats, extra)

    return in_float64(one_shot(remove, model=model, prepare=prepare(model, layer=layer)))


def _mean(total: Float[Array, "h h"]) -> Float[Array, "h h"]:
    """Second moments per row; zeros without rows."""
    return total / jnp.maximum(total[-1, -1], 1)
