"""The margin of a prediction: how sure a model is of one class, on an unbounded scale."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def margins(logits: Float[Array, "... c"], targets: Int[Array, "..."]) -> Float[Array, "..."]:
    """True logit minus the log-sum-exp of the others, the log-odds of the true class:

        m = f_y - log sum_{k != y} e^{f_k} = log(p_y / (1 - p_y)).

    It cannot saturate: where `p_y` rounds to 1, margins of two models still differ.

    Args:
        logits: at least two classes on the last axis; all leading axes are kept, e.g. [models, examples, classes].
        targets: integer classes, broadcast against the leading axes of `logits`.

    Returns:
        In nats, the shape of `logits` without its last axis, at least float32. NaN where a logit is NaN or a target
        is no class.

    Raises:
        ValueError: fewer than two classes, targets that are not integers or do not broadcast.

    References:
        Carlini, Chien, Nasr, Song, Terzis, Tramer: Membership inference attacks from first principles, 2022, arXiv 2112.03570.

    Example:
        >>> margins = jaxunlearn.audit.margins(jnp.array([[2.0, 0.0, 0.0]]), jnp.array([0]))
        >>> round(float(margins[0]), 3)
        1.307
    """
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise ValueError(f"margins: expected logits with at least two classes on the last axis, got shape {logits.shape}")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"margins: targets are integer classes, got dtype {targets.dtype}")
    try:
        targets = jnp.broadcast_to(targets, logits.shape[:-1])
    except ValueError:
        raise ValueError(f"margins: targets {targets.shape} do not fit logits {logits.shape} without their last axis") from None
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    true = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(true, -jnp.inf, logits), axis=-1)
    own = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.where(targets < 0, jnp.nan, own) - others  # -1 would be read as the last class
