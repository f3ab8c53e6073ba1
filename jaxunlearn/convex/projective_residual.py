"""Projective residual update (Izzo, Smart, Chaudhuri, Zou: Approximate data deletion from machine learning models, AISTATS
2021, arXiv 2002.10077) for convex problems.

    w <- w + P e,    e = -H_S^{-1} grad L'(w),    P the projection onto the span of the forget set

The paper predicts what a model without the rows would say of them, and moves the weights as little as possible to say so: for
least squares that is the projection of the way to the retrained model, exactly, which is how it is computed here. Features that
only rows of the forget set have are removed exactly; everything else stays in the model. The method was made to spare the
product with the inverse Hessian per request; against a shared factorisation such a product is cheap, and
`jaxunlearn.convex.woodbury_removal` goes the whole way. It is here to be compared with.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.card import Method
from jaxunlearn.convex import removal
from jaxunlearn.convex.factorisation import described, downdate, prepare
from jaxunlearn.convex.objective import gradient
from jaxunlearn.convex.problems import Problem
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.slots import FACTORISATION
from jaxunlearn.status import combine
from jaxunlearn.types import Result, UnlearnFn

METHOD = Method(
    summary="Newton's removal from a convex problem, projected onto the span of the forget set",
    cites="izzo2021approximate",
    family="closed form",
    reads=frozenset({"factorisation", "forget", "retain"}),
    takes="problem",
    aliases=("pru",),
)

CUTOFF = 1e-10  # of the eigenvalues of the forget set's Gram matrix, relative to the largest


def projective_residual(problem: Problem) -> UnlearnFn:
    """Newton's removal, projected onto the span of the forget set.

    Reads slot `factorisation`, see `jaxunlearn.prepare`.

    Args:
        problem: what the variables were trained on.

    Returns:
        An `UnlearnFn`; `stats` as those of `jaxunlearn.convex.newton_removal`, with infinite bounds of the residual. The
        status is STALE where the factorisation belongs to other weights or other rows.

    Raises:
        ValueError: the factorisation is missing or of another form.

    Example:
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> problem = jaxunlearn.convex.softmax(1e-2, 3)
        >>> variables = jaxunlearn.convex.fit(problem, rows)
        >>> unlearn = jaxunlearn.convex.projective_residual(problem)
        >>> shared = jax.jit(jaxunlearn.prepare(unlearn))(variables, rows, key)
        >>> result = jax.jit(unlearn)(variables, shared, request, key)
    """

    def remove(variables, data, request, key):
        setting = removal.prepare_removal(problem, variables, data, request)
        made, stale = FACTORISATION.read(data, at=(variables, problem.l2), how=described(problem))
        if made.kernel.shape != setting.kernel.shape:
            raise ValueError(f"the factorisation belongs to weights {made.kernel.shape}, these are {setting.kernel.shape}")
        everything = gradient(problem, setting.kernel, data.train, data.present, setting.linear)  # the same for all requests
        slope = everything - removal.gradient_of_gone(problem, setting, setting.kernel)
        direction = -downdate(problem, made, setting).solve(slope)
        step = _projected(setting.gone.inputs, direction)
        after, moved = removal.stored(setting.kernel + step, variables)
        stats = removal.report_without_bounds(problem, data, setting, after - setting.kernel)
        return Result(moved, combine(STALE=stale, NOT_CONVERGED=~jnp.isfinite(stats["distance_bound"])), stats)

    return in_float64(one_shot(remove, model=problem.model, may_rest=True, prepare=prepare(problem)))


def _projected(rows: Float[Array, "k d"], direction: Float[Array, "d c"]) -> Float[Array, "d c"]:
    """Projection onto the span of the rows, of every output by itself."""
    values, vectors = jnp.linalg.eigh(rows @ rows.T)
    real = values > CUTOFF * values[-1]
    inverse = jnp.where(real, 1 / jnp.where(real, values, 1), 0)
    return rows.T @ (vectors @ (inverse[:, None] * (vectors.T @ (rows @ direction))))
