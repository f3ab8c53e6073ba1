"""Importances of single weights as published code computes them, and damping of weights that matter to few rows."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from jaxunlearn import checks, slots
from jaxunlearn.curvature.matvecs import widened
from jaxunlearn.curvature.single_rows import row_gradients
from jaxunlearn.evaluation import evaluate, sum_rows
from jaxunlearn.sampling import forget_rows
from jaxunlearn.status import combine
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Prepare, Result, Scalar, Variables

Average: TypeAlias = Literal["batch", "sample"]


class Measure(NamedTuple):
    """A way to compute importances; those made in different ways cannot be compared."""

    make: Callable[[Model, Variables, Examples, Float[Array, " n"]], PyTree]  # (model, variables, examples, weights)
    how: str
    slot: slots.Slot


def batch_means(
    model: Model,
    variables: Variables,
    examples: Examples,
    weights: Float[Array, " n"],
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
    checks.require_count("batch_size", batch_size)
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


def measure(
    *,
    average: Average,
    batch_size: int,
    slot: slots.Slot = slots.IMPORTANCES,
    function: Callable[[jax.Array], jax.Array] = jnp.square,
    label: str = "squares",
) -> Measure:
    """A function of gradients, averaged over batches or over single rows.

    Args:
        average: `batch` takes mean gradients of batches, as published code does; `sample` gradients of single rows,
            `batch_size` at a time.
        batch_size: rows of a batch.
        slot: where importances of all rows lie.
        function: of the gradients, element by element.
        label: of the function, to tell importances apart.

    Raises:
        ValueError: another average, a batch size that is no positive integer.
    """
    if average not in ("batch", "sample"):
        raise ValueError(f"average must be 'batch' or 'sample', got {average!r}")
    checks.require_count("batch_size", batch_size)
    if average == "batch":
        return Measure(
            partial(batch_means, batch_size=batch_size, function=function),
            f"{label} of gradients of batches of {batch_size}",
            slot,
        )

    def of_rows(model: Model, variables: Variables, examples: Examples, weights: Float[Array, " n"]) -> PyTree:
        def total(examples, weights):
            gradients = row_gradients(model, variables, examples)
            return jax.tree.map(lambda g: jnp.tensordot(weights, function(g), axes=1), gradients)

        rows = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
        return jax.tree.map(lambda x: x / rows, sum_rows(total, examples, weights, chunk=batch_size))

    return Measure(of_rows, f"{label} of gradients of single rows", slot)


def prepare(measure: Measure, model: Model) -> Prepare:
    """What puts the importances of all present rows into their slot, for all requests to share."""

    def prepared(variables: Variables, data: Data, key: PRNGKeyArray) -> Data:
        del key
        return measure.slot.put(data, measure.make(model, variables, data.train, data.present), at=variables, how=measure.how)

    return prepared


def of_request(
    measure: Measure, model: Model, variables: Variables, data: Data, request: ForgetRequest
) -> tuple[PyTree, PyTree, Bool[Array, ""]]:
    """Importances of all rows, those of the request, and whether the former are stale."""
    shared, stale = measure.slot.read(data, at=variables, how=measure.how)
    part = forget_rows(data, request)
    return shared, measure.make(model, variables, part.examples, part.weights), stale


def dampening(measure: Measure, model: Model, *, alpha: Scalar, strength: Scalar) -> Callable[..., Result]:
    """The update of selective synaptic dampening with importances of any kind."""
    checks.check_range("alpha", alpha, low=0)
    checks.check_range("strength", strength, low=0)

    def remove(variables, data, request, key):
        everything, own, stale = of_request(measure, model, variables, data, request)
        params, share = dampened(variables.params, everything, own, alpha=alpha, strength=strength)
        return Result(variables._replace(params=params), combine(STALE=stale), {"selected": share})

    return remove


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
