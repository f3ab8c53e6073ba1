"""Importances of single weights as published code computes them, and damping of weights that matter to few rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.curvature.matvecs import row_gradients, widened
from jaxunlearn.rows import evaluate, forget_rows, sum_rows
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Scalar, Variables

Average: TypeAlias = Literal["batch", "sample"]


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["made_by"])
@dataclass(frozen=True)
class Importances:
    """A number a weight, and how it was made: importances made in different ways cannot be compared."""

    values: PyTree
    made_by: str


# (model, variables, examples, weights) -> Importances
Make: TypeAlias = Callable[[Model, Variables, Examples, Float[Array, "n"]], Importances]


def batch_means(
    model: Model,
    variables: Variables,
    examples: Examples,
    weights: Float[Array, "n"],
    *,
    batch_size: int,
    function: Callable[[jax.Array], jax.Array] = jnp.square,
) -> PyTree:
    """Mean over consecutive batches of a function of the batch's mean gradient, element by element.

    What published code calls the diagonal of the Fisher matrix, with `function=jnp.square`. It falls with the batch size,
    since a mean of b gradients has a b-th of their variance, so that thresholds on it belong to one batch size.

    Args:
        model, variables, examples, weights: as in `jaxunlearn.curvature.hvp`. Rows of weight above 0 count alike.
        batch_size: consecutive rows of a batch; the last one may be smaller.
        function: of the mean gradients.

    Returns:
        A tree like the params.

    Example:
        >>> squares = jaxunlearn.curvature.batch_means(model, variables, data.train, data.present, batch_size=16)
    """
    tree.require_count("batch_size", batch_size)
    params = widened(variables.params)
    order = jnp.argsort(weights <= 0, stable=True)  # rows that count first, so that padding makes no batch smaller
    examples, weights = jax.tree.map(lambda x: jnp.asarray(x)[order], (examples, weights))

    def of_batch(examples, weights):
        counts = weights > 0

        def mean(p):
            losses = evaluate(model, variables._replace(params=p), examples)[1]
            return jnp.sum(jnp.where(counts, losses, 0)) / jnp.maximum(jnp.sum(counts), 1)

        used = jnp.any(counts)
        gradient = jax.grad(mean)(params)
        return jax.tree.map(lambda g: jnp.where(used, function(g), 0), gradient), used.astype(jnp.float32)

    total, batches = sum_rows(of_batch, examples, weights, chunk=batch_size)
    return jax.tree.map(lambda x: x / jnp.maximum(batches, 1), total)


def importances(
    model: Model,
    variables: Variables,
    examples: Examples,
    weights: Float[Array, "n"],
    *,
    average: Average,
    batch_size: int,
    function: Callable[[jax.Array], jax.Array] = jnp.square,
    label: str = "squares",
) -> Importances:
    """A function of gradients, averaged over batches or over single rows.

    Args:
        model, variables, examples, weights, batch_size, function: as in `batch_means`.
        average: `batch` takes mean gradients of batches, as published code does; `sample` gradients of single rows,
            `batch_size` at a time.
        label: of the function, to tell importances apart.
    """
    if average not in ("batch", "sample"):
        raise ValueError(f"average must be 'batch' or 'sample', got {average!r}")
    if average == "batch":
        made_by = f"{label} of gradients of batches of {batch_size}"
        return Importances(batch_means(model, variables, examples, weights, batch_size=batch_size, function=function), made_by)

    def of_rows(examples, weights):
        gradients = row_gradients(model, variables, examples)
        return jax.tree.map(lambda g: jnp.tensordot(weights, function(g), axes=1), gradients)

    total = sum_rows(of_rows, examples, weights, chunk=batch_size)
    rows = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
    return Importances(jax.tree.map(lambda x: x / rows, total), f"{label} of gradients of single rows")


def of_request(
    make: Make, model: Model, variables: Variables, data: Data, request: ForgetRequest, name: str
) -> tuple[Importances, Importances]:
    """Importances of all rows, prepared under `name`, and those of the request, made in the same way."""
    shared = data.extra.get(name)
    if not isinstance(shared, Importances):
        raise ValueError(f"data.extra[{name!r}] is missing: make it with the method's own prepare(...)(variables, data, key)")
    part = forget_rows(data, request)
    own = make(model, variables, part.examples, part.weights)
    if own.made_by != shared.made_by:
        raise ValueError(f"data.extra[{name!r}] holds {shared.made_by}, the method wants {own.made_by}: prepare them alike")
    return shared, own


def dampened(params: PyTree, everything: PyTree, request: PyTree, *, alpha: Scalar, strength: Scalar) -> tuple[PyTree, Array]:
    """Multiply weights that matter more than alpha times as much to the request as to all rows.

        w_j <- w_j min(strength F_j / f_j, 1)    where f_j > alpha F_j

    Returns:
        The weights, and the share of them that was selected.
    """

    def select(whole, part):
        return ~(part <= alpha * whole)  # NaN is selected, and so it is seen in the weights

    def dampen(w, whole, part):
        return jnp.where(select(whole, part), w * jnp.minimum(strength * (whole / part), 1), w).astype(w.dtype)

    chosen = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(select(a, b)), everything, request))
    share = sum(chosen) / sum(x.size for x in jax.tree.leaves(params))
    return jax.tree.map(dampen, params, everything, request), jnp.asarray(share, jnp.float32)
