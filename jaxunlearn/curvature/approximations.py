"""Representations of a Hessian, Gauss-Newton or Fisher matrix that can be solved with, under one protocol.

A representation knows its eigenvalues, so that every function of the matrix is one method: `apply(f, v) = f(C) v`. Products,
damped solves and inverse roots are three such functions. All of them are pytrees: make one once, keep it in slot
`curvature` (see `prepare`), and share it among all requests.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from jaxunlearn import checks, slots, tree
from jaxunlearn.blocks import Blocks, InMemory, OnDisk, Rows, require_concrete
from jaxunlearn.curvature.matvecs import widened
from jaxunlearn.tree import Layers
from jaxunlearn.types import Data, Examples, Prepare, Scalar, Variables


class Fit(Protocol):
    """`fit(variables, examples, weights, key) -> Representation`; what `dense`, `diagonal`, `kfac`, ... make."""

    def __call__(
        self, variables: Variables, examples: Examples, weights: Float[Array, " n"], key: PRNGKeyArray, /
    ) -> "Representation": ...


@dataclass(frozen=True)
class RowFit:
    """A `Fit` that sees rows through sums alone, so that `fit_blocks` can make it of rows that do not fit."""

    make: Callable[[Variables, Rows, PRNGKeyArray], "Representation"]
    chunk: int | None = None

    def __call__(
        self, variables: Variables, examples: Examples, weights: Float[Array, " n"], key: PRNGKeyArray
    ) -> "Representation":
        """The representation of rows in memory."""
        return self.make(variables, InMemory(examples, weights, self.chunk), key)


class Representation(ABC):
    """A symmetric matrix C on trees like the params, by its eigenvalues."""

    @abstractmethod
    def apply(self, function: Callable[[jax.Array], jax.Array], v: PyTree) -> PyTree:
        """`f(C) v`, with f taken of every eigenvalue."""

    @abstractmethod
    def diagonal(self, like: PyTree) -> PyTree:
        """The diagonal of C, as a tree of the shapes of `like`, e.g. the params."""

    @abstractmethod
    def spectrum(self) -> list[jax.Array]:
        """The eigenvalues that it knows; all others are 0."""

    def matvec(self, v: PyTree) -> PyTree:
        """`C v`."""
        return self.apply(lambda e: e, v)

    def solve(self, v: PyTree, damping: Scalar) -> PyTree:
        """`(C + damping I)^{-1} v`."""
        return self.apply(lambda e: 1 / (e + damping), v)

    def sqrt_solve(self, v: PyTree, damping: Scalar) -> PyTree:
        """`(C + damping I)^{-1/2} v`, for C without eigenvalues below zero: what turns white noise into noise of this shape."""
        return self.apply(lambda e: jax.lax.rsqrt(e + damping), v)

    def is_positive(self, damping: Scalar) -> Bool[Array, ""]:
        """Whether `C + damping I` is positive beyond rounding, so that solving with it means something."""
        values = jnp.concatenate([jnp.ravel(x) for x in self.spectrum()])
        rounding = jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
        known = jnp.where(jnp.abs(values) <= rounding, 0, values)
        return (jnp.min(values) + damping > 0) & (jnp.min(known) + damping > 0)

    def trace(self) -> Float[Array, ""]:
        """Sum of the eigenvalues."""
        return jnp.sum(jnp.stack([jnp.sum(x) for x in self.spectrum()]))

    @property
    def memory(self) -> int:
        """Bytes it takes."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self))


def prepare(fit: Fit, slot: slots.Slot = slots.CURVATURE, *, how: str = "") -> Prepare:
    """What makes a representation of all present rows and puts it into `data.extra`.

    Args:
        fit: e.g. `jaxunlearn.curvature.ekfac(model)`.
        slot: where it goes.
        how: what a reader of the slot must ask for, in words.

    Returns:
        `(variables, data, key) -> Data`, to be jitted.

    Raises:
        TypeError, ValueError: variables or a key of the wrong form.

    Example:
        >>> fit = jaxunlearn.curvature.diagonal(model)
        >>> prepared = jax.jit(jaxunlearn.curvature.prepare(fit))(variables, data, key)
        >>> sorted(set(prepared.extra) - set(data.extra))
        ['curvature']
    """

    def prepared(variables: Variables, data: Data, key: PRNGKeyArray) -> Data:
        checks.check_variables(variables)
        checks.check_key(key)
        return slot.put(data, fit(variables, data.train, data.present, key), at=variables, how=how)

    return prepared


def fit_blocks(fit: Fit, variables: Variables, blocks: Blocks, key: PRNGKeyArray) -> Representation:
    """A representation of rows that do not fit, from passes over blocks of them; as in memory but for rounding.

    `diagonal`, `dense` and `kfac` take one pass, `ekfac` two, `nystrom` one of as many products as its rank, `lanczos` one for
    each step of its rank. `gram` keeps the gradients of all rows, so it cannot be made like that. `chunk` of the fit does not
    count, since a block is what is in memory; a matrix that `lanczos` and `nystrom` are given must draw nothing by itself.

    Args:
        fit: what `diagonal`, `dense`, `kfac`, `ekfac`, `lanczos` or `nystrom` made.
        variables: where.
        blocks: a function that starts a pass over the rows, e.g. `jaxunlearn.sources.blocks(...)`: each call returns the same
            `Weighted` blocks, whose `slots` are row numbers and of which only the last may be shorter.
        key: as of the fit. What is drawn for a row goes by its number, whatever the blocks.

    Returns:
        What the fit makes.

    Raises:
        TypeError: a fit that needs all rows at once, no function that starts a pass, or a call inside `jit`.
        ValueError: no row that counts, a row that comes twice in a pass, passes that differ.

    Example:
        >>> blocks = jaxunlearn.sources.blocks(data.train, jaxunlearn.sources.index(60), size=16)
        >>> curvature = jaxunlearn.curvature.fit_blocks(jaxunlearn.curvature.ekfac(model), variables, blocks, key)
        >>> in_memory = jaxunlearn.curvature.ekfac(model)(variables, data.train, data.present, key)
        >>> bool(jnp.allclose(curvature.trace(), in_memory.trace()))
        True
    """
    if not isinstance(fit, RowFit):
        raise TypeError(
            "this fit needs all rows at once, as gram does: take diagonal, dense, kfac, ekfac, lanczos or nystrom of "
            f"jaxunlearn.curvature; got {getattr(fit, '__qualname__', type(fit).__name__)}"
        )
    checks.check_variables(variables)
    checks.check_key(key)
    require_concrete((variables, key))
    return fit.make(variables, OnDisk(blocks), key)


@partial(jax.tree_util.register_dataclass, data_fields=["values", "vectors"], meta_fields=["chosen"])
@dataclass(frozen=True)
class LowRank(Representation):
    """`C = U' diag(values) U` with orthonormal rows of U; what is orthogonal to them has eigenvalue 0.

    With as many rows as weights it is any symmetric matrix. Leaves that were not chosen are held fixed: `apply` returns zeros
    for them, whatever the function.
    """

    values: Float[Array, " r"]
    vectors: Float[Array, "r d"]
    chosen: tuple[bool, ...]  # which leaves of the params, in their order

    def apply(self, function: Callable[[jax.Array], jax.Array], v: PyTree) -> PyTree:
        """`f(C) v`."""
        flat = pack(v, self.chosen)
        inside = jnp.dot(self.vectors, flat, precision="highest")
        image = jnp.dot(function(self.values) * inside, self.vectors, precision="highest")
        if self.values.shape[0] < flat.shape[0]:
            outside = flat - jnp.dot(inside, self.vectors, precision="highest")
            image = image + function(jnp.zeros((), self.values.dtype)) * outside
        return unpack(image, v, self.chosen)

    def diagonal(self, like: PyTree) -> PyTree:
        """The diagonal of C."""
        return unpack(jnp.sum(self.values[:, None] * self.vectors**2, axis=0), like, self.chosen)

    def spectrum(self) -> list[jax.Array]:
        """Its values, and a 0 where there are others."""
        return [self.values] if len(self.values) == self.vectors.shape[1] else [self.values, jnp.zeros(1, self.values.dtype)]


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=[])
@dataclass(frozen=True)
class Diagonal(Representation):
    """A diagonal matrix, as a tree like the params."""

    values: PyTree

    def apply(self, function: Callable[[jax.Array], jax.Array], v: PyTree) -> PyTree:
        """`f(C) v`."""
        return jax.tree.map(lambda c, x: function(c) * x, self.values, v)

    def diagonal(self, like: PyTree) -> PyTree:
        """The values."""
        return self.values

    def spectrum(self) -> list[jax.Array]:
        """The values of every leaf."""
        return jax.tree.leaves(self.values)


def chosen_leaves(params: PyTree, layers: Layers | None) -> tuple[bool, ...]:
    """Which leaves `layers` names, all for None; ValueError if it names none."""
    if layers is None:
        return (True,) * len(jax.tree.leaves(params))
    chosen = tuple(jax.tree.leaves(tree.matching(params, layers)))
    if not any(chosen):
        names = ", ".join(tree.path_of(path) for path, _ in jax.tree.leaves_with_path(params))
        raise ValueError(f"layers={layers!r} names no parameter; there are {names}")
    return chosen


def pack(v: PyTree, chosen: tuple[bool, ...]) -> Float[Array, " d"]:
    """The chosen leaves as one vector, at least in float32."""
    leaves = [x.ravel() for x, take in zip(jax.tree.leaves(widened(v)), chosen, strict=True) if take]
    return jnp.concatenate(leaves)


def unpack(flat: Float[Array, " d"], like: PyTree, chosen: tuple[bool, ...]) -> PyTree:
    """The tree that `pack` made a vector of; zeros in the other leaves."""
    leaves, form = jax.tree.flatten(like)
    sizes = [x.size for x, take in zip(leaves, chosen, strict=True) if take]
    parts = iter(jnp.split(flat, list(np.cumsum(sizes))[:-1]))
    return form.unflatten(
        [
            next(parts).reshape(x.shape) if take else jnp.zeros(x.shape, flat.dtype)
            for x, take in zip(leaves, chosen, strict=True)
        ]
    )
