"""Forgetting in the tangent space (Golatkar, Achille, Soatto: Forgetting outside the box, ECCV 2020, arXiv 2003.02960; on a
part of the weights: Li, Hsu, Chen, Marculescu: Fast-NTK, 2023, arXiv 2312.14923).

Of the model linearised at the trained weights, the ridge solutions on all rows and on the retain set are

    w_D = -(J_D' J_D + n weight_decay I)^{-1} J_D' e_D,    w_R = -(J_R' J_R + n' weight_decay I)^{-1} J_R' e_R,

with J the Jacobian of the logits and e the slope of the loss in them. The update is

    w <- w + scale (w_R - w_D).

Exact for a linear model with squared error. The system of all rows is the same for all requests of a batch; the difference is
solved for directly, with the rows of the request S on the right-hand side,

    (J_R' J_R + n' weight_decay I) (w_R - w_D) = J_S' e_S + (J_S' J_S + m weight_decay I) w_D,

so that the residual of the first solve enters in the share of S only. Both run by conjugate gradients on products with J and
J'; nothing of the size of rows times classes squared is formed.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.curvature.approximations import chosen_leaves
from jaxunlearn.curvature.matvecs import gradient_sum, jacobian_vp, widened
from jaxunlearn.curvature.solve import forgotten, moved
from jaxunlearn.curvature.solvers import cg, inner
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.slots import INITIAL_PARAMS
from jaxunlearn.status import combine
from jaxunlearn.tree import Layers
from jaxunlearn.types import Model, Result, Scalar, UnlearnFn

METHOD = Method(
    summary="difference of two ridge solutions of the linearised model",
    cites="golatkar2020forgetting",
    family="closed form",
    reads=frozenset({"forget", "retain"}),
    search={"weight_decay": (1e-05, 0.0001, 0.001, 0.01)},
)


def ntk_forgetting(
    model: Model,
    *,
    weight_decay: Scalar,
    scale: Scalar | Literal["trapezium"] = 1.0,
    layers: Layers | None = None,
    rtol: float = 1e-3,
    max_steps: int = 200,
    chunk: int | None = None,
) -> UnlearnFn:
    """Move by the difference of two ridge solutions of the linearised model.

    Args:
        model: the loss's slope in the logits is the residual: `f - y` for `1/2 (f - y)^2`, `p - onehot` for cross-entropy.
        weight_decay: of the ridge problem per row, above 0, may be traced.
        scale: of the step, may be traced. `trapezium` corrects its length by where training started, as the authors' code does;
            it reads the weights at initialisation from slot `initial_params`.
        layers: weights that move, e.g. those of normalisation (Fast-NTK); all by default.
        rtol, max_steps: of both solves, see `jaxunlearn.curvature.cg`.
        chunk: rows in memory together.

    Returns:
        An `UnlearnFn`; `stats`: `step_norm`, `residual` Float[] (the larger of both), `solver_steps` Int[], `scale` Float[].
        NOT_CONVERGED if a solve stopped early. Model state stays as it is.

    Raises:
        ValueError: settings out of range, layers that name nothing, missing initial weights.

    Example:
        >>> unlearn = jaxunlearn.ntk_forgetting(model, weight_decay=0.1, layers="head")
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    checks.check_range("weight_decay", weight_decay, low=0)
    if isinstance(scale, str) and scale != "trapezium":
        raise ValueError(f"scale must be a number or 'trapezium', got {scale!r}")
    if not isinstance(scale, str):
        checks.check_range("scale", scale, low=0)

    def remove(variables, data, request, key):
        chosen = chosen_leaves(variables.params, layers)

        def only(v: PyTree) -> PyTree:
            leaves, form = jax.tree.flatten(v)
            return form.unflatten([x if take else jnp.zeros_like(x) for x, take in zip(leaves, chosen, strict=True)])

        part, count, left = forgotten(data, request)
        present = count + left
        everything = jacobian_vp(model, variables, data.train, data.present, chunk=chunk)
        gone = jacobian_vp(model, variables, part.examples, part.weights)
        slope = only(gradient_sum(model, variables, data.train, data.present, chunk=chunk))
        pulled = only(gradient_sum(model, variables, part.examples, part.weights, chunk=chunk))

        def retained(v):
            return jax.tree.map(lambda a, g: (present * a - count * g) / jnp.maximum(left, 1), everything(v), gone(v))

        def ridge(product, rows, b):
            mean = jax.tree.map(lambda x: x / jnp.maximum(rows, 1), b)
            return cg(lambda v: only(product(only(v))), mean, damping=weight_decay, rtol=rtol, max_steps=max_steps)

        on_all = ridge(everything, present, jax.tree.map(jnp.negative, slope))
        drift = only(gone(on_all.solution))
        pull = jax.tree.map(lambda g, c, w: g + count * (c + weight_decay * w), pulled, drift, on_all.solution)
        difference = ridge(retained, left, pull)
        step = difference.solution
        on_retained = jax.tree.map(jnp.add, on_all.solution, step)
        factor = _trapezium(variables, data, step, on_retained, only) if isinstance(scale, str) else jnp.asarray(scale)
        step = jax.tree.map(lambda x: factor * x, step)
        stats = {
            "step_norm": tree.norm(step),
            "residual": jnp.maximum(on_all.residual, difference.residual),
            "solver_steps": jnp.maximum(on_all.num_steps, difference.num_steps),
            "scale": factor,
        }
        return Result(moved(variables, step), combine(NOT_CONVERGED=~(on_all.converged & difference.converged)), stats)

    return one_shot(remove, model=model)


def _trapezium(variables, data, step, retained, only) -> jax.Array:
    """Length of the step over that of the linear one, from the angle between it and what training moved besides."""
    initial = INITIAL_PARAMS.get(data)
    trained = jax.tree.map(jnp.subtract, widened(variables.params), widened(initial))
    rest = only(jax.tree.map(jnp.subtract, trained, retained))
    length, other = tree.norm(step), tree.norm(rest)
    tiny = jnp.finfo(length.dtype).tiny
    stacked = [jax.tree.map(lambda x: x[None], v) for v in (step, rest)]
    cosine = jnp.clip(inner(*stacked)[0, 0] / jnp.maximum(length * other, tiny), -1, 1)
    angle = jnp.arccos(cosine)
    wanted = length + 2 * other * jnp.where(cosine < 0, jnp.sin(angle - jnp.pi / 2), jnp.cos(angle))
    return wanted / jnp.maximum(length, tiny)
