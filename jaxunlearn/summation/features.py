"""Features of rows for learners of sums."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import checks


def flat_rows(inputs: Any) -> Float[Array, "b d"]:
    """Inputs as vectors, in float64 where that is on."""
    inputs = jnp.asarray(inputs)
    return wide(inputs.reshape(inputs.shape[0], -1))


def wide(values: Any) -> Array:
    """In float64 where that is on, as in fits and removals; predictions elsewhere are in float32."""
    return jnp.asarray(values, jax.dtypes.canonicalize_dtype(jnp.float64))


class RandomFeatures(NamedTuple):
    """`sqrt(2 / width) cos(x' direction + shift)`, see `random_features`."""

    directions: Float[Array, "inputs width"]
    shifts: Float[Array, " width"]

    def __call__(self, inputs: Any) -> Float[Array, "b width"]:
        """Features of rows."""
        flat = flat_rows(inputs)
        angles = flat @ self.directions.astype(flat.dtype) + self.shifts.astype(flat.dtype)
        return jnp.sqrt(2.0 / self.shifts.shape[0]) * jnp.cos(angles)

    def slack(self, inputs: Any) -> Float[Array, " b"]:
        """By how much features of a row may differ from call to call: as much as the sums in their angles."""
        flat = flat_rows(inputs)
        reach = jnp.linalg.norm(flat, axis=1) * jnp.max(jnp.linalg.norm(self.directions.astype(flat.dtype), axis=0))
        terms = flat.shape[1] + 8
        return jnp.sqrt(2.0 / self.shifts.shape[0]) * terms * jnp.finfo(flat.dtype).eps * (reach + 2 * jnp.pi)


def random_features(key: jax.Array, width: int, inputs: int, *, scale: float = 1.0) -> RandomFeatures:
    """Cosines of random directions, whose products approximate a Gaussian kernel (Rahimi, Recht, 2007), for `ridge`.

    Args:
        key: of the directions.
        width: how many there are.
        inputs: entries of one row's inputs.
        scale: of the kernel, the distance at which rows stop to resemble each other.

    Returns:
        A function of inputs [b, ...].

    Example:
        >>> learner = jaxunlearn.summation.ridge(features=jaxunlearn.summation.random_features(key, 16, 4))
        >>> rows = jaxunlearn.training_data(x, x[:, 0])
        >>> jaxunlearn.summation.fit(learner, rows).params["weights"].shape
        (16, 1)
    """
    checks.require_count("width", width)
    angle_key, shift_key = jax.random.split(key)
    directions = jax.random.normal(angle_key, (inputs, width)) / scale
    shifts = jax.random.uniform(shift_key, (width,), maxval=2 * jnp.pi)
    return RandomFeatures(directions, shifts)
