"""The few numbers that answers are compared by: accuracies, or mean losses where there are no classes, and one attack."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.audit.single.membership import auc, loss_scores
from jaxunlearn.audit.single.performance import accuracy, performance
from jaxunlearn.evaluation import predict
from jaxunlearn.sampling import masked_mean
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
) -> Outcome:
    """What one model knows of the retain set, the forget set and unseen rows. Pure.

    Args:
        model, variables: the model.
        data, request: what it was trained on and asked to forget.
        test: rows that no model was trained on.
        unseen: other such rows, by default those of `test`.
        unseen_weights: 1 where one of them is drawn like the forget set, e.g. of the same class; by default everywhere.

    Returns:
        `Outcome` of scalars.

    Example:
        >>> found = jaxunlearn.audit.outcome(model, variables, data, request, test)
        >>> 0 <= float(found.retain) <= 1
        True
    """
    unseen = test if unseen is None else unseen
    known = performance(model, variables, data, request, test)
    scores = loss_scores(model, variables, data, request, unseen)
    if unseen_weights is not None:
        scores = scores._replace(nonmember_weights=unseen_weights)
    weights = scores.nonmember_weights
    if known.accuracy is not None:
        sets = known.accuracy
        like = accuracy(predict(model, variables, unseen), jnp.asarray(unseen.targets), weights)
    else:
        sets, like = known.loss, masked_mean(-scores.nonmembers, weights, empty=jnp.nan)
    return Outcome(sets.retain, sets.forget, sets.test, like, auc(*scores))
