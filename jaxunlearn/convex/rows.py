"""Rows of a convex problem: making them, and refusing those that do not fit."""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn import checks, sampling
from jaxunlearn.convex.problems import Problem, check_kernel
from jaxunlearn.types import Data, ForgetRequest, Variables

ROUNDED = 1 + 1e-6  # rows of norm 1 in float32 may be longer than 1 by rounding


def feature_rows(inputs: Any, *, intercept: bool = True, norm: Literal["unit", "clip"] | None = "unit") -> np.ndarray:
    """Rows for a convex problem: flattened, with a 1 for the intercept, and of Euclidean norm at most 1.

    Every row is treated by itself, so that no row depends on another that may have to go.

    Args:
        inputs: [n, ...], finite.
        intercept: append a feature that is 1 before normalising.
        norm: `unit` divides every row by its norm, `clip` only those longer than 1, None leaves them. The margin of 1e-6
            keeps norms below 1 after rounding to float32.

    Returns:
        float32 [n, d].

    Raises:
        ValueError: NaN or inf, or an unknown norm.

    Example:
        >>> jaxunlearn.convex.feature_rows(data.train.inputs).shape  # 4 features and the intercept
        (60, 5)
    """
    rows = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    if not np.all(np.isfinite(rows)):
        raise ValueError(f"inputs of {np.sum(~np.isfinite(rows).all(axis=1))} rows are NaN or inf; leave those rows out")
    if norm not in ("unit", "clip", None):
        raise ValueError(f"norm must be 'unit', 'clip' or None, got {norm!r}")
    if intercept:
        rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    if norm is not None:
        length = np.linalg.norm(rows, axis=1, keepdims=True) * (1 + 1e-6)
        rows = rows / np.maximum(length, 1.0 if norm == "clip" else np.finfo(float).tiny)
    return rows.astype(np.float32)


def check_data(problem: Problem, data: Data, *, row_norm: float | None = None) -> None:
    """Refuse present rows and targets that do not fit the problem; host only.

    Args:
        problem: see `ridge`, `logistic`, `softmax`.
        data: `train.inputs` [n, d], `train.targets` as the problem wants them.
        row_norm: longest norm that a row may have, up to a relative 1e-6 for rounding; None takes any.

    Raises:
        ValueError: inputs or targets of another form, NaN or inf, labels outside of the problem's set, rows too long, no row.
        TypeError: inside `jit` or `vmap`, where values are not known.

    Example:
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> jaxunlearn.convex.check_data(jaxunlearn.convex.softmax(1e-3, 3), rows, row_norm=1.0)
    """
    inputs, targets = data.train
    if not all(map(checks.is_concrete, (inputs, targets, data.present))):
        raise TypeError("values are checked on the host: call this outside jit and vmap")
    check_shapes(problem, data)
    present = np.asarray(data.present) > 0
    if not present.any():
        raise ValueError("no row is present, so there is nothing to train on")
    rows, labels = np.asarray(inputs)[present].astype(np.float64), np.asarray(targets)[present]
    broken = ~np.isfinite(rows).all(axis=1)
    if broken.any():
        raise ValueError(f"inputs of {broken.sum()} present rows are NaN or inf; leave those rows out")
    if problem.name == "ridge":
        if not np.isfinite(labels).all():
            raise ValueError("some targets are NaN or inf; leave those rows out")
    else:
        classes = 2 if problem.name == "logistic" else problem.num_outputs
        strange = np.unique(labels[(labels < 0) | (labels >= classes)])
        if strange.tolist() == [-1] and classes == 2:
            raise ValueError(f"{problem.name} takes labels 0 and 1, got -1 and 1: write (labels + 1) // 2")
        if strange.size:
            raise ValueError(f"{problem.name} takes labels from 0 to {classes - 1}, got {strange[:5].tolist()}; number them so")
    if row_norm is not None:
        longest = float(np.sqrt((rows**2).sum(axis=1)).max())
        if longest > row_norm * ROUNDED:
            raise ValueError(
                f"the longest row has norm {longest!r}, more than {row_norm}: normalise with convex.feature_rows(...), "
                "or pass row_norm=None where no certificate is wanted"
            )


def check_request(problem: Problem, data: Data, request: ForgetRequest) -> None:
    """Refuse a request that leaves no row, or none of a class that the problem has rows of; host only.

    A class without rows keeps its column of weights, which nothing but the penalty holds: train a problem without the class
    instead.

    Args:
        problem: see `ridge`, `logistic`, `softmax`.
        data: what the model was trained on.
        request: one request.

    Raises:
        ValueError: as above.
        TypeError: inside `jit` or `vmap`, where values are not known.

    Example:
        >>> jaxunlearn.convex.check_request(jaxunlearn.convex.softmax(1e-3, 3), data, request)
    """
    if not all(map(checks.is_concrete, (data.present, request.indices))):
        raise TypeError("values are checked on the host: call this outside jit and vmap")
    before = np.asarray(data.present) > 0
    after = np.asarray(sampling.retain_weights(data, request)) > 0
    if not after.any():
        raise ValueError(f"the request removes all {before.sum()} present rows: delete the model instead")
    if problem.name != "ridge":
        labels = np.asarray(data.train.targets)
        gone = np.setdiff1d(labels[before], labels[after])
        if gone.size:
            raise ValueError(
                f"the request removes every row of the classes {gone.tolist()}: train a {problem.name} problem without them"
            )


def check_shapes(problem: Problem, data: Data) -> None:
    """ValueError unless inputs are [n, d] floats and targets of the problem's form."""
    inputs, targets = data.train
    if jnp.ndim(inputs) != 2 or not jnp.issubdtype(jnp.result_type(inputs), jnp.floating):
        raise ValueError(
            f"expected floating-point rows [n, d], got {jnp.result_type(inputs)}{list(jnp.shape(inputs))}; "
            "see convex.feature_rows"
        )
    wanted = {(inputs.shape[0],)} if problem.num_outputs == 1 or problem.name == "softmax" else set()
    wanted |= {(inputs.shape[0], problem.num_outputs)} if problem.name == "ridge" else set()
    kind = jnp.floating if problem.name == "ridge" else jnp.integer
    fits = jnp.issubdtype(jnp.result_type(targets), kind) or (
        problem.name == "logistic" and jnp.issubdtype(jnp.result_type(targets), jnp.bool_)
    )
    if jnp.shape(targets) not in wanted or not fits:
        raise ValueError(
            f"{problem.name} needs {'real' if problem.name == 'ridge' else 'integer'} targets of shape "
            f"{' or '.join(map(str, sorted(wanted)))}, got {jnp.result_type(targets)}{list(jnp.shape(targets))}"
        )


def kernel_of(problem: Problem, variables: Variables, data: Data) -> Float[Array, "d c"]:
    """The weights in float64; ValueError unless they are `{"kernel": [d, c]}` and fit the data."""
    check_shapes(problem, data)
    check_kernel(problem, variables.params, data.train.inputs.shape[1])
    return variables.params["kernel"].astype(jnp.float64)
