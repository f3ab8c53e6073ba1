"""Negative preference optimization (Zhang, Lin, Bai, Mei: Negative preference optimization: from catastrophic collapse to
effective unlearning, COLM 2024, arXiv 2404.05868), for any model whose loss is a negative log-likelihood.

    L(w) = (2 / beta) mean_{forget} log(1 + (p_w(y|x) / p_0(y|x))^beta)
           + retain_weight (mean_{retain} loss(w) + regularizer(w)),

p_0 the trained model. Its gradient is that of gradient ascent, damped on each row by 2 r / (1 + r), r = (p_w / p_0)^beta: a
row that is unlikely already is left alone, so the ascent does not run away. `beta -> 0` is gradient ascent. With a
classifier the likelihood is that of the label; with a `retain_weight` it is the paper's NPO+RT.
"""

import jax
import optax

from jaxunlearn import checks, passes
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, trained_model
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="climb on each row of the forget set until it is unlikely, descend on the retain set",
    cites="zhang2024negative",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    aliases=("negative_preference_optimization",),
    search={"learning_rate": (0.002, 0.008), "beta": (0.3, 1.0), "retain_weight": (2.0, 8.0, 30.0)},
)


def npo(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    beta: Scalar = 0.1,
    retain_weight: Scalar = 10.0,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Push the likelihood of the forget set below that of the trained model, each row only as far as it needs.

    Args:
        model: its loss must be a negative log-likelihood, such as `losses.cross_entropy`.
        optimizer: any optax transformation.
        beta: how soon a row counts as forgotten, positive, may be traced; near 0 it never does (gradient ascent).
        retain_weight: weight of the loss on the retain set, at least 0, may be traced; 0 is the paper's plain NPO, 1 its
            NPO+RT. On the README's task (three keys) 1 leaves a retain accuracy of 0.89 to 0.92, 5 and 10 one of 0.97 to 0.99.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_loss`, `forget_loss`, `log_ratio` (mean of
        log p_w - log p_0 on the forget set, nats) Float[].

    Raises:
        ValueError: `beta` that is not positive, a negative `retain_weight`.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.npo(model, optax.sgd(0.1), beta=0.5), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    checks.check_range("beta", beta, low=1e-6)
    checks.check_range("retain_weight", retain_weight, low=0)

    def objective(variables, reference, batch, key):
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        examples = batch.forget.examples
        trained = model.loss(model.forward(reference, examples.inputs, train=False), examples)
        log_ratio = trained - forget.losses
        preference = 2 / beta * forget.mean(jax.nn.softplus(beta * log_ratio))
        loss = preference + retain_weight * (retain.loss + passes.penalty(model, variables.params))
        stats = {"retain_loss": retain.loss, "forget_loss": forget.loss, "log_ratio": forget.mean(log_ratio)}
        return loss, (moved.state, stats)

    return descend(model, optimizer, objective, context=trained_model, on_empty=METHOD.on_empty)
