"""Turn descent into ascent."""

import optax


def ascend() -> optax.GradientTransformation:
    """Flip the sign of gradients: in front of an optimizer it climbs the loss it would descend.

    Returns:
        An optax transformation.

    Example:
        >>> optimizer = optax.chain(jaxunlearn.transforms.ascend(), optax.adam(1e-3))
    """
    return optax.scale(-1.0)
