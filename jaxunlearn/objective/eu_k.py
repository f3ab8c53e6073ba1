"""EU-k, exact unlearning of the last k layers (Goel, Prabhu, Sanyal, Lim, Torr, Kumaraguru: Towards adversarial evaluations
for inexact machine unlearning, 2022, arXiv 2201.06640).

    w_last <- init(key)_last;    w_last <- w_last - optimizer(grad_{w_last} mean_{retain} loss(w) + regularizer(w))

Retraining of the last layers on frozen features. Exact are those layers given the features; the features themselves were
trained on the forgotten rows and still hold them, so the model as a whole has no guarantee. Model state whose path matches
(running statistics of a retrained layer) starts afresh too.
"""

from typing import Unpack

import jax
import optax

from jaxunlearn import tree
from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.exact.retrain import require_init
from jaxunlearn.objective.finetune import retain_objective
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.transforms import restrict
from jaxunlearn.tree import Layers
from jaxunlearn.types import Model, Unlearner, UnlearnFn


def unlearner(
    model: Model, optimizer: optax.GradientTransformation, *, layers: Layers, bn: BatchNormPolicy = "retain"
) -> Unlearner:
    """Stepwise form of `eu_k`."""
    init = require_init(model, "eu_k starts its layers from fresh weights")

    def start(variables, key):
        fresh = init(key)
        tree.check_same(variables, fresh)

        def mixed(new, old):
            return jax.tree.map(lambda chosen, x, y: x if chosen else y, tree.matching(old, layers), new, old)

        return variables._replace(params=mixed(fresh.params, variables.params), state=mixed(fresh.state, variables.state))

    return descend(model, restrict(optimizer, layers), retain_objective(model, bn), start=start, on_empty="train")


def eu_k(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    layers: Layers,
    num_steps: int,
    batch_size: int,
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Retrain the last layers on the retained rows from fresh weights, the others frozen.

    Args:
        model: needs `init`.
        optimizer: any optax transformation.
        layers: which layers are retrained, as in `jaxunlearn.cf_k`. Everything is `jaxunlearn.retrain`.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`.
        bn: which passes may move BatchNorm statistics; those of frozen layers move too. "frozen" keeps them all.

    Returns:
        An `UnlearnFn`; `stats`: `loss` Float[num_steps], and those of `iterate`.

    Raises:
        ValueError: the model has no `init`, or it makes variables of another form; `layers` names no parameter.

    Example:
        >>> unlearn = jaxunlearn.eu_k(model, optax.sgd(0.1), layers="head", num_steps=10, batch_size=8)
        >>> result = unlearn(variables, data, request, key)
    """
    return iterate(unlearner(model, optimizer, layers=layers, bn=bn), num_steps, batch_size=batch_size, **loop)
