"""Accuracy and loss on the retain set, the forget set and unseen rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxunlearn import checks
from jaxunlearn.evaluation import class_logits, evaluate, map_rows
from jaxunlearn.likelihoods import num_classes
from jaxunlearn.sampling import forget_rows, masked_mean, retain_weights, row_numbers
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Variables


class Sets(NamedTuple):
    """One value for each set of rows; NaN where a set is empty."""

    retain: Float[Array, ""]
    forget: Float[Array, ""]
    test: Float[Array, ""]


class Performance(NamedTuple):
    """What `performance` returns."""

    accuracy: Sets | None  # fractions in [0, 1]; None unless the task is classification
    loss: Sets  # means of the model's loss, in its unit


def accuracy(logits: Float[Array, "b c"], targets: Int[Array, " b"], weights: Float[Array, " b"]) -> Float[Array, ""]:
    """`sum(w [argmax_j logits_j = y]) / sum(w)`: the share of rows whose largest logit is that of their label.

    Args:
        logits: of b rows; equal logits count for the lowest class. One logit per row, [b] or [b, 1], is that of class 1 of two.
        targets: their labels.
        weights: rows of weight 0 may hold anything, NaN included.

    Returns:
        Float[], a fraction in [0, 1]. NaN if no row counts, or if a logit of a row that counts is NaN: a broken model has not
        forgotten.

    Raises:
        ValueError: targets that are not integer labels, or shapes that do not fit.

    Example:
        >>> float(jaxunlearn.audit.accuracy(jnp.eye(2), jnp.array([0, 0]), jnp.ones(2)))
        0.5
    """
    if not _is_classification(logits, targets):
        raise ValueError(
            "accuracy is defined for classification: logits [b, c] and integer targets [b]; got "
            f"{jnp.result_type(logits)}{list(jnp.shape(logits))} and {jnp.result_type(targets)}{list(jnp.shape(targets))}. "
            "For real targets look at the loss"
        )
    return masked_mean(_correct(logits, targets), weights, empty=jnp.nan)


def _is_classification(logits, targets) -> bool:
    if not hasattr(targets, "dtype") or not jnp.issubdtype(targets.dtype, jnp.integer) or jnp.ndim(targets) != 1:
        return False
    one_logit = jnp.shape(logits) in (jnp.shape(targets), (*jnp.shape(targets), 1))
    if one_logit and checks.is_concrete(targets) and not np.isin(np.asarray(targets), (0, 1)).all():
        return False  # counts, not classes
    return one_logit or (jnp.ndim(logits) == 2 and jnp.shape(targets) == jnp.shape(logits)[:1])


def _correct(logits: Float[Array, "b c"], targets: Int[Array, " b"]) -> Float[Array, " b"]:
    logits = class_logits(logits, targets)
    hit = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return jnp.where(jnp.any(jnp.isnan(logits), axis=-1), jnp.nan, hit)


def row_results(
    model: Model, variables: Variables, examples: Examples, *, chunk: int | None = None
) -> tuple[Float[Array, " b"] | None, Float[Array, " b"]]:
    """Whether each row is classified correctly, and its loss; one pass.

    Args:
        model, variables: the model.
        examples: b rows.
        chunk: rows that go through the model together; None takes all.

    Returns:
        1, 0, or NaN where a logit is NaN, or None unless the task is classification (see `performance`); and the losses.

    Example:
        >>> from jaxunlearn.audit.single.performance import row_results
        >>> correct, losses = row_results(model, variables, test)
        >>> correct.shape, losses.shape
        ((20,), (20,))
    """

    def measure(rows: Examples):
        outputs, losses = evaluate(model, variables, rows)
        counts = num_classes(model, outputs, rows) is None  # what the loss says, whatever values are traced
        classes = not counts and _is_classification(outputs.logits, rows.targets)
        return _correct(outputs.logits, rows.targets) if classes else None, losses

    return map_rows(measure, examples, chunk=chunk)


def performance(
    model: Model,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    test: Examples,
    *,
    chunk: int | None = None,
) -> Performance:
    """Mean accuracy and mean loss on the retain set, the forget set and unseen rows.

    The training rows go through the model once; `jax.vmap` over requests does not repeat that. Rows that are neither
    retained nor forgotten may hold anything, NaN included.

    Args:
        model: `forward` in evaluation mode, and `loss`.
        variables: the model's weights and state.
        data: the retain set is `data.present` minus the request.
        request: one request; slots that name no present row do not count.
        test: rows the model was never trained on.
        chunk: rows that go through the model together; `None` takes all.

    Returns:
        Performance. An empty set gives NaN. `accuracy` is None unless targets are integers [b] and logits [b, c], or one per
        row and the targets 0 and 1.

    Raises:
        ValueError: stacked requests, a loss that is not one value per row, leading axes that differ, a bad chunk.

    Example:
        >>> report = jaxunlearn.audit.performance(model, variables, data, request, test)
        >>> report.loss.forget.shape
        ()
    """
    forgotten = forget_rows(data, request).weights
    rows = jnp.where(forgotten > 0, row_numbers(request), 0)
    retained = retain_weights(data, request)

    def means(train: Float[Array, " n"], unseen: Float[Array, " m"]) -> Sets:
        parts = ((train, retained), (train[rows], forgotten), (unseen, jnp.ones(unseen.shape[0])))
        return Sets(*(masked_mean(values, weights, empty=jnp.nan) for values, weights in parts))

    train_correct, train_losses = row_results(model, variables, data.train, chunk=chunk)
    test_correct, test_losses = row_results(model, variables, test, chunk=chunk)
    correct = None if train_correct is None or test_correct is None else means(train_correct, test_correct)
    return Performance(correct, means(train_losses, test_losses))


def gap(unlearned: Performance, retrained: Performance) -> Performance:
    """Unlearned minus retrained, value by value; 0 is the aim everywhere.

    The sign says what went wrong. Forget accuracy: positive is under-unlearned (still known), negative is over-unlearned
    (worse than a model that never saw the rows, which an attacker can detect as well). Forget loss: the other way round.
    Retain and test accuracy: negative is damage.

    Args:
        unlearned, retrained: of the same form; leading axes broadcast, e.g. [R] against one retrained model.

    Returns:
        Performance of differences.

    Raises:
        ValueError: one of them has accuracies and the other has none.

    Example:
        >>> unlearned = jaxunlearn.audit.performance(model, variables, data, request, test)
        >>> float(jaxunlearn.audit.gap(unlearned, unlearned).accuracy.forget)
        0.0
    """
    return jax.tree.map(jnp.subtract, unlearned, retrained)
