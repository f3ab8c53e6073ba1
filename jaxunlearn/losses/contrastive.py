"""Losses on the directions of features."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn.types import Scalar

Denominator: TypeAlias = Literal["paper", "official"]


def unit_rows(features: Float[Array, "b D"]) -> Float[Array, "b D"]:
    """Rows divided by their Euclidean norm; a row of zeros stays one, and gets no gradient.

    Args:
        features: Float[b, D].

    Returns:
        Float[b, D].

    Example:
        >>> units = jaxunlearn.losses.unit_rows(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
        >>> bool(jnp.allclose(units, jnp.array([[0.6, 0.8], [0.0, 0.0]])))
        True
    """
    squares = jnp.sum(features**2, axis=-1, keepdims=True)
    return jnp.where(squares > 0, features * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)


def class_contrast(
    features: Float[Array, "b D"],
    labels: Int[Array, " b"],
    others: Float[Array, "m D"],
    other_labels: Int[Array, " m"],
    other_weights: Float[Array, " m"],
    *,
    temperature: Scalar = 1.0,
    denominator: Denominator = "paper",
) -> Float[Array, " b"]:
    """Near to the rows of other classes, far from those of the own class.

        l_i = -mean_{a: y_a != y_i} z_i z_a / T + s_i log sum_{p: y_p = y_i} exp(z_i z_p / T)

    with `s_i = 1` ("paper") or the number of other rows over the number of those of other classes ("official": the authors'
    code subtracts the logarithm in every column before it divides). Without a row of the own class the logarithm is a
    constant, that of the number of rows of other classes; without a row of another class the loss is 0.

    Args:
        features, labels: rows that are moved, Float[b, D] and Int[b]; unit rows keep the loss bounded, see `unit_rows`.
        others, other_labels: rows to compare with, Float[m, D] and Int[m]; gradients flow through them too.
        other_weights: Float[m]; rows of weight 0 do not count and may hold anything but NaN and inf.
        temperature: T, positive, may be traced.
        denominator: see above.

    Returns:
        Float[b].

    Raises:
        ValueError: an unknown denominator.

    References:
        Lee, Zhang, Yang, Lou, Xiong: Contrastive unlearning: a contrastive approach to machine unlearning, IJCAI 2025,
        arXiv 2401.10458, equations 5 and 6.

    Example:
        >>> rows, classes = jnp.eye(2), jnp.array([0, 1])
        >>> jaxunlearn.losses.class_contrast(rows[:1], classes[:1], rows, classes, jnp.ones(2)).tolist()
        [1.0]
    """
    if denominator not in ("paper", "official"):
        raise ValueError(f'denominator must be "paper" or "official", got {denominator!r}')
    similarity = features @ others.T / temperature
    counts = other_weights > 0
    same = (labels[:, None] == other_labels) & counts
    different = ~same & counts
    num_same, num_different = jnp.sum(same, axis=-1), jnp.sum(different, axis=-1)
    pull = jnp.sum(jnp.where(different, similarity, 0), axis=-1) / jnp.maximum(num_different, 1)
    # logsumexp has no derivative where nothing counts, so that such rows get something finite first
    finite = jnp.where(same | (num_same == 0)[:, None], similarity, -jnp.inf)
    push = jnp.where(num_same > 0, jax.nn.logsumexp(finite, axis=-1), jnp.log(jnp.maximum(num_different, 1)))
    scale = 1.0 if denominator == "paper" else (num_same + num_different) / jnp.maximum(num_different, 1)
    return jnp.where(num_different > 0, scale * push - pull, 0)
