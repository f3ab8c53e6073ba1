"""Descent-to-Delete (Neel, Roth, Sharifi-Malvajerdi: Descent-to-delete, gradient-based methods for machine unlearning, ALT
2021, arXiv 2007.02923).

    W <- P(W - 2 / (mu + B) grad F'(W)),    `steps` times;    F' = L' / n' the mean over the retain set

`mu = l2` and `B = l2 + r^2 max curvature` bound the eigenvalues of every data set of rows of norm at most r, so that each step
shrinks the distance to the optimum by `(B - mu) / (B + mu)` whatever the data. P projects on the ball of radius `C r / l2`,
which holds every optimum and makes the loss Lipschitz. A step is one pass over the rows and forms no matrix.
"""

import jax
import jax.numpy as jnp

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.convex import removal
from jaxunlearn.convex.objective import gradient
from jaxunlearn.convex.problems import Problem
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.sampling import retain_weights
from jaxunlearn.status import combine
from jaxunlearn.types import Result, Scalar, UnlearnFn

METHOD = Method(
    summary="gradient steps on the retain set of a convex problem",
    cites="neel2021descent",
    family="closed form",
    reads=frozenset({"retain"}),
    guarantee="certified",
    takes="problem",
    aliases=("d2d",),
)


def descent_to_delete(problem: Problem, *, steps: int, row_norm: Scalar = 1.0) -> UnlearnFn:
    """Full-batch gradient steps on the retain set, from the trained weights.

    Args:
        problem: `logistic` or `softmax`: least squares has no Lipschitz constant.
        steps: gradient steps per request; the noise of its certificate shrinks geometrically with them.
        row_norm: promised bound of the norm of every row, r in the module; `stats["row_norm"]` tells whether it was kept.

    Returns:
        An `UnlearnFn`; `stats` as those of `jaxunlearn.convex.newton_removal`, whose bounds of the residual are infinite here,
        and `contraction` (the factor per step), `descent_steps`, `smoothness` (B), `strong_convexity` (mu), `lipschitz` (of F
        on the ball), all Float[].

    Raises:
        ValueError: a ridge problem, params or data that do not belong to the problem, `steps` below 1.

    Example:
        >>> unlearn = jaxunlearn.convex.descent_to_delete(jaxunlearn.convex.softmax(1e-2, 3), steps=20)
    """
    checks.require_count("steps", steps)
    checks.check_range("row_norm", row_norm, low=0)
    if problem.name == "ridge":
        raise ValueError("descent_to_delete needs a Lipschitz loss, which least squares is not; use newton_removal")

    def remove(variables, data, request, key):
        setting = removal.prepare_removal(problem, variables, data, request)
        retained = retain_weights(data, request)
        convexity = jnp.float64(problem.l2)
        smoothness = convexity + row_norm**2 * problem.max_curvature
        radius = problem.max_slope * row_norm / convexity

        def step(kernel, _):
            slope = gradient(problem, kernel, data.train, retained, setting.linear) / setting.num_retain
            moved = kernel - 2 / (convexity + smoothness) * slope
            return moved * jnp.minimum(1, radius / tree.norm(moved)), None

        before, _ = jax.lax.scan(step, setting.kernel, length=steps - 1)
        after, variables = removal.stored(step(before, None)[0], variables)
        residual = tree.norm(gradient(problem, after, data.train, retained, setting.linear))
        unknown = removal.Bounds(*[jnp.full_like(residual, jnp.inf)] * 3)
        longest = removal.row_norm_of(data)
        stats = removal.report(problem, setting, unknown, residual=residual, residual_bound=residual, row_norm=longest)
        more = {
            "contraction": (smoothness - convexity) / (smoothness + convexity),
            "descent_steps": steps,
            "smoothness": smoothness,
            "strong_convexity": convexity,
            "lipschitz": 2 * problem.max_slope * row_norm,
        }
        stats |= {name: jnp.asarray(value, jnp.float64) for name, value in more.items()}
        return Result(variables, combine(NOT_CONVERGED=~jnp.isfinite(residual)), stats)

    return in_float64(one_shot(remove, model=problem.model, may_rest=True))
