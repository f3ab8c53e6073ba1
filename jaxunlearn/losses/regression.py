"""Losses for real targets."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.types import Examples, Outputs


def squared_error(outputs: Outputs, examples: Examples) -> Float[Array, " b"]:
    """`1/2 sum_j (output_j - target_j)^2`, for regression.

    Args:
        outputs: `logits` Float[b] or Float[b, d].
        examples: `targets` of the same shape.

    Returns:
        Float[b], in squared units of the targets.

    Raises:
        ValueError: shapes differ, which would otherwise broadcast silently.

    Example:
        >>> outputs = jaxunlearn.Outputs(jnp.array([[1.0, 2.0], [0.0, 0.0]]))
        >>> jaxunlearn.losses.squared_error(outputs, jaxunlearn.Examples((), jnp.ones((2, 2)))).tolist()
        [0.5, 1.0]
    """
    if outputs.logits.shape != examples.targets.shape:
        raise ValueError(f"outputs {outputs.logits.shape} and targets {examples.targets.shape} must have one shape")
    errors = outputs.logits - examples.targets
    return 0.5 * jnp.sum(errors.reshape(errors.shape[0], -1) ** 2, axis=-1)
