"""Influence unlearning with WoodFisher (IU in Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu: Model sparsity can simplify machine
unlearning, NeurIPS 2023, arXiv 2304.04934; the inverse: Singh, Alistarh: WoodFisher, 2020, arXiv 2004.14340).

    w <- w + alpha F^{-1} v,    v = (1/n) sum_{forget} g - m / (n n') sum_{retain} g,
    F = damping I + (1/n') sum_{retain} g g'

g is the gradient of the loss of a single row, with the labels of the data, and F^{-1} is made row by row,

    F_{k+1}^{-1} = F_k^{-1} - F_k^{-1} g g' F_k^{-1} / (n' + g' F_k^{-1} g),    F_0^{-1} = I / damping,

for each block of `block_size` consecutive weights by itself; a single block is the inverse of the whole matrix. The code that
was released with the unlearning paper runs this recursion on one vector, which scalars multiply: what it adds to that vector
stays a multiple of the first row's gradient, so that the published baseline is nearly a plain gradient step. Here the inverse
is the one that is written down. The empirical Fisher matrix of all rows, without blocks and by conjugate gradients, is in
`jaxunlearn.influence(model, solver="cg", matrix="empirical", damping=...)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxunlearn import checks, sampling, tree
from jaxunlearn.card import Method
from jaxunlearn.curvature.matvecs import gradient_sum, widened
from jaxunlearn.curvature.single_rows import per_example_gradients
from jaxunlearn.curvature.solve import forgotten, moved
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.types import Examples, Model, Result, Scalar, UnlearnFn, Variables

METHOD = Method(
    summary="influence of the forget set through the empirical Fisher matrix, inverted block by block (WoodFisher)",
    cites="jia2023model",
    family="closed form",
    reads=frozenset({"forget", "retain"}),
    aliases=("iu", "influence_unlearning"),
    search={"alpha": (0.2, 1.0), "damping": (0.001, 0.01, 0.1)},
)


def woodfisher(
    model: Model, *, alpha: Scalar = 0.2, damping: Scalar = 1e-3, block_size: int = 64, chunk: int = 64
) -> UnlearnFn:
    """One step with the inverse of the damped empirical Fisher matrix of the retain set, block by block.

    Every request inverts its own matrix: one pass over the rows with a rank-one update per row, `O(n d block_size)` time and
    `O(d block_size)` memory for d weights.

    Args:
        model: any; its regularizer is not read.
        alpha: length of the step, may be traced; 1 is the influence of the forget set.
        damping: added to the matrix, above 0, may be traced.
        block_size: weights of a block, in the order of the flattened parameters; with as many as the model has, or more, no
            coupling is left out.
        chunk: rows whose gradients are in memory together.

    Returns:
        An `UnlearnFn`; `stats`: `step_norm` Float[]. Model state stays as it is.

    Raises:
        ValueError: a setting out of its range.

    Example:
        >>> unlearn = jaxunlearn.woodfisher(model, damping=0.1, block_size=32)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
        >>> int(result.status)
        0
    """
    checks.check_range("alpha", alpha, low=0)
    checks.check_range("damping", damping, low=float(np.finfo(np.float32).tiny))
    checks.require_count("block_size", block_size)
    checks.require_count("chunk", chunk)

    def remove(variables, data, request, key):
        part, count, left = forgotten(data, request)
        everything = gradient_sum(model, variables, data.train, data.present, chunk=chunk)
        rows = gradient_sum(model, variables, part.examples, part.weights, chunk=chunk)
        share = count / jnp.maximum(left, 1)
        pull = jax.tree.map(lambda a, g: (g - share * (a - g)) / (count + left), everything, rows)
        retained = sampling.retain_weights(data, request)
        inverse = inverse_blocks(model, variables, data.train, retained, damping=damping, block_size=block_size, chunk=chunk)
        cut, joined = _blocks(variables, block_size)
        step = joined(alpha * jnp.einsum("bij,bj->bi", inverse, cut(pull), precision="highest"))
        return Result(moved(variables, step), stats={"step_norm": tree.norm(step)})

    return one_shot(remove, model=model)


def inverse_blocks(
    model: Model,
    variables: Variables,
    examples: Examples,
    weights: Float[Array, " n"],
    *,
    damping: Scalar,
    block_size: int,
    chunk: int = 64,
) -> Float[Array, "blocks s s"]:
    """Inverses of the diagonal blocks of `damping I + mean g g'`, by WoodFisher's recursion over the rows.

    Args:
        model, variables, examples: whose single gradients g are taken.
        weights: rows of weight above 0 count alike, the others change nothing, whatever they hold.
        damping, block_size, chunk: as in `woodfisher`.

    Returns:
        One symmetric matrix per block, in the order of the flattened parameters; what fills the last block up has `1 / damping`
        on the diagonal. At least in float32.

    Example:
        >>> from jaxunlearn.methods.woodfisher import inverse_blocks
        >>> inverse_blocks(model, variables, data.train, data.present, damping=0.1, block_size=32).shape
        (2, 32, 32)
    """
    cut, _ = _blocks(variables, block_size)
    rows = weights.shape[0]
    size = min(chunk, rows)
    used, total = weights > 0, jnp.maximum(jnp.sum(weights > 0), 1)

    def of_row(inverse, gradient):
        image = jnp.einsum("bij,bj->bi", inverse, gradient, precision="highest")
        image *= jax.lax.rsqrt(total + jnp.sum(gradient * image, axis=1, keepdims=True))
        return inverse - image[:, :, None] * image[:, None, :], None  # symmetric to the last bit

    def of_chunk(inverse, place):
        part = jax.tree.map(lambda x: jnp.asarray(x)[place % rows], examples)
        gradients = jax.vmap(cut)(per_example_gradients(model, variables, part))
        counts = used[place % rows] & (place < rows)  # the last chunk is filled with rows that do not count again
        return jax.lax.scan(of_row, inverse, jnp.where(counts[:, None, None], gradients, 0))[0], None

    blank = cut(jax.tree.map(jnp.zeros_like, widened(variables.params)))
    start = jnp.broadcast_to(jnp.eye(blank.shape[1], dtype=blank.dtype) / damping, (*blank.shape, blank.shape[1]))
    places = jnp.arange(-(-rows // size) * size).reshape(-1, size)
    return jax.lax.scan(of_chunk, start.astype(blank.dtype), places)[0]


def _blocks(variables: Variables, block_size: int) -> tuple[Callable[[PyTree], Array], Callable[[Array], PyTree]]:
    """Trees like the params as blocks [blocks, s] of consecutive entries, the last one filled up with zeros; and back."""
    flat, unravel = ravel_pytree(widened(variables.params))
    size = min(block_size, flat.size)
    padding = -flat.size % size

    def cut(values):
        return jnp.pad(ravel_pytree(values)[0], (0, padding)).reshape(-1, size)

    return cut, lambda blocks: unravel(blocks.ravel()[: flat.size].astype(flat.dtype))
