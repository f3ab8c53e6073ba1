"""Newton removal from a convex problem (Guo, Goldstein, Hannun, van der Maaten: Certified data removal from machine learning
models, ICML 2020, arXiv 1911.03030).

    W <- W - H'(W)^{-1} grad L'(W),    repeated `steps` times; L' and H' over the retain set

At an exact optimum the first step is the paper's, whose right-hand side is built from the forget set. The full gradient
is the same there, and it also takes away what earlier removals left, so that residuals of a stream do not add up. The
Hessian is that of the retain set: with that of all rows, which a public re-implementation offers as a correction, the step
is plain influence and its residual exceeds the bound. The residual is computed, not bounded alone: strong convexity turns it
into a distance to the retrained optimum, `residual / (l2 n')`, which holds whatever happened before.
"""

import jax.numpy as jnp

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.convex import removal
from jaxunlearn.convex.objective import Solver, gradient, newton_direction
from jaxunlearn.convex.problems import Problem
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.sampling import retain_weights
from jaxunlearn.status import combine
from jaxunlearn.types import Result, UnlearnFn

METHOD = Method(
    summary="Newton steps on the retain set of a convex problem, with an exact residual",
    cites="guo2020certified",
    family="closed form",
    reads=frozenset({"retain"}),
    guarantee="certified",
    takes="problem",
    aliases=("certified_removal",),
)


def newton_removal(problem: Problem, *, steps: int = 2, solver: Solver = "dense") -> UnlearnFn:
    """Newton steps on the retain set, with an exact residual and its bounds.

    Every step builds the Hessian of the retain set, O(n d^2): the plain form, for one request at a time. For many requests see
    `jaxunlearn.convex.woodbury_removal`.

    Args:
        problem: what the variables were trained on, see `jaxunlearn.convex.fit`.
        steps: 1 is the paper's removal, 2 reach rounding as a rule.
        solver: `cg` where a matrix [d c, d c] does not fit.

    Returns:
        An `UnlearnFn`; `stats`, all Float[]: `residual` (norm of the retained objective's gradient, in its sum form),
        `residual_bound` (the same), `distance_bound` (to the retrained optimum), `worst_case_bound`, `data_bound`,
        `quartic_bound` (of the residual, for the last step; see `jaxunlearn.convex.removal`), `row_norm` (largest norm of a
        row of the retain set), `l2`, `num_forget`, `num_retain`. Weights that come in float64 leave in float64; in other dtypes
        they are rounded before the residual is taken.

    Raises:
        ValueError: params or data that do not belong to the problem, `steps` below 1.

    Example:
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> problem = jaxunlearn.convex.softmax(1e-2, 3)
        >>> unlearn = jaxunlearn.convex.newton_removal(problem, steps=3)
        >>> result = jax.jit(unlearn)(jaxunlearn.convex.fit(problem, rows), rows, request, key)
        >>> float(result.stats["distance_bound"]) < 1e-6
        True
    """
    checks.require_count("steps", steps)

    def remove(variables, data, request, key):
        setting = removal.prepare_removal(problem, variables, data, request)
        retained = retain_weights(data, request)
        kernel = setting.kernel
        slope = gradient(problem, kernel, data.train, retained, setting.linear)
        for _ in range(steps - 1):
            kernel = kernel + newton_direction(problem, kernel, data.train, retained, slope, solver)
            slope = gradient(problem, kernel, data.train, retained, setting.linear)
        direction = newton_direction(problem, kernel, data.train, retained, slope, solver)
        after, variables = removal.stored(kernel + direction, variables)
        measured = removal.measure(problem, data, setting, kernel, after - kernel, retained=retained)
        row_norm = removal.row_norm_of(data._replace(present=retained))
        limits = removal.bounds(problem, setting, measured, after - kernel, row_norm=row_norm)
        residual = tree.norm(measured.gradient)
        stats = removal.report(problem, setting, limits, residual=residual, residual_bound=residual, row_norm=row_norm)
        return Result(variables, combine(NOT_CONVERGED=~jnp.isfinite(stats["distance_bound"])), stats)

    return in_float64(one_shot(remove, model=problem.model, may_rest=True))
