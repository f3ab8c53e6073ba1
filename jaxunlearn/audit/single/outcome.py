"""The few numbers that answers are compared by: accuracies, or mean losses where there are no classes, and one attack."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.audit.single.membership import auc
from jaxunlearn.audit.single.performance import row_results
from jaxunlearn.audit.statistics.checks import require_disjoint
from jaxunlearn.sampling import forget_rows, masked_mean, retain_weights, row_numbers
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Variables


class Outcome(NamedTuple):
    """What `outcome` returns: accuracies in [0, 1], or mean losses where the task is no classification."""

    retain: Float[Array, ""]
    forget: Float[Array, ""]
    test: Float[Array, ""]
    unseen: Float[Array, ""]  # on unseen rows drawn like the forget set
    auc: Float[Array, ""]  # of the loss attack: forget set against those


def outcome(
    model: Model,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    test: Examples,
    *,
    unseen: Examples | None = None,
    unseen_weights: Float[Array, " m"] | None = None,
    chunk: int | None = None,
) -> Outcome:
    """What one model knows of the retain set, the forget set and unseen rows. Pure; every row is looked at once.

    Args:
        model, variables: the model.
        data, request: what it was trained on and asked to forget.
        test: rows that no model was trained on.
        unseen: other such rows, by default those of `test`.
        unseen_weights: 1 where one of them is drawn like the forget set, e.g. of the same class; by default everywhere.
        chunk: rows that go through the model together; None takes all.

    Returns:
        `Outcome` of scalars.

    Raises:
        ValueError: concrete rows of `test` or `unseen` that are training rows.

    Example:
        >>> found = jaxunlearn.audit.outcome(model, variables, data, request, test)
        >>> 0 <= float(found.retain) <= 1
        True
    """
    for unknown in (test, *(() if unseen is None else (unseen,))):
        require_disjoint("outcome", members=data.train, nonmembers=unknown)
    forgotten = forget_rows(data, request).weights
    rows = jnp.where(forgotten > 0, row_numbers(request), 0)
    on_train, on_test = (row_results(model, variables, part, chunk=chunk) for part in (data.train, test))
    on_unseen = on_test if unseen is None else row_results(model, variables, unseen, chunk=chunk)
    weights = jnp.ones_like(on_unseen[1]) if unseen_weights is None else unseen_weights
    every = (on_train, on_test, on_unseen)
    classes = all(correct is not None for correct, _ in every)
    train, others, alike = (correct if classes and correct is not None else loss for correct, loss in every)
    parts = (
        (train, retain_weights(data, request)), (train[rows], forgotten), (others, jnp.ones_like(others)), (alike, weights),
    )  # fmt: skip
    retain, forget, tested, like = (masked_mean(values, part, empty=jnp.nan) for values, part in parts)
    return Outcome(retain, forget, tested, like, auc(-on_train[1][rows], forgotten, -on_unseen[1], weights))
