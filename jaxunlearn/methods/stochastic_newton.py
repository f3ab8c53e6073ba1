"""Stochastic Newton step for networks (Zhang, Dong, Wang, Li: Towards certified unlearning for deep neural networks, ICML 2024,
arXiv 2408.00920): the step of that paper, without its certificate.

    w <- w + 1/(n - m) (H' + damping I)^{-1} sum_{forget} grad loss(w),    H' the Hessian over the retain set

The inverse is LiSSA's series on batches, as in the paper, or conjugate gradients on all rows.

This certifies nothing. The paper bounds the distance to the retrained minimiser, and the bound needs a Lipschitz constant of
the Hessian, its smallest eigenvalue along the way, and weights that minimise the loss in a norm ball. None of the three can be
checked for a network: the objective is not convex, training stops where it stops, and estimates from samples approach both
constants from the wrong side. `claimed_bound` says what the paper would claim for constants that you vouch for; nothing in
`jaxunlearn.certificates` or in the ledger accepts it. Certificates that hold are those of `jaxunlearn.convex`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import checks, sampling, tree
from jaxunlearn.card import Method
from jaxunlearn.curvature.matvecs import gradient_sum, hvp, regularizer_vp
from jaxunlearn.curvature.solve import Solving, forgotten, invert, moved, product_of
from jaxunlearn.curvature.solvers import lissa
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.status import combine
from jaxunlearn.types import Model, Result, Scalar, UnlearnFn

METHOD = Method(
    summary="a Newton step with the Hessian from batches; the certificate of its paper cannot be checked, so it gives none",
    cites="zhang2024towards",
    family="closed form",
    reads=frozenset({"forget", "retain"}),
    aliases=("certified_newton_step", "certified_unlearning"),
    search={"damping": (0.003, 0.03, 0.3, 3.0)},
)


def stochastic_newton(
    model: Model,
    *,
    damping: Scalar,
    solver: Literal["lissa", "cg"] = "lissa",
    scale: Scalar = 1000.0,
    max_steps: int = 100,
    batch_size: int = 64,
    rtol: float = 1e-1,
    chunk: int | None = None,
) -> UnlearnFn:
    """One Newton step along the gradient of the forget set, with the Hessian from batches; it certifies nothing.

    Args:
        model: the Hessian includes that of its regularizer, if there is one; the gradient does not, as in the paper.
        damping: the paper's lambda, added to the Hessian, at least 0; it has to exceed the most negative eigenvalue in absolute
            value. May be traced.
        solver: `lissa` as in the paper, or `cg`.
        scale: of LiSSA, at least the largest eigenvalue of any batch, damping included; see `jaxunlearn.curvature.safe_scale`.
        max_steps: steps of LiSSA, or at most that many of conjugate gradients; the paper has 1000.
        batch_size: rows of the retain set per step of LiSSA.
        rtol: relative residual, measured over the whole retain set, above which the status is NOT_CONVERGED.
        chunk: rows in memory together; None takes all.

    Returns:
        An `UnlearnFn`; `stats`: `step_norm`, `residual` (relative) Float[], `solver_steps` Int[]. Model state stays as it is.

    Raises:
        ValueError: a setting out of its range, an unknown solver.

    Example:
        >>> unlearn = jaxunlearn.stochastic_newton(model, damping=10.0, solver="cg")
        >>> result = jax.jit(unlearn)(variables, data, request, key)
        >>> int(result.status)
        0
    """
    checks.check_range("damping", damping, low=0)
    checks.check_range("scale", scale, low=0)
    checks.require_count("max_steps", max_steps)
    checks.require_count("batch_size", batch_size)
    if solver not in ("lissa", "cg"):
        raise ValueError(f"solver must be 'lissa' or 'cg', got {solver!r}")
    options = Solving("cg", matrix="hessian", rtol=rtol, max_steps=max_steps, chunk=chunk)

    def remove(variables, data, request, key):
        part, _, left = forgotten(data, request)
        rows = gradient_sum(model, variables, part.examples, part.weights, chunk=chunk)
        pull = jax.tree.map(lambda g: g / jnp.maximum(left, 1), rows)
        if solver == "cg":
            plain = data._replace(extra={})  # a representation in slot `curvature` is of another matrix
            found = invert(model, variables, plain, pull, damping=damping, options=options, without=part)
            stats = {"step_norm": tree.norm(found.solution), **found.stats}
            return Result(moved(variables, found.solution), found.status, stats)
        split_key, batch_key = jax.random.split(key)
        split = sampling.split(data, request, split_key)

        def on_batch(v, step):
            batch = sampling.draw_retain(split, jax.random.fold_in(batch_key, step), batch_size)
            return jax.tree.map(jnp.add, hvp(model, variables, batch.examples, batch.weights)(v), penalty(v))

        penalty = regularizer_vp(model, variables)
        whole = product_of(model, variables, data, options, part)
        solved = lissa(on_batch, pull, damping=damping, scale=scale, num_steps=max_steps, matvec=whole, rtol=rtol)
        stats = {"step_norm": tree.norm(solved.solution), "residual": solved.residual, "solver_steps": solved.num_steps}
        return Result(moved(variables, solved.solution), combine(NOT_CONVERGED=~solved.converged), stats)

    return one_shot(remove, model=model)


def claimed_bound(
    *,
    radius: Scalar,
    lipschitz_gradient: Scalar,
    lipschitz_hessian: Scalar,
    damping: Scalar,
    smallest_eigenvalue: Scalar,
    num_weights: int,
    failure: float = 0.1,
) -> Float[Array, ""]:
    """The paper's bound of the distance to the retrained minimiser, with probability `1 - failure`, if all constants hold.

        2 C (M C + lambda) / (lambda + lambda_min) + (32 sqrt(ln(d / failure)) / (lambda + lambda_min) + 1/8) L C

    Args:
        radius: C, of the ball in which training kept the weights.
        lipschitz_gradient, lipschitz_hessian: L and M, on that ball.
        damping: lambda, as in the step.
        smallest_eigenvalue: lambda_min of the Hessian, on that ball.
        num_weights: d.
        failure: probability that LiSSA's batches were unlucky, in (0, 1).

    Returns:
        Float[], in the units of the weights; inf where `damping` does not exceed `-smallest_eigenvalue`.

    Example:
        >>> from jaxunlearn.methods.stochastic_newton import claimed_bound
        >>> constants = {"radius": 10.0, "lipschitz_gradient": 1.0, "lipschitz_hessian": 1.0, "smallest_eigenvalue": -1.0}
        >>> float(claimed_bound(**constants, damping=5.0, num_weights=1000)) > 100  # ten times the ball itself
        True
    """
    gap = jnp.asarray(damping + smallest_eigenvalue)
    exact = 2 * radius * (lipschitz_hessian * radius + damping) / gap
    series = (32 * jnp.sqrt(jnp.log(num_weights / failure)) / gap + 1 / 8) * lipschitz_gradient * radius
    return jnp.where(gap > 0, exact + series, jnp.inf)
