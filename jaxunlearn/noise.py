"""Normal numbers whose tails are long enough for a certificate.

`jax.random.normal` makes a float32 number from 23 random bits, none of which lies beyond 5.5: a part of every law that somebody
could tell two models by is cut off. Here 64 bits go into every number, float32 ones reach 6.7 and float64 ones 8.3.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree


def normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Standard normal numbers.

    Args:
        key: a typed key.
        shape: of the array.
        dtype: floating-point; below float32 they are drawn in float32 and rounded. float64 needs `jax.enable_x64(True)`.

    Returns:
        An array of that shape and dtype.

    Example:
        >>> from jaxunlearn.noise import normal
        >>> normal(jax.random.key(0), (3,), jnp.float32).shape
        (3,)
    """
    first, second = (jax.random.bits(part, shape, jnp.uint32) for part in jax.random.split(key))
    if dtype == jnp.float64:
        high, low = first.astype(jnp.float64), second.astype(jnp.float64)
        return jax.scipy.special.ndtri((high + (low + 0.5) / 2**32) / 2**32)
    uniform = (first.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)  # down to 2^-33, which float32 resolves
    angle = second.astype(jnp.float32) * jnp.float32(2 * math.pi * 2.0**-32)
    return (jnp.sqrt(-2 * jnp.log(uniform)) * jnp.cos(angle)).astype(dtype)


def normal_like(key: PRNGKeyArray, like: PyTree) -> PyTree:
    """Standard normal numbers of the shapes and dtypes of a tree."""
    leaves, form = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return form.unflatten([normal(one, jnp.shape(x), jnp.result_type(x)) for one, x in zip(keys, leaves, strict=True)])
