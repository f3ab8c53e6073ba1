"""Gradient difference (NegGrad+; Kurmanji, Triantafillou, Hayes, Triantafillou: Towards unbounded machine unlearning,
NeurIPS 2023, arXiv 2302.09880, section 4; also "GradDiff" in work on language models).

    L(w) = alpha (mean_{retain} loss(w) + regularizer(w)) - (1 - alpha) mean_{forget} loss(w),

descended from the trained weights. Retained and forgotten rows are drawn in every step, each side with its own batch
size, so that `alpha` means the same for requests of all sizes.
"""

from typing import Unpack

import optax

from jaxunlearn import risk, tree
from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner, UnlearnFn


def unlearner(
    model: Model, optimizer: optax.GradientTransformation, *, alpha: Scalar = 0.95, bn: BatchNormPolicy = "retain"
) -> Unlearner:
    """Stepwise form of `gradient_difference`."""
    tree.check_range("alpha", alpha, low=0, high=1)

    def objective(variables, context, batch, key):
        retain, forget, moved = risk.both_passes(model, variables, batch, key, bn=bn)
        loss = alpha * (retain.loss + risk.penalty(model, variables.params)) - (1 - alpha) * forget.loss
        return loss, (moved.state, {"retain_loss": retain.loss, "forget_loss": forget.loss})

    return descend(model, optimizer, objective)


def gradient_difference(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    alpha: Scalar = 0.95,
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Descent on the retained rows and ascent on the forgotten ones, in one objective.

    Args:
        model: the model.
        optimizer: any optax transformation.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`.
        alpha: weight of the retained rows in [0, 1], may be traced; the forgotten ones get `1 - alpha`. 1 is `finetune`.
        bn: which passes may move BatchNorm statistics.

    Returns:
        An `UnlearnFn`; `stats`: `loss`, `retain_loss`, `forget_loss` Float[num_steps], and those of `iterate`.

    Raises:
        ValueError: `alpha` outside [0, 1].

    Example:
        >>> unlearn = jaxunlearn.gradient_difference(model, optax.sgd(0.1), num_steps=10, batch_size=8, alpha=0.9)
        >>> result = unlearn(variables, data, request, key)
    """
    return iterate(unlearner(model, optimizer, alpha=alpha, bn=bn), num_steps, batch_size=batch_size, **loop)
