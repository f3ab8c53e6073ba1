"""Woodbury removal from a convex problem: Newton's removal (Guo, Goldstein, Hannun, van der Maaten, ICML 2020, arXiv
1911.03030) for many requests against one factorisation of the Hessian.

    W <- W - K_S^{-1} grad L'(W),    K_S the Hessian at the factorised weights without the rows of S, by Woodbury's identity

A request costs O(d^2) and no pass over the data: the gradient over the retain set is that over all rows, which is known,
minus that over the forget set. For the first request from an optimum it is Newton's step exactly. Later steps and requests
use the Hessian at the factorised weights, which are near; the error of that is part of the residual, which is measured in one
pass over the rows, or of the data bound, which needs none.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.convex import removal
from jaxunlearn.convex.factorisation import Factorisation, carried, described, downdate, factorise, prepare
from jaxunlearn.convex.objective import gradient, newton_direction
from jaxunlearn.convex.problems import Problem
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.sampling import retain_weights
from jaxunlearn.slots import FACTORISATION
from jaxunlearn.status import combine
from jaxunlearn.types import Result, UnlearnFn

METHOD = Method(
    summary="Newton steps for many requests against one shared factorisation of a convex problem",
    cites="guo2020certified",
    family="closed form",
    reads=frozenset({"factorisation", "forget", "retain"}),
    guarantee="certified",
    takes="problem",
)

LEVERAGE = 1 - 1e-6  # above it Woodbury's identity loses six digits or more, and the dense Hessian takes over


def woodbury_removal(problem: Problem, *, steps: int = 2, measure: bool = True, carry: int = 0) -> UnlearnFn:
    """Newton steps against a shared factorisation.

    Reads slot `factorisation`, see `jaxunlearn.prepare`. Run many requests side by side, `batched(..., chunk=64)`: their matrix
    products then share every read of the factorisation. Memory grows with R d m, not with R d^2. If the factorisation belongs
    to other weights, to another `l2` or to other rows, the gradient is computed afresh and the steps are still measured.

    Args:
        problem: what the variables were trained on.
        steps: 1 is the paper's removal, 2 reach rounding as a rule.
        measure: pass over the rows for the exact residual. Without it the residual is bounded from `X' X` at a cost of O(d^2),
            for the rows that were factorised: rows that changed since then are not looked at, and `certify` measures anew. Only
            for `steps=1`.
        carry: columns kept for rows removed in a stream, in which every request hands the factorisation on to the next one and
            factorises anew when they are full: at least slots times outputs per request, about `D / 10` is good. 0 where
            requests are alternatives (`batched`).

    Returns:
        An `UnlearnFn`; `stats` as those of `jaxunlearn.convex.newton_removal`, and `leverage` Float[] (of the forget set, 1
        if it alone holds some direction and the dense Hessian was used). Without `measure`, `residual` is NaN, `quartic_bound`
        infinite and `residual_bound` the data bound. With `carry`, `extra` holds the factorisation.

    Raises:
        ValueError: the factorisation is missing or of another form; with `carry`, its capacity is below the slots of a
            request times the outputs; several steps that are not measured.

    Example:
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> problem = jaxunlearn.convex.softmax(1e-2, 3)
        >>> variables = jaxunlearn.convex.fit(problem, rows)
        >>> unlearn = jaxunlearn.convex.woodbury_removal(problem)
        >>> shared = jax.jit(jaxunlearn.prepare(unlearn))(variables, rows, key)
        >>> result = jax.jit(unlearn)(variables, shared, request, key)
        >>> float(result.stats["residual"]) < float(result.stats["quartic_bound"])
        True
    """
    checks.require_count("steps", steps)
    if steps > 1 and not measure:
        raise ValueError(f"steps={steps} need the gradient after each step: leave measure=True, or take one step")

    def remove(variables, data, request, key):
        setting = removal.prepare_removal(problem, variables, data, request)
        made, stale = _factorisation(problem, variables, data, setting, carry)
        known = ~stale
        slope, slack = jax.lax.cond(
            known,
            lambda: (made.gradient, made.slack),
            lambda: (
                gradient(problem, setting.kernel, data.train, data.present, setting.linear),
                jnp.where(jnp.array(measure), 0.0, jnp.inf),
            ),
        )
        if carry:
            full = made.num_columns + setting.counts.size * problem.num_outputs > made.removed.shape[1]
            made = jax.lax.cond(
                full | ~known,
                lambda: factorise(problem, data, setting.kernel, slope, slack, made.removed.shape[1]),
                lambda: made,
            )
        without = downdate(problem, made, setting)
        kernel, slope = setting.kernel, slope - removal.gradient_of_gone(problem, setting, setting.kernel)

        def newton_step(kernel, slope):
            return _dense_if(~(without.leverage < LEVERAGE), problem, kernel, data, request, slope, without)

        for _ in range(steps - 1):
            kernel = kernel + newton_step(kernel, slope)
            slope = gradient(problem, kernel, data.train, data.present, setting.linear)
            slope = slope - removal.gradient_of_gone(problem, setting, kernel)
            slack = jnp.zeros_like(slack)  # what was not known of the gradient is known now
        after, variables = removal.stored(kernel + newton_step(kernel, slope), variables)
        step = after - kernel
        if measure:
            measured = removal.measure(problem, data, setting, kernel, step)
            norms = {"row_norm": made.row_norm, "spectral_norm": made.spectral_norm}
            limits = removal.bounds(problem, setting, measured, step, slack=slack, **norms)
            slope, slack = measured.gradient, jnp.zeros_like(slack)
            residual = bound = tree.norm(slope)
        else:
            slope = slope + without.multiply(step)
            limits = _bounds_without_a_pass(problem, setting, made, kernel, step, tree.norm(slope) + slack)
            residual, bound = jnp.float64(jnp.nan), limits.data
            slack = bound
        stats = removal.report(problem, setting, limits, residual=residual, residual_bound=bound, row_norm=made.row_norm)
        stats["leverage"] = jnp.where(without.leverage < LEVERAGE, without.leverage, 1.0)
        extra: dict[str, Any] = {}
        if carry:
            unchanged = made._replace(kernel=setting.kernel)
            moved_on = carried(made, without, setting, after, slope, slack)
            left = tree.select(setting.num_forget == 0, unchanged, moved_on)
            extra[FACTORISATION.name] = FACTORISATION.made(
                left,
                at=(variables, problem.l2),
                data=data._replace(present=retain_weights(data, request)),
                how=described(problem),
            )
        return Result(variables, combine(NOT_CONVERGED=~jnp.isfinite(stats["distance_bound"])), stats, extra)

    return in_float64(one_shot(remove, model=problem.model, may_rest=True, prepare=prepare(problem, capacity=carry)))


def _factorisation(problem, variables, data, setting, carry) -> tuple[Factorisation, jax.Array]:
    made, stale = FACTORISATION.read(data, at=(variables, problem.l2), how=described(problem))
    if made.kernel.shape != setting.kernel.shape:
        raise ValueError(f"the factorisation belongs to weights {made.kernel.shape}, these are {setting.kernel.shape}")
    needed = setting.counts.size * setting.kernel.shape[1]
    if carry and made.removed.shape[1] < needed:
        raise ValueError(
            f"a request of {setting.counts.size} slots needs {needed} columns, the factorisation keeps "
            f"{made.removed.shape[1]}: woodbury_removal(problem, carry=...) with at least {needed}, better ten times as many"
        )
    return made, stale


def _dense_if(condition, problem, kernel, data, request, slope, without):
    """Newton's direction by Woodbury, or by the dense Hessian where that would lose digits.

    Under `vmap` requests take this decision one after the other, so that one bad request makes no other one dense.
    """

    @sequential_vmap
    def choose(condition, kernel, data, request, slope, quick):
        def dense():
            return newton_direction(problem, kernel, data.train, retain_weights(data, request), slope)

        return jax.lax.cond(condition, dense, lambda: quick)

    return choose(condition, kernel, data._replace(extra={}), request, slope, -without.solve(slope))


def _bounds_without_a_pass(problem, setting, made, before, step, linear) -> removal.Bounds:
    """Data bound of the residual from `X' X` alone, the drift of the Hessian since it was factorised included."""
    change = jnp.sqrt(jnp.maximum(jnp.sum(step * (made.gram @ step)), 0))
    drift = tree.norm(before - made.centre) + tree.norm(step) / 2
    remainder = problem.curvature_lipschitz * made.spectral_norm * made.row_norm * drift * change
    return removal.Bounds(removal.worst_case(problem, setting, made.row_norm), linear + remainder, jnp.float64(jnp.inf))
