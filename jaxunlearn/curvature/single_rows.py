"""Gradients of single rows, and the vectors that their parts of Gauss-Newton and Fisher matrices are made of."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt32

from jaxunlearn.curvature.logit_gradients import Kind, slopes
from jaxunlearn.curvature.matvecs import widened
from jaxunlearn.evaluation import evaluate, map_rows
from jaxunlearn.types import Examples, Model, Variables


def per_example_gradients(model: Model, variables: Variables, examples: Examples, *, chunk: int | None = None) -> PyTree:
    """Gradient of the loss of every row.

    Args:
        model: in evaluation mode; it must treat every row by itself.
        variables: where.
        examples: rows, leading axis n.
        chunk: rows whose gradients are computed together; it bounds what is needed beside the result.

    Returns:
        A tree like the params, leading axis n. For sums of functions of single gradients use `sum_rows`, which never holds
        all of them.

    Example:
        >>> gradients = jaxunlearn.curvature.per_example_gradients(model, variables, data.train, chunk=16)
        >>> gradients["head"].shape[0] == len(data.present)
        True
    """
    return map_rows(lambda part: row_gradients(model, variables, part), examples, chunk=chunk)


def row_gradients(model: Model, variables: Variables, examples: Examples) -> PyTree:
    """As `per_example_gradients`, all rows at once and at the precision of the caller."""
    params = widened(variables.params)

    def of_row(row):
        one = jax.tree.map(lambda x: x[None], row)
        return jax.grad(lambda p: jnp.sum(evaluate(model, variables._replace(params=p), one)[1]))(params)

    return jax.vmap(of_row)(examples)


def row_factors(kind: Kind, model: Model, variables: Variables, examples: Examples, seeds: UInt32[Array, " b"]) -> PyTree:
    """The vectors `J' u_s` of every row, whose outer products sum to its part of the matrix.

    Args:
        kind, seeds: see `jaxunlearn.curvature.logit_gradients`.
        model, variables, examples: as in `jaxunlearn.curvature.hvp`.

    Returns:
        A tree like the params, leading axes [b, s].
    """

    def of_row(row, seed):
        pull, u = _pulled(kind, model, variables, row, seed)
        return jax.vmap(pull)(u)

    return jax.vmap(of_row)(examples, seeds)


def row_squares(kind: Kind, model: Model, variables: Variables, examples: Examples, seeds: UInt32[Array, " b"]) -> PyTree:
    """`sum_s (J' u_s)^2` of every row, one s after the other, so that one vector of a row is in memory at a time.

    Args:
        kind, model, variables, examples, seeds: as in `row_factors`.

    Returns:
        A tree like the params, leading axis [b].
    """

    def of_row(row, seed):
        pull, u = _pulled(kind, model, variables, row, seed)
        if len(u) == 1:
            return jax.tree.map(jnp.square, pull(u[0]))
        add = lambda total, column: (jax.tree.map(lambda x, g: x + g**2, total, pull(column)), None)  # noqa: E731
        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, widened(variables.params)), u)[0]

    return jax.vmap(of_row)(examples, seeds)


def _pulled(kind: Kind, model: Model, variables: Variables, row: PyTree, seed: jax.Array) -> tuple[Callable, jax.Array]:
    """`u -> J' u` of one row, and its vectors u."""
    one = jax.tree.map(lambda x: x[None], row)

    def logits(p):
        outputs, _ = evaluate(model, variables._replace(params=p), one)
        return outputs.logits, outputs

    _, pull, outputs = jax.vjp(logits, widened(variables.params), has_aux=True)
    return lambda column: pull(column)[0], slopes(kind, model, outputs, one, seed[None])
