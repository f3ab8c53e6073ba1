"""Refitting: a convex problem trained afresh on the retain set, to machine precision.

    W <- argmin L'(W),    the exact answer that removals are compared with

It starts from the origin, so nothing of the forget set enters the result.
"""

import jax.numpy as jnp

from jaxunlearn import tree
from jaxunlearn.card import Method
from jaxunlearn.convex import removal
from jaxunlearn.convex.fitting import CONVERGED, minimise
from jaxunlearn.convex.objective import Solver
from jaxunlearn.convex.problems import Problem
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.sampling import retain_weights
from jaxunlearn.status import combine
from jaxunlearn.types import Result, UnlearnFn

METHOD = Method(
    summary="train a convex problem afresh, to machine precision",
    cites="guo2020certified",
    family="exact",
    reads=frozenset({"retain"}),
    guarantee="exact",
    on_empty="train",
    takes="problem",
)


def refit(problem: Problem, *, solver: Solver = "dense") -> UnlearnFn:
    """Newton's method on the retain set, from the origin.

    Args:
        problem: see `jaxunlearn.convex`.
        solver: as in `jaxunlearn.convex.newton_removal`.

    Returns:
        An `UnlearnFn`; `stats`: `residual` (norm of the remaining gradient), `distance_bound` (to the optimum) Float[],
        `steps` Int[]. NOT_CONVERGED where the optimum was not reached.

    Raises:
        ValueError: params or data that do not belong to the problem.

    Example:
        >>> retrain = jaxunlearn.convex.refit(jaxunlearn.convex.softmax(1e-2, 3))
    """

    def train(variables, data, request, key):
        setting = removal.prepare_removal(problem, variables, data, request)
        retained = retain_weights(data, request)
        start = jnp.zeros_like(setting.kernel)
        found = minimise(problem, data.train, retained, start, setting.linear, solver=solver)
        rounded, variables = removal.stored(found.kernel, variables)
        residual = tree.norm(found.gradient)
        distance = residual / (problem.l2 * setting.num_retain)
        converged = distance <= CONVERGED * jnp.maximum(1, tree.norm(found.kernel))
        stats = {
            "residual": residual,
            "distance_bound": distance + tree.norm(rounded - found.kernel),
            "steps": found.steps,
        }
        return Result(variables, combine(NOT_CONVERGED=~converged), stats)

    return in_float64(one_shot(train, model=problem.model, may_rest=True, on_empty="train"))
