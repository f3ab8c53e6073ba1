"""Losses for class labels."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxunlearn.types import Examples, Outputs


def cross_entropy(outputs: Outputs, examples: Examples) -> Float[Array, " b"]:
    """`-log softmax(logits)[y]`, for classifiers.

    Args:
        outputs: `logits` Float[b, c].
        examples: `targets` Int[b].

    Returns:
        Float[b], nats; NaN for labels that are no class.

    Raises:
        TypeError: targets that are no integers.

    Example:
        >>> losses = jaxunlearn.losses.cross_entropy(model.forward(variables, x), data.train)
        >>> losses.shape
        (60,)
    """
    labels = jnp.asarray(examples.targets)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"cross_entropy takes class numbers, got targets {labels.dtype}: write targets.astype(int)")
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits, labels)
    return jnp.where(labels < 0, jnp.nan, losses)  # -1 would be read as the last class
