"""Influence functions as a removal (Koh, Liang: Understanding black-box predictions via influence functions, ICML 2017, arXiv
1703.04730), for any model.

    w <- w + (1/n) (C + R + damping I)^{-1} sum_{forget} grad (loss + regularizer)(w),    C over ALL rows

First order in the share of forgotten rows: right for few of them near an optimum. In deep networks it follows the response of
the linearised model rather than retraining (Bae, Ng, Lo, Ghassemi, Grosse, 2022, arXiv 2209.05364). Nothing is certified. For
convex problems with bounds see `jaxunlearn.influence_removal`.
"""

from typing import Unpack

import jax

from jaxunlearn import tree
from jaxunlearn.curvature.inverse import Inversion, checked, forgotten, invert, moved, regularizer_gradient
from jaxunlearn.curvature.matvecs import gradient_sum
from jaxunlearn.curvature.solvers import norm
from jaxunlearn.driver import Updated, one_shot
from jaxunlearn.types import Model, Scalar, UnlearnFn


def influence(model: Model, *, damping: Scalar, **options: Unpack[Inversion]) -> UnlearnFn:
    """Add the influence of the forgotten rows; all requests share one curvature.

    Args:
        model: its regularizer, if it has one, is part of every row's loss.
        damping: added to the curvature, at least 0, may be traced; a tenth of its mean eigenvalue is a start.
        options: see `jaxunlearn.curvature.Inversion`; by default `data.extra["curvature"]` is solved with, e.g. an EK-FAC.

    Returns:
        An `UnlearnFn`; `stats`: `step_norm` Float[], and those of the solver. A solver that stopped early gives the status
        NOT_CONVERGED. Model state (running statistics) stays as it is, and still holds the forgotten rows.

    Raises:
        ValueError: negative damping, unknown options, a representation that is missing.

    Example:
        >>> fit = jaxunlearn.curvature.ekfac(model)
        >>> prepared = jaxunlearn.curvature.prepare(fit)(variables, data, key)
        >>> result = jaxunlearn.influence(model, damping=1e-2)(variables, prepared, request, key)
    """
    tree.check_range("damping", damping, low=0)
    complete = checked(**options)

    def remove(variables, data, request, key):
        part, count, left = forgotten(data, request)
        rows = gradient_sum(model, variables, part.examples, part.weights, chunk=complete.chunk)
        penalty = regularizer_gradient(model, variables)
        pull = jax.tree.map(lambda g, p: (g + count * p) / (count + left), rows, penalty)
        found = invert(model, variables, data, pull, damping=damping, options=complete)
        stats = {"step_norm": norm(found.solution), **found.stats}
        return Updated(moved(variables, found.solution), stats, converged=found.converged)

    return one_shot(remove)
