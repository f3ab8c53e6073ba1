"""Negative preference optimization (Zhang, Lin, Bai, Mei: Negative preference optimization: from catastrophic collapse to
effective unlearning, COLM 2024, arXiv 2404.05868), for any model whose loss is a negative log-likelihood.

    L(w) = (2 / beta) mean_{forget} log(1 + (p_w(y|x) / p_0(y|x))^beta)
           + retain_weight (mean_{retain} loss(w) + regularizer(w)),

p_0 the trained model. Its gradient is that of gradient ascent, damped on each row by 2 r / (1 + r), r = (p_w / p_0)^beta: a
row that is forgotten already is left alone, so the ascent does not run away. `beta -> 0` is gradient ascent. With a
classifier the likelihood is that of the label; with a `retain_weight` it is the paper's NPO+RT.
"""

from typing import Unpack

import jax
import optax

from jaxunlearn import risk, tree
from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner, UnlearnFn


def unlearner(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    beta: Scalar = 0.1,
    retain_weight: Scalar = 1.0,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Stepwise form of `npo`."""
    tree.check_range("beta", beta, low=1e-6)
    tree.check_range("retain_weight", retain_weight, low=0)

    def objective(variables, reference, batch, key):
        retain, forget, moved = risk.both_passes(model, variables, batch, key, bn=bn)
        examples = batch.forget.examples
        trained = model.loss(model.forward(reference, examples.inputs, train=False), examples)
        log_ratio = trained - forget.losses
        preference = 2 / beta * forget.mean(jax.nn.softplus(beta * log_ratio))
        loss = preference + retain_weight * (retain.loss + risk.penalty(model, variables.params))
        stats = {"retain_loss": retain.loss, "forget_loss": forget.loss, "log_ratio": forget.mean(log_ratio)}
        return loss, (moved.state, stats)

    return descend(model, optimizer, objective, context=lambda variables, data, request, key: variables)


def npo(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    beta: Scalar = 0.1,
    retain_weight: Scalar = 1.0,
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Push the likelihood of forgotten rows below the trained model's, each row only as far as it needs.

    Args:
        model: its loss must be a negative log-likelihood, such as `losses.cross_entropy`.
        optimizer: any optax transformation.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`.
        beta: how soon a row counts as forgotten, positive, may be traced; near 0 it never does (gradient ascent).
        retain_weight: weight of the loss on retained rows, may be traced; 0 is the paper's plain NPO.
        bn: which passes may move BatchNorm statistics.

    Returns:
        An `UnlearnFn`; `stats`: `loss`, `retain_loss`, `forget_loss`, `log_ratio` (mean of log p_w - log p_0 on forgotten
        rows, nats) Float[num_steps], and those of `iterate`.

    Raises:
        ValueError: `beta` that is not positive, a negative `retain_weight`.

    Example:
        >>> unlearn = jaxunlearn.npo(model, optax.sgd(0.1), num_steps=10, batch_size=8, beta=0.5)
        >>> result = unlearn(variables, data, request, key)
    """
    stepwise = unlearner(model, optimizer, beta=beta, retain_weight=retain_weight, bn=bn)
    return iterate(stepwise, num_steps, batch_size=batch_size, **loop)
