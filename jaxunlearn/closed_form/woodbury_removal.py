"""Woodbury removal from a convex problem: Newton's removal (Guo, Goldstein, Hannun, van der Maaten, ICML 2020, arXiv
1911.03030) for many requests against one factorisation of the Hessian.

    W <- W - K_S^{-1} grad L'(W),    K_S the Hessian at the factorised weights without the rows of S, by Woodbury's identity

A request costs O(d^2) and no pass over the data: the gradient over the retained rows is that over all rows, which is known,
minus that of the forgotten ones. For the first request from an optimum it is Newton's step exactly. Later steps and requests
use the Hessian of the factorised weights, which are near; what that costs is part of the residual, which is measured in one
pass over the rows, or of the data bound, which needs none.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from jaxunlearn import tree
from jaxunlearn.convex import removal
from jaxunlearn.convex.factorisation import NAME, Factorisation, carried, downdate, factorise
from jaxunlearn.convex.objective import gradient, newton_direction
from jaxunlearn.convex.problems import Problem
from jaxunlearn.driver import Updated, one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.risk import retain_weights
from jaxunlearn.types import UnlearnFn

LEVERAGE = 1 - 1e-6  # above it Woodbury's identity loses six digits or more, and the dense Hessian takes over


def woodbury_removal(problem: Problem, *, steps: int = 2, measure: bool = True, carry: bool = False) -> UnlearnFn:
    """Newton steps against a shared factorisation.

    Reads `data.extra["factorisation"]`, made by `jaxunlearn.convex.prepare(problem)(variables, data, key)`. Run many requests
    side by side, `batched(..., chunk=64)`: their matrix products then share every read of the factorisation. Memory grows with
    R d m, not with R d^2. If the factorisation belongs to other weights, or rows were removed without it, the gradient is
    computed afresh and the steps are still measured.

    Args:
        problem: what the variables were trained on.
        steps: 1 is the paper's removal, 2 reach rounding as a rule.
        measure: pass over the rows for the exact residual. Without it the residual is bounded from `X' X`, which is sound and
            costs O(d^2); only for `steps=1`.
        carry: hand the factorisation on to the next request of a stream, which factorises anew when its capacity is full.

    Returns:
        An `UnlearnFn`; `stats` as those of `jaxunlearn.newton_removal`, and `leverage` Float[] (of the forgotten rows, 1 if
        they alone hold some direction and the dense Hessian was used). Without `measure`, `residual` is NaN, `quartic_bound`
        infinite and `residual_bound` the data bound. With `carry`, `extra` holds the factorisation.

    Raises:
        ValueError: the factorisation is missing or of another form; with `carry`, its capacity is below the slots of a
            request times the outputs; several steps that are not measured.

    Example:
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> problem = jaxunlearn.convex.softmax(1e-2, 3)
        >>> variables = jaxunlearn.convex.fit(problem, rows)
        >>> shared = jaxunlearn.convex.prepare(problem)(variables, rows, key)
        >>> result = jaxunlearn.woodbury_removal(problem)(variables, shared, request, key)
        >>> float(result.stats["residual"]) < float(result.stats["quartic_bound"])
        True
    """
    tree.require_count("steps", steps)
    if steps > 1 and not measure:
        raise ValueError(f"steps={steps} need the gradient after each step: leave measure=True, or take one step")

    def remove(variables, data, request, key):
        setting = removal.prepare_removal(problem, variables, data, request)
        made = _factorisation(data, setting, carry)
        known = jnp.all(made.kernel == setting.kernel) & (made.num_rows - made.num_removed == setting.num_present)
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
            residual = bound = removal.norm(slope)
        else:
            slope = slope + without.multiply(step)
            limits = _bounds_without_a_pass(problem, setting, made, kernel, step, removal.norm(slope) + slack)
            residual, bound = jnp.float64(jnp.nan), limits.data
            slack = bound
        stats = removal.report(problem, setting, limits, residual=residual, residual_bound=bound, row_norm=made.row_norm)
        stats["leverage"] = jnp.where(without.leverage < LEVERAGE, without.leverage, 1.0)
        extra: dict[str, Any] = {}
        if carry:
            unchanged = made._replace(kernel=setting.kernel)
            moved_on = carried(problem, made, setting, after, slope, slack)
            extra[NAME] = tree.select(setting.num_forget == 0, unchanged, moved_on)
        return Updated(variables, stats, extra, converged=jnp.isfinite(stats["distance_bound"]))

    return in_float64(one_shot(remove))


def _factorisation(data, setting, carry) -> Factorisation:
    made = data.extra.get(NAME)
    if not isinstance(made, Factorisation):
        raise ValueError(
            f"woodbury_removal needs data.extra['{NAME}']: "
            "make it with jaxunlearn.convex.prepare(problem)(variables, data, key)"
        )
    if made.kernel.shape != setting.kernel.shape:
        raise ValueError(f"the factorisation belongs to weights {made.kernel.shape}, these are {setting.kernel.shape}")
    needed = setting.counts.size * setting.kernel.shape[1]
    if carry and made.removed.shape[1] < needed:
        raise ValueError(
            f"a request of {setting.counts.size} slots needs {needed} columns, the factorisation keeps "
            f"{made.removed.shape[1]}: prepare(problem, capacity=...) with at least {needed}, better ten times as many"
        )
    return made


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
    drift = removal.norm(before - made.centre) + removal.norm(step) / 2
    remainder = problem.curvature_lipschitz * made.spectral_norm * made.row_norm * drift * change
    return removal.Bounds(removal.worst_case(problem, setting, made.row_norm), linear + remainder, jnp.float64(jnp.inf))
