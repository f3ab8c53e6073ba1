"""Influence unlearning with the empirical Fisher matrix (IU in Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu: Model sparsity can
simplify machine unlearning, NeurIPS 2023, arXiv 2304.04934; the inverse after Singh, Alistarh: WoodFisher, 2020, arXiv
2004.14340).

    w <- w + alpha (E + damping I)^{-1} v,    v = (1/n) sum_{forget} g - m / (n n') sum_{retain} g,
    E = mean_{retain} g g'

The released recursion multiplies one vector by scalars: what it adds stays a multiple of the first row's gradient, so that the
published baseline is nearly a plain gradient step. Here the inverse is the one that is written down.
"""

from typing import Unpack

import jax
import jax.numpy as jnp

from jaxunlearn import tree
from jaxunlearn.curvature.inverse import Inversion, checked, forgotten, invert, moved
from jaxunlearn.curvature.matvecs import gradient_sum
from jaxunlearn.curvature.solvers import norm
from jaxunlearn.driver import Updated, one_shot
from jaxunlearn.types import Model, Scalar, UnlearnFn


def woodfisher(model: Model, *, alpha: Scalar = 0.2, damping: Scalar = 1e-3, **options: Unpack[Inversion]) -> UnlearnFn:
    """One step with the inverse of the damped empirical Fisher matrix.

    Args:
        model: any.
        alpha: length of the step, may be traced; 1 is the influence of the forgotten rows.
        damping: positive, may be traced.
        options: see `jaxunlearn.curvature.Inversion`; `solver="cg"` and `matrix="empirical"` by default.

    Returns:
        An `UnlearnFn`; `stats`: `step_norm`, `residual` Float[] and `solver_steps` Int[].

    Raises:
        ValueError: settings out of range.

    Example:
        >>> result = jaxunlearn.woodfisher(model, damping=0.1)(variables, data, request, key)
    """
    tree.check_range("alpha", alpha, low=0)
    tree.check_range("damping", damping, low=0)
    complete = checked(**{"solver": "cg", "matrix": "empirical", "name": "empirical_fisher", **options})

    def remove(variables, data, request, key):
        part, count, left = forgotten(data, request)
        everything = gradient_sum(model, variables, data.train, data.present, chunk=complete.chunk)
        rows = gradient_sum(model, variables, part.examples, part.weights, chunk=complete.chunk)
        share = count / jnp.maximum(left, 1)
        pull = jax.tree.map(lambda a, g: (g - share * (a - g)) / (count + left), everything, rows)
        plain = model._replace(regularizer=None)
        found = invert(plain, variables, data, pull, damping=damping, options=complete, without=part)
        step = jax.tree.map(lambda x: alpha * x, found.solution)
        return Updated(moved(variables, step), {"step_norm": norm(step), **found.stats}, converged=found.converged)

    return one_shot(remove)
