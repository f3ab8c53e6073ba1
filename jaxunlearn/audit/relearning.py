"""Relearn time: how quickly does a model know forgotten rows again?

A model that was only taught to hide its rows has them back after a few steps. The number depends on optimizer and learning
rate, and needs both anchors: the original, which never forgot, and a retrained model, which never saw the rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxunlearn import risk, tree
from jaxunlearn.audit.performance import accuracy
from jaxunlearn.objective.finetune import finetune
from jaxunlearn.requests import empty_request
from jaxunlearn.rows import forget_rows, predict
from jaxunlearn.types import Data, ForgetRequest, Model, Variables


class Relearning(NamedTuple):
    """What `relearn_time` returns."""

    rounds: Float[Array, ""]  # until the target; the cap where it was not reached
    reached: Bool[Array, ""]
    accuracies: Float[Array, "r+1"]  # on the forgotten rows, before and after every round


def relearn_time(
    model: Model,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    *,
    target: ArrayLike,
    rounds: int = 50,
    steps_per_round: int = 1,
    batch_size: int = 32,
) -> Relearning:
    """Rounds of fine-tuning on the forgotten rows until their accuracy reaches the target.

    The weights that go in are not changed. Compare with the same number of the original and of retrained models, from one
    target: `(1 - alpha) acc_o(D_f)`, with alpha 0.05 for the anamnesis index.

    Args:
        model, data: as everywhere; integer targets.
        variables: where it starts.
        request: one request.
        optimizer: fresh in every round if it has a state.
        key: of the batches.
        target: accuracy in [0, 1]; may be traced.
        rounds: cap; 50 rounds of one step by default.
        steps_per_round: fine-tuning steps between two looks.
        batch_size: rows a step.

    Returns:
        `Relearning`. Where `reached` is False the time is only known to exceed the cap.

    Raises:
        ValueError: sizes that are not positive, stacked requests.

    References:
        Chundawat, Tarun, Mandal, Kankanhalli: Zero-shot machine unlearning, 2023, arXiv 2201.05629 (anamnesis index).

    Example:
        >>> found = jaxunlearn.audit.relearn_time(model, variables, data, request, optax.sgd(0.1), key, target=0.9, rounds=2)
        >>> found.accuracies.shape
        (3,)
    """
    tree.require_count("rounds", rounds)
    forgotten = forget_rows(data, request)
    # What was forgotten is all that this fine-tuning retains.
    only = data._replace(present=jnp.where(risk.retain_weights(data, request) > 0, 0, data.present))
    relearn = finetune(model, optimizer, num_steps=steps_per_round, batch_size=batch_size, bn="frozen")

    def know(variables: Variables) -> Float[Array, ""]:
        return accuracy(predict(model, variables, forgotten.examples), forgotten.examples.targets, forgotten.weights)

    def step(variables: Variables, key: PRNGKeyArray) -> tuple[Variables, Float[Array, ""]]:
        after = relearn(variables, only, empty_request(), key).variables
        return after, know(after)

    _, later = jax.lax.scan(step, variables, jax.random.split(key, rounds))
    accuracies = jnp.concatenate([know(variables)[None], later])
    there = accuracies >= target
    reached = jnp.any(there)
    return Relearning(jnp.where(reached, jnp.argmax(there), rounds).astype(jnp.float32), reached, accuracies)


def anamnesis_index(unlearned: ArrayLike, retrained: ArrayLike) -> Float[Array, "..."]:
    """AIN, `(t_u + 0.01) / (t_r + 0.01)` with relearn times t; 1 is the aim, less means that rows were still known.

    Args:
        unlearned, retrained: relearn times to one target, both reached.

    Example:
        >>> float(jaxunlearn.audit.anamnesis_index(3.0, 3.0))
        1.0
    """
    return (jnp.asarray(unlearned) + 0.01) / (jnp.asarray(retrained) + 0.01)
