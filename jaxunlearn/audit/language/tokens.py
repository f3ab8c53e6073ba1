"""What a language model says of every token, once; the audits of this folder start from there.

Labels: `labels[i, j]` is the token that position j of row i is to predict, already shifted, and below 0 where a position does
not count. Logits are [..., t, v]. A position that does not count may hold anything, NaN included, and changes nothing; neither
does padding of any length.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn import checks

LEAST_VARIANCE = 1e-6  # of log-probabilities under the model's own law, as in OpenUnlearning


def token_log_probabilities(logits: Float[Array, "... t v"], labels: Int[Array, "... t"]) -> Float[Array, "... t"]:
    """`log p(label)` of every position that counts, 0 elsewhere.

    Args:
        logits: of one model, or of several on further leading axes.
        labels: tokens to predict, below 0 where a position does not count; broadcast against the leading axes.

    Returns:
        In nats, at least float32. Keep this instead of the logits: `jaxunlearn.audit.ensemble(measure=...)` can.

    Raises:
        ValueError: shapes that do not fit, labels that are no tokens.
        TypeError: labels that are no integers.

    Example:
        >>> logits, labels = jnp.zeros((1, 3, 4)), jnp.array([[2, 0, -1]])
        >>> jaxunlearn.audit.language.token_log_probabilities(logits, labels).round(3).tolist()
        [[-1.386..., -1.386..., 0.0]]
    """
    log, labels = _log_softmax(logits, labels)
    return jnp.where(labels >= 0, _picked(log, labels), 0)


def token_scores(logits: Float[Array, "... t v"], labels: Int[Array, "... t"]) -> Float[Array, "... t"]:
    """`(log p(label) - mu) / sigma` of every position that counts, 0 elsewhere: what min-k++ averages.

    `mu` and `sigma` are mean and deviation of `log p` of a token that the model itself draws at that position.

    Args:
        logits, labels: as for `token_log_probabilities`.

    Returns:
        Without unit. The variance counts as 1e-6 at least, as in OpenUnlearning's code.

    Raises:
        ValueError, TypeError: as `token_log_probabilities`.

    References:
        Zhang, Sun, Yeats, Ouyang, Kuo, Zhang, Yang, Li: Min-K%++: improved baseline for detecting pre-training data from large
        language models, 2024, arXiv 2404.02936.

    Example:
        >>> logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25]]]))
        >>> jaxunlearn.audit.language.token_scores(logits, jnp.array([[0]])).round(2).tolist()
        [[1.0]]
    """
    log, labels = _log_softmax(logits, labels)
    finite = jnp.isfinite(log)
    p, log_or_0 = jnp.where(finite, jnp.exp(log), 0), jnp.where(finite, log, 0)
    mu = jnp.sum(p * log_or_0, axis=-1)
    variance = jnp.sum(p * (log_or_0 - mu[..., None]) ** 2, axis=-1)
    scores = (_picked(log, labels) - mu) / jnp.sqrt(jnp.maximum(variance, LEAST_VARIANCE))
    broken = jnp.any(jnp.isnan(log), axis=-1)
    return jnp.where(labels >= 0, jnp.where(broken, jnp.nan, scores), 0)


def token_hits(logits: Float[Array, "... t v"], labels: Int[Array, "... t"]) -> Bool[Array, "... t"]:
    """Whether the most probable token is the right one, given the true tokens before it; False where a position does not count.

    Args:
        logits, labels: as for `token_log_probabilities`.

    Returns:
        Booleans; of equal logits the first token counts as the prediction. Logits that are NaN predict nothing.

    Raises:
        ValueError, TypeError: as `token_log_probabilities`.

    Example:
        >>> logits = jnp.eye(3)[None, jnp.array([2, 0, 1])]
        >>> jaxunlearn.audit.language.token_hits(logits, jnp.array([[2, 1, -1]])).tolist()
        [[True, False, False]]
    """
    labels = _labels(logits, labels)
    known = ~jnp.any(jnp.isnan(logits), axis=-1)  # `argmax` takes NaN for the largest
    return (jnp.argmax(logits, axis=-1) == labels) & (labels >= 0) & known


def mean_log_probability(log_probabilities: Float[Array, "... t"], labels: Int[Array, "... t"]) -> Float[Array, "..."]:
    """Mean `log p` over the tokens of a row that count: minus the loss, and the plainest membership score.

    Args:
        log_probabilities: from `token_log_probabilities`.
        labels: what counts.

    Returns:
        In nats per token; NaN for a row of which nothing counts.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> log = jnp.log(jnp.array([[0.5, 0.5, 1.0]]))
        >>> round(float(jaxunlearn.audit.language.mean_log_probability(log, jnp.array([[3, 1, -1]]))[0]), 3)
        -0.693
    """
    log, counted = require_fit("mean_log_probability", log_probabilities, labels)
    return jnp.sum(jnp.where(counted, log, 0), axis=-1) / jnp.sum(counted, axis=-1)


def require_fit(name: str, values: Float[Array, "... t"], labels: Int[Array, "... t"]) -> tuple[Array, Bool[Array, "... t"]]:
    """Values of tokens in float32 or wider, and which of them count; ValueError if labels do not fit them."""
    values, labels = jnp.asarray(values), jnp.asarray(labels)
    if labels.ndim == 0 or labels.shape[-1:] != values.shape[-1:] or labels.ndim > values.ndim:
        raise ValueError(
            f"{name}: expected values [..., t] and labels [..., t] of the same tokens, got {values.shape}, {labels.shape}"
        )
    if jnp.issubdtype(values.dtype, jnp.floating):  # a sum of a hundred tokens has one digit left in bfloat16
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return values, jnp.broadcast_to(labels >= 0, values.shape)


def _labels(logits: Array, labels: Array) -> Int[Array, "... t"]:
    labels, shape = jnp.asarray(labels), jnp.shape(logits)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels are numbers of tokens, integers, got {labels.dtype}")
    if len(shape) < 2 or labels.ndim == 0 or labels.shape != shape[-1 - labels.ndim : -1]:
        raise ValueError(f"expected logits [..., t, v] and labels [..., t], got {shape} and {labels.shape}")
    checks.require_labels("labels", jnp.maximum(labels, 0), shape[-1])
    return jnp.broadcast_to(labels, shape[:-1])


def _log_softmax(logits: Array, labels: Array) -> tuple[Float[Array, "... t v"], Int[Array, "... t"]]:
    labels, logits = _labels(logits, labels), jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jax.nn.log_softmax(jnp.where(labels[..., None] >= 0, logits, 0)), labels


def _picked(log: Float[Array, "... t v"], labels: Int[Array, "... t"]) -> Float[Array, "... t"]:
    return jnp.take_along_axis(log, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
