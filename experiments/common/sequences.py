"""Losses of token sequences: logits [b, t, v], and targets [b, t] that are the token each position is to predict, -1 where it
does not count (prompts, padding).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

import jaxunlearn as ju
from jaxunlearn.types import ExampleLoss, Scalar

Reduction = Literal["mean", "sum"]


def token_losses(outputs: ju.Outputs, examples: ju.Examples) -> Float[Array, "b t"]:
    """`-log p(token)` in nats, 0 where a position does not count."""
    counted = examples.targets >= 0
    logits = outputs.logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, jnp.where(counted, examples.targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - chosen, 0)


def sequence_log_loss(*, reduction: Reduction = "mean", z_loss: Scalar = 0.0) -> ExampleLoss:
    """`-log p` of a row, over the positions that count.

    Args:
        reduction: `mean` over them, or their `sum`, the negative log-likelihood of the row.
        z_loss: weight of the square of the log-partition function.
    """

    def loss(outputs: ju.Outputs, examples: ju.Examples) -> Float[Array, " b"]:
        counted = examples.targets >= 0
        losses = token_losses(outputs, examples)
        if not (isinstance(z_loss, float) and z_loss == 0):
            partition = jax.nn.logsumexp(outputs.logits.astype(jnp.float32), axis=-1)
            losses += jnp.where(counted, z_loss * partition**2, 0)
        total = jnp.sum(losses, axis=-1)
        return total if reduction == "sum" else total / jnp.maximum(jnp.sum(counted, axis=-1), 1)

    return loss


sequence_cross_entropy = sequence_log_loss()


def exposure(canaries: Float[Array, " c"], others: Float[Array, "c n"]) -> Float[Array, " c"]:
    """Exposure of canaries in bits: `log2` of how many texts there are, less `log2` of their ranks among them by loss.

    Carlini, Liu, Erlingsson, Kos, Song: The secret sharer, USENIX Security 2019, arXiv 1802.08232. A tie counts half.

    Args:
        canaries: their losses.
        others: losses of all texts of the space, each canary's own among them.
    """
    less, same = (jnp.sum(compare(others, canaries[:, None]), axis=1) for compare in (jnp.less, jnp.equal))
    bits = jnp.log2(others.shape[1]) - jnp.log2(less + (jnp.maximum(same, 1) + 1) / 2)
    return jnp.where(jnp.isnan(canaries), jnp.nan, bits)


def extraction_strength(hits: Bool[Array, "... t"], labels: Int[Array, "... t"]) -> Float[Array, "..."]:
    """`1 - k / length`, k the shortest beginning behind which every token is predicted first (arXiv 2406.09179)."""
    counted = labels >= 0
    behind = jnp.flip(jnp.cumprod(jnp.flip(hits | ~counted, axis=-1).astype(jnp.int32), axis=-1), axis=-1)
    return jnp.sum(jnp.where(counted, behind, 0), axis=-1) / jnp.sum(counted, axis=-1)
