"""Projective residual update (Izzo, Smart, Chaudhuri, Zou: Approximate data deletion from machine learning models, AISTATS
2021, arXiv 2002.10077) for convex problems.

    w <- w + P e,    e = -H_S^{-1} grad L'(w),    P the projection onto the span of the forgotten rows

The paper predicts what a model without the rows would say of them, and moves the weights as little as possible to say so: for
least squares that is the projection of the way to the retrained model, exactly, which is how it is computed here. Features that
only forgotten rows have are removed exactly; everything else is left to the model as it was. Its point was that it needs no
product with the inverse Hessian a request; against a shared factorisation such a product costs little, and
`jaxunlearn.woodbury_removal` goes the whole way. It is here to be compared with.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.convex import removal
from jaxunlearn.convex.factorisation import NAME, Factorisation, downdate
from jaxunlearn.convex.objective import gradient
from jaxunlearn.convex.problems import Problem
from jaxunlearn.driver import Updated, one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.types import UnlearnFn

CUTOFF = 1e-10  # of the eigenvalues of the forgotten rows' Gram matrix, relative to the largest


def projective_residual(problem: Problem) -> UnlearnFn:
    """Newton's removal, projected onto the span of the forgotten rows.

    Reads `data.extra["factorisation"]`, made by `jaxunlearn.convex.prepare(problem)(variables, data, key)`.

    Args:
        problem: what the variables were trained on.

    Returns:
        An `UnlearnFn`; `stats` as those of `jaxunlearn.newton_removal`, with infinite bounds of the residual.

    Raises:
        ValueError: the factorisation is missing or of another form.

    Example:
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> problem = jaxunlearn.convex.softmax(1e-2, 3)
        >>> variables = jaxunlearn.convex.fit(problem, rows)
        >>> shared = jaxunlearn.convex.prepare(problem)(variables, rows, key)
        >>> result = jaxunlearn.projective_residual(problem)(variables, shared, request, key)
    """

    def remove(variables, data, request, key):
        setting = removal.prepare_removal(problem, variables, data, request)
        made = data.extra.get(NAME)
        if not isinstance(made, Factorisation) or made.kernel.shape != setting.kernel.shape:
            raise ValueError(
                f"projective_residual needs data.extra[{NAME!r}] of this problem: "
                "make it with jaxunlearn.convex.prepare(problem)(variables, data, key)"
            )
        everything = gradient(problem, setting.kernel, data.train, data.present, setting.linear)  # the same for all requests
        slope = everything - removal.gradient_of_gone(problem, setting, setting.kernel)
        direction = -downdate(problem, made, setting).solve(slope)
        step = _projected(setting.gone.inputs, direction)
        after, moved = removal.stored(setting.kernel + step, variables)
        stats = removal.report_without_bounds(problem, data, setting, after - setting.kernel)
        return Updated(moved, stats, converged=jnp.isfinite(stats["distance_bound"]))

    return in_float64(one_shot(remove))


def _projected(rows: Float[Array, "k d"], direction: Float[Array, "d c"]) -> Float[Array, "d c"]:
    """Onto the span of the rows, for every output by itself."""
    values, vectors = jnp.linalg.eigh(rows @ rows.T)
    real = values > CUTOFF * values[-1]
    inverse = jnp.where(real, 1 / jnp.where(real, values, 1), 0)
    return rows.T @ (vectors @ (inverse[:, None] * (vectors.T @ (rows @ direction))))
