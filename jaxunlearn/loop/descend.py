"""Gradient descent on an objective, as an `Unlearner`: what most methods are."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxunlearn import passes, sampling
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Batch, Data, ForgetRequest, Model, OnEmpty, Sampler, Unlearner, Variables


class Objective(Protocol):
    """`objective(variables, context, batch, key) -> (loss, (moved model state, stats))`."""

    def __call__(
        self, variables: Variables, context: Any, batch: Batch, key: PRNGKeyArray, /
    ) -> tuple[Float[Array, ""], tuple[PyTree, dict[str, jax.Array]]]: ...


class GradientState(NamedTuple):
    """What a gradient method carries from step to step."""

    variables: Variables
    optimizer: optax.OptState


def trained_model(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Variables:
    """The context of methods that look back at the trained model: the variables that the run starts from."""
    return variables


def _no_context(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Any:
    return ()


def _from_trained(variables: Variables, key: PRNGKeyArray) -> Variables:
    return variables


def descend(
    model: Model,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    context: Callable[[Variables, Data, ForgetRequest, PRNGKeyArray], Any] = _no_context,
    start: Callable[[Variables, PRNGKeyArray], Variables] = _from_trained,
    sample: Sampler = sampling.uniform,
    on_empty: OnEmpty = "identity",
    judge: bool = True,
) -> Unlearner:
    """Gradient descent on an objective, as an `Unlearner`.

    Args:
        model: the user's model.
        optimizer: any optax transformation; those that ask for `value`, `grad` or `value_fn` get them.
        objective: `(variables, context, batch, key) -> (loss, (state, stats))`, differentiated with respect to
            `variables.params`; `state` is the model state that survives the step, `stats` are scalars to report.
        context: `(variables, data, request, key) -> context`, e.g. a teacher; read-only during the run.
        start: `(variables, key) -> Variables`, where the descent begins.
        sample: draws the batches.
        on_empty: what an empty request gets, see `jaxunlearn.Unlearner`.
        judge: look at the loss of retained rows before and after a run; False for methods that may not read those.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[] and those of the objective.

    Raises:
        TypeError: no `Model`, or no optax transformation.

    Example:
        >>> def objective(variables, context, batch, key):
        ...     outputs = model.forward(variables, batch.retain.examples.inputs, train=True, key=key)
        ...     loss = model.loss(outputs, batch.retain.examples)
        ...     return jnp.sum(loss * batch.retain.weights), (outputs.state, {})
        >>> method = jaxunlearn.descend(model, optax.sgd(0.01), objective, on_empty="finetune")
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=5, batch_size=8))(variables, data, request, key)
        >>> result.stats["loss"].shape
        (5,)
    """
    if not isinstance(model, Model):
        raise TypeError(f"expected a Model(forward, loss), got {type(model).__name__}")
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"expected an optax transformation such as optax.sgd(0.1), got {type(optimizer).__name__}")
    optimizer = optax.with_extra_args_support(optimizer)

    def init(variables, data, request, key):
        context_key, start_key = jax.random.split(key)
        first = start(variables, start_key)
        return context(variables, data, request, context_key), GradientState(first, optimizer.init(first.params))

    def step(state, context, batch, key):
        params, model_state = state.variables

        def loss_at(params):
            return objective(Variables(params, model_state), context, batch, key)

        (loss, (model_state_after, stats)), gradient = jax.value_and_grad(loss_at, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(
            gradient, state.optimizer, params, value=loss, grad=gradient, value_fn=lambda p: loss_at(p)[0]
        )
        variables = Variables(optax.apply_updates(params, updates), model_state_after)
        return GradientState(variables, optimizer_state), {"loss": loss, **stats}

    return Unlearner(
        init, step, lambda state, context: state.variables, sample, on_empty, judged=model if judge else None, model=model
    )


def retain_objective(model: Model, bn: BatchNormPolicy) -> Objective:
    """The training objective on the retain set: mean loss plus the model's regularizer."""

    def objective(variables, context, batch, key):
        retain, moved = passes.train_pass(model, variables, batch.retain, key, side="retain", bn=bn)
        return retain.loss + passes.penalty(model, variables.params), (moved.state, {})

    return objective


def require_init(model: Model, why: str) -> Callable[[PRNGKeyArray], Variables]:
    """The model's `init`; ValueError if it has none."""
    if model.init is None:
        raise ValueError(f"{why}: pass Model(..., init=key -> Variables)")
    return model.init
