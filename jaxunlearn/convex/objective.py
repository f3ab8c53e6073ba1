"""The objective of a convex problem in float64: sums over rows, gradient, Hessian and Newton's direction."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxunlearn import sampling
from jaxunlearn.convex.problems import Problem
from jaxunlearn.slots import PERTURBATION
from jaxunlearn.types import Data, Examples

Solver: TypeAlias = Literal["dense", "cg"]
BLOCK_ELEMENTS = 2**20  # 8 MiB of float64: a block of rows stays in the cache while it is used several times


def sum_over_rows(function: Callable[..., PyTree], examples: Examples, weights: Float[Array, " n"]) -> PyTree:
    """`sum_blocks function(inputs, targets)` over rows with `weights > 0`, in float64, reading the rows once.

    Args:
        function: `(inputs [b, d], targets [b, ...], weights [b]) -> tree of sums over the block`; rows that do not count
            come as zeros with weight 0.
        examples: inputs [n, d], targets [n, ...].
        weights: which rows count.
    """
    num_rows, num_features = examples.inputs.shape
    block = min(num_rows, max(16, BLOCK_ELEMENTS // num_features))

    def one(start, first):
        part, counts = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, block), (examples, weights))
        counts = jnp.where(start + jnp.arange(block) < first, 0, counts).astype(jnp.float64)  # rows of the last block again
        part = sampling.blank(part, counts)
        return function(part.inputs.astype(jnp.float64), part.targets, counts)

    if block == num_rows:
        return one(0, 0)
    firsts = jnp.arange(0, num_rows, block)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, 0, 0))

    def add(total, first):
        return jax.tree.map(jnp.add, total, one(jnp.minimum(first, num_rows - block), first)), None

    return jax.lax.scan(add, zeros, firsts)[0]


def perturbation_of(data: Data, like: Float[Array, "d c"]) -> Float[Array, "d c"]:
    """The secret linear term, zeros if there is none."""
    secret = PERTURBATION.find(data)
    if secret is None:
        return jnp.zeros_like(like)
    if jnp.shape(secret) != like.shape:
        raise ValueError(f"data.extra['perturbation'] must have the shape of the kernel {like.shape}, got {jnp.shape(secret)}")
    return secret.astype(jnp.float64)


def gradient(
    problem: Problem, kernel: Float[Array, "d c"], examples: Examples, weights: Float[Array, " n"], linear: Float[Array, "d c"]
) -> Float[Array, "d c"]:
    """Gradient of the objective over rows with `weights > 0`; `linear` is the perturbation."""

    def block(inputs, targets, counts):
        del counts  # rows that do not count are zeros
        return (problem.slope(inputs @ kernel, targets).T @ inputs).T

    total = sum_over_rows(block, examples, weights)
    return total + problem.l2 * jnp.sum(weights > 0) * kernel + linear


def hessian(
    problem: Problem, kernel: Float[Array, "d c"], examples: Examples, weights: Float[Array, " n"]
) -> Float[Array, "d*c d*c"]:
    """Hessian of the objective over rows with `weights > 0`, in the order of `kernel.ravel()`."""
    d, c = kernel.shape
    first, second = np.triu_indices(c)

    def block(inputs, targets, counts):
        del targets
        curvatures = (problem.curvature(inputs @ kernel) * (counts > 0)[:, None, None])[:, first, second]
        columns = inputs.T  # one pair of outputs after the other, so that blocks of rows may be long
        return jax.lax.map(lambda weights: (columns * weights) @ columns.T, curvatures.T)

    pairs = sum_over_rows(block, examples, weights)
    total = jnp.zeros((c, c, d, d)).at[first, second].set(pairs).at[second, first].set(pairs)
    return total.transpose(2, 0, 3, 1).reshape(d * c, d * c) + problem.l2 * jnp.sum(weights > 0) * jnp.eye(d * c)


def newton_direction(
    problem: Problem,
    kernel: Float[Array, "d c"],
    examples: Examples,
    weights: Float[Array, " n"],
    slope: Float[Array, "d c"],
    solver: Solver = "dense",
) -> Float[Array, "d c"]:
    """`-H^{-1} slope` with the Hessian over rows with `weights > 0`.

    `dense` builds the matrix, [d c, d c]; `cg` runs conjugate gradients on products with it, for problems that are too
    large for that.
    """
    if solver == "dense":
        factor = jax.scipy.linalg.cho_factor(hessian(problem, kernel, examples, weights), lower=True)
        return -jax.scipy.linalg.cho_solve(factor, slope.ravel()).reshape(kernel.shape)

    def product(direction):
        def block(inputs, targets, counts):
            del targets
            curvatures = problem.curvature(inputs @ kernel) * (counts > 0)[:, None, None]
            return (jnp.einsum("bij,bj->bi", curvatures, inputs @ direction).T @ inputs).T

        return sum_over_rows(block, examples, weights) + problem.l2 * jnp.sum(weights > 0) * direction

    return -jax.scipy.sparse.linalg.cg(product, slope, tol=1e-12, maxiter=4 * kernel.size)[0]
