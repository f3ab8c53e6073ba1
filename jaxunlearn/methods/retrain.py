"""Retraining: a fresh model, trained on the retain set alone.

The reference that every other method is compared with; nothing of the forget set enters the result.

    w <- init(key);    w <- w - optimizer(grad mean_{retain} loss(w) + regularizer(w))

With `empty_request()` it is plain training, so the original model and its retrained references come from one piece of
code. It is exact as long as the choice of hyper-parameters did not depend on the forget set.
"""

import optax

from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, require_init, retain_objective
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Unlearner

METHOD = Method(
    summary="a fresh model, trained on the retain set",
    cites="cao2015towards",
    family="exact",
    reads=frozenset({"init", "retain"}),
    guarantee="exact",
    on_empty="train",
)


def retrain(model: Model, optimizer: optax.GradientTransformation, *, bn: BatchNormPolicy = "retain") -> Unlearner:
    """Retraining from a fresh model on the retain set.

    Args:
        model: needs `init`.
        optimizer: any optax transformation.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[].

    Raises:
        ValueError: the model has no `init`; at trace time, `init` makes variables of another form than the ones passed in.

    Example:
        >>> train = jaxunlearn.iterate(jaxunlearn.retrain(model, optax.sgd(0.1)), num_steps=20, batch_size=8)
        >>> trained = jax.jit(train)(model.init(key), data, jaxunlearn.empty_request(), key).variables
    """
    init = require_init(model, "retrain starts from a fresh model")
    objective = retain_objective(model, bn)
    return descend(model, optimizer, objective, start=lambda variables, key: init(key), on_empty=METHOD.on_empty)
