"""ROUGE-L on tokens: the longest common subsequence of a text and its reference.

Lin: ROUGE: a package for automatic evaluation of summaries, 2004, https://aclanthology.org/W04-1013. On equal tokens the values
are those of the package `rouge-score`, which splits text into words and may stem them; numbers of a model's own tokens give
other values than words do.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class RougeL(NamedTuple):
    """What `rouge_l` returns."""

    precision: Float[Array, "..."]  # share of the text that is common
    recall: Float[Array, "..."]  # share of the reference that is common
    f1: Float[Array, "..."]


def common_length(first: Int[Array, "... n"], second: Int[Array, "... m"]) -> Int[Array, "..."]:
    """Length of the longest common subsequence; tokens below 0 are no tokens, wherever they stand.

    Args:
        first, second: numbers of tokens; leading axes broadcast.

    Returns:
        Integers.

    Raises:
        ValueError: tokens without an axis.

    Example:
        >>> int(jaxunlearn.audit.language.common_length(jnp.array([1, 2, 3, 4]), jnp.array([2, 5, 4, -1])))
        2
    """
    first, second = jnp.asarray(first), jnp.asarray(second)
    if not first.ndim or not second.ndim:
        raise ValueError(f"expected tokens [..., n] and [..., m], got {first.shape} and {second.shape}")
    leading = jnp.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    first = jnp.moveaxis(jnp.broadcast_to(first, leading + first.shape[-1:]), -1, 0)
    second = jnp.broadcast_to(second, leading + second.shape[-1:])

    def row(before: Int[Array, "... m+1"], token: Int[Array, "..."]) -> tuple[Int[Array, "... m+1"], None]:
        same = (second == token[..., None]) & (second >= 0)
        longer = jnp.maximum(before[..., 1:], before[..., :-1] + same)
        best = jax.lax.cummax(longer, axis=longer.ndim - 1)
        return jnp.concatenate([before[..., :1], best], axis=-1), None

    last, _ = jax.lax.scan(row, jnp.zeros((*leading, second.shape[-1] + 1), jnp.int32), first)
    return last[..., -1]


def rouge_l(generated: Int[Array, "... n"], references: Int[Array, "... m"]) -> RougeL:
    """ROUGE-L of generated tokens against reference tokens; TOFU and MUSE report its recall and F1.

    Args:
        generated: tokens that a model wrote, below 0 where there is none (behind the end of the text, say).
        references: tokens of the reference, below 0 where there is none: labels as they are.

    Returns:
        `RougeL` of values in [0, 1]; 0 where a side has no token.

    Raises:
        ValueError: tokens without an axis.

    Example:
        >>> found = jaxunlearn.audit.language.rouge_l(jnp.array([1, 2, 9]), jnp.array([1, 2, 3, 4]))
        >>> float(found.recall), round(float(found.f1), 3)
        (0.5, 0.571)
    """
    common = common_length(generated, references).astype(jnp.float32)
    written, wanted = (jnp.sum(jnp.asarray(x) >= 0, axis=-1) for x in (generated, references))
    precision, recall = common / jnp.maximum(written, 1), common / jnp.maximum(wanted, 1)
    return RougeL(precision, recall, 2 * common / jnp.maximum(written + wanted, 1))
