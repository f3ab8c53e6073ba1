"""Plain SGD on batches that are fixed beforehand, so that a run without some rows has the same ones, less those rows.

    w <- w - h_t (grad R(w) + 1 / q_t sum of grad l(w; z_i) over the rows of batch t that count)

q_t is the size of the batch (`fixed`, a row that leaves is a gradient less) or the number of its rows that count (`remaining`;
a batch without any makes no step but that of R).
"""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks, passes, sampling
from jaxunlearn.evaluation import evaluate
from jaxunlearn.types import Data, Examples, Model, Variables

Divide: TypeAlias = Literal["fixed", "remaining"]


def fixed_batches(num_rows: int, key: PRNGKeyArray, *, num_steps: int, batch_size: int) -> Int[Array, "t b"]:
    """Rows of every step: epochs in random orders, without the incomplete batch at their ends.

    Args:
        num_rows: of the data, present or not; static.
        key: decides the orders.
        num_steps: t, static.
        batch_size: b, at most `num_rows`; static.

    Returns:
        Int[t, b], no row twice in a batch.

    Raises:
        ValueError: sizes that are none, or a batch larger than the data.

    Example:
        >>> jaxunlearn.fixed_batches(60, key, num_steps=9, batch_size=16).shape
        (9, 16)
    """
    checks.require_count("num_steps", num_steps)
    checks.require_count("batch_size", batch_size)
    if batch_size > num_rows:
        raise ValueError(f"batch_size must be at most the {num_rows} rows, got {batch_size}")
    per_epoch = num_rows // batch_size

    def epoch(number):
        order = jnp.argsort(jax.random.bits(jax.random.fold_in(key, number), (num_rows,), jnp.uint32))
        return order[: per_epoch * batch_size].reshape(per_epoch, batch_size)

    found = jax.vmap(epoch)(jnp.arange(-(-num_steps // per_epoch)))
    return found.reshape(-1, batch_size)[:num_steps].astype(jnp.int32)


def batch_of(data: Data, rows: Int[Array, " b"], counts: Float[Array, " n"]) -> tuple[Examples, Float[Array, " b"]]:
    """Rows of a batch with their weights, 0 or 1; those that do not count, or are -1, hold one that does."""
    safe = jnp.clip(rows, 0, counts.shape[0] - 1)
    weights = ((rows >= 0) & (counts[safe] > 0)).astype(jnp.float32)
    return sampling.take(data.train, safe, weights), weights


def slope_of(model: Model, state: PyTree, examples: Examples, weights: Float[Array, " b"], divide: Divide):
    """`params -> gradient` of a batch and of the regularizer, in evaluation mode."""
    count = jnp.maximum(jnp.sum(weights), 1) if divide == "remaining" else weights.shape[0]

    def loss_at(params):
        losses = evaluate(model, Variables(params, state), examples)[1]
        total = jnp.sum(jnp.where(weights > 0, losses, 0) * weights.astype(losses.dtype))
        return total / jnp.asarray(count, losses.dtype) + passes.penalty(model, params)

    return jax.grad(loss_at)


def along(
    model: Model,
    variables: Variables,
    data: Data,
    batches: Int[Array, "t b"],
    rates: Float[Array, " t"],
    counts: Float[Array, " n"],
    *,
    divide: Divide = "fixed",
) -> PyTree:
    """Params after SGD on these batches, less the rows that do not count.

    Args:
        model: in evaluation mode, its state stays.
        variables: where it starts.
        data: the rows.
        batches: row numbers, -1 for none.
        rates: of every step.
        counts: per row, above 0 where it is trained on.
        divide: what sums of gradients are divided by, see the module.
    """

    def step(params, now):
        rows, rate = now
        slope = slope_of(model, variables.state, *batch_of(data, rows, counts), divide)(params)
        return jax.tree.map(lambda w, g: (w - rate * g).astype(w.dtype), params, slope), None

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(step, variables.params, (batches, rates))[0]
