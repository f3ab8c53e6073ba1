"""Newton's step on the retain set, for any model.

    w <- w - (C' + R + damping I)^{-1} grad F'(w),    F' the mean loss over the retain set plus the regularizer

Exact for least squares. The step of Guo, Goldstein, Hannun, van der Maaten, ICML 2020, arXiv 1911.03030, with any matrix C';
nothing is certified here, since a network's loss is not convex. For convex problems with bounds see
`jaxunlearn.convex.newton_removal`. Unlike `influence` it uses the gradient as it is, so that weights that are no optimum move
towards one, with and without anything to forget.
"""

from typing import Unpack

import jax
import jax.numpy as jnp

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.curvature.logit_gradients import Kind
from jaxunlearn.curvature.solve import Inversion, checked, invert, moved, preparation_for, retained_gradient
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.sampling import forget_rows
from jaxunlearn.types import Model, Result, Scalar, UnlearnFn

METHOD = Method(
    summary="a damped Newton step on the retain set, with the Gauss-Newton matrix, the Hessian or any approximation of them",
    cites="guo2020certified",
    family="closed form",
    reads=frozenset({"curvature", "forget", "retain"}),
    search={"damping": (0.0001, 0.001, 0.01, 0.1, 1.0)},
)


def newton(model: Model, *, damping: Scalar, correction: Kind | None = None, **options: Unpack[Inversion]) -> UnlearnFn:
    """One damped Newton step on the retain set.

    The gradient over all rows is the same for all requests of a batch and is taken once. With `solver="cg"` C' is that of the
    retain set exactly; with a representation it is that of all rows, unless corrected.

    Args:
        model: its regularizer is part of the objective; `cg` takes its Hessian, a representation the mean of that diagonal.
        damping: added to C', at least 0, may be traced.
        correction: take the forget set off the representation by Woodbury's identity: `empirical` or `sampled` for one vector
            per row, `ggn` or `fisher` for one per class. Exact for `dense` and `gram` of the same kind; an approximate
            representation may not hold what is taken off, which the status reports.
        options: see `jaxunlearn.curvature.Inversion`.

    Returns:
        An `UnlearnFn`; `stats`: `step_norm` Float[], those of the solver, and with a correction `margin` Float[], which is
        above 0 where the corrected matrix is positive. INDEFINITE where it is not, NOT_CONVERGED where a solver
        stopped early. Model state stays as it is.

    Raises:
        ValueError: negative damping, unknown options, a representation that is missing.

    Example:
        >>> unlearn = jaxunlearn.newton(model, damping=1e-2, solver="cg", matrix="ggn")
        >>> result = jax.jit(unlearn)(variables, data, request, key)
        >>> int(result.status)
        0
    """
    checks.check_range("damping", damping, low=0)
    complete = checked(**options)
    if correction is not None and complete.solver == "cg":
        raise ValueError("solver='cg' leaves the rows of the forget set out exactly: drop correction, or use a representation")

    def remove(variables, data, request, key):
        part = forget_rows(data, request)
        slope = retained_gradient(model, variables, data, part, chunk=complete.chunk)
        found = invert(
            model, variables, data, slope,
            damping=damping, options=complete, without=part, correction=correction, key=key,
        )  # fmt: skip
        step = jax.tree.map(jnp.negative, found.solution)
        return Result(moved(variables, step), found.status, {"step_norm": tree.norm(step), **found.stats})

    return one_shot(remove, model=model, prepare=preparation_for(model, complete))
