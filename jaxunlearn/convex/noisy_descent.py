"""Gradient descent with noise in every step, on all rows or on fixed batches in turn: what `langevin` and `pnsgd` share."""

import jax
import jax.numpy as jnp

from jaxunlearn import checks, noise
from jaxunlearn.convex import removal
from jaxunlearn.convex.objective import sum_over_rows
from jaxunlearn.convex.problems import Problem
from jaxunlearn.convex.rows import kernel_of
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.sampling import asked, retain_weights
from jaxunlearn.types import OnEmpty, Result, Scalar, UnlearnFn


def noisy_descent(
    problem: Problem,
    *,
    sigma: Scalar,
    passes: int,
    batch_size: int | None,
    learning_rate: Scalar | None,
    row_norm: Scalar,
    on_empty: OnEmpty,
) -> UnlearnFn:
    """`W <- W - h (mean slope + l2 W) + N(0, 2 h sigma^2 I)` over retained rows, `passes` times over them all.

    Args:
        problem: `logistic` or `softmax`.
        sigma: at least 0.
        passes: over the rows.
        batch_size: rows of a batch in their stored order, whether or not they are present; None for all.
        learning_rate: h; None for 1 / L.
        row_norm: promised bound of the norm of every row.
        on_empty: what an empty request gets.
    """
    checks.require_count("epochs or steps", passes)
    checks.check_range("sigma", sigma, low=0)
    checks.check_range("row_norm", row_norm, low=1e-30)
    if learning_rate is not None:
        checks.check_range("learning_rate", learning_rate, low=1e-30)
    if batch_size is not None:
        checks.require_count("batch_size", batch_size)
    if problem.name == "ridge":
        raise ValueError("noisy descent needs bounded gradients, which least squares has not; use newton_removal")

    def descend(variables, data, request, key):
        kernel = kernel_of(problem, variables, data)
        retained = retain_weights(data, request)
        smoothness = problem.l2 + jnp.float64(row_norm) ** 2 * problem.max_curvature
        rate = 1 / smoothness if learning_rate is None else jnp.asarray(learning_rate, jnp.float64)
        num_rows = retained.shape[0]
        width = num_rows if batch_size is None else min(batch_size, num_rows)
        batches = -(-num_rows // width)

        def part(number, tree):
            start = jnp.minimum(number * width, num_rows - width)
            fresh = start + jnp.arange(width) >= number * width  # the last batch begins with rows of the one before
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, width), tree), fresh

        def step(kernel, position):
            (rows, weights), fresh = part(position % batches, (data.train, retained))
            weights = jnp.where(fresh, weights, 0)

            def block(inputs, targets, counts):
                del counts  # rows that do not count are zeros
                return (problem.slope(inputs @ kernel, targets).T @ inputs).T

            count = jnp.maximum(jnp.sum(weights > 0), 1)
            slope = sum_over_rows(block, rows, weights) / count + problem.l2 * kernel
            shaken = jnp.sqrt(2 * rate) * sigma * noise.normal(jax.random.fold_in(key, position), kernel.shape, jnp.float64)
            return kernel - rate * slope + shaken, None

        def present_in(number):
            there, fresh = part(number, data.present)
            return jnp.sum(fresh & (there > 0))

        sizes = jax.vmap(present_in)(jnp.arange(batches))
        kernel, _ = jax.lax.scan(step, kernel, jnp.arange(passes * batches))
        stats = {
            "row_norm": removal.row_norm_of(data),
            "promised_norm": row_norm,
            "gradient_bound": problem.max_slope * row_norm,
            "convexity": problem.l2,
            "smoothness": smoothness,
            "learning_rate": rate,
            "sigma": sigma,
            "descent_steps": passes * batches,
            "num_batches": batches,
            "smallest_batch": jnp.min(jnp.where(sizes > 0, sizes, num_rows)),
        }
        after = removal.stored(kernel, variables)[1]
        stats = {name: jnp.asarray(value, jnp.float64) for name, value in stats.items()}
        return Result(after, stats={**stats, "asked": asked(data, request)})

    return in_float64(one_shot(descend, model=problem.model, on_empty=on_empty))
