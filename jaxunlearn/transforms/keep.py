"""Restrict an optimizer to a part of the parameters."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree


def keep(mask: PyTree) -> optax.GradientTransformation:
    """Multiply updates by a mask; what it zeroes does not move.

    Put it behind the optimizer, so that momentum and weight decay are masked too. Unlike `optax.masked` the mask is an
    array tree: it may be traced, fractional, and differ between requests.

    Args:
        mask: tree of the params' structure whose leaves broadcast against them, e.g. 0 and 1.

    Returns:
        An optax transformation.

    Example:
        >>> mask = {"body": 0.0, "head": 1.0}
        >>> optimizer = optax.chain(optax.adamw(1e-3), jaxunlearn.transforms.keep(mask))
    """
    return optax.stateless(lambda updates, params: jax.tree.map(_masked, updates, mask))


def _masked(update: Array, mask: Array) -> Array:
    return jnp.where(mask == 0, 0, update * mask)  # a zero holds against inf and NaN, too
