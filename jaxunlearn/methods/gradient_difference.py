"""Gradient difference (NegGrad+; Kurmanji, Triantafillou, Hayes, Triantafillou: Towards unbounded machine unlearning,
NeurIPS 2023, arXiv 2302.09880, section 4; also "GradDiff" in work on language models).

    L(w) = alpha (mean_{retain} loss(w) + regularizer(w)) - (1 - alpha) mean_{forget} loss(w),

descended from the trained model. Every step draws rows of both sets, each with its own batch size, so that `alpha` means the
same for requests of all sizes.
"""

import optax

from jaxunlearn import checks, passes
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="descend on the retain set, climb on the forget set (NegGrad+)",
    cites="kurmanji2023towards",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    aliases=("neggrad_plus", "graddiff"),
    search={"learning_rate": (0.002, 0.004, 0.008), "alpha": (0.9, 0.95, 0.97, 0.99)},
)


def gradient_difference(
    model: Model, optimizer: optax.GradientTransformation, *, alpha: Scalar = 0.95, bn: BatchNormPolicy = "retain"
) -> Unlearner:
    """Descent on the retain set and ascent on the forget set, in one objective.

    Args:
        model: the model.
        optimizer: any optax transformation.
        alpha: weight of the retain set in [0, 1], may be traced; the forget set gets `1 - alpha`. 1 is `jaxunlearn.finetune`.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_loss`, `forget_loss` Float[].

    Raises:
        ValueError: `alpha` outside [0, 1].

    Example:
        >>> method = jaxunlearn.gradient_difference(model, optax.sgd(0.1), alpha=0.9)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(variables, data, request, key)
    """
    checks.check_range("alpha", alpha, low=0, high=1)

    def objective(variables, context, batch, key):
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        loss = alpha * (retain.loss + passes.penalty(model, variables.params)) - (1 - alpha) * forget.loss
        return loss, (moved.state, {"retain_loss": retain.loss, "forget_loss": forget.loss})

    return descend(model, optimizer, objective, on_empty=METHOD.on_empty)
