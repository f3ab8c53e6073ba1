"""EU-k, exact unlearning of the last k layers (Goel, Prabhu, Sanyal, Lim, Torr, Kumaraguru: Towards adversarial evaluations
for inexact machine unlearning, 2022, arXiv 2201.06640).

    w_last <- init(key)_last;    w_last <- w_last - optimizer(grad_{w_last} mean_{retain} loss(w) + regularizer(w))

Retraining of the last layers on frozen features. Exact are those layers given the features; the features themselves were
trained on the forget set and still hold it, so the model as a whole has no guarantee. State whose path matches (running
statistics of a retrained layer) starts afresh too.
"""

import jax
import optax

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, require_init, retain_objective
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.transforms import restrict
from jaxunlearn.tree import Layers
from jaxunlearn.types import Model, Unlearner

METHOD = Method(
    summary="retrain the last layers, keep the features",
    cites="goel2022towards",
    family="objective",
    reads=frozenset({"init", "retain"}),
    on_empty="train",
    aliases=("exact_unlearning_k",),
    search={"learning_rate": (0.001, 0.003, 0.01, 0.03, 0.1)},
)


def eu_k(model: Model, optimizer: optax.GradientTransformation, *, layers: Layers, bn: BatchNormPolicy = "retain") -> Unlearner:
    """Retrain the last layers on the retain set from fresh parameters, the others frozen.

    Args:
        model: needs `init`.
        optimizer: any optax transformation.
        layers: which layers are retrained, as in `jaxunlearn.cf_k`. Everything is `jaxunlearn.retrain`.
        bn: which passes may move BatchNorm statistics; those of frozen layers move too. "frozen" keeps them all.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[].

    Raises:
        ValueError: the model has no `init`; at trace time, `init` makes variables of another form, or `layers` names no
            parameter.
        TypeError: at trace time, `layers` is neither an expression nor a predicate.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.eu_k(model, optax.sgd(0.1), layers="head"), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    init = require_init(model, "eu_k starts its layers from fresh parameters")

    def start(variables, key):
        fresh = init(key)
        checks.check_same(variables, fresh)

        def mixed(new, old):
            return jax.tree.map(lambda chosen, x, y: x if chosen else y, tree.matching(old, layers), new, old)

        return variables._replace(params=mixed(fresh.params, variables.params), state=mixed(fresh.state, variables.state))

    objective = retain_objective(model, bn)
    return descend(model, restrict(optimizer, layers), objective, start=start, on_empty=METHOD.on_empty)
