"""Certified Newton step for networks (Zhang, Dong, Wang, Li: Towards certified unlearning for deep neural networks, ICML 2024,
arXiv 2408.00920): its step, and what its certificate is worth.

    w <- w + 1/(n - m) (H' + convexity I)^{-1} sum_{forget} grad loss(w),    H' the Hessian of the retained rows

The inverse is LiSSA's series on batches, as in the paper, or conjugate gradients. The paper's bound of the distance to the
retrained minimiser needs a Lipschitz constant of the Hessian, the smallest eigenvalue of it along the way and that w is the
minimiser in a norm ball. None of them can be checked for a network; estimates from samples come from below. So this returns no
certificate: `claimed_bound` says what the paper would claim for constants that you vouch for, and nothing in the ledger or in
`certificates` accepts it.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import risk, tree
from jaxunlearn.curvature.inverse import Solving, forgotten, invert, moved
from jaxunlearn.curvature.matvecs import gradient_sum, hvp
from jaxunlearn.curvature.solvers import lissa, norm
from jaxunlearn.driver import Updated, one_shot
from jaxunlearn.types import Model, Scalar, UnlearnFn


def certified_newton_step(
    model: Model,
    *,
    convexity: Scalar,
    solver: Literal["lissa", "cg"] = "lissa",
    scale: Scalar = 1000.0,
    max_steps: int = 100,
    batch_size: int = 64,
    rtol: float = 1e-1,
    chunk: int | None = None,
) -> UnlearnFn:
    """One Newton step from the forgotten rows' gradient, without a certificate, see the module.

    Args:
        model: the regularizer is not part of the paper's loss; it is part of the Hessian here if there is one.
        convexity: the paper's lambda, above the largest eigenvalue of the Hessian in absolute value; may be traced.
        solver: `lissa` as in the paper, or `cg`.
        scale: of LiSSA, at least the largest eigenvalue of any batch, `convexity` included; see
            `jaxunlearn.curvature.safe_scale`.
        max_steps: steps of LiSSA, or at most that many of conjugate gradients; the paper has 1000.
        batch_size: retained rows of a LiSSA step.
        rtol: relative residual, measured on all retained rows, above which the status is NOT_CONVERGED.
        chunk: rows in memory together.

    Returns:
        An `UnlearnFn`; `stats`: `step_norm`, `residual` Float[], relative, and `solver_steps` Int[].

    Raises:
        ValueError: settings out of range.

    Example:
        >>> unlearn = jaxunlearn.certified_newton_step(model, convexity=10.0, solver="cg")
        >>> result = unlearn(variables, data, request, key)
    """
    tree.check_range("convexity", convexity, low=0)
    tree.check_range("scale", scale, low=0)
    tree.require_count("max_steps", max_steps)
    tree.require_count("batch_size", batch_size)
    if solver not in ("lissa", "cg"):
        raise ValueError(f"solver must be 'lissa' or 'cg', got {solver!r}")
    options = Solving("cg", matrix="hessian", rtol=rtol, max_steps=max_steps, chunk=chunk)

    def remove(variables, data, request, key):
        part, _, left = forgotten(data, request)
        rows = gradient_sum(model, variables, part.examples, part.weights, chunk=chunk)
        pull = jax.tree.map(lambda g: g / jnp.maximum(left, 1), rows)
        plain = data._replace(extra={})  # a representation that lies there is of another matrix
        if solver == "cg":
            found = invert(model, variables, plain, pull, damping=convexity, options=options, without=part)
            stats = {"step_norm": norm(found.solution), **found.stats}
            return Updated(moved(variables, found.solution), stats, converged=found.converged)
        split_key, batch_key = jax.random.split(key)
        split = risk.split(data, request, split_key)

        def on_batch(v, step):
            batch = risk.draw_retain(split, jax.random.fold_in(batch_key, step), batch_size)
            return hvp(model, variables, batch.examples, batch.weights)(v)

        retained = risk.retain_weights(data, request)
        whole = hvp(model, variables, data.train, retained, chunk=chunk)
        solved = lissa(on_batch, pull, damping=convexity, scale=scale, num_steps=max_steps, matvec=whole, rtol=rtol)
        stats = {"step_norm": norm(solved.solution), "residual": solved.residual, "solver_steps": solved.num_steps}
        return Updated(moved(variables, solved.solution), stats, converged=solved.converged)

    return one_shot(remove)


def claimed_bound(
    *,
    radius: Scalar,
    lipschitz_gradient: Scalar,
    lipschitz_hessian: Scalar,
    convexity: Scalar,
    smallest_eigenvalue: Scalar,
    num_weights: int,
    failure: float = 0.1,
) -> Float[Array, ""]:
    """The paper's bound of the distance to the retrained minimiser, with probability `1 - failure`, if all constants hold.

        2 C (M C + lambda) / (lambda + lambda_min) + (32 sqrt(ln(d / failure)) / (lambda + lambda_min) + 1/8) L C

    Args:
        radius: C, of the ball in which training kept the weights.
        lipschitz_gradient, lipschitz_hessian: L and M, on that ball.
        convexity: lambda, as in the step.
        smallest_eigenvalue: lambda_min of the Hessian, on that ball.
        num_weights: d.
        failure: probability that LiSSA's batches were unlucky.
    """
    gap = jnp.asarray(convexity + smallest_eigenvalue)
    exact = 2 * radius * (lipschitz_hessian * radius + convexity) / gap
    series = (32 * jnp.sqrt(jnp.log(num_weights / failure)) / gap + 1 / 8) * lipschitz_gradient * radius
    return jnp.where(gap > 0, exact + series, jnp.inf)
