"""UNSIR, impair and repair with error-maximising noise (Tarun, Chundawat, Mandal, Kankanhalli: Fast yet effective machine
unlearning, IEEE TNNLS 2023, arXiv 2111.08947).

    noise:   N <- argmin_N -mean loss(w0; N, y) + penalty mean ||N||^2,    y labels of the forget set, N started from N(0, I)
    impair:  w <- w - optimizer(grad alpha (mean_{retain} loss(w) + regularizer(w)) + (1 - alpha) mean loss(w; N, y))
    repair:  w <- w - optimizer(grad mean_{retain} loss(w) + regularizer(w))

No input of the forget set is read, only the labels ("zero-glance"). Training on inputs that look least like a class, under
its label, overwrites what the model knew of that class. It is meant for whole classes: after a request for single rows it
impairs the classes of those rows, which the repair must then mend. The authors use one learning rate per phase; give the
optimizer a schedule. They mix noise and the retain set in one set whose proportions depend on the data; here `alpha` weighs
them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from jaxunlearn import checks, class_order, passes, sampling
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import (
    Batch,
    BatchSizes,
    Data,
    Examples,
    ForgetRequest,
    Model,
    Scalar,
    Split,
    Unlearner,
    Variables,
    Weighted,
)

METHOD = Method(
    summary="train on noise under the labels of the forget set, then repair (whole classes)",
    cites="tarun2023fast",
    family="objective",
    reads=frozenset({"forget labels", "retain"}),
    targets="classes",
    requests="classes",
    search={"learning_rate": (0.001, 0.004, 0.01), "alpha": (0.5, 0.8, 0.95)},
)


def learn_noise(
    model: Model,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    key: PRNGKeyArray,
    *,
    rows: int,
    steps: int,
    learning_rate: Scalar,
    penalty: Scalar,
) -> Weighted:
    """Inputs on which the model errs most, labelled like the forget set; all of weight 0 where that is empty."""
    checks.require_floating(data.train.inputs, "unsir learns its inputs by gradient descent")
    split_key, noise_key = jax.random.split(key)
    named = spread_over_labels(data, request, rows, split_key)
    # in single precision at least: Adam's and the norm's squares leave the range of float16
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), jnp.promote_types(x.dtype, jnp.float32)), data.train.inputs
    )

    def narrow(noise):
        return jax.tree.map(lambda x, rows: x.astype(rows.dtype), noise, data.train.inputs)

    start = optax.tree.random_like(noise_key, like, sampler=jax.random.normal)
    optimizer = optax.adam(learning_rate)

    def objective(noise):
        examples = Examples(narrow(noise), named.examples.targets)
        losses = model.loss(model.forward(variables, examples.inputs, train=False), examples)
        return penalty * optax.tree.norm(noise, squared=True) / rows - sampling.masked_mean(losses, named.weights, empty=0)

    def step(carried, _):
        noise, state = carried
        updates, state = optimizer.update(jax.grad(objective)(noise), state, noise)
        return (optax.apply_updates(noise, updates), state), None

    (noise, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return named._replace(examples=Examples(narrow(noise), named.examples.targets))


def spread_over_labels(data: Data, request: ForgetRequest, rows: int, key: PRNGKeyArray) -> Weighted:
    """Rows of the forget set, over and over: one of each label, then another one of each that has more, and so on."""
    split = sampling.split(data, request, key)
    if data.train.targets.ndim != 1 or not jnp.issubdtype(data.train.targets.dtype, jnp.integer):
        return sampling.draw_forget(split, jnp.int32(0), rows)
    place = jnp.arange(split.slots.shape[0], dtype=jnp.int32)  # slots are in random order, unused ones last
    labels = data.train.targets[sampling.row_numbers(request)[split.slots]]
    in_turns = class_order.turns_by_label(labels, place < split.num_forget)
    return sampling.draw_forget(split._replace(slots=split.slots[in_turns]), jnp.int32(0), rows)


def with_noise(split: Split, noise: Weighted, step: jax.Array, key: PRNGKeyArray, sizes: BatchSizes) -> Batch:
    """Sampler whose forget side is learned noise."""
    retain_key, noise_key = jax.random.split(key)
    chosen = jax.random.bits(noise_key, (sizes.forget,)) % noise.weights.shape[0]
    drawn = jax.tree.map(lambda x: x[chosen], noise)
    return Batch(drawn, sampling.draw_retain(split, retain_key, sizes.retain))


def unsir(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    impair_share: Scalar = 0.5,
    alpha: Scalar = 0.5,
    noise_rows: int = 256,
    noise_steps: int = 40,
    noise_learning_rate: Scalar = 0.1,
    noise_penalty: Scalar = 0.1,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Impair the classes of the forget set with learned noise, then repair on the retain set.

    Args:
        model: a classifier of floating-point inputs.
        optimizer: any optax transformation; a schedule can give each phase its learning rate.
        impair_share: share of the steps that impair, in [0, 1], may be traced; the rest repairs.
        alpha: weight of the retain set while impairing, in [0, 1], may be traced; the noise gets `1 - alpha`.
        noise_rows: noise inputs that are learned, spread over the labels of the forget set; static.
        noise_steps, noise_learning_rate: of Adam on the noise; the number of steps is static.
        noise_penalty: weight of the mean squared norm of a noise input, at least 0.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`, whose `batch_size` counts rows of noise; per-step `stats`: `loss`,
        `retain_loss` Float[], `phase` Int[] (1 while impairing).

    Raises:
        ValueError: a setting out of its range.
        TypeError: at trace time, inputs that are not floating-point.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.unsir(model, optax.sgd(0.1), noise_rows=16), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    checks.check_range("alpha", alpha, low=0, high=1)
    checks.check_range("impair_share", impair_share, low=0, high=1)
    checks.check_range("noise_penalty", noise_penalty, low=0)
    checks.require_count("noise_rows", noise_rows)
    checks.require_count("noise_steps", noise_steps, least=0)

    def impair(variables, batch, key):
        retain, noise, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        loss = alpha * (retain.loss + passes.penalty(model, variables.params)) + (1 - alpha) * noise.loss
        return loss.astype(retain.loss.dtype), (moved.state, {"retain_loss": retain.loss})

    def repair(variables, batch, key):
        retain, moved = passes.train_pass(model, variables, batch.retain, key, side="retain", bn=bn)
        loss = retain.loss + passes.penalty(model, variables.params)
        return loss.astype(retain.loss.dtype), (moved.state, {"retain_loss": retain.loss})

    def objective(variables, context, batch, key):
        impairs = jnp.asarray(batch.progress < impair_share)
        loss, (state, stats) = jax.lax.cond(impairs, impair, repair, variables, batch, key)
        return loss, (state, {**stats, "phase": impairs.astype(jnp.int32)})

    noise = partial(
        learn_noise, model, rows=noise_rows, steps=noise_steps, learning_rate=noise_learning_rate, penalty=noise_penalty
    )
    return descend(model, optimizer, objective, context=noise, sample=with_noise, on_empty=METHOD.on_empty)
