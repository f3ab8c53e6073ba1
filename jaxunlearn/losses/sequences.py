"""Losses of token sequences: one value per row, padding and prompts left out.

Rows are `Examples(inputs=tokens, targets=labels)`, both Int[b, t]: `labels[i, j]` is the token that position j is to predict,
so that labels are shifted already, and `IGNORED` where a position does not count.
"""

from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn import checks
from jaxunlearn.types import ExampleLoss, Examples, Outputs, Scalar

IGNORED = -1  # label of a position that does not count

Reduction: TypeAlias = Literal["mean", "sum"]


def sequence_cross_entropy(outputs: Outputs, examples: Examples) -> Float[Array, " b"]:
    """Mean of `-log softmax(logits)[label]` over the positions of a row that count, in float32 or wider.

    Args:
        outputs: `logits` Float[b, t, v].
        examples: `targets` Int[b, t], already shifted; `IGNORED` (-1) where a position does not count.

    Returns:
        Float[b], nats per token; 0 for a row of which nothing counts. Labels that are no token give NaN, gradients included.

    Raises:
        TypeError: labels that are no integers. ValueError: labels that do not fit the logits.

    Example:
        >>> outputs = jaxunlearn.Outputs(jnp.zeros((2, 3, 5)))
        >>> labels = jnp.array([[4, 0, -1], [-1, -1, -1]])
        >>> losses = jaxunlearn.losses.sequence_cross_entropy(outputs, jaxunlearn.Examples((), labels))
        >>> [round(float(x), 3) for x in losses]  # log 5
        [1.609, 0.0]
    """
    return _MEAN(outputs, examples)


def sequence_log_loss(*, reduction: Reduction = "mean", z_loss: Scalar = 0.0) -> ExampleLoss:
    """A loss of token sequences: the mean over the positions that count, or their sum.

    The sum is the negative log-likelihood of a whole answer, which `jaxunlearn.npo` is written for; the mean that of a token,
    for `jaxunlearn.simnpo`.

    Args:
        reduction: over the positions of a row that count.
        z_loss: weight of `log(sum_v e^logit)^2` at every such position, at least 0, may be traced; it keeps logits near those
            of a normalised distribution.

    Returns:
        A loss as `sequence_cross_entropy`, which is the one with the defaults.

    Raises:
        ValueError: an unknown reduction, a negative weight.

    References:
        Chowdhery et al.: PaLM: Scaling language modeling with pathways, JMLR 2023, arXiv 2204.02311, section 5, for `z_loss`.

    Example:
        >>> loss = jaxunlearn.losses.sequence_log_loss(reduction="sum")
        >>> rows = jaxunlearn.Examples((), jnp.array([[4, 0, -1]]))
        >>> bool(jnp.allclose(loss(jaxunlearn.Outputs(jnp.zeros((1, 3, 5))), rows), 2 * jnp.log(5.0)))
        True
    """
    _check(reduction, z_loss)

    def loss(outputs: Outputs, examples: Examples) -> Float[Array, " b"]:
        logits = jnp.asarray(outputs.logits)
        labels = token_labels(examples.targets, logits.shape[:-1], "logits")
        wide = logits_that_count(logits, labels)
        own = jnp.take_along_axis(wide, jnp.clip(labels, 0, logits.shape[-1] - 1)[..., None], axis=-1)[..., 0]
        return _per_row(jax.nn.logsumexp(wide, axis=-1), own, labels, logits.shape[-1], reduction, z_loss)

    return loss


def blocked_cross_entropy(
    hidden: Float[Array, "b t d"],
    kernel: Float[Array, "d v"],
    labels: Int[Array, "b t"],
    *,
    block: int = 4096,
    reduction: Reduction = "mean",
    z_loss: Scalar = 0.0,
) -> Float[Array, " b"]:
    """`sequence_log_loss` of `hidden @ kernel`, by blocks of the vocabulary: no array [b, t, v] exists, nor does its gradient.

    The sum over the vocabulary is carried from block to block, and the logits of a block are computed again on the way back.
    Derivatives of all orders are those of the plain loss.

    For a `Model` let `forward` return hidden states and kernel as features, beside the logits: where the loss reads no logits,
    the compiler leaves them out.

        loss = lambda outputs, examples: blocked_cross_entropy(
            outputs.features["hidden"], outputs.features["kernel"], examples.targets)

    Curvature needs a loss of the logits and refuses this one.

    Args:
        hidden: last hidden states, of any floating-point type; products are summed in float32 or wider.
        kernel: from hidden states to logits.
        labels: as of `sequence_cross_entropy`.
        block: tokens of the vocabulary whose logits are in memory together, static.
        reduction, z_loss: as of `sequence_log_loss`.

    Returns:
        Float[b].

    Raises:
        ValueError: shapes that do not fit, a block that is no positive integer, an unknown reduction, a negative weight.
        TypeError: labels that are no integers.

    Example:
        >>> labels = jnp.array([[4, 0, -1]])
        >>> value = jaxunlearn.losses.blocked_cross_entropy(jnp.ones((1, 3, 2)), jnp.ones((2, 5)), labels, block=2)
        >>> bool(jnp.allclose(value, jnp.log(5.0)))
        True
    """
    _check(reduction, z_loss)
    checks.require_count("block", block)
    hidden, kernel = jnp.asarray(hidden), jnp.asarray(kernel)
    if kernel.ndim != 2 or hidden.shape[-1] != kernel.shape[0]:
        raise ValueError(f"blocked_cross_entropy needs hidden [b, t, d] and kernel [d, v], got {hidden.shape}, {kernel.shape}")
    labels = token_labels(labels, hidden.shape[:-1], "hidden")
    size = kernel.shape[1]
    block = min(block, size)
    starts = jnp.arange(0, size, block)
    padded = jnp.pad(kernel, [(0, 0), (0, -size % block)])
    parts = jnp.moveaxis(padded.reshape(kernel.shape[0], -1, block), 1, 0)
    rows = jnp.where((labels != IGNORED)[..., None], hidden, 0)
    dtype = jnp.promote_types(jnp.result_type(hidden, kernel), jnp.float32)

    @jax.checkpoint
    def add(carry: tuple[Array, Array, Array], part: tuple[Array, Array]) -> tuple[tuple[Array, Array, Array], None]:
        (top, total, own), (columns, start) = carry, part
        token = start + jnp.arange(block)
        logits = jnp.matmul(rows, columns, preferred_element_type=dtype)
        logits = jnp.where(token < size, logits, -jnp.inf)
        # the maximum only keeps the sum in range: its derivative cancels
        now = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(logits, axis=-1)))
        total = total * jnp.exp(top - now) + jnp.sum(jnp.exp(logits - now[..., None]), axis=-1)
        own = own + jnp.sum(jnp.where(labels[..., None] == token, logits, 0), axis=-1)
        return (now, total, own), None

    zeros = jnp.zeros(labels.shape, dtype)
    (top, total, own), _ = jax.lax.scan(add, (zeros - jnp.inf, zeros, zeros), (parts, starts))
    return _per_row(top + jnp.log(total), own, labels, size, reduction, z_loss)


def _per_row(
    normaliser: Float[Array, "b ..."],
    own: Float[Array, "b ..."],
    labels: Int[Array, "b ..."],
    size: int,
    reduction: Reduction,
    z_loss: Scalar,
) -> Float[Array, " b"]:
    nats = normaliser - own + jnp.asarray(z_loss, own.dtype) * normaliser**2
    return over_positions(nats, labels, size, reduction=reduction)


def over_positions(
    values: Float[Array, "b ..."], labels: Int[Array, "b ..."], size: int, *, reduction: Reduction = "mean"
) -> Float[Array, " b"]:
    """The mean over the positions of each row that count, or their sum; 0 where none does.

    Args:
        values: one for each position; finite where it does not count, since gradients flow through it.
        labels: as of `sequence_cross_entropy`.
        size: of the vocabulary; labels that are no token give NaN.
        reduction: see above.

    Returns:
        Float[b].

    Example:
        >>> from jaxunlearn.losses.sequences import over_positions
        >>> over_positions(jnp.array([[1.0, 5.0, 9.0]]), jnp.array([[4, 0, -1]]), 5).tolist()
        [3.0]
    """
    counts = labels != IGNORED
    is_token = ~counts | (labels >= 0) & (labels < size)
    found = jnp.where(counts, values * jnp.where(is_token, 1, jnp.nan), 0).reshape(labels.shape[0], -1)
    total = jnp.sum(found, axis=1)
    return total if reduction == "sum" else total / jnp.maximum(counted(labels), 1)


def are_tokens(logits: Any, targets: Any) -> bool:
    """Whether targets are integers, one for each position of sequences of logits; by shapes and dtypes alone.

    Args:
        logits: Float[b, t, ..., v].
        targets: Int[b, t, ...].

    Returns:
        False for classes, whose targets are one for each row.

    Example:
        >>> from jaxunlearn.losses.sequences import are_tokens
        >>> are_tokens(jnp.zeros((2, 3, 5)), jnp.zeros((2, 3), int)), are_tokens(jnp.zeros((2, 5)), jnp.zeros(2, int))
        (True, False)
    """
    if not all(hasattr(x, "dtype") for x in (logits, targets)) or not jnp.issubdtype(targets.dtype, jnp.integer):
        return False
    return targets.ndim > 1 and logits.shape[:-1] == targets.shape and logits.shape[-1] > 1


def counted(labels: Int[Array, "b ..."]) -> Int[Array, " b"]:
    """How many positions of each row count.

    Args:
        labels: as of `sequence_cross_entropy`.

    Returns:
        Int[b].

    Example:
        >>> from jaxunlearn.losses.sequences import counted
        >>> counted(jnp.array([[4, 0, -1], [-1, -1, -1]])).tolist()
        [2, 0]
    """
    return jnp.sum((labels != IGNORED).reshape(labels.shape[0], -1), axis=1)


def logits_that_count(logits: Float[Array, "b ... v"], labels: Int[Array, "b ..."]) -> Float[Array, "b ... v"]:
    """Logits in float32 or wider, zeros where a position does not count: what stands there must reach no gradient."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.where((labels != IGNORED)[..., None], wide, 0)


def token_labels(targets: Array, shape: tuple[int, ...], what: str) -> Array:
    """Labels of positions; TypeError or ValueError unless they are integers of this shape."""
    labels = jnp.asarray(targets)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"losses of sequences take token numbers, got targets {labels.dtype}")
    if labels.shape != shape:
        raise ValueError(
            f"labels {labels.shape} must have the shape of {what} without its last axis, {shape}: one label for every "
            f"position, already shifted, {IGNORED} where none is to be predicted"
        )
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)  # IGNORED is 255 in eight bits


def _check(reduction: Reduction, z_loss: Scalar) -> None:
    if reduction not in get_args(Reduction):
        raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
    checks.check_range("z_loss", z_loss, low=0)


_MEAN = sequence_log_loss()
