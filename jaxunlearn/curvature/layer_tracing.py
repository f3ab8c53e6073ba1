"""Where a model's parameters meet its activations, read from the model's own program.

K-FAC needs the inputs of every linear map and the gradients of its outputs. Instead of asking for wrapped layers, the forward
pass of one row is traced and every product with a parameter, dense or convolution, is found in it, through jit, remat, custom
derivatives, casts and transposes. So it works with any module library, and with plain functions.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, subjaxprs
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree

PRODUCTS = ("dot_general", "conv_general_dilated")
LOOPS = ("scan", "while", "cond")
OPENED = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call")


@dataclass(frozen=True)
class Layer:
    """One linear map `s = W' a (+ b)`; static, so that it may be part of a pytree's structure."""

    name: str
    kernel: int  # position of the leaf among the params
    bias: int | None
    permutation: tuple[int, ...]  # of the kernel's axes, before it is reshaped to [inputs, outputs]
    inputs: int
    outputs: int
    equation: int  # where it stands in the program

    def matrix(self, leaves: Sequence[jax.Array]) -> Float[Array, "i o"]:
        """Kernel, and bias as a last row, as one matrix."""
        kernel = leaves[self.kernel].transpose(self.permutation).reshape(self.inputs, self.outputs)
        return kernel if self.bias is None else jnp.concatenate([kernel, leaves[self.bias].reshape(1, self.outputs)])

    def parts(self, matrix: Float[Array, "i o"], like: Sequence[jax.Array]) -> dict[int, jax.Array]:
        """The leaves that `matrix` was made of, by their positions."""
        shape = like[self.kernel].shape
        moved = matrix[: self.inputs].reshape([shape[axis] for axis in self.permutation])
        found = {self.kernel: moved.transpose(np.argsort(self.permutation))}
        if self.bias is not None:
            found[self.bias] = matrix[self.inputs].reshape(like[self.bias].shape)
        return found


class Taps(NamedTuple):
    """What `find` returns."""

    layers: tuple[Layer, ...]
    others: tuple[int, ...]  # leaves that are no kernel and no bias of a layer
    run: Callable  # (params, row, shifts) -> (outputs, activations [T, i] of every layer)
    shapes: list[tuple[tuple[int, ...], Any]]  # of the shifts: what is added to every layer's outputs, with dtype
    rows: Callable[[int, jax.Array], Float[Array, "T o"]]  # (layer, gradient of a shift) -> canonical form


def find(forward: Callable[[PyTree, PyTree], PyTree], params: PyTree, row: PyTree) -> Taps:
    """Trace `forward(params, row)` and find its layers.

    Args:
        forward: of one row; returns any tree of arrays.
        params: or their shapes and dtypes.
        row: or its shapes and dtypes.

    Raises:
        ValueError: a parameter of a layer that is used anywhere else as well, or inside a loop; names it.
    """
    leaves = jax.tree.leaves(params)
    names = [tree.path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    program, outputs = jax.make_jaxpr(forward, return_shape=True)(params, row)
    program = _opened(program, range(len(leaves)))
    found = _Analysis(program.jaxpr, [np.shape(x) for x in leaves], names)
    found.refuse_shared()
    layers = tuple(found.layers())
    taken = {x for layer in layers for x in (layer.kernel, layer.bias) if x is not None}
    by_equation = {layer.equation: place for place, layer in enumerate(layers)}

    def run(params: PyTree, row: PyTree, shifts: list[jax.Array]) -> tuple[PyTree, list[Float[Array, "T i"]]]:
        activations: list[Any] = [None] * len(layers)

        def tap(place: int, equation: Any, values: list, result: list) -> list:
            layer = by_equation.get(place)
            if layer is None:
                return result
            activations[layer] = _activation_rows(equation, values, found.sides[place])
            return [result[0] + shifts[layer].astype(result[0].dtype)]

        arguments = [*jax.tree.leaves(params), *jax.tree.leaves(row)]
        flat = _evaluate(program.jaxpr, program.consts, arguments, tap)
        return jax.tree.unflatten(jax.tree.structure(outputs), flat), activations

    equations = [program.jaxpr.eqns[layer.equation] for layer in layers]
    return Taps(
        layers,
        tuple(x for x in range(len(leaves)) if x not in taken),
        run,
        [(x.outvars[0].aval.shape, x.outvars[0].aval.dtype) for x in equations],
        lambda layer, gradient: _output_rows(equations[layer], gradient, found.sides[layers[layer].equation]),
    )


# Programs


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], visit: Callable) -> list[Any]:
    """Run a program; `visit(place, equation, values, result)` may change what an equation returns."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    for place, equation in enumerate(jaxpr.eqns):
        values = [x.val if isinstance(x, Literal) else known[x] for x in equation.invars]
        result = _bind(equation, values)
        known.update(zip(equation.outvars, visit(place, equation, values, result), strict=True))
    return [x.val if isinstance(x, Literal) else known[x] for x in jaxpr.outvars]


def _bind(equation: Any, values: list) -> list:
    with equation.ctx.manager:
        result = equation.primitive.bind(*values, **equation.primitive.get_bind_params(equation.params))
    return list(result) if equation.primitive.multiple_results else [result]


def _opened(program: ClosedJaxpr, params: Sequence[int]) -> ClosedJaxpr:
    """The program with every inner program that a parameter enters written out in line.

    Others stay as they are, and so do functions with a derivative of their own, such as ReLU, unless they multiply: then the
    derivative is that of the products.
    """

    def run(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], marked: Sequence[bool]) -> tuple[list, list[bool]]:
        variables = [*jaxpr.constvars, *jaxpr.invars]
        known = dict(zip(variables, [*consts, *arguments], strict=True))
        reached = dict(zip(variables, [*([False] * len(consts)), *marked], strict=True))
        for equation in jaxpr.eqns:
            values = [x.val if isinstance(x, Literal) else known[x] for x in equation.invars]
            marks = [not isinstance(x, Literal) and reached[x] for x in equation.invars]
            inner = _inner(equation) if any(marks) else None
            if inner is not None:
                result, new = run(inner[0], inner[1], values, marks)
            else:
                # What a parameter reaches by anything but a change of its form is an activation.
                result, new = _bind(equation, values), [any(marks) and equation.primitive.name in FORMS] * len(equation.outvars)
            known.update(zip(equation.outvars, result, strict=True))
            reached.update(zip(equation.outvars, new, strict=True))
        outputs = [(x.val, False) if isinstance(x, Literal) else (known[x], reached[x]) for x in jaxpr.outvars]
        return [x for x, _ in outputs], [x for _, x in outputs]

    marked = [place in params for place in range(len(program.jaxpr.invars))]
    return jax.make_jaxpr(lambda *x: run(program.jaxpr, program.consts, x, marked)[0])(*program.in_avals)


def _inner(equation: Any) -> tuple[Jaxpr, Sequence[Any]] | None:
    if equation.primitive.name not in OPENED:
        return None
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    program, consts = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, [])
    return None if equation.primitive.name == "custom_jvp_call" and not _multiplies(program) else (program, consts)


def _multiplies(program: Jaxpr) -> bool:
    return any(x.primitive.name in PRODUCTS for x in program.eqns) or any(map(_multiplies, subjaxprs(program)))


# Which form an array is in, told by the positions of its elements


def _broadcast(index: np.ndarray, shape: Sequence[int], broadcast_dimensions: Sequence[int], **_: Any) -> np.ndarray:
    spread = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, index.shape, strict=True):
        spread[axis] = size
    return np.broadcast_to(index.reshape(spread), shape)


FORMS: dict[str, Callable[..., np.ndarray]] = {
    "transpose": lambda index, permutation, **_: index.transpose(permutation),
    "reshape": lambda index, new_sizes, **_: index.reshape(new_sizes),
    "squeeze": lambda index, dimensions, **_: index.squeeze(tuple(dimensions)),
    "broadcast_in_dim": _broadcast,
    "convert_element_type": lambda index, **_: index,
    "copy": lambda index, **_: index,
    "copy_p": lambda index, **_: index,
    "reduce_precision": lambda index, **_: index,
    "sharding_constraint": lambda index, **_: index,
}


class _Form(NamedTuple):
    """An array that is a parameter, or a layer's output, in another form."""

    is_output: bool
    source: int  # the leaf, or the equation that made the output
    positions: np.ndarray  # of every element in the source


def _positions(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(int(np.prod(shape, dtype=int)), dtype=np.int32).reshape(shape)


class _Use(NamedTuple):
    equation: int
    role: str  # "kernel", "bias", "loop" or "other"


class _Analysis:
    """One walk over a program: what every leaf of the params is used for."""

    def __init__(self, jaxpr: Jaxpr, shapes: list[tuple[int, ...]], names: list[str]) -> None:
        self.shapes, self.names = shapes, names
        self.uses: list[list[_Use]] = [[] for _ in shapes]
        self.kernels: dict[int, tuple[int, tuple[int, ...], int, int]] = {}  # equation: leaf, permutation, inputs, outputs
        self.biases: dict[int, int] = {}  # equation of the layer: leaf
        self.sides: dict[int, int] = {}  # equation: which operand is the kernel
        self._forms: dict[Any, _Form] = {}
        self._counts: dict[Any, int] = {}
        for equation in jaxpr.eqns:
            for x in equation.invars:
                if not isinstance(x, Literal):
                    self._counts[x] = self._counts.get(x, 0) + 1
        for x in jaxpr.outvars:
            if not isinstance(x, Literal):
                self._counts[x] = self._counts.get(x, 0) + 1
        for leaf, variable in enumerate(jaxpr.invars[: len(shapes)]):
            self._forms[variable] = _Form(False, leaf, _positions(shapes[leaf]))
        for place, equation in enumerate(jaxpr.eqns):
            self._visit(place, equation)

    def refuse_shared(self) -> None:
        """ValueError if the factors of a layer would not be those of all that its parameters do."""
        looped = [self.names[leaf] for leaf, uses in enumerate(self.uses) if any(x.role == "loop" for x in uses)]
        if looped:
            raise ValueError(
                f"parameters {', '.join(looped)} enter a loop or a branch (scan, while, cond), where one activation is not "
                "the only one: use another representation, e.g. diagonal or lanczos"
            )
        shared = [
            self.names[leaf] for leaf, uses in enumerate(self.uses) if len(uses) > 1 and any(x.role == "kernel" for x in uses)
        ]
        if shared:
            raise ValueError(
                f"parameters {', '.join(shared)} are used in several places, so that they have no single activation: use "
                "another representation, e.g. diagonal or lanczos"
            )

    def layers(self) -> list[Layer]:
        found = []
        for equation, (leaf, permutation, inputs, outputs) in self.kernels.items():
            bias = self.biases.get(equation)
            if bias is not None and len(self.uses[bias]) > 1:
                bias = None
            found.append(Layer(self.names[leaf], leaf, bias, permutation, inputs, outputs, equation))
        return found

    def _visit(self, place: int, equation: Any) -> None:
        forms = [None if isinstance(x, Literal) else self._forms.get(x) for x in equation.invars]
        name = equation.primitive.name
        if all(form is None for form in forms):
            return
        if name in FORMS and forms[0] is not None:
            source = equation.invars[0]
            if forms[0].is_output and self._counts[source] > 1:
                return  # its gradient is more than that of the sum with a bias
            self._forms[equation.outvars[0]] = forms[0]._replace(positions=FORMS[name](forms[0].positions, **equation.params))
            return
        if name in PRODUCTS:
            self._product(place, equation, forms)
            return
        if name in ("add", "add_any") and self._is_bias(equation, forms):
            output, bias = sorted((form for form in forms if form is not None), key=lambda form: not form.is_output)
            self.biases[output.source] = bias.source
            self.uses[bias.source].append(_Use(place, "bias"))
            return
        for form in forms:
            if form is not None and not form.is_output:
                self.uses[form.source].append(_Use(place, "loop" if name in LOOPS else "other"))

    def _product(self, place: int, equation: Any, forms: list[_Form | None]) -> None:
        sides = [side for side, form in enumerate(forms) if form is not None and not form.is_output]
        kernel = self._kernel(equation, forms, sides[0]) if len(sides) == 1 else None
        if kernel is None:
            for side in sides:
                self.uses[forms[side].source].append(_Use(place, "other"))  # type: ignore[union-attr]
            return
        self.uses[kernel[0]].append(_Use(place, "kernel"))
        self.kernels[place], self.sides[place] = kernel, sides[0]
        shape = equation.outvars[0].aval.shape
        rows = _output_rows(equation, _positions(shape), sides[0]).ravel()
        index = np.empty(rows.size, np.int32)
        index[rows] = np.arange(rows.size)
        self._forms[equation.outvars[0]] = _Form(True, place, index.reshape(shape))

    def _kernel(self, equation: Any, forms: list, side: int) -> tuple[int, tuple[int, ...], int, int] | None:
        """Leaf, permutation and size, if the operand is a whole parameter that is multiplied as a matrix."""
        form = forms[side]
        shape = self.shapes[form.source]
        if form.positions.size != int(np.prod(shape, dtype=int)):
            return None
        if equation.primitive.name == "dot_general":
            contracted, batch = equation.params["dimension_numbers"]
            if batch[side]:
                return None
            free = [axis for axis in range(form.positions.ndim) if axis not in contracted[side]]
            order, inputs = [*contracted[side], *free], [form.positions.shape[axis] for axis in contracted[side]]
        else:
            if side != 1 or equation.params["feature_group_count"] != 1 or equation.params["batch_group_count"] != 1:
                return None
            out, into, *space = equation.params["dimension_numbers"].rhs_spec
            order, inputs = [into, *space, out], [form.positions.shape[axis] for axis in (into, *space)]
        size = int(np.prod(inputs, dtype=int))
        matrix = form.positions.transpose(order).reshape(size, -1)
        whole = _positions(shape)
        for permutation in itertools.permutations(range(len(shape))):
            if np.array_equal(whole.transpose(permutation).reshape(matrix.shape), matrix):
                return form.source, permutation, *matrix.shape
        return None

    def _is_bias(self, equation: Any, forms: list) -> bool:
        """Whether a parameter is added to a layer's output, one number an output."""
        if any(form is None for form in forms) or {form.is_output for form in forms} != {True, False}:
            return False
        output, bias = sorted(forms, key=lambda form: not form.is_output)
        if any(self._counts[x] > 1 for x, form in zip(equation.invars, forms, strict=True) if form.is_output):
            return False
        outputs = self.kernels[output.source][3]
        if output.source in self.biases or int(np.prod(self.shapes[bias.source], dtype=int)) != outputs:
            return False
        if equation.outvars[0].aval.shape != output.positions.shape:
            return False
        values = np.empty(output.positions.size, np.int32)
        values[output.positions.ravel()] = np.broadcast_to(bias.positions, output.positions.shape).ravel()
        return bool(np.all(values.reshape(-1, outputs) == np.arange(outputs)))


# Activations and gradients as rows


def _activation_rows(equation: Any, values: list, kernel_side: int) -> Float[Array, "T i"]:
    x = values[1 - kernel_side]
    if equation.primitive.name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][1 - kernel_side]
        free = [axis for axis in range(x.ndim) if axis not in contracted]
        inputs = int(np.prod([x.shape[axis] for axis in contracted], dtype=int))
        return x.transpose([*free, *contracted]).reshape(-1, inputs)
    return _patches(equation, x, values[1].shape)


def _patches(equation: Any, x: jax.Array, kernel: tuple[int, ...]) -> Float[Array, "T i"]:
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
    return patches.reshape(-1, patches.shape[-2] * patches.shape[-1])


def _output_rows(equation: Any, values: Any, kernel_side: int) -> Any:
    """[T, outputs]; positions in the order of `_activation_rows`."""
    if equation.primitive.name == "dot_general":
        kernel = equation.invars[kernel_side].aval
        free = kernel.ndim - len(equation.params["dimension_numbers"][0][kernel_side])
        outputs = int(np.prod(values.shape[:free] if kernel_side == 0 else values.shape[values.ndim - free :], dtype=int))
        return values.reshape(outputs, -1).T if kernel_side == 0 else values.reshape(-1, outputs)
    batch, feature, *space = equation.params["dimension_numbers"].out_spec
    return values.transpose([batch, *space, feature]).reshape(-1, values.shape[feature])
