"""Divergences between the predictions of two models, in nats."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxunlearn import checks
from jaxunlearn.types import Scalar


def kl_divergence(
    teacher_logits: Float[Array, "b c"], student_logits: Float[Array, "b c"], *, temperature: Scalar = 1.0
) -> Float[Array, " b"]:
    """`T^2 KL(softmax(teacher / T) || softmax(student / T))`; the factor keeps gradients of one size at every temperature.

    Args:
        teacher_logits, student_logits: Float[b, c].
        temperature: T, positive, may be traced.

    Returns:
        Float[b], nats times T^2.

    Raises:
        ValueError: logits that are not [b, c] of at least two classes.

    References:
        Hinton, Vinyals, Dean: Distilling the knowledge in a neural network, 2015, arXiv 1503.02531.

    Example:
        >>> logits = model.forward(variables, x).logits
        >>> jaxunlearn.losses.kl_divergence(logits, logits, temperature=2.0).shape
        (60,)
    """
    checks.require_classes("kl_divergence", student_logits)
    teacher = jax.nn.log_softmax(teacher_logits / temperature)
    student = jax.nn.log_softmax(student_logits / temperature)
    return temperature**2 * _kl(teacher, student)


def distil_without(
    teacher_logits: Float[Array, "b c"],
    student_logits: Float[Array, "b c"],
    hidden: Bool[Array, "b c"],
    *,
    temperature: Scalar = 1.0,
    odds: Scalar = 0.0,
) -> Float[Array, " b"]:
    """`KL(q || softmax(student))`, q the prediction of the teacher at a temperature, without some classes of each row.

    Args:
        teacher_logits: Float[b, c], two classes or more.
        student_logits: Float[b, c], of the model that learns.
        hidden: Bool[b, c], the classes that are taken out; not all of a row.
        temperature: of the teacher, positive, may be traced.
        odds: what the odds of hidden classes are multiplied by, in [0, 1], may be traced; 1 leaves the teacher as it is.

    Returns:
        Float[b], nats.

    Raises:
        ValueError: logits that are not [b, c] of at least two classes.

    Example:
        >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
        >>> value = jaxunlearn.losses.distil_without(logits, logits, jnp.array([[True, False, False]]))
        >>> round(float(value[0]), 3)  # -log(0.3 + 0.2)
        0.693
    """
    predicted = teacher_logits / temperature
    return kl_divergence(jnp.where(hidden, predicted + jnp.log(odds), predicted), student_logits)


def jensen_shannon(first_logits: Float[Array, "b c"], second_logits: Float[Array, "b c"]) -> Float[Array, " b"]:
    """`(KL(p || m) + KL(q || m)) / 2` with `m = (p + q) / 2`: symmetric, between 0 and log 2.

    Args:
        first_logits, second_logits: Float[b, c], of p and q.

    Returns:
        Float[b], nats.

    References:
        Lin: Divergence measures based on the Shannon entropy, 1991, doi 10.1109/18.61115.

    Example:
        >>> apart = jaxunlearn.losses.jensen_shannon(jnp.array([[200.0, 0.0]]), jnp.array([[0.0, 200.0]]))
        >>> round(float(apart[0]), 4)  # log 2
        0.6931
    """
    p, q = jax.nn.log_softmax(first_logits), jax.nn.log_softmax(second_logits)
    never = jnp.isneginf(p) & jnp.isneginf(q)  # terms of 0, whose derivative would be NaN
    mixture = jnp.logaddexp(*(jnp.where(never, 0, x) for x in (p, q))) - jnp.log(2.0).astype(p.dtype)
    return (_kl(p, mixture) + _kl(q, mixture)) / 2


def _kl(log_p: Float[Array, "b c"], log_q: Float[Array, "b c"]) -> Float[Array, " b"]:
    never = jnp.isneginf(log_p)
    # replaced before they are subtracted: the derivative of inf - inf is NaN even where it is not used
    log_p, log_q = (jnp.where(never, 0, x) for x in (log_p, log_q))
    terms = jnp.where(never, 0, jnp.exp(log_p) * (log_p - log_q))
    return jnp.sum(terms, axis=-1)
