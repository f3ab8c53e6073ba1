"""Reconstruction: the removed row itself, read off the difference of the weights before and after.

Exact for linear models and for one gradient step; see Bertran, Tang, Kearns, Morgenstern, Roth, Wu: Reconstruction attacks on
machine unlearning: simple models are vulnerable, NeurIPS 2024, arXiv 2405.20272, and for gradients Zhu, Liu, Han: Deep leakage
from gradients, 2019, arXiv 1906.08935. The derivations are those given here.
Both functions say how well one row explains the difference. Where it does not, what they return is no row.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.precision import in_float64


class Reconstruction(NamedTuple):
    """A row, and how well it explains the difference of the weights. In float64."""

    row: Float[Array, " d"]
    factor: Float[Array, " m"]  # what the row was multiplied with: residuals of a linear model, or gradients of hidden units
    agreement: Float[Array, ""]  # share of the squared difference that one row explains, in [0, 1]; NaN where nothing changed


@in_float64
def reconstruct_linear(
    before: Float[Array, "d m"], after: Float[Array, "d m"], hessian: Float[Array, "d d"], *, intercept: int | None = None
) -> Reconstruction:
    """The row that an exact removal from ridge took out.

    With H the Hessian of the rows that are left, penalty included, in its sum form, the optima of both sums obey

        H (W_before - W_after) = x (y - W_before' x)',

    and with the Hessian of all rows the same with W_after in the residual: the difference has rank one, and its direction is
    the row. With an input that is always 1 the scale follows, and with the residual the targets: `y = W_before' x + factor`.

    Args:
        before, after: weights [d, m] of both models, optima of one objective.
        hessian: H. With an estimate of it, such as that of public rows, the row is an estimate.
        intercept: number of the input that is always 1. Without one only the direction is known: the row has length 1 and
            either sign.

    Returns:
        `Reconstruction`, `factor` [m] the residuals. With one output any difference has rank one and `agreement` is 1
        whatever was removed; with several it tells one removed row from several.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> hessian, row = 3 * jnp.eye(2), jnp.array([2.0, 1.0])
        >>> difference = jnp.linalg.solve(hessian, jnp.outer(row, jnp.array([0.5, -1.0])))
        >>> found = jaxunlearn.audit.reconstruct_linear(difference, 0 * difference, hessian, intercept=1)
        >>> bool(jnp.allclose(jnp.float32(found.row), row, atol=1e-5))
        True
    """
    before, after, hessian = (jnp.asarray(x, jnp.float64) for x in (before, after, hessian))
    if before.ndim != 2 or before.shape != after.shape or hessian.shape != (before.shape[0],) * 2:
        raise ValueError(
            f"reconstruct_linear: expected weights [d, m] twice and a Hessian [d, d], got {before.shape}, {after.shape} and "
            f"{hessian.shape}"
        )
    left, sizes, right = jnp.linalg.svd(jnp.matmul(hessian, before - after, precision="highest"), full_matrices=False)
    total = jnp.sum(sizes**2)
    agreement = jnp.where(total > 0, sizes[0] ** 2 / jnp.where(total > 0, total, 1), jnp.nan)
    scale = jnp.float64(1) if intercept is None else left[intercept, 0]
    return Reconstruction(left[:, 0] / scale, sizes[0] * right[0] * scale, agreement)


@in_float64
def reconstruct_first_layer(kernel_change: Float[Array, "d m"], bias_change: Float[Array, " m"]) -> Reconstruction:
    """The row whose gradient a step on a network with a first layer `x W + b` was made of.

    The gradients of one row are `x g'` for W and `g` for b, g those of the hidden units, so that every unit with `g_j != 0`
    gives the whole row, `dW_j / db_j`. All units together give it by least squares, `x = dW db / |db|^2`.

    It is exact for one step of plain gradient descent on (or ascent from) one row, and for the difference of two models that
    made one step from common weights, on sums with and without the row. After several steps, with momentum, Adam or weight
    decay, or for several rows, it is not, and `agreement` is below 1.

    Args:
        kernel_change: difference of W, of any factor.
        bias_change: that of b, of the same factor.

    Returns:
        `Reconstruction`, `factor` [m] the change of the bias.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> row, gradient = jnp.array([0.5, -2.0, 1.0]), jnp.array([0.1, 0.0, -0.3])
        >>> found = jaxunlearn.audit.reconstruct_first_layer(jnp.outer(row, gradient), gradient)
        >>> bool(jnp.allclose(jnp.float32(found.row), row)), round(float(found.agreement), 6)
        (True, 1.0)
    """
    kernel, bias = jnp.asarray(kernel_change, jnp.float64), jnp.asarray(bias_change, jnp.float64)
    if kernel.ndim != 2 or bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"reconstruct_first_layer: expected changes [d, m] and [m], got {kernel.shape} and {bias.shape}; flatten the "
            "inputs of the layer"
        )
    size, total = jnp.sum(bias**2), jnp.sum(kernel**2)
    row = jnp.where(size > 0, kernel @ bias / jnp.where(size > 0, size, 1), jnp.nan)
    missed = jnp.sum((kernel - row[:, None] * bias) ** 2)
    known = (size > 0) & (total > 0)
    return Reconstruction(row, bias, jnp.where(known, 1 - missed / jnp.where(known, total, 1), jnp.nan))
