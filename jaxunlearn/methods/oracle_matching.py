"""Oracle matching (Georgiev, Rinberg, Park, Garg, Ilyas, Madry, Neel: Attribute-to-delete: machine unlearning via datamodel
matching, 2024, arXiv 2410.23232).

    L(w) = alpha mean_{retain} ||z_w(x) - z*(x)||^2 + (1 - alpha) mean_{forget} ||z_w(x) - z*(x)||^2,
    z* = mean of z over retrained models,    z = logits minus their mean over classes

The trained model learns to answer as retrained models do on average. The paper matches predictions of datamodels, and oracles
as the best case of them; this is the oracle form, with a few retrainings for each request. It costs more than a retraining
and is a yardstick: what matching outputs can reach when they are known. A reconstruction: the paper's choice of outputs is the
margin of one class, here all logits are matched, centred because a constant does not change the prediction. Of sequences the
distance is the mean over the positions that have a label.
"""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import checks, passes
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend
from jaxunlearn.losses.sequences import logits_that_count, over_positions, token_labels
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner, UnlearnFn, Variables, Weighted

METHOD = Method(
    summary="match the mean outputs of a few retrained models (a yardstick)",
    cites="georgiev2024attribute",
    family="objective",
    reads=frozenset({"forget", "init", "retain"}),
    targets="tokens",
    reconstruction=True,
    aliases=("datamodel_matching",),
)


def _centred(logits: jax.Array) -> jax.Array:
    return logits - jnp.mean(logits, axis=-1, keepdims=True)


def oracle_matching(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    oracle: UnlearnFn,
    num_oracles: int = 5,
    alpha: Scalar = 0.5,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Match the mean outputs of retrained models on the forget set and on the retain set.

    Args:
        model: a classifier, or one of token sequences, labels as of `losses.sequence_cross_entropy`.
        optimizer: any optax transformation.
        oracle: makes one retrained model, e.g. `jaxunlearn.iterate(jaxunlearn.retrain(...), ...)`; it runs inside this method.
            Of its status only NaN is passed on.
        num_oracles: how many are averaged per request, static.
        alpha: weight of the retain set in [0, 1], may be traced; the forget set gets `1 - alpha`.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_distance`, `forget_distance` (squared, of
        centred logits) Float[].

    Raises:
        ValueError: `alpha` outside [0, 1], or a number of oracles that is not positive; at trace time, labels that do not fit
            the logits.
        TypeError: an oracle that is an `Unlearner`; at trace time, labels that are no integers.

    Example:
        >>> retrain = jaxunlearn.iterate(jaxunlearn.retrain(model, optax.sgd(0.1)), num_steps=10, batch_size=8)
        >>> method = jaxunlearn.oracle_matching(model, optax.sgd(0.01), oracle=retrain)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(variables, data, request, key)
    """
    checks.require_unlearn_fn(oracle, "oracle=")
    checks.require_count("num_oracles", num_oracles)
    checks.check_range("alpha", alpha, low=0, high=1)

    def oracles(variables, data, request, key):
        return jax.lax.map(lambda key: oracle(variables, data, request, key).variables, jax.random.split(key, num_oracles))

    def distance(oracles: Variables, run: passes.Pass, part: Weighted) -> jax.Array:
        size = run.outputs.logits.shape[-1]
        labels = token_labels(part.examples.targets, run.outputs.logits.shape[:-1], "logits")

        def answers(logits: jax.Array) -> jax.Array:
            return _centred(logits_that_count(logits, labels))

        said = jax.vmap(lambda one: answers(model.forward(one, part.examples.inputs, train=False).logits))(oracles)
        apart = jnp.sum((answers(run.outputs.logits) - jnp.mean(said, axis=0)) ** 2, axis=-1)
        return run.mean(over_positions(apart, labels, size))

    def objective(variables, oracles, batch, key):
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        kept, matched = distance(oracles, retain, batch.retain), distance(oracles, forget, batch.forget)
        return alpha * kept + (1 - alpha) * matched, (moved.state, {"retain_distance": kept, "forget_distance": matched})

    return descend(model, optimizer, objective, context=oracles, on_empty=METHOD.on_empty)
