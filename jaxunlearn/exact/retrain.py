"""Retraining: fresh weights, trained on the retained rows alone.

The reference every other method is compared with; nothing of the forgotten rows enters the result.

    w <- init(key);    w <- w - optimizer(grad mean_{retain} loss(w) + regularizer(w))

With `empty_request()` it is plain training, so the original model and its retrained references come from one piece of
code. It is exact as long as the choice of hyper-parameters did not depend on the forgotten rows.
"""

from collections.abc import Callable
from typing import Unpack

import optax
from jaxtyping import PRNGKeyArray

from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.objective.finetune import retain_objective
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.types import Model, Unlearner, UnlearnFn, Variables


def require_init(model: Model, why: str) -> Callable[[PRNGKeyArray], Variables]:
    """The model's `init`; ValueError if it has none."""
    if model.init is None:
        raise ValueError(f"{why}: pass Model(..., init=key -> Variables)")
    return model.init


def unlearner(model: Model, optimizer: optax.GradientTransformation, *, bn: BatchNormPolicy = "retain") -> Unlearner:
    """Stepwise form of `retrain`."""
    init = require_init(model, "retrain starts from fresh weights")
    return descend(model, optimizer, retain_objective(model, bn), start=lambda variables, key: init(key), on_empty="train")


def retrain(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Retraining from fresh weights without the forgotten rows.

    Args:
        model: needs `init`.
        optimizer: any optax transformation.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`.
        bn: which passes may move BatchNorm statistics.

    Returns:
        An `UnlearnFn`; `stats`: `loss` Float[num_steps], and those of `iterate`.

    Raises:
        ValueError: the model has no `init`, or it makes variables of another form than the ones passed in.

    Example:
        >>> train = jaxunlearn.retrain(model, optax.sgd(0.1), num_steps=20, batch_size=8)
        >>> trained = train(model.init(key), data, jaxunlearn.empty_request(), key).variables
    """
    return iterate(unlearner(model, optimizer, bn=bn), num_steps, batch_size=batch_size, **loop)
