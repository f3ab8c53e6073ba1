"""Influence functions as a removal (Koh, Liang: Understanding black-box predictions via influence functions, ICML 2017, arXiv
1703.04730), for any model.

    w <- w + (1/n) (C + R + damping I)^{-1} sum_{forget} grad (loss + regularizer)(w),    C over ALL rows

First order in the share of the forget set: right for few rows near an optimum. In deep networks it follows the response of the
linearised model rather than retraining (Bae, Ng, Lo, Ghassemi, Grosse, 2022, arXiv 2209.05364). Nothing is certified. For
convex problems with bounds see `jaxunlearn.convex.influence_removal`.
"""

from typing import Unpack

import jax

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.curvature.matvecs import gradient_sum
from jaxunlearn.curvature.solve import Inversion, checked, forgotten, invert, moved, preparation_for, regularizer_gradient
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.types import Model, Result, Scalar, UnlearnFn

METHOD = Method(
    summary="influence functions as a removal, with the Gauss-Newton matrix, the Hessian or any approximation of them",
    cites="koh2017understanding",
    family="closed form",
    reads=frozenset({"curvature", "forget"}),
    search={"damping": (1e-05, 0.0001, 0.001, 0.01, 0.1, 1.0)},
)


def influence(model: Model, *, damping: Scalar, **options: Unpack[Inversion]) -> UnlearnFn:
    """Add the influence of the forget set; all requests share one matrix C.

    Args:
        model: its regularizer, if it has one, is part of every row's loss.
        damping: added to C, at least 0, may be traced; a tenth of its mean eigenvalue is a start.
        options: see `jaxunlearn.curvature.Inversion`; by default slot `curvature` is solved with, an EK-FAC.

    Returns:
        An `UnlearnFn`; `stats`: `step_norm` Float[], and those of the solver. A solver that stopped early gives the status
        NOT_CONVERGED, a damped matrix that is not positive INDEFINITE, a curvature of other parameters or rows STALE.
        The model's state (running statistics) stays as it is, and still holds the forget set.

    Raises:
        ValueError: negative damping, unknown options, a representation that is missing.

    Example:
        >>> unlearn = jaxunlearn.influence(model, damping=1e-2)
        >>> ready = jax.jit(jaxunlearn.prepare(unlearn))(variables, data, key)
        >>> result = jax.jit(unlearn)(variables, ready, request, key)
    """
    checks.check_range("damping", damping, low=0)
    complete = checked(**options)

    def remove(variables, data, request, key):
        part, count, left = forgotten(data, request)
        rows = gradient_sum(model, variables, part.examples, part.weights, chunk=complete.chunk)
        penalty = regularizer_gradient(model, variables)
        pull = jax.tree.map(lambda g, p: (g + count * p) / (count + left), rows, penalty)
        found = invert(model, variables, data, pull, damping=damping, options=complete)
        stats = {"step_norm": tree.norm(found.solution), **found.stats}
        return Result(moved(variables, found.solution), found.status, stats)

    return one_shot(remove, model=model, prepare=preparation_for(model, complete))
