"""Checks and small operations on pytrees that every floor above shares."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from jaxunlearn.types import Data, ForgetRequest, Variables

Layers: TypeAlias = str | Callable[[str], bool]  # a regular expression to be found in a parameter's path, or a predicate


def is_concrete(value: Any) -> bool:
    """Whether a value can be checked now: tracers cannot."""
    return not isinstance(value, Tracer)


def leading_axis(tree: PyTree, what: str) -> int:
    """Common length of the first axis of all leaves; ValueError if there is none."""
    lengths = {
        jax.tree_util.keystr(path): np.shape(leaf)[0] if np.ndim(leaf) else -1 for path, leaf in jax.tree.leaves_with_path(tree)
    }
    if len(set(lengths.values())) != 1 or -1 in lengths.values():
        raise ValueError(f"every array of {what} needs the same leading axis (its rows), got {lengths}")
    return next(iter(lengths.values()))


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no inexact leaf holds NaN or inf."""
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.array(True)


def select(condition: Bool[Array, ""], on_true: PyTree, on_false: PyTree) -> PyTree:
    """`where` over two trees of one structure; leaves of any dtype, typed keys included."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), on_true, on_false)


def path_of(path: tuple) -> str:
    """A leaf's path as users write it, e.g. `Dense_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matching(tree: PyTree, layers: Layers) -> PyTree:
    """A tree of static bools: which leaves `layers` names, by their paths such as `Dense_0/kernel`."""
    if not (isinstance(layers, str) or callable(layers)):
        raise TypeError(f"layers must be a regular expression over parameter paths or a predicate, got {layers!r}")
    names = re.compile(layers).search if isinstance(layers, str) else layers
    return jax.tree.map_with_path(lambda path, _: bool(names(path_of(path))), tree)


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
        raise ValueError(f"expected one key, got an array of shape {jnp.shape(key)}; batched() takes one key a request")
    if str(jax.random.key_impl(key)) in ("rbg", "unsafe_rbg"):
        raise TypeError("rbg keys draw differently under vmap, so requests would not be reproducible; use threefry keys")


def check_call(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> None:
    """Everything about one call of a method that is static and can be wrong."""
    check_variables(variables)
    check_key(key)
    rows = leading_axis(data.train, "data.train")
    if jnp.shape(data.present) != (rows,):
        raise ValueError(f"data.present must have shape ({rows},), one entry a training row, got {jnp.shape(data.present)}")
    indices, weights = request.indices, request.weights
    if not jnp.issubdtype(jnp.result_type(indices), jnp.integer):
        raise TypeError(f"request.indices must be integers, got {jnp.result_type(indices)}")
    if jnp.ndim(indices) != 1:
        raise ValueError(
            f"expected one request of shape [k], got indices of shape {jnp.shape(indices)}; use batched() for many"
        )
    if jnp.shape(indices) != jnp.shape(weights):
        raise ValueError(f"request.indices and request.weights differ in shape: {jnp.shape(indices)}, {jnp.shape(weights)}")


def form_of(values: PyTree) -> dict[str, str]:
    """Shape and dtype of every leaf by its path, e.g. `{"Dense_0/kernel": "float32[4,8]"}`."""
    return {path_of(path): jax.typeof(leaf).str_short() for path, leaf in jax.tree.leaves_with_path(values)}


def differences(expected: PyTree, got: PyTree) -> str:
    """How the forms of two trees differ, for an error message; empty if they do not."""
    old, new = form_of(expected), form_of(got)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    shown = "; ".join(f"{name}: {old.get(name, 'absent')} became {new.get(name, 'absent')}" for name in names[:5])
    return shown + (f"; and {len(names) - 5} more" if len(names) > 5 else "")


def check_same(before: Variables, after: Variables) -> None:
    """ValueError unless a method keeps the tree, shapes and dtypes of its variables."""
    if changes := differences(before, after):
        raise ValueError(f"unlearned variables must keep the tree, shapes and dtypes of the trained ones: {changes}")


def check_range(name: str, value: Any, *, low: float, high: float = np.inf) -> None:
    """ValueError if a hyper-parameter lies outside `[low, high]`; traced values are not checked."""
    if is_concrete(value) and not bool(np.all((np.asarray(value) >= low) & (np.asarray(value) <= high))):
        raise ValueError(f"{name} must lie in [{low}, {high}], got {value}")


def require_count(name: str, value: Any, *, least: int = 1) -> None:
    """ValueError unless a static size is an integer of at least `least`; TypeError if it is traced."""
    if not is_concrete(value):
        raise TypeError(f"{name} fixes shapes, so it cannot be traced; use active_steps for a number of steps that varies")
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
