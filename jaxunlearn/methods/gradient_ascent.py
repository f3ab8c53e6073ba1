"""Gradient ascent on the forget set (NegGrad; Graves, Nagisetty, Ganesh: Amnesiac machine learning, AAAI 2021,
arXiv 2010.10981, and Golatkar, Achille, Soatto, CVPR 2020, arXiv 1911.04933, use it as a baseline).

    w <- w + optimizer(grad mean_{forget} loss(w)),    starting from the trained model.

It does not read the retain set. The loss it climbs has no upper bound, so `num_steps` and the learning rate decide everything:
a little too much destroys the model. `jaxunlearn.gradient_difference` adds the retain set, which holds it.
"""

import optax

from jaxunlearn import passes
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.transforms import ascend
from jaxunlearn.types import Model, Unlearner

METHOD = Method(
    summary="climb the loss of the forget set",
    cites="graves2021amnesiac",
    family="objective",
    reads=frozenset({"forget"}),
    aliases=("neggrad",),
    search={"learning_rate": (1e-05, 3e-05, 0.0001, 0.0002, 0.0004)},
)


def gradient_ascent(model: Model, optimizer: optax.GradientTransformation, *, bn: BatchNormPolicy = "retain") -> Unlearner:
    """Gradient ascent on the loss of the forget set.

    Args:
        model: the model.
        optimizer: any optax transformation.
        bn: which passes may move BatchNorm statistics; there is no retain pass, so only "all" moves them.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[], the one that is climbed.

    Raises:
        TypeError: no `Model`, or no optax transformation.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.gradient_ascent(model, optax.sgd(0.01)), num_steps=5, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """

    def objective(variables, context, batch, key):
        forget, moved = passes.train_pass(model, variables, batch.forget, key, side="forget", bn=bn)
        return forget.loss, (moved.state, {})

    return descend(model, optax.chain(ascend(), optimizer), objective, on_empty=METHOD.on_empty, judge=False)
