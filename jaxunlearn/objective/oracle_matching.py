"""Oracle matching (Georgiev, Rinberg, Park, Garg, Ilyas, Madry, Neel: Attribute-to-delete: machine unlearning via datamodel
matching, 2024, arXiv 2410.23232).

    L(w) = alpha mean_{retain} ||z_w(x) - z*(x)||^2 + (1 - alpha) mean_{forget} ||z_w(x) - z*(x)||^2,
    z* = mean of z over retrained models,    z = logits minus their mean over classes

The trained model learns to answer as retrained models do on average. The paper matches predictions of datamodels, and oracles
as the best case of them; this is the oracle form, with a few retrainings for each request. It costs more than a retraining
and is a yardstick: what matching outputs can reach if they are known. A reconstruction: the paper's choice of outputs is the
margin of one class, here all logits are matched, centred because a constant does not change the prediction.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import risk, tree
from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner, UnlearnFn, Variables, Weighted


def unlearner(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    oracle: UnlearnFn,
    num_oracles: int = 5,
    alpha: Scalar = 0.5,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Stepwise form of `oracle_matching`."""
    tree.require_count("num_oracles", num_oracles)
    tree.check_range("alpha", alpha, low=0, high=1)

    def oracles(variables, data, request, key):
        return jax.lax.map(lambda key: oracle(variables, data, request, key).variables, jax.random.split(key, num_oracles))

    def distance(oracles: Variables, run: risk.Pass, part: Weighted) -> jax.Array:
        def answers(one: Variables) -> jax.Array:
            return _centred(model.forward(one, part.examples.inputs, train=False).logits)

        wanted = jnp.mean(jax.vmap(answers)(oracles), axis=0)
        return run.mean(jnp.sum((_centred(run.outputs.logits) - wanted) ** 2, axis=-1))

    def objective(variables, oracles, batch, key):
        retain, forget, moved = risk.both_passes(model, variables, batch, key, bn=bn)
        kept, matched = distance(oracles, retain, batch.retain), distance(oracles, forget, batch.forget)
        return alpha * kept + (1 - alpha) * matched, (moved.state, {"retain_distance": kept, "forget_distance": matched})

    return descend(model, optimizer, objective, context=oracles)


def _centred(logits: jax.Array) -> jax.Array:
    return logits - jnp.mean(logits, axis=-1, keepdims=True)


def oracle_matching(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    oracle: UnlearnFn,
    num_oracles: int = 5,
    alpha: Scalar = 0.5,
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Match the mean outputs of retrained models on forgotten and retained rows.

    Args:
        model: a classifier.
        optimizer: any optax transformation.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`.
        oracle: how a model without the rows is made, e.g. `jaxunlearn.retrain(...)`; it runs inside this method. Of its status
            only NaN is passed on.
        num_oracles: how many are averaged for each request.
        alpha: weight of the retained rows in [0, 1], may be traced; the forgotten ones get `1 - alpha`.
        bn: which passes may move BatchNorm statistics.

    Returns:
        An `UnlearnFn`; `stats`: `loss`, `retain_distance`, `forget_distance` (squared, of centred logits) Float[num_steps], and
        those of `iterate`.

    Raises:
        ValueError: `alpha` outside [0, 1], or a number of oracles that is not positive.

    Example:
        >>> retrain = jaxunlearn.retrain(model, optax.sgd(0.1), num_steps=10, batch_size=8)
        >>> unlearn = jaxunlearn.oracle_matching(model, optax.sgd(0.01), num_steps=10, batch_size=8, oracle=retrain)
        >>> result = unlearn(variables, data, request, key)
    """
    stepwise = unlearner(model, optimizer, oracle=oracle, num_oracles=num_oracles, alpha=alpha, bn=bn)
    return iterate(stepwise, num_steps, batch_size=batch_size, **loop)
