"""What is static and wrong about a call: errors at construction or at trace time that say what to do."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxunlearn.tree import differences, leading_axis, path_of
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Outputs, Unlearner, Variables


def require_extra(module: str, extra: str) -> None:
    """ImportError that names the extra unless an optional package is installed."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"this needs {module}: pip install 'jaxunlearn[{extra}]'", name=module)


def is_concrete(value: Any) -> bool:
    """Whether a value can be checked now: tracers cannot."""
    return not isinstance(value, Tracer)


def check_range(name: str, value: Any, *, low: float, high: float = np.inf) -> None:
    """ValueError if a hyper-parameter lies outside `[low, high]`, TypeError for no number; traced values are not checked."""
    if is_concrete(value) and not np.issubdtype(np.result_type(np.asarray(value)), np.number):
        raise TypeError(f"{name} must be a number in [{low}, {high}], got {value!r}")
    if is_concrete(value) and not bool(np.all((np.asarray(value) >= low) & (np.asarray(value) <= high))):
        raise ValueError(f"{name} must lie in [{low}, {high}], got {value}")


def require_labels(name: str, labels: Any, num_classes: int) -> None:
    """ValueError if concrete labels are no classes."""
    if is_concrete(labels) and np.any((np.asarray(labels) < 0) | (np.asarray(labels) >= num_classes)):
        wrong = np.unique(np.asarray(labels)[(np.asarray(labels) < 0) | (np.asarray(labels) >= num_classes)])[:5].tolist()
        raise ValueError(f"{name} has labels {wrong}, and the model has classes 0 to {num_classes - 1}")


def require_count(name: str, value: Any, *, least: int = 1) -> None:
    """ValueError unless a static size is an integer of at least `least`; TypeError if it is traced."""
    if not is_concrete(value):
        raise TypeError(f"{name} fixes shapes, so it cannot be traced; use active_steps for a number of steps that varies")
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_variables(variables: Variables) -> None:
    """TypeError/ValueError unless `variables` is a `Variables` whose params are all real floating-point arrays."""
    if not isinstance(variables, Variables):
        raise TypeError(f"expected Variables(params, state), got {type(variables).__name__}; wrap your params in it")
    leaves = jax.tree.leaves_with_path(variables.params)
    if not leaves:
        raise ValueError("variables.params has no leaves: there is nothing to unlearn")
    wrong = [
        f"{path_of(path)} ({jnp.result_type(leaf)})"
        for path, leaf in leaves
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    ]
    if wrong:
        raise ValueError(f"variables.params must hold floating-point leaves only; move these to state: {', '.join(wrong)}")


def check_key(key: PRNGKeyArray) -> None:
    """TypeError unless `key` is one typed key whose draws are the same with and without `vmap`."""
    if not jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
        raise TypeError("expected a typed key: make it with jax.random.key(seed), not PRNGKey")
    if jnp.ndim(key):
        raise ValueError(f"expected one key, got an array of shape {jnp.shape(key)}; batched() takes one key per request")
    if str(jax.random.key_impl(key)) in ("rbg", "unsafe_rbg"):
        raise TypeError("rbg keys draw differently under vmap, so requests would not be reproducible; use threefry keys")


def require_classes(method: str, logits: Any) -> None:
    """ValueError unless logits are [b, c] of at least two classes."""
    if jnp.ndim(logits) != 2 or jnp.shape(logits)[1] < 2:
        raise ValueError(
            f"{method} compares classes, so it needs logits [b, c] with c of at least 2, got shape {jnp.shape(logits)}; for "
            "one logit z of two classes let forward return jnp.stack([jnp.zeros_like(z), z], axis=1)"
        )


def require_floating(inputs: PyTree, reason: str) -> None:
    """TypeError unless every leaf of the inputs is floating-point."""
    wrong = [x.dtype for x in jax.tree.leaves(inputs) if not jnp.issubdtype(x.dtype, jnp.floating)]
    if wrong:
        raise TypeError(f"{reason}, so they must be floating-point, got {wrong[0]}; convert them once")


def check_forward(model: Model, variables: Variables, inputs: PyTree) -> Outputs:
    """The form of the outputs for one row; TypeError unless `Model.forward` takes the weights and returns `Outputs`."""
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *jnp.shape(x)[1:]), jnp.result_type(x)), inputs)
    try:
        outputs = jax.eval_shape(lambda v, x: model.forward(v, x, train=False), variables, row)
    except TypeError as error:
        error.add_note(
            "Model.forward is called as forward(variables, inputs, train=..., key=...) and returns jaxunlearn.Outputs"
        )
        raise
    if not isinstance(outputs, Outputs):
        raise TypeError(f"Model.forward must return jaxunlearn.Outputs(logits, features, state), got {type(outputs).__name__}")
    return outputs


def row_losses(model: Model, outputs: Outputs, examples: Examples) -> Float[Array, " b"]:
    """The model's loss, one value per row; ValueError or TypeError for another one, with what it is called with."""
    try:
        losses = model.loss(outputs, examples)
    except (TypeError, AttributeError) as error:
        error.add_note(
            "Model.loss is called as loss(outputs, examples), with outputs.logits and examples.targets, and returns one value "
            "per row"
        )
        raise
    rows = leading_axis(examples, "examples")
    if jnp.shape(losses) != (rows,):
        found = jnp.shape(losses) if hasattr(losses, "dtype") else type(losses).__name__
        raise ValueError(f"model.loss must return one value per row, shape ({rows},), got {found}; leave out the mean")
    return losses


def check_present(data: Data) -> int:
    """How many training rows there are; ValueError unless `present` has one entry for each."""
    rows = leading_axis(data.train, "data.train")
    if jnp.shape(data.present) != (rows,):
        raise ValueError(f"data.present must have shape ({rows},), one entry per training row, got {jnp.shape(data.present)}")
    return rows


def check_call(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> None:
    """Everything about one call of a method that is static and can be wrong."""
    check_variables(variables)
    check_key(key)
    check_present(data)
    indices, weights = request.indices, request.weights
    if not jnp.issubdtype(jnp.result_type(indices), jnp.integer):
        raise TypeError(f"request.indices must be integers, got {jnp.result_type(indices)}")
    if jnp.ndim(indices) != 1:
        raise ValueError(
            f"expected one request of shape [k], got indices of shape {jnp.shape(indices)}; use batched() for many"
        )
    if jnp.shape(indices) != jnp.shape(weights):
        raise ValueError(f"request.indices and request.weights differ in shape: {jnp.shape(indices)}, {jnp.shape(weights)}")


def require_rows_like(name: str, rows: Any, train: Examples) -> None:
    """Refuse rows that are no `Examples`, that are none, or of another form than the training rows."""
    if not isinstance(rows, Examples):
        raise TypeError(f"{name} must be Examples(inputs, targets), got {type(rows).__name__}")

    def form(examples: Examples) -> tuple[Any, list[Any]]:
        leaves, form = jax.tree.flatten(examples)
        return form, [(np.shape(x)[1:], jnp.issubdtype(jnp.result_type(x), jnp.floating)) for x in leaves]

    if form(rows) != form(train):
        shapes = [[f"{jnp.result_type(x)}{list(np.shape(x))}" for x in jax.tree.leaves(part)] for part in (rows, train)]
        raise ValueError(f"rows of {name} have the form {', '.join(shapes[0])}, training rows {', '.join(shapes[1])}")
    if not leading_axis(rows, name):
        raise ValueError(f"{name} holds no row")


def check_same(before: Variables, after: Variables) -> None:
    """ValueError unless a method keeps the tree, shapes and dtypes of its variables."""
    if changes := differences(before, after):
        raise ValueError(f"unlearned variables must keep the tree, shapes and dtypes of the trained ones: {changes}")


def require_unlearn_fn(method: Any, caller: str) -> None:
    """TypeError unless `method` can be called with (variables, data, request, key)."""
    if isinstance(method, Unlearner):
        raise TypeError(
            f"{caller} takes a finished method, and this is an Unlearner, one step at a time: "
            f"write {caller}(jaxunlearn.iterate(unlearner, num_steps=100, batch_size=64))"
        )
    if not callable(method):
        raise TypeError(f"{caller} takes a function (variables, data, request, key) -> Result, got {type(method).__name__}")


def require_unlearner(method: Any, caller: str) -> None:
    """TypeError unless `method` is an `Unlearner`."""
    if not isinstance(method, Unlearner):
        hint = (
            "a finished method needs no loop: call it, or give it to batched" if callable(method) else "see jaxunlearn.descend"
        )
        raise TypeError(f"{caller} takes an Unlearner such as jaxunlearn.scrub(model, optimizer), got {method!r}; {hint}")
