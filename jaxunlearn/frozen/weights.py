"""A frozen weight that a program meets: its stored values, their scale if they are integers, and a low-rank change.

The three are never put together. A product with such a weight is the product with what is stored plus two thin ones, so that
many changes of one weight cost memory for the changes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Axes: TypeAlias = tuple[frozenset[int], ...]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "scale", "down", "up", "strength"],
    meta_fields=["name", "axes", "looped", "inputs", "dtype"],
)
@dataclass(frozen=True)
class Weight:
    """A weight on its way through a program."""

    values: jax.Array  # as stored, in the present form
    scale: jax.Array | None  # of the stored values; 1 wide along axes that share it
    down: jax.Array | None  # the change is `strength down up`: 1 wide along output axes, and the rank last
    up: jax.Array | None  # 1 wide along input axes, and the rank last
    strength: jax.Array | None  # Float[]
    name: str  # path of the parameter
    axes: Axes  # which axes of the parameter each present axis is made of; none: an axis of size 1 that was put in
    looped: frozenset[int]  # axes of the parameter that loops around go along
    inputs: frozenset[int]  # axes of the parameter that products contract
    dtype: Any  # that the program believes the weight has

    def dense(self) -> jax.Array:
        """The weight as one array."""
        whole = self.values.astype(self.dtype)
        if self.scale is not None:
            whole = whole * self.scale.astype(self.dtype)
        if self.down is None or self.up is None or self.strength is None:
            return whole
        return whole + (self.strength * jnp.einsum("...r,...r->...", self.down, self.up)).astype(self.dtype)

    def changed(self, change: Any, axes: Axes) -> "Weight":
        """The weight with `change(part, its shape)` made to all its parts, which share their axes but for their sizes."""
        rank = [None if x is None else jnp.moveaxis(x, -1, 0) for x in (self.down, self.up)]
        down, up = (None if x is None else jnp.moveaxis(jax.vmap(change)(x), 0, -1) for x in rank)
        scale = None if self.scale is None else change(self.scale)
        return replace(self, values=change(self.values), scale=scale, down=down, up=up, axes=axes)

    def first_taken(self) -> "Weight":
        """What a turn of a loop over the first axis gets."""
        return replace(self, axes=self.axes[1:], looped=self.looped | self.axes[0])

    def spread_first(self) -> "Weight":
        """With the first axis of every part as long as that of the values, so that a loop can take it apart."""
        length = self.values.shape[0]
        scale, down, up = (
            None if x is None else jnp.broadcast_to(x, (length, *x.shape[1:])) for x in (self.scale, self.down, self.up)
        )
        strength = None if self.strength is None else jnp.broadcast_to(self.strength, (length,))
        return replace(self, scale=scale, down=down, up=up, strength=strength)


def transposed(weight: Weight, permutation: Sequence[int], **_: Any) -> Weight:
    """The axes in another order."""
    return weight.changed(lambda x: x.transpose(permutation), tuple(weight.axes[axis] for axis in permutation))


def squeezed(weight: Weight, dimensions: Sequence[int], **_: Any) -> Weight:
    """Without axes of size 1."""
    kept = tuple(axes for place, axes in enumerate(weight.axes) if place not in dimensions)
    return weight.changed(lambda x: x.squeeze(tuple(dimensions)), kept)


def cast(weight: Weight, new_dtype: Any, **_: Any) -> Weight | None:
    """In another floating-point type; integers stay as they are stored. None for a type that rounds the whole weight."""
    if not jnp.issubdtype(new_dtype, jnp.inexact):
        return None
    values = weight.values if weight.scale is not None else weight.values.astype(new_dtype)
    return replace(weight, values=values, dtype=new_dtype)


def unchanged(weight: Weight, **_: Any) -> Weight:
    """As it is."""
    return weight


def spread(weight: Weight, shape: Sequence[int], broadcast_dimensions: Sequence[int], **_: Any) -> Weight | None:
    """With axes of size 1 put in; None if an axis is made longer."""
    if int(np.prod(shape)) != weight.values.size or not weight.values.size:
        return None
    axes: list[frozenset[int]] = [frozenset()] * len(shape)
    for source, place in enumerate(broadcast_dimensions):
        axes[place] = weight.axes[source]
    new = [place for place in range(len(shape)) if place not in broadcast_dimensions]
    return weight.changed(lambda x: jnp.expand_dims(x, new), tuple(axes))


def reshaped(weight: Weight, new_sizes: Sequence[int], **_: Any) -> Weight | None:
    """In another shape; None where an axis would mix what a part has along it with what it has not."""
    if not weight.values.size:
        return None
    groups = _groups(weight.values.shape, tuple(new_sizes))
    axes: list[frozenset[int]] = []
    for old, new in groups:
        axes += [frozenset().union(*(weight.axes[place] for place in old))] * len(new)

    def mixed(part: jax.Array, old: Sequence[int]) -> bool:
        return len({part.shape[place] == 1 for place in old if weight.values.shape[place] > 1}) > 1

    if any(mixed(part, old) for part in (weight.down, weight.up) if part is not None for old, _new in groups):
        return None
    if weight.scale is not None:  # may be written out: it is small along what it does not depend on, not for its rank
        sizes = list(weight.scale.shape)
        for place in (place for old, _new in groups if mixed(weight.scale, old) for place in old):
            sizes[place] = weight.values.shape[place]
        weight = replace(weight, scale=jnp.broadcast_to(weight.scale, sizes))

    def change(x: jax.Array) -> jax.Array:
        sizes = [
            size if all(x.shape[place] == weight.values.shape[place] for place in old) else 1
            for old, new in groups
            for size in (new_sizes[place] for place in new)
        ]
        return x.reshape(sizes)

    return weight.changed(change, tuple(axes))


def _groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Axes of two shapes in the smallest runs of equal size."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        before, after = 1, 1
        while not (left or right) or before != after:
            if (before <= after and i < len(old)) or j == len(new):
                before, left, i = before * old[i], [*left, i], i + 1
            else:
                after, right, j = after * new[j], [*right, j], j + 1
        groups.append((left, right))
    return groups


FORMS = {
    "transpose": transposed, "squeeze": squeezed, "reshape": reshaped, "broadcast_in_dim": spread, "convert_element_type": cast,
    "copy": unchanged, "copy_p": unchanged, "sharding_constraint": unchanged,
}  # fmt: skip


def product(weight: Weight, other: jax.Array, equation: Any, side: int) -> jax.Array | None:
    """`dot_general` of a weight and an array; None where it contracts other axes than the change is made for.

    Args:
        weight: the operand on this side.
        other: the one on the other side.
        equation: of the product.
        side: 0 or 1.
    """
    (contracted, batch), (against, along) = (
        tuple(axes[place] for axes in equation.params["dimension_numbers"]) for place in (side, 1 - side)
    )
    free = [axis for axis in range(weight.values.ndim) if axis not in (*contracted, *batch)]
    options = {name: equation.params[name] for name in ("precision", "preferred_element_type")}
    out_dtype = equation.outvars[0].aval.dtype

    def times(kernel: jax.Array) -> jax.Array:
        pair = (kernel, other) if side == 0 else (other, kernel)
        return jax.lax.dot_general(*pair, equation.params["dimension_numbers"], **options)

    scale = weight.scale
    after = scale is not None and all(scale.shape[axis] == 1 for axis in contracted)
    unchanged_weight = replace(weight, down=None, up=None)
    plain = weight.values.astype(weight.dtype) if scale is None or after else unchanged_weight.dense()
    out = times(plain)
    if after:
        assert scale is not None
        order = [*batch, *(free if side == 0 else []), *contracted, *(free if side == 1 else [])]
        sizes = [scale.shape[axis] for axis in order if axis not in contracted]
        new = [1] * (other.ndim - len(against) - len(along))
        place = len(batch) + (len(free) if side == 0 else 0)
        moved = scale.transpose(order).reshape([*sizes[:place], *new, *sizes[place:]])
        out = out * moved.astype(out.dtype)
    if weight.down is None or weight.up is None or weight.strength is None:
        return out.astype(out_dtype)
    reached = frozenset().union(*(weight.axes[axis] for axis in contracted))
    rest = frozenset().union(*(weight.axes[axis] for axis in free))
    if reached == weight.inputs:
        first, second = weight.down, weight.up
    elif rest == weight.inputs:
        first, second = weight.up, weight.down
    else:
        return None
    dtype = jnp.promote_types(weight.dtype, other.dtype)  # a product may be of integers and floating-point numbers
    thin = _thin(first, [*batch, *contracted], dtype)  # [batch..., contracted..., rank]
    back = _thin(second, [*batch, *free], dtype)  # [batch..., free..., rank]
    groups = tuple(range(len(batch)))
    sums = tuple(range(len(batch), len(batch) + len(contracted)))
    inner = jax.lax.dot_general(other.astype(dtype), thin, ((against, sums), (along, groups)), precision=options["precision"])
    rank = (((inner.ndim - 1,), (back.ndim - 1,)), (groups, groups))
    change = jax.lax.dot_general(inner, back, rank, **options)  # [batch..., free of the other one, free]
    if side == 0:
        change = jnp.moveaxis(change, range(change.ndim - len(free), change.ndim), range(len(batch), len(batch) + len(free)))
    return (out + weight.strength.astype(out.dtype) * change.astype(out.dtype)).astype(out_dtype)


def _thin(part: jax.Array, kept: list[int], dtype: Any) -> jax.Array:
    """A factor with these axes and the rank, without those along which it is 1 wide anyway."""
    gone = [axis for axis in range(part.ndim - 1) if axis not in kept]
    order = [*kept, part.ndim - 1, *gone]
    moved = part.transpose(order)
    return moved.reshape(moved.shape[: len(kept) + 1]).astype(dtype)
