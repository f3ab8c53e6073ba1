"""Influence removal from a convex problem: the first-order step (Koh, Liang: Understanding black-box predictions via influence
functions, ICML 2017, arXiv 1703.04730).

    W <- W + H(W)^{-1} (sum_{forget} grad loss(W) + l2 m W),    H over ALL rows, those to be forgotten included

The error of this step comes from the Hessian, which is not that of the retain set: small for one row, large for many. It is
here to be compared with; bounds of Newton's step do not hold for it and are infinite. Its residual is measured as exactly as
that of the other removals, so that a distance to the retrained optimum is known for it too.
"""

import jax.numpy as jnp

from jaxunlearn.card import Method
from jaxunlearn.convex import removal
from jaxunlearn.convex.objective import Solver, newton_direction
from jaxunlearn.convex.problems import Problem
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.status import combine
from jaxunlearn.types import Result, UnlearnFn

METHOD = Method(
    summary="one influence-function step of a convex problem, to compare with",
    cites="koh2017understanding",
    family="closed form",
    reads=frozenset({"forget", "retain"}),
    takes="problem",
)


def influence_removal(problem: Problem, *, solver: Solver = "dense") -> UnlearnFn:
    """The influence-function step on the Hessian of all present rows.

    Args:
        problem: what the variables were trained on, see `jaxunlearn.convex.fit`.
        solver: as in `jaxunlearn.convex.newton_removal`.

    Returns:
        An `UnlearnFn`; `stats` as those of `jaxunlearn.convex.newton_removal`, with infinite bounds of the residual.

    Raises:
        ValueError: params or data that do not belong to the problem.

    Example:
        >>> unlearn = jaxunlearn.convex.influence_removal(jaxunlearn.convex.softmax(1e-2, 3))
    """

    def remove(variables, data, request, key):
        setting = removal.prepare_removal(problem, variables, data, request)
        pull = -removal.gradient_of_gone(problem, setting, setting.kernel)
        direction = newton_direction(problem, setting.kernel, data.train, data.present, pull, solver)
        after, variables = removal.stored(setting.kernel + direction, variables)
        stats = removal.report_without_bounds(problem, data, setting, after - setting.kernel)
        return Result(variables, combine(NOT_CONVERGED=~jnp.isfinite(stats["distance_bound"])), stats)

    return in_float64(one_shot(remove, model=problem.model, may_rest=True))
