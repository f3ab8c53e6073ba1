"""Fine-tuning on the retain set: forgetting by not rehearsing (Golatkar, Achille, Soatto: Eternal sunshine of the spotless
net, CVPR 2020, arXiv 1911.04933, where it is a baseline).

    w <- w - optimizer(grad mean_{retain} loss(w) + regularizer(w)),    starting from the trained model.

It does not read the forget set. On its own it forgets slowly or not at all; behind another method (`then`) it repairs.
"""

import optax

from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, retain_objective
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Unlearner

METHOD = Method(
    summary="keep training on the retain set",
    cites="golatkar2020eternal",
    family="objective",
    reads=frozenset({"retain"}),
    on_empty="finetune",
    search={"learning_rate": (0.001, 0.003, 0.01, 0.02, 0.04)},
)


def finetune(model: Model, optimizer: optax.GradientTransformation, *, bn: BatchNormPolicy = "retain") -> Unlearner:
    """Fine-tuning on the retain set, starting from the trained model.

    Args:
        model: the model.
        optimizer: any optax transformation.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[].

    Raises:
        TypeError: no `Model`, or no optax transformation.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.finetune(model, optax.sgd(0.1)), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    return descend(model, optimizer, retain_objective(model, bn), on_empty=METHOD.on_empty)
