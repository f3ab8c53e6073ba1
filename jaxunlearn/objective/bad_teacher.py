"""Bad teacher (Chundawat, Tarun, Mandal, Kankanhalli: Can bad teaching induce forgetting? Unlearning in deep networks using
an incompetent teacher, AAAI 2023, arXiv 2205.08096).

    L(w) = alpha mean_{retain} KL_T(competent || w) + (1 - alpha) mean_{forget} KL_T(incompetent || w),

the competent teacher being the trained model, the incompetent one a model with fresh random weights, drawn once a request.
The paper mixes both kinds of rows in one set (30 % of the retained ones); here `alpha` weighs them, so that it means the
same for requests of all sizes. The authors' code averages the divergence over rows and classes alike, which divides its
gradient by the number of classes; this averages over rows, and KL_T carries the factor T^2.
"""

from typing import Unpack

import jax
import optax

from jaxunlearn import losses, risk, tree
from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.exact.retrain import require_init
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner, UnlearnFn, Variables, Weighted


def unlearner(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    alpha: Scalar = 0.5,
    temperature: Scalar = 1.0,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Stepwise form of `bad_teacher`."""
    init = require_init(model, "the incompetent teacher has fresh weights")
    tree.check_range("alpha", alpha, low=0, high=1)
    tree.check_range("temperature", temperature, low=1e-6)

    def distance(teacher: Variables, run: risk.Pass, part: Weighted) -> jax.Array:
        target = model.forward(teacher, part.examples.inputs, train=False).logits
        return run.mean(losses.kl_divergence(target, run.outputs.logits, temperature=temperature))

    def objective(variables, teachers, batch, key):
        competent, incompetent = teachers
        retain, forget, moved = risk.both_passes(model, variables, batch, key, bn=bn)
        obeyed, copied = distance(competent, retain, batch.retain), distance(incompetent, forget, batch.forget)
        stats = {"retain_distance": obeyed, "forget_distance": copied}
        return alpha * obeyed + (1 - alpha) * copied, (moved.state, stats)

    return descend(model, optimizer, objective, context=lambda variables, data, request, key: (variables, init(key)))


def bad_teacher(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    alpha: Scalar = 0.5,
    temperature: Scalar = 1.0,
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Distil from the trained model on retained rows and from a random one on forgotten rows.

    Args:
        model: a classifier; needs `init`.
        optimizer: any optax transformation.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`.
        alpha: weight of the retained rows in [0, 1], may be traced; the forgotten ones get `1 - alpha`.
        temperature: of the distillation, may be traced.
        bn: which passes may move BatchNorm statistics.

    Returns:
        An `UnlearnFn`; `stats`: `loss`, `retain_distance`, `forget_distance` (KL to the two teachers, nats times T^2)
        Float[num_steps], and those of `iterate`.

    Raises:
        ValueError: the model has no `init`, `alpha` outside [0, 1], a temperature that is not positive.

    Example:
        >>> unlearn = jaxunlearn.bad_teacher(model, optax.sgd(0.1), num_steps=10, batch_size=8)
        >>> result = unlearn(variables, data, request, key)
    """
    stepwise = unlearner(model, optimizer, alpha=alpha, temperature=temperature, bn=bn)
    return iterate(stepwise, num_steps, batch_size=batch_size, **loop)
