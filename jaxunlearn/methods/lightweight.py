"""Lightweight unlearning (Chen, Wang, Huang: Lightweight machine unlearning in neural network, 2021, arXiv 2111.05528): a
reconstruction from the abstract, which says that small perturbations move the parameters towards the model of the remaining
data until the contribution of the forget set is gone. No equation, loss or stop rule of the paper was read.

    w <- w - a (C' + R + damping I)^{-1} grad F'(w),    until |grad F'(w)| <= tolerance |grad F'(w_0)|

F' is the mean loss over the retain set plus the regularizer, C' its Gauss-Newton matrix or Hessian at w, R the regularizer's
Hessian, and a = 1, halved until F' does not rise. What the forget set still contributes is read as `|grad F'|`: at an optimum
for all rows that is the gradient of the forget set alone, `m / (n - m) |mean_{forget} grad (loss + regularizer)|`, and it is
0 where the parameters are stationary for the retain set.

One iteration is `jaxunlearn.newton(solver="cg")`. The variant that takes its gradient from the forget set alone is
`jaxunlearn.stochastic_newton(solver="cg")`, for models without a regularizer; `jaxunlearn.influence` has the matrix of all rows
in it. Where every row is fitted exactly and nothing is regularized, all gradients are 0: no weight moves, as the status says,
and the forget set is still known. `jaxunlearn.minnorm_og` is made for that.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.curvature.matvecs import widened
from jaxunlearn.curvature.solve import checked, moved, product_of, retained_gradient
from jaxunlearn.curvature.solvers import cg
from jaxunlearn.evaluation import evaluate, sum_rows
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.passes import penalty
from jaxunlearn.sampling import forget_rows
from jaxunlearn.status import combine
from jaxunlearn.types import Data, Model, Result, Scalar, UnlearnFn, Variables, Weighted

METHOD = Method(
    summary="damped Newton steps on the retain set until its gradient, what the forget set contributes, is gone",
    cites="chen2021lightweight",
    family="closed form",
    reads=frozenset({"forget", "retain"}),
    reconstruction=True,
    aliases=("retain_residual_newton",),
    search={"damping": (0.001, 0.01, 0.1, 1.0)},
)

HALVINGS = 10  # of a step, after which it is given up
SLACK = 8  # roundings of F' that do not count as a rise
STILL = 10  # roundings of the parameters' norm: a run that moves them by less has not moved them


class _Progress(NamedTuple):
    params: PyTree  # at least in float32
    gradient: PyTree  # of F'
    contribution: Float[Array, ""]  # its norm
    loss: Float[Array, ""]  # F'
    made: Int[Array, ""]  # iterations
    products: Int[Array, ""]  # of the matrix, in all solves
    running: Bool[Array, ""]
    positive: Bool[Array, ""]


def lightweight(
    model: Model,
    *,
    damping: Scalar = 1e-2,
    tolerance: Scalar = 1e-3,
    max_iterations: int = 5,
    matrix: Literal["ggn", "hessian"] = "ggn",
    rtol: float = 1e-3,
    max_steps: int = 50,
    chunk: int | None = None,
) -> UnlearnFn:
    """Newton steps on the retain set until what the forget set contributes to the gradient is gone; a reconstruction.

    Args:
        model: its regularizer is part of the objective.
        damping: added to the matrix, at least 0, may be traced; 0 for convex models.
        tolerance: share of the first contribution at which it is gone, in [0, 1], may be traced.
        max_iterations: Newton steps at most, static. Under `vmap` all requests run until the slowest is done.
        matrix: `ggn`, or `hessian`, which is indefinite for networks.
        rtol, max_steps: of conjugate gradients, see `jaxunlearn.curvature.cg`; a solve that stops early is a shorter step.
        chunk: rows in memory together.

    Returns:
        An `UnlearnFn`; `stats`: `contribution_before`, `contribution_after` Float[] (norm of the gradient on the retain set),
        `iterations` Int[], `step_norm` Float[] (of the whole move), `solver_steps` Int[] (in all). NOT_CONVERGED where the
        contribution is above the tolerance at the end, UNCHANGED where the move is within the rounding of the parameters,
        INDEFINITE where a matrix was not positive. Model state stays as it is.

    Raises:
        ValueError: a setting out of its range, an unknown matrix.

    References:
        Chen, Wang, Huang: Lightweight machine unlearning in neural network, 2021, arXiv 2111.05528 (the abstract).

    Example:
        >>> unlearn = jaxunlearn.lightweight(model, damping=0.1, tolerance=0.5)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
        >>> bool(result.stats["contribution_after"] < result.stats["contribution_before"])
        True
    """
    checks.check_range("damping", damping, low=0)
    checks.check_range("tolerance", tolerance, low=0, high=1)
    checks.require_count("max_iterations", max_iterations)
    if matrix not in ("ggn", "hessian"):
        raise ValueError(f"matrix must be 'ggn' or 'hessian', got {matrix!r}")
    options = checked(solver="cg", matrix=matrix, rtol=rtol, max_steps=max_steps, chunk=chunk)

    def remove(variables, data, request, key):
        part = forget_rows(data, request)

        def at(params: PyTree) -> Variables:
            return variables._replace(params=params)

        def objective(params: PyTree) -> Float[Array, ""]:
            return _retained_loss(model, at(params), data, part, chunk)

        def gradient(params: PyTree) -> PyTree:
            return retained_gradient(model, at(params), data, part, chunk=chunk)

        def unfinished(now: _Progress) -> Bool[Array, ""]:
            return now.running & (now.made < max_iterations) & ~(now.contribution <= allowed)  # also where it is NaN

        def iteration(now: _Progress) -> _Progress:
            product = product_of(model, at(now.params), data, options, part)
            solved = cg(product, now.gradient, damping=damping, rtol=rtol, max_steps=max_steps)
            params, loss = _descended(objective, now.params, solved.solution, now.loss)
            accepted = jnp.isfinite(loss)
            params, loss = tree.select(accepted, (params, loss), (now.params, now.loss))
            slope, products = gradient(params), now.products + solved.num_steps.astype(jnp.int32)
            positive = now.positive & solved.positive
            return _Progress(params, slope, tree.norm(slope), loss, now.made + 1, products, accepted, positive)

        start = widened(variables.params)
        slope = gradient(start)
        before = tree.norm(slope)
        allowed = tolerance * before
        zero, true = jnp.int32(0), jnp.array(True)
        first = _Progress(start, slope, before, objective(start), zero, zero, true, true)
        last = jax.lax.while_loop(unfinished, iteration, first)
        step = jax.tree.map(jnp.subtract, last.params, start)
        length, size = tree.norm(step), tree.norm(start)
        still = length <= STILL * jnp.finfo(size.dtype).eps * size
        # a contribution that is NaN was found in the rows, and is not to be hidden by staying
        step = jax.tree.map(lambda s: jnp.where(jnp.isnan(last.contribution), jnp.nan, jnp.where(still, 0, s)), step)
        stats = {
            "contribution_before": before,
            "contribution_after": last.contribution,
            "iterations": last.made,
            "step_norm": length,
            "solver_steps": last.products,
        }
        code = combine(NOT_CONVERGED=~still & ~(last.contribution <= allowed), INDEFINITE=~last.positive)
        return Result(moved(variables, step), code, stats)

    return one_shot(remove, model=model)


def _retained_loss(model: Model, variables: Variables, data: Data, part: Weighted, chunk: int | None) -> Float[Array, ""]:
    """Mean loss over the rows that are left, plus the regularizer."""

    def total(examples, weights):
        losses = evaluate(model, variables, examples)[1]
        return jnp.sum(jnp.where(weights > 0, losses, 0) * weights)

    everything = sum_rows(total, data.train, data.present, chunk=chunk)
    rows = sum_rows(total, part.examples, part.weights, chunk=chunk)
    left = jnp.sum(data.present > 0) - jnp.sum(part.weights > 0)
    return (everything - rows) / jnp.maximum(left, 1) + penalty(model, variables.params)


def _descended(objective: Any, params: PyTree, step: PyTree, loss: Float[Array, ""]) -> tuple[PyTree, Float[Array, ""]]:
    """Parameters after as much of a step as does not raise the objective, halved up to HALVINGS times, and their objective.

    The objective comes back as inf where every length raises it.
    """
    limit = loss + SLACK * jnp.finfo(loss.dtype).eps * jnp.abs(loss)

    def tried(halvings):
        shorter = jax.tree.map(lambda w, s: w - s * jnp.exp2(-halvings.astype(w.dtype)), params, step)
        return shorter, objective(shorter)

    def rises(state):
        halvings, (_, found) = state
        return ~(found <= limit) & (halvings < HALVINGS)

    def halve(state):
        halvings = state[0] + 1
        return halvings, tried(halvings)

    none = jnp.int32(0)
    _, (shorter, found) = jax.lax.while_loop(rises, halve, (none, tried(none)))
    return shorter, jnp.where(found <= limit, found, jnp.inf)
