"""Refitting: a convex problem trained afresh on the retained rows, to machine precision.

    W <- argmin L'(W),    the exact answer that removals are compared with

It starts from the origin, so nothing of the forgotten rows enters the result.
"""

import jax.numpy as jnp

from jaxunlearn.convex import removal
from jaxunlearn.convex.fitting import CONVERGED, minimise
from jaxunlearn.convex.objective import Solver
from jaxunlearn.convex.problems import Problem
from jaxunlearn.driver import Updated, one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.risk import retain_weights
from jaxunlearn.types import UnlearnFn


def refit(problem: Problem, *, solver: Solver = "dense") -> UnlearnFn:
    """Newton's method on the retained rows, from the origin.

    Args:
        problem: see `jaxunlearn.convex`.
        solver: as in `jaxunlearn.newton_removal`.

    Returns:
        An `UnlearnFn`; `stats`: `residual` (norm of the gradient that is left), `distance_bound` (to the optimum) Float[],
        `steps` Int[].

    Raises:
        ValueError: params or data that do not belong to the problem.

    Example:
        >>> retrain = jaxunlearn.refit(jaxunlearn.convex.softmax(1e-2, 3))
    """

    def train(variables, data, request, key):
        setting = removal.prepare_removal(problem, variables, data, request)
        retained = retain_weights(data, request)
        start = jnp.zeros_like(setting.kernel)
        found = minimise(problem, data.train, retained, start, setting.linear, solver=solver)
        rounded, variables = removal.stored(found.kernel, variables)
        residual = removal.norm(found.gradient)
        distance = residual / (problem.l2 * setting.num_retain)
        converged = distance <= CONVERGED * jnp.maximum(1, removal.norm(found.kernel))
        stats = {
            "residual": residual,
            "distance_bound": distance + removal.norm(rounded - found.kernel),
            "steps": found.steps,
        }
        return Updated(variables, stats, converged=converged)

    return in_float64(one_shot(train, on_empty="train"))
