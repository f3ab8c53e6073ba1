"""UNSIR, impair and repair with error-maximising noise (Tarun, Chundawat, Mandal, Kankanhalli: Fast yet effective machine
unlearning, IEEE TNNLS 2023, arXiv 2111.08947).

    noise:   N <- argmin_N -mean loss(w0; N, y) + penalty mean ||N||^2,    y labels of forgotten rows, N started from N(0, I)
    impair:  w <- w - optimizer(grad alpha (mean_{retain} loss(w) + regularizer(w)) + (1 - alpha) mean loss(w; N, y))
    repair:  w <- w - optimizer(grad mean_{retain} loss(w) + regularizer(w))

No forgotten input is read, only the labels ("zero-glance"). Training on inputs that look least like a class, under its
label, overwrites what the model knew of that class. It is meant for whole classes: after a request for single rows it
impairs the classes of those rows, which the repair must then mend. The authors use one learning rate for each phase; give
the optimizer a schedule. They mix noise and retained rows in one set whose proportions depend on the data; here `alpha`
weighs them.
"""

from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from jaxunlearn import risk, tree
from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.risk import BatchNormPolicy
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
    UnlearnFn,
    Variables,
    Weighted,
)

REPAIR, IMPAIR = 0, 1


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
    """Inputs on which the model errs most, labelled like the forgotten rows; all of weight 0 if there are none."""
    wrong = [x.dtype for x in jax.tree.leaves(data.train.inputs) if not jnp.issubdtype(x.dtype, jnp.floating)]
    if wrong:
        raise TypeError(f"unsir learns its inputs by gradient descent, so they must be floating-point, got {wrong[0]}")
    split_key, noise_key = jax.random.split(key)
    named = risk.draw_forget(risk.split(data, request, split_key), jnp.int32(0), rows)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), data.train.inputs)
    start = optax.tree.random_like(noise_key, like, sampler=jax.random.normal)
    optimizer = optax.adam(learning_rate)

    def objective(noise):
        examples = Examples(noise, named.examples.targets)
        losses = model.loss(model.forward(variables, noise, train=False), examples)
        return penalty * optax.tree.norm(noise, squared=True) / rows - risk.weighted_mean(losses, named.weights)

    def step(carried, _):
        noise, state = carried
        updates, state = optimizer.update(jax.grad(objective)(noise), state, noise)
        return (optax.apply_updates(noise, updates), state), None

    (noise, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return named._replace(examples=Examples(noise, named.examples.targets))


def impair_then_repair(
    split: Split, noise: Weighted, step: jax.Array, key: PRNGKeyArray, sizes: BatchSizes, *, impair_steps: Scalar
) -> Batch:
    """Sampler whose forget side is learned noise."""
    retain_key, noise_key = jax.random.split(key)
    chosen = jax.random.bits(noise_key, (sizes.forget,)) % noise.weights.shape[0]
    drawn = jax.tree.map(lambda x: x[chosen], noise)
    return Batch(drawn, risk.draw_retain(split, retain_key, sizes.retain), jnp.where(step < impair_steps, IMPAIR, REPAIR))


def unlearner(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    impair_steps: Scalar,
    alpha: Scalar = 0.5,
    noise_rows: int = 256,
    noise_steps: int = 40,
    noise_learning_rate: Scalar = 0.1,
    noise_penalty: Scalar = 0.1,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Stepwise form of `unsir`."""
    tree.check_range("alpha", alpha, low=0, high=1)
    for name, value in {"impair_steps": impair_steps, "noise_penalty": noise_penalty}.items():
        tree.check_range(name, value, low=0)
    tree.require_count("noise_rows", noise_rows)
    tree.require_count("noise_steps", noise_steps, least=0)

    def impair(variables, batch, key):
        retain, noise, moved = risk.both_passes(model, variables, batch, key, bn=bn)
        loss = alpha * (retain.loss + risk.penalty(model, variables.params)) + (1 - alpha) * noise.loss
        return loss.astype(retain.loss.dtype), (moved.state, {"retain_loss": retain.loss})

    def repair(variables, batch, key):
        retain, moved = risk.train_pass(model, variables, batch.retain, key, side="retain", bn=bn)
        loss = retain.loss + risk.penalty(model, variables.params)
        return loss.astype(retain.loss.dtype), (moved.state, {"retain_loss": retain.loss})

    def objective(variables, context, batch, key):
        loss, (state, stats) = jax.lax.cond(batch.phase == IMPAIR, impair, repair, variables, batch, key)
        return loss, (state, {**stats, "phase": jnp.asarray(batch.phase)})

    noise = partial(
        learn_noise,
        model,
        rows=noise_rows,
        steps=noise_steps,
        learning_rate=noise_learning_rate,
        penalty=noise_penalty,
    )
    sample: Any = partial(impair_then_repair, impair_steps=impair_steps)
    return descend(model, optimizer, objective, context=noise, sample=sample)


def unsir(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    impair_steps: Scalar | None = None,
    alpha: Scalar = 0.5,
    noise_rows: int = 256,
    noise_steps: int = 40,
    noise_learning_rate: Scalar = 0.1,
    noise_penalty: Scalar = 0.1,
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Impair the classes of the forgotten rows with learned noise, then repair on the retained rows.

    Args:
        model: a classifier of floating-point inputs.
        optimizer: any optax transformation; a schedule can give each phase its learning rate.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`; `batch_size` is the number of noise rows a step.
        impair_steps: steps of the first phase, the rest repairs; may be traced. By default half of them.
        alpha: weight of the retained rows while impairing, in [0, 1], may be traced.
        noise_rows: noise inputs that are learned, spread over the labels of the forgotten rows.
        noise_steps, noise_learning_rate: of Adam on the noise.
        noise_penalty: weight of the mean squared norm of a noise input.
        bn: which passes may move BatchNorm statistics.

    Returns:
        An `UnlearnFn`; `stats`: `loss`, `retain_loss` Float[num_steps], `phase` Int[num_steps] (1 while impairing), and
        those of `iterate`.

    Raises:
        ValueError: numbers out of their range. TypeError: inputs that are not floating-point.

    Example:
        >>> unlearn = jaxunlearn.unsir(model, optax.sgd(0.1), num_steps=10, batch_size=8, noise_rows=16)
        >>> result = unlearn(variables, data, request, key)
    """
    stepwise = unlearner(
        model,
        optimizer,
        impair_steps=num_steps // 2 if impair_steps is None else impair_steps,
        alpha=alpha,
        noise_rows=noise_rows,
        noise_steps=noise_steps,
        noise_learning_rate=noise_learning_rate,
        noise_penalty=noise_penalty,
        bn=bn,
    )
    return iterate(stepwise, num_steps, batch_size=batch_size, **loop)
