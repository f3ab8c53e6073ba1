"""The gradient of an L1 penalty."""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.types import Scalar


def sparsify(strength: Scalar | optax.Schedule) -> optax.GradientTransformation:
    """Add `strength * sign(w)`, the gradient of `strength * ||w||_1`, to gradients; put it in front of an optimizer.

    Args:
        strength: a number, which may be traced, or a schedule of the step, counted from 0.

    Returns:
        An optax transformation.

    Raises:
        ValueError: an update without the parameters.

    Example:
        >>> optimizer = optax.chain(jaxunlearn.transforms.sparsify(1e-4), optax.sgd(0.1))
    """

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("sparsify needs the parameters: call update(gradients, state, params)")
        current = strength(state.count) if callable(strength) else strength
        penalised = jax.tree.map(lambda g, w: (g + current * jnp.sign(w)).astype(g.dtype), updates, params)
        return penalised, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update)
