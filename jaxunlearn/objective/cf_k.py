"""CF-k, catastrophic forgetting of the last k layers (Goel, Prabhu, Sanyal, Lim, Torr, Kumaraguru: Towards adversarial
evaluations for inexact machine unlearning, 2022, arXiv 2201.06640).

    w_last <- w_last - optimizer(grad_{w_last} mean_{retain} loss(w) + regularizer(w)),    the other layers stay.

Fine-tuning of the last layers on the retained rows. A parameter tree has no depth, so "the last k" is a name pattern here.
What the frozen layers know of the forgotten rows stays where it is.
"""

from typing import Unpack

import optax

from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.objective.finetune import retain_objective
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.transforms import restrict
from jaxunlearn.tree import Layers
from jaxunlearn.types import Model, Unlearner, UnlearnFn


def unlearner(
    model: Model, optimizer: optax.GradientTransformation, *, layers: Layers, bn: BatchNormPolicy = "retain"
) -> Unlearner:
    """Stepwise form of `cf_k`."""
    return descend(model, restrict(optimizer, layers), retain_objective(model, bn), on_empty="finetune")


def cf_k(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    layers: Layers,
    num_steps: int,
    batch_size: int,
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Fine-tune the last layers on the retained rows, the others frozen.

    Args:
        model: the model.
        optimizer: any optax transformation.
        layers: which layers move: a regular expression to be found in a parameter's path, e.g. `"head"` for the last one
            or `"Dense_1|head"`, or a predicate of the path. Everything is `jaxunlearn.finetune`.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`.
        bn: which passes may move BatchNorm statistics; those of frozen layers move too. "frozen" keeps them all.

    Returns:
        An `UnlearnFn`; `stats`: `loss` Float[num_steps], and those of `iterate`.

    Raises:
        ValueError: `layers` names no parameter, at trace time.

    Example:
        >>> unlearn = jaxunlearn.cf_k(model, optax.sgd(0.1), layers="head", num_steps=10, batch_size=8)
        >>> result = unlearn(variables, data, request, key)
    """
    return iterate(unlearner(model, optimizer, layers=layers, bn=bn), num_steps, batch_size=batch_size, **loop)
