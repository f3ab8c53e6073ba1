"""CF-k, catastrophic forgetting of the last k layers (Goel, Prabhu, Sanyal, Lim, Torr, Kumaraguru: Towards adversarial
evaluations for inexact machine unlearning, 2022, arXiv 2201.06640).

    w_last <- w_last - optimizer(grad_{w_last} mean_{retain} loss(w) + regularizer(w)),    the other layers stay.

Fine-tuning of the last layers on the retain set. A parameter tree has no depth, so "the last k" is a name pattern here.
What the frozen layers know of the forget set stays where it is.
"""

import optax

from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, retain_objective
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.transforms import restrict
from jaxunlearn.tree import Layers
from jaxunlearn.types import Model, Unlearner

METHOD = Method(
    summary="keep training the last layers on the retain set",
    cites="goel2022towards",
    family="objective",
    reads=frozenset({"retain"}),
    on_empty="finetune",
    aliases=("catastrophic_forgetting_k",),
    search={"learning_rate": (0.001, 0.003, 0.01, 0.03, 0.1)},
)


def cf_k(model: Model, optimizer: optax.GradientTransformation, *, layers: Layers, bn: BatchNormPolicy = "retain") -> Unlearner:
    """Fine-tune the last layers on the retain set, the others frozen.

    Args:
        model: the model.
        optimizer: any optax transformation.
        layers: which layers move: a regular expression to be found in a parameter's path, e.g. `"head"` for the last one
            or `"Dense_1|head"`, or a predicate of the path. Everything is `jaxunlearn.finetune`.
        bn: which passes may move BatchNorm statistics; those of frozen layers move too. "frozen" keeps them all.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[].

    Raises:
        ValueError: at trace time, `layers` names no parameter.
        TypeError: at trace time, `layers` is neither an expression nor a predicate.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.cf_k(model, optax.sgd(0.1), layers="head"), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    return descend(model, restrict(optimizer, layers), retain_objective(model, bn), on_empty=METHOD.on_empty)
