"""Dot products, convolutions and lookups as `s = W' a` for every position: inputs and outputs as rows, kernels as matrices.

A lookup multiplies a table with a 1 at the row that is looked up, and is told by the number of that row.

All of them have a leading axis of groups: the batch axes of a dot product in which the kernel has them too, such as heads or
experts, and the groups of a convolution. There is one group where there is nothing of the kind.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

LOOKUP = "gather"  # the primitive


def kernel_rows(equation: Any, values: np.ndarray, side: int) -> np.ndarray | None:
    """The operand on this side as matrices [groups, inputs, outputs]; None if the product is none that is known."""
    if equation.primitive.name == "dot_general":
        contracted, batch = (axes[side] for axes in equation.params["dimension_numbers"])
        free = [axis for axis in range(values.ndim) if axis not in (*contracted, *batch)]
        sizes = [_size(values, axes) for axes in (batch, contracted, free)]
        return values.transpose([*batch, *contracted, *free]).reshape(sizes)
    if equation.primitive.name == LOOKUP:
        return _table(equation, values) if side == 0 else None
    if side != 1 or equation.params["batch_group_count"] != 1:
        return None
    out, into, *space = equation.params["dimension_numbers"].rhs_spec
    groups, outputs = equation.params["feature_group_count"], values.shape[out]
    rows = values.transpose([into, *space, out]).reshape(-1, groups, outputs // groups)
    return np.moveaxis(rows, 1, 0)


def _table(equation: Any, values: np.ndarray) -> np.ndarray | None:
    """A table as one matrix [1, rows, outputs], if whole rows along one axis are taken from it."""
    numbers = equation.params["dimension_numbers"]
    if len(numbers.collapsed_slice_dims) != 1 or numbers.start_index_map != numbers.collapsed_slice_dims:
        return None
    (axis,) = numbers.collapsed_slice_dims
    sizes = [values.shape[other] for other in range(values.ndim) if other != axis]
    if numbers.operand_batching_dims or [x for y, x in enumerate(equation.params["slice_sizes"]) if y != axis] != sizes:
        return None
    return np.moveaxis(values, axis, 0).reshape(1, values.shape[axis], -1)


def activation_rows(equation: Any, values: list, kernel_side: int) -> Float[Array, "g T i"] | Int[Array, "g T"]:
    """What the kernel is multiplied with, for every position; for a lookup the number of the row."""
    x = values[1 - kernel_side]
    if equation.primitive.name == LOOKUP:
        (axis,) = equation.params["dimension_numbers"].collapsed_slice_dims
        size = values[0].shape[axis]
        rows = jnp.clip(x[..., 0], 0, size - 1)
        return (rows if (read := rows_read(equation, values)) is None else jnp.where(read, rows, size)).reshape(1, -1)
    if equation.primitive.name == "dot_general":
        contracted, batch = (axes[1 - kernel_side] for axes in equation.params["dimension_numbers"])
        free = [axis for axis in range(x.ndim) if axis not in (*contracted, *batch)]
        sizes = [_size(x, axes) for axes in (batch, free, contracted)]
        return x.transpose([*batch, *free, *contracted]).reshape(sizes)
    return _patches(equation, x, values[1].shape)


def rows_read(equation: Any, values: list) -> Bool[Array, "..."] | None:
    """Of a lookup that leaves numbers out of range alone, those that are not; None where all read a row of the table."""
    if equation.params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        return None
    (axis,) = equation.params["dimension_numbers"].collapsed_slice_dims
    return (values[1][..., 0] >= 0) & (values[1][..., 0] < values[0].shape[axis])


def shifted(equation: Any, values: list, result: Array, shift: Array) -> Array:
    """What an equation returns with something added to it, but for places where a lookup read no row."""
    if equation.primitive.name == LOOKUP and (read := rows_read(equation, values)) is not None:
        shift = jnp.where(jnp.expand_dims(read, equation.params["dimension_numbers"].offset_dims), shift, 0)
    return result + shift.astype(result.dtype)


def _patches(equation: Any, x: jax.Array, kernel: tuple[int, ...]) -> Float[Array, "g T i"]:
    """What every position of a convolution's output sees, channels first, as slices: exact, and quick on every device."""
    options = equation.params
    numbers, out = options["dimension_numbers"], equation.outvars[0].aval.shape
    padding = [
        (low, high, dilation - 1) for (low, high), dilation in zip(options["padding"], options["lhs_dilation"], strict=True)
    ]
    x = jax.lax.pad(x.transpose(numbers.lhs_spec), jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *padding])
    strides, dilations = options["window_strides"], options["rhs_dilation"]
    sizes = [out[axis] for axis in numbers.out_spec[2:]]
    parts = []
    for offset in np.ndindex(*(kernel[axis] for axis in numbers.rhs_spec[2:])):
        start = [place * dilation for place, dilation in zip(offset, dilations, strict=True)]
        limit = [first + (size - 1) * stride + 1 for first, size, stride in zip(start, sizes, strides, strict=True)]
        parts.append(jax.lax.slice(x, [0, 0, *start], [*x.shape[:2], *limit], [1, 1, *strides]))
    patches = jnp.stack(parts, axis=-1)  # [n, channels, space..., offsets]
    patches = jnp.moveaxis(patches, 1, -2)
    groups, inputs = options["feature_group_count"], kernel[numbers.rhs_spec[1]] * len(parts)
    return jnp.moveaxis(patches.reshape(-1, groups, inputs), 1, 0)


def output_rows(equation: Any, values: Any, kernel_side: int) -> Any:
    """An array like the outputs as [groups, T, outputs]; positions in the order of `activation_rows`."""
    if equation.primitive.name == "dot_general":
        contracted, batch = (axes[kernel_side] for axes in equation.params["dimension_numbers"])
        free = equation.invars[kernel_side].aval.ndim - len(contracted) - len(batch)
        shape = values.shape
        groups, rest = _size(values, range(len(batch))), shape[len(batch) :]
        outputs = int(np.prod(rest[:free] if kernel_side == 0 else rest[len(rest) - free :], dtype=int))
        positions = values.size // (groups * outputs)
        if kernel_side == 0:
            return values.reshape(groups, outputs, positions).swapaxes(1, 2)
        return values.reshape(groups, positions, outputs)
    if equation.primitive.name == LOOKUP:
        inside = equation.params["dimension_numbers"].offset_dims
        outside = [axis for axis in range(values.ndim) if axis not in inside]
        return values.transpose([*outside, *inside]).reshape(1, _size(values, outside), -1)
    batch, feature, *space = equation.params["dimension_numbers"].out_spec
    groups, outputs = equation.params["feature_group_count"], values.shape[feature]
    rows = values.transpose([batch, *space, feature]).reshape(-1, groups, outputs // groups)
    return rows.swapaxes(0, 1)


def _size(values: Any, axes: Any) -> int:
    return int(np.prod([values.shape[axis] for axis in axes], dtype=int))
