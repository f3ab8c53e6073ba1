"""Passes over rows that come block by block, because all of them together do not fit.

`Blocks` are a function that starts a pass: it returns the blocks from the first one on, whenever it is called. What is a sum
over rows, such as a curvature or a mean loss, is then made of as many passes as it needs, and comes out as in memory.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxunlearn import checks, sampling, tree
from jaxunlearn.evaluation import sum_rows
from jaxunlearn.types import Examples, Variables, Weighted

# every call starts a new pass over the same rows; `slots` are their row numbers, each of which comes once
Blocks: TypeAlias = Callable[[], Iterable[Weighted]]
Product: TypeAlias = Callable[[PyTree], PyTree]


class Rows(Protocol):
    """Rows that are seen through sums alone, so that it does not matter whether they are in memory."""

    @property
    def one(self) -> Examples:
        """A row, for its form."""
        ...

    def means(
        self, collect: Callable[[Any], PyTree], beside: Callable[[int], Array]
    ) -> Callable[[Callable[[PyTree, Float[Array, " b"]], PyTree]], PyTree]:
        """A function that takes `function(collect((examples, beside)), weights)`, a sum over rows, and gives the mean.

        `beside(n)` has an entry for every row number below n, and the same ones for a larger n.
        """
        ...

    def product(self, matvec: Callable[..., Product], variables: Variables, *, together: int = 0) -> Product:
        """`v -> C v` for a matrix that is a mean over rows; of a stack of vectors, so many side by side, with `together`."""
        ...

    def scan(self, step: Callable, carry: Any, places: Any) -> tuple[Any, Any]:
        """`jax.lax.scan`, or the same on the host where a step is a pass."""
        ...


@dataclass(frozen=True)
class InMemory:
    """`Rows` that lie in arrays; everything can be traced."""

    examples: Examples
    weights: Float[Array, " n"]
    chunk: int | None = None  # rows that go through a model together

    @property
    def one(self) -> Examples:
        """The first row."""
        return jax.tree.map(lambda x: x[:1], self.examples)

    def means(self, collect, beside):
        """See `Rows`; without a chunk, what was collected is used again."""
        count = self.weights.shape[0]
        rows, total = (self.examples, beside(count)), jnp.sum(self.weights)
        whole = None
        if self.chunk is None or self.chunk >= count:
            with jax.default_matmul_precision("highest"):
                whole = collect(sampling.fill(rows, self.weights))

        def mean(function):
            if whole is not None:
                with jax.default_matmul_precision("highest"):
                    sums = function(whole, self.weights)
            else:
                sums = sum_rows(lambda part, w: function(collect(part), w), rows, self.weights, chunk=self.chunk)
            return jax.tree.map(lambda x: x / total, sums)

        return mean

    def product(self, matvec, variables, *, together=0):
        """See `Rows`."""
        return _stacked(matvec(variables, self.examples, self.weights), together)

    def scan(self, step, carry, places):
        """See `Rows`."""
        return jax.lax.scan(step, carry, places)


class OnDisk:
    """`Rows` that come in blocks; every mean and every product is a pass, so nothing of it can be traced.

    It keeps one byte per row number, to see that no row comes twice and every pass has the same rows, and 4 bytes for what is
    drawn beside rows.
    """

    def __init__(self, blocks: Blocks):
        self._blocks = blocks
        self._first: np.ndarray | None = None  # which rows were in the first pass
        block = next(iter(self._pass()), None)
        if block is None:
            raise ValueError("the blocks hold no row")
        self._size = block.weights.shape[0]
        self.one = jax.tree.map(lambda x: jnp.asarray(x[:1]), block.examples)

    def means(self, collect, beside):
        """See `Rows`."""
        drawn = _Drawn(beside)

        def mean(function):
            run = jax.jit(lambda part, weights: function(collect(part), weights))
            return self._mean(lambda part, w, rows: run((sampling.fill(part, w), drawn(rows)), w))

        return mean

    def product(self, matvec, variables, *, together=0):
        """See `Rows`; the product itself must be a mean over rows, without draws."""

        @jax.jit
        def run(part, weights, v):
            moved = _stacked(matvec(variables, part, weights), together)(v)
            return jax.tree.map(lambda x: x * jnp.sum(weights).astype(x.dtype), moved)

        return lambda v: self._mean(lambda part, w, rows: run(sampling.fill(part, w), w, v))

    def scan(self, step, carry, places):
        """See `Rows`."""
        found = []
        for place in places:
            carry, out = step(carry, place)
            found.append(out)
        return carry, jax.tree.map(lambda *x: jnp.stack(x), *found)

    def _mean(self, summed: Callable[[Examples, Array, np.ndarray], PyTree]) -> PyTree:
        total, weight, seen = None, 0.0, np.zeros(0, bool)
        with jax.default_matmul_precision("highest"):
            for block in self._pass():
                seen = _marked(seen, block)
                examples, weights, rows = filled(block, self._size)
                found = summed(examples, jnp.asarray(weights), rows)
                total = found if total is None else jax.tree.map(jnp.add, total, found)
                weight += float(np.sum(weights, dtype=np.float64))
        if weight == 0:
            raise ValueError("no row of the blocks counts: their weights are 0")
        if self._first is None:
            self._first = seen
        elif not np.array_equal(np.flatnonzero(self._first), np.flatnonzero(seen)):
            raise ValueError(
                f"this pass had {seen.sum()} rows, and the first one {self._first.sum()}, or others: pass a function that "
                "starts again from the first block whenever it is called, e.g. lambda: iter(dataset)"
            )
        return jax.tree.map(lambda x: (x / weight).astype(x.dtype), total)

    def _pass(self) -> Iterator[Weighted]:
        yield from require_blocks(self._blocks)


def require_blocks(blocks: Blocks) -> Iterator[Weighted]:
    """The blocks of one pass; TypeError or ValueError unless they are blocks."""
    if not callable(blocks):
        raise TypeError(
            "blocks are read several times, so pass a function that starts a pass: lambda: iter(dataset), or what "
            f"jaxunlearn.sources.blocks makes; got {type(blocks).__name__}"
        )
    for block in blocks():
        if not isinstance(block, Weighted):
            raise TypeError(
                f"a block is jaxunlearn.Weighted(examples, weights, slots), slots its row numbers; got {type(block).__name__}"
            )
        rows = tree.leading_axis(block, "a block")
        if rows:
            yield block


def filled(block: Weighted, size: int) -> tuple[Examples, np.ndarray, np.ndarray]:
    """A block with as many rows as the first one, so that one program serves all; what is added has weight 0."""
    weights, rows = np.asarray(block.weights, np.float32), np.asarray(block.slots)
    short = size - len(weights)
    if short < 0:
        raise ValueError(f"a block has {len(weights)} rows, more than the {size} of the first one: only the last may differ")
    if short == 0:
        return block.examples, weights, rows
    examples = jax.tree.map(lambda x: np.concatenate([x, np.repeat(np.asarray(x[-1:]), short, axis=0)]), block.examples)
    return examples, np.pad(weights, (0, short)), np.pad(rows, (0, short), mode="edge")


def map_blocks(function: Callable[[Examples], PyTree], blocks: Blocks, *, axis: int = 0) -> PyTree:
    """What a function says of every row, e.g. logits or losses, with one block on the device at a time.

    Args:
        function: `Examples` of b rows to arrays with an entry per row, each by itself; it is compiled.
        blocks: e.g. `jaxunlearn.sources.blocks(...)`.
        axis: where the rows are in what it returns: 1 for `[models, rows, ...]`, as audits of many models take it.

    Returns:
        NumPy arrays of all rows, in the order they come in; rows of weight 0 are left out.

    Raises:
        TypeError, ValueError: no function that starts a pass, no `Weighted` blocks, none at all, arrays of another length.

    Example:
        >>> index = jaxunlearn.sources.index(60)
        >>> blocks = jaxunlearn.sources.blocks(data.train, index, size=16)
        >>> logits = jaxunlearn.sources.map_blocks(lambda rows: jaxunlearn.audit.predict(model, variables, rows), blocks)
        >>> logits.shape
        (60, 3)
    """
    run, parts, size = jax.jit(function), [], None
    for block in require_blocks(blocks):
        size = size or block.weights.shape[0]
        examples, weights, _ = filled(block, size)
        found = jax.tree.map(np.asarray, run(sampling.fill(examples, jnp.asarray(weights))))
        lengths = {x.shape[axis] if x.ndim > axis else None for x in jax.tree.leaves(found)}
        if lengths != {size}:
            raise ValueError(f"the function must give one entry per row of {size} on axis {axis}, got lengths {lengths}")
        parts.append(jax.tree.map(lambda x, w=weights: np.compress(w > 0, x, axis=axis), found))
    if not parts:
        raise ValueError("the blocks hold no row")
    return jax.tree.map(lambda *x: np.concatenate(x, axis=axis), *parts)


def _stacked(product: Product, together: int) -> Product:
    """A product of a stack of vectors, so many side by side; of one vector where that is 0."""
    if not together:
        return product

    def products(stack):
        if tree.leading_axis(stack, "vectors") <= together:
            return jax.vmap(product)(stack)
        return jax.lax.map(product, stack, batch_size=together)

    return products


class _Drawn:
    """Entries beside rows by their numbers, drawn as far as they are asked for; twice as many each time."""

    def __init__(self, beside: Callable[[int], Array]):
        self._beside, self._known = beside, np.asarray(beside(1))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        needed = int(rows.max()) + 1
        if needed > len(self._known):
            self._known = np.asarray(self._beside(1 << (needed - 1).bit_length()))
        return self._known[rows]


def _marked(seen: np.ndarray, block: Weighted) -> np.ndarray:
    """The rows of a pass up to now, by their numbers; ValueError if one comes a second time."""
    rows = np.asarray(block.slots)[np.asarray(block.weights) > 0]
    if rows.size == 0:
        return seen
    if rows.min() < 0:
        raise ValueError("slots of a block are row numbers, from 0 on")
    if rows.max() >= len(seen):
        seen = np.pad(seen, (0, (1 << int(rows.max()).bit_length()) - len(seen)))
    unique, counts = np.unique(rows, return_counts=True)
    twice = unique[(counts > 1) | seen[unique]]
    if twice.size:
        raise ValueError(f"row {twice[0]} comes twice in one pass over the blocks ({twice.size} such rows in this block)")
    seen[unique] = True
    return seen


def require_concrete(values: PyTree) -> None:
    """TypeError inside `jit` or `vmap`: a pass over blocks runs on the host."""
    if not all(map(checks.is_concrete, jax.tree.leaves(values))):
        raise TypeError("passes over blocks run on the host: call it outside jit and vmap")
