"""Methods whose steps are of two kinds, in turns."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxunlearn.types import Batch, Scalar


def forgets(batch: Batch, *, forget_steps: Scalar, retain_steps: Scalar, rounds: Scalar) -> Bool[Array, ""]:
    """Whether a step forgets: a round is `forget_steps` of this kind, then `retain_steps` of the other.

    It depends on the step only, so `lax.cond` on it stays a branch under `vmap` and the phase that is not run costs nothing.

    Args:
        batch: of the step.
        forget_steps, retain_steps: length of the two phases of a round, in steps.
        rounds: how many rounds there are; later steps are of the second kind.

    Returns:
        Bool[].

    Example:
        >>> from jaxunlearn.loop.phases import forgets
        >>> part = jaxunlearn.forget_rows(data, request)
        >>> steps = [jaxunlearn.Batch(part, part, step, 8) for step in range(8)]
        >>> [int(forgets(batch, forget_steps=1, retain_steps=2, rounds=2)) for batch in steps]
        [1, 0, 0, 1, 0, 0, 0, 0]
    """
    finished, position = jnp.divmod(batch.step, forget_steps + retain_steps)
    return (finished < rounds) & (position < forget_steps)
