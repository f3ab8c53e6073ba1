"""Rows through a model in evaluation mode, in chunks that bound memory, and sums that rows of weight 0 cannot touch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import checks, sampling, tree
from jaxunlearn.types import Examples, Model, Outputs, Variables


def map_rows(function: Callable[[Any], PyTree], examples: PyTree, *, chunk: int | None = None) -> PyTree:
    """`function(examples)`, `chunk` rows at a time, with matrix products at the highest precision.

    Args:
        function: returns arrays with one entry per row; every row by itself, so that the cut into chunks does not matter.
        examples: any tree of leading axis n, e.g. `Examples`.
        chunk: rows that are in memory together; `None` takes all. The last chunk is moved back to end at row n.

    Returns:
        What `function` returns, leading axis n.

    Raises:
        ValueError: a chunk that is not a positive integer, leading axes that differ.

    Example:
        >>> from jaxunlearn.evaluation import map_rows
        >>> map_rows(lambda rows: jnp.sum(rows.inputs, axis=1), data.train, chunk=16).shape
        (60,)
    """
    rows = tree.leading_axis(examples, "examples")
    if chunk is not None:
        checks.require_count("chunk", chunk)
    with jax.default_matmul_precision("highest"):
        if chunk is None or chunk >= rows:
            return function(examples)

        def block(start):
            return function(jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, chunk), examples))

        values = jax.lax.map(block, jnp.minimum(jnp.arange(0, rows, chunk), rows - chunk))
    repeated = -rows % chunk
    if not repeated:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), values)
    return jax.tree.map(lambda x: jnp.concatenate([x[:-1].reshape(-1, *x.shape[2:]), x[-1, repeated:]]), values)


def class_labels(targets: Any) -> Int[Array, " n"]:
    """Targets of a classifier; ValueError unless they are one array of integers."""
    if not hasattr(targets, "dtype") or not jnp.issubdtype(targets.dtype, jnp.integer) or jnp.ndim(targets) != 1:
        raise ValueError("this method compares classes: targets must be one array of integer labels, shape [n]")
    return targets


def class_logits(logits: Float[Array, "... 1"], targets: Any) -> Float[Array, "... c"]:
    """Logits of classes: `[0, z]` for one logit z per row, [b] or [b, 1], of labels 0 and 1; others as they are."""
    if jnp.ndim(logits) == jnp.ndim(targets):
        logits = logits[..., None]
    return logits if logits.shape[-1] > 1 else jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


def sum_rows(
    function: Callable[[Any, Float[Array, " b"]], PyTree],
    examples: PyTree,
    weights: Float[Array, " n"],
    *,
    chunk: int | None = None,
) -> PyTree:
    """`function(examples, weights)` summed over blocks of `chunk` rows, with matrix products at the highest precision.

    Args:
        function: returns sums over rows, in which a row counts in proportion to its weight.
        examples: any tree of leading axis n, e.g. `Examples`; rows of weight 0 come in as a copy of one that counts.
        weights: one per row.
        chunk: rows that are in memory together; `None` takes all. The last block is filled with rows that come a second time,
            with weight 0.

    Returns:
        What `function` returns.

    Raises:
        ValueError: a chunk that is not a positive integer, leading axes that differ.

    Example:
        >>> from jaxunlearn.evaluation import sum_rows
        >>> count = sum_rows(lambda rows, weights: jnp.sum(weights), data.train, data.present, chunk=16)
        >>> float(count)
        60.0
    """
    rows = tree.leading_axis((examples, weights), "examples and weights")
    if chunk is not None:
        checks.require_count("chunk", chunk)

    with jax.default_matmul_precision("highest"):
        if chunk is None or chunk >= rows:
            return function(sampling.fill(examples, weights), weights)

        def add(total, start):
            first = jnp.minimum(start, rows - chunk)
            part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, chunk), (examples, weights))
            fresh = jnp.where(first + jnp.arange(chunk) >= start, part[1], 0)
            return jax.tree.map(jnp.add, total, function(sampling.fill(*part, row=filler), fresh)), None

        filler = sampling.first_that_counts(examples, weights)  # a block may have no row that counts
        form = jax.eval_shape(function, *jax.tree.map(lambda x: x[:chunk], (examples, weights)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), form)
        return jax.lax.scan(add, zeros, jnp.arange(0, rows, chunk))[0]


def evaluate(model: Model, variables: Variables, examples: Examples) -> tuple[Outputs, Float[Array, " b"]]:
    """Outputs and unreduced losses in evaluation mode; ValueError unless there is one loss per row."""
    outputs = model.forward(variables, examples.inputs, train=False)
    return outputs, checks.row_losses(model, outputs, examples)


def predict(model: Model, variables: Variables, examples: Examples, *, chunk: int | None = None) -> jax.Array:
    """Logits of a model in evaluation mode.

    Matrix products run at the highest precision, whatever the default of the accelerator.

    Args:
        model: only `forward` is used; it must treat every row by itself when `train=False`.
        variables: the model's parameters and state.
        examples: only `inputs` are read, leading axis n.
        chunk: rows that go through the model together; `None` takes all. It bounds memory and changes no value.

    Returns:
        `Outputs.logits`, leading axis n.

    Raises:
        ValueError: a chunk that is not a positive integer, leading axes that differ.

    Example:
        >>> jaxunlearn.audit.predict(model, variables, data.train, chunk=256).shape
        (60, 3)
    """
    return map_rows(lambda part: model.forward(variables, part.inputs, train=False).logits, examples, chunk=chunk)
