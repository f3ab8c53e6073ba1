"""Diagonals of curvature matrices, which most removal heuristics call importances."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.curvature.matvecs import row_factors, widened
from jaxunlearn.curvature.representations import Diagonal, Fit
from jaxunlearn.curvature.slopes import Kind, check_kind, draws
from jaxunlearn.rows import evaluate, sum_rows
from jaxunlearn.types import ExampleLoss, Examples, Model, Variables


def diagonal(model: Model, *, kind: Kind = "fisher", chunk: int | None = 64) -> Fit:
    """Mean over rows of the squared single gradients, `diag(C)`; exact, unlike squares of batch gradients.

    Args:
        model: in evaluation mode.
        kind: see `jaxunlearn.curvature.slopes`; `fisher` is the true Fisher matrix, with c gradients a row.
        chunk: rows whose gradients are in memory together.

    Returns:
        A `Fit` that makes a `Diagonal`.

    Example:
        >>> fit = jaxunlearn.curvature.diagonal(model, kind="empirical")
    """

    def fit(variables, examples, weights, key):
        check_kind(kind, examples, key)

        def squares(part, weights):
            factors = row_factors(kind, model, variables, *part)
            return jax.tree.map(lambda g: jnp.einsum("b,bs...->...", weights.astype(g.dtype), g**2), factors)

        total = sum_rows(squares, (examples, draws(kind, key, weights.shape[0])), weights, chunk=chunk)
        return Diagonal(jax.tree.map(lambda x: x / jnp.sum(weights), total))

    return fit


def batch_means(
    loss: ExampleLoss,
    model: Model,
    variables: Variables,
    examples: Examples,
    weights: Float[Array, "n"],
    *,
    batch_size: int,
    function=jnp.square,
) -> PyTree:
    """Mean over consecutive batches of a function of the batch's mean gradient, element by element.

    What published code calls the diagonal of the Fisher matrix, with `function=jnp.square`. It falls with the batch size,
    since a mean of b gradients has a b-th of their variance, so that thresholds on it belong to one batch size.

    Args:
        loss: `(outputs, examples) -> [b]`.
        model, variables, examples, weights: as in `jaxunlearn.curvature.hvp`. A batch's mean runs over rows of weight above 0.
        batch_size: consecutive rows of a batch; batches without a row are left out.
        function: of the mean gradients.

    Returns:
        A tree like the params.
    """
    tree.require_count("batch_size", batch_size)
    params = widened(variables.params)

    def of_batch(examples, weights):
        def mean(p):
            outputs = evaluate(model._replace(loss=loss), variables._replace(params=p), examples)[1]
            counts = weights > 0
            return jnp.sum(jnp.where(counts, outputs, 0)) / jnp.maximum(jnp.sum(counts), 1)

        used = jnp.any(weights > 0)
        gradient = jax.grad(mean)(params)
        return jax.tree.map(lambda g: jnp.where(used, function(g), 0), gradient), used.astype(jnp.float32)

    total, batches = sum_rows(of_batch, examples, weights, chunk=batch_size)
    return jax.tree.map(lambda x: x / jnp.maximum(batches, 1), total)
