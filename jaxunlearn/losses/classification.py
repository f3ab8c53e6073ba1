"""Losses for class labels."""

import optax
from jaxtyping import Array, Float

from jaxunlearn.types import Examples, Outputs


def cross_entropy(outputs: Outputs, examples: Examples) -> Float[Array, "b"]:
    """`-log softmax(logits)[y]`, for classifiers.

    Args:
        outputs: `logits` Float[b, c].
        examples: `targets` Int[b].

    Returns:
        Float[b], nats.

    Example:
        >>> losses = jaxunlearn.losses.cross_entropy(model.forward(variables, x), data.train)
        >>> losses.shape
        (60,)
    """
    return optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits, examples.targets)
