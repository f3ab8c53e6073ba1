"""Diagonals of curvature matrices, which most removal heuristics call importances."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxunlearn.curvature.approximations import Diagonal, Fit, RowFit
from jaxunlearn.curvature.logit_gradients import Kind, check_kind, draws
from jaxunlearn.curvature.single_rows import row_squares
from jaxunlearn.types import Model


def diagonal(model: Model, *, kind: Kind = "fisher", chunk: int | None = 64) -> Fit:
    """Mean over rows of the squared single gradients, `diag(C)`; exact, unlike squares of batch gradients.

    Args:
        model: in evaluation mode.
        kind: see `jaxunlearn.curvature.logit_gradients`; `fisher` is the true Fisher matrix, with c gradients per row, one
            after the other.
        chunk: rows with a gradient in memory together.

    Returns:
        A `Fit` that makes a `Diagonal`.

    Example:
        >>> fit = jaxunlearn.curvature.diagonal(model, kind="empirical")
    """

    def fit(variables, rows, key):
        check_kind(kind, rows.one, key)

        def squares(part, weights):
            found = row_squares(kind, model, variables, *part)
            return jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, axes=1), found)

        return Diagonal(rows.means(lambda part: part, partial(draws, kind, key))(squares))

    return RowFit(fit, chunk)
