"""Eight-bit integers for the weights of a frozen base."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.tree import Layers


class Int8(NamedTuple):
    """A weight as integers: `values * scale`."""

    values: Int[Array, "..."]
    scale: Float[Array, "..."]  # 1 wide along the axis that shares it; its type is the weight's

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def dtype(self) -> Any:
        return self.scale.dtype

    def dense(self) -> Float[Array, "..."]:
        """The weight as one array."""
        return self.values.astype(self.dtype) * self.scale


def int8(params: PyTree, *, layers: Layers = ".*", axis: int = -2) -> PyTree:
    """Weights as 8-bit integers, symmetric about zero, with one scale for all entries along an axis.

    Args:
        params: of a model.
        layers: which leaves: a regular expression that is searched for in their paths, or a function of the path. Leaves with
            fewer than two axes, or without entries, stay as they are.
        axis: along which entries share a scale; -2 is the input axis of a kernel [..., inputs, outputs].

    Returns:
        The tree with `Int8` in place of those leaves: a base for `jaxunlearn.frozen.lora`. An entry is off by half a step at
        most, which is 1 / 254 of the largest entry along the axis; and by a rounding, if the weight has fewer bits than
        float32.

    Raises:
        ValueError: no leaf has such a path.

    Example:
        >>> small = jaxunlearn.frozen.int8(variables.params, layers="body")
        >>> small["body"].values.dtype.name, small["body"].scale.shape
        ('int8', (1, 8))
    """

    def one(leaf: jax.Array, chosen: bool) -> Any:
        if not chosen or leaf.ndim < 2 or leaf.size == 0:
            return leaf
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        scale = (jnp.max(jnp.abs(wide), axis=axis, keepdims=True) / 127).astype(leaf.dtype)
        scale = jnp.where(scale > 0, scale, 1)  # of small numbers it may be zero in the weight's type
        values = jnp.clip(jnp.round(wide / scale.astype(wide.dtype)), -127, 127)  # the scale is rounded
        return Int8(values.astype(jnp.int8), scale)

    chosen = tree.matching(params, layers)
    if not any(jax.tree.leaves(chosen)):
        paths = (tree.path_of(path) for path, _ in jax.tree.leaves_with_path(params))
        raise ValueError(f"{layers!r} names no leaf; there are {', '.join(paths)}")
    return jax.tree.map(one, params, chosen)


def is_int8(x: Any) -> bool:
    """For `is_leaf`."""
    return isinstance(x, Int8)


def dense(leaf: Any) -> Any:
    """A leaf of a base as one array."""
    return leaf.dense() if isinstance(leaf, Int8) else leaf
