"""Relearn time: how quickly does a model know the forget set again?

A model that only learned to hide rows has them back after a few steps. The value depends on optimizer and learning rate:
compare with the original, which never forgot, and with a retrained model, which never saw the rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxunlearn import checks, sampling
from jaxunlearn.audit.single.performance import accuracy
from jaxunlearn.evaluation import predict
from jaxunlearn.loop.iterate import iterate
from jaxunlearn.methods.finetune import finetune
from jaxunlearn.requests import empty_request
from jaxunlearn.sampling import forget_rows
from jaxunlearn.types import Data, ForgetRequest, Model, Variables


class Relearning(NamedTuple):
    """What `relearn_time` returns."""

    steps: Float[Array, ""]  # until the target, a multiple of `look_every`; the cap where it was not reached
    reached: Bool[Array, ""]
    accuracies: Float[Array, " r+1"]  # on the forget set, before the first step and at every look


def relearn_time(
    model: Model,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    *,
    target: ArrayLike,
    num_steps: int = 50,
    look_every: int = 1,
    batch_size: int = 32,
) -> Relearning:
    """Fine-tuning on the forget set until its accuracy reaches the target, and how long that takes.

    Compare with the same time of the original and of retrained models, for one target: `(1 - alpha) acc_o(D_f)`, with alpha
    0.05 for the anamnesis index.

    Args:
        model: a classifier.
        variables: where fine-tuning starts.
        data: training rows with integer targets [n].
        request: one request.
        optimizer: starts afresh after every look.
        key: one typed key, for the batches.
        target: accuracy in [0, 1]; may be traced.
        num_steps: cap of the time, a multiple of `look_every`.
        look_every: steps between two looks at the accuracy; r looks in all.
        batch_size: rows per step.

    Returns:
        `Relearning`. Where `reached` is False the time is only known to exceed the cap.

    Raises:
        ValueError: sizes that are not positive, steps that are no multiple of `look_every`, stacked requests.

    References:
        Chundawat, Tarun, Mandal, Kankanhalli: Zero-shot machine unlearning, 2023, arXiv 2201.05629 (anamnesis index).

    Example:
        >>> found = jaxunlearn.audit.relearn_time(model, variables, data, request, optax.sgd(0.1), key, target=0.9, num_steps=2)
        >>> found.accuracies.shape
        (3,)
    """
    checks.require_count("num_steps", num_steps)
    checks.require_count("look_every", look_every)
    if num_steps % look_every:
        raise ValueError(f"relearn_time: num_steps={num_steps} must be a multiple of look_every={look_every}")
    forgotten = forget_rows(data, request)
    # the forget set is all that this fine-tuning retains
    only = data._replace(present=jnp.where(sampling.retain_weights(data, request) > 0, 0, data.present))
    tune = iterate(finetune(model, optimizer, bn="frozen"), num_steps=look_every, batch_size=batch_size)

    def know(variables: Variables) -> Float[Array, ""]:
        return accuracy(predict(model, variables, forgotten.examples), forgotten.examples.targets, forgotten.weights)

    def step(variables: Variables, key: PRNGKeyArray) -> tuple[Variables, Float[Array, ""]]:
        after = tune(variables, only, empty_request(), key).variables
        return after, know(after)

    _, later = jax.lax.scan(step, variables, jax.random.split(key, num_steps // look_every))
    accuracies = jnp.concatenate([know(variables)[None], later])
    there = accuracies >= target
    reached = jnp.any(there)
    steps = jnp.where(reached, jnp.argmax(there) * look_every, num_steps)
    return Relearning(steps.astype(jnp.float32), reached, accuracies)


def anamnesis_index(unlearned: ArrayLike, retrained: ArrayLike) -> Float[Array, "..."]:
    """AIN, `(t_u + 0.01) / (t_r + 0.01)` with relearn times t; 1 is the aim, less means that rows were still known.

    Args:
        unlearned, retrained: relearn times to one target, both reached, in the same unit.

    Returns:
        At least 0; shapes broadcast.

    Example:
        >>> float(jaxunlearn.audit.anamnesis_index(3.0, 3.0))
        1.0
    """
    return (jnp.asarray(unlearned) + 0.01) / (jnp.asarray(retrained) + 0.01)
