"""Membership scores from logits, higher for members; they go into `auc`, `tpr_at_fpr` and `roc_curve`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn.margin import margins


def confidence(logits: Float[Array, "... c"], targets: Int[Array, "..."]) -> Float[Array, "..."]:
    """Probability of the true class.

    Args:
        logits: at least two classes on the last axis; leading axes are kept.
        targets: integer classes, broadcast against the leading axes.

    Returns:
        In [0, 1], the shape of `logits` without its last axis.

    Raises:
        ValueError: as `jaxunlearn.audit.margins`.

    Example:
        >>> jaxunlearn.audit.confidence(jnp.zeros((1, 4)), jnp.array([2])).tolist()
        [0.25]
    """
    return jax.nn.sigmoid(margins(logits, targets))


def entropy(logits: Float[Array, "... c"]) -> Float[Array, "..."]:
    """Entropy of the prediction. It falls with membership: take minus it as a score.

    Args:
        logits: classes on the last axis; leading axes are kept.

    Returns:
        In nats, at least 0, the shape of `logits` without its last axis.

    Example:
        >>> round(float(jaxunlearn.audit.entropy(jnp.zeros((1, 4)))[0]), 4)
        1.3863
    """
    log = jax.nn.log_softmax(jnp.asarray(logits))
    return -jnp.sum(jnp.where(log > -jnp.inf, jnp.exp(log) * log, 0), axis=-1)


def modified_entropy(logits: Float[Array, "... c"], targets: Int[Array, "..."]) -> Float[Array, "..."]:
    """Entropy that knows the true class: 0 for sure and right, large for sure and wrong.

        -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k)

    It falls with membership: take minus it as a score.

    Args:
        logits: at least two classes on the last axis; leading axes are kept.
        targets: integer classes, broadcast against the leading axes.

    Returns:
        In nats, at least 0, the shape of `logits` without its last axis.

    Raises:
        ValueError: as `jaxunlearn.audit.margins`.

    References:
        Song, Mittal: Systematic evaluation of privacy risks of machine learning models, 2021, arXiv 2003.10595.

    Example:
        >>> sure = jnp.array([[9.0, 0.0], [9.0, 0.0]])
        >>> right, wrong = jaxunlearn.audit.modified_entropy(sure, jnp.array([0, 1]))
        >>> bool(right < 0.01), bool(wrong > 5)
        (True, True)
    """
    logits = jnp.asarray(logits)
    own = margins(logits, targets)
    every = jnp.stack([margins(logits, jnp.full(logits.shape[:-1], k, jnp.int32)) for k in range(logits.shape[-1])], axis=-1)
    true = jax.nn.one_hot(jnp.broadcast_to(jnp.asarray(targets), logits.shape[:-1]), logits.shape[-1], dtype=bool)
    # log p = -softplus(-m) and log(1 - p) = -softplus(m), with m the log-odds
    others = jnp.sum(jnp.where(true, 0, jax.nn.sigmoid(every) * jax.nn.softplus(every)), axis=-1)
    return jax.nn.sigmoid(-own) * jax.nn.softplus(-own) + others
