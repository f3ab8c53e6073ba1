"""What every parameter is used for in a program: kernel of a product, bias of one, or anything else."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from jaxunlearn.curvature.products import LOOKUP, kernel_rows, output_rows
from jaxunlearn.curvature.programs import FORMS, PRODUCTS


class MatrixForm(NamedTuple):
    """How the entries of a parameter make matrices: split into axes, some turned round, in another order, cut anew."""

    split: tuple[int, ...]
    flips: tuple[int, ...]  # axes of the split
    permutation: tuple[int, ...]  # of them, too
    groups: int
    inputs: int
    outputs: int

    def matrices(self, leaf: Any) -> Any:
        """The parameter as [groups, inputs, outputs]."""
        turned = jnp.flip(leaf.reshape(self.split), self.flips)
        return turned.transpose(self.permutation).reshape(self.groups, self.inputs, self.outputs)

    def leaf(self, matrices: Any, shape: tuple[int, ...]) -> Any:
        """The parameter of these matrices."""
        moved = matrices.reshape([self.split[axis] for axis in self.permutation]).transpose(np.argsort(self.permutation))
        return jnp.flip(moved, self.flips).reshape(shape)


def matrix_form(positions: np.ndarray) -> MatrixForm | None:
    """The form in which these matrices hold all entries of a parameter, each once; None if there is none.

    Args:
        positions: of the entries in the parameter, [groups, inputs, outputs].
    """
    axes: list[tuple[int, int]] = []  # size and step of every axis, innermost first
    rest = positions.ravel()
    first = int(rest[0])
    while rest.size > 1:
        steps = np.diff(rest)
        changes = np.flatnonzero(steps != steps[0])
        size = int(changes[0]) + 1 if changes.size else rest.size
        if rest.size % size or np.any(np.diff(rest.reshape(-1, size), axis=1) != steps[0]):
            return None
        axes.append((size, int(steps[0])))
        rest = rest[::size]
    axes.reverse()
    order = sorted(range(len(axes)), key=lambda axis: -abs(axes[axis][1]))
    split = tuple(axes[axis][0] for axis in order)
    steps = [int(np.prod(split[place + 1 :], dtype=int)) for place in range(len(split))]
    flips = tuple(place for place, axis in enumerate(order) if axes[axis][1] < 0)
    start = sum((split[place] - 1) * steps[place] for place in flips)
    if [abs(axes[axis][1]) for axis in order] != steps or first != start:
        return None
    return MatrixForm(split, flips, tuple(int(x) for x in np.argsort(order)), *positions.shape)


class _Form(NamedTuple):
    """An array that is a parameter, or a layer's output, in another form."""

    is_output: bool
    source: int  # the leaf, or the equation that made the output
    positions: np.ndarray  # of every element in the source


def _positions(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(int(np.prod(shape, dtype=int)), dtype=np.int32).reshape(shape)


class Kernel(NamedTuple):
    """A parameter, or a part of one, that a product multiplies as a matrix, or a lookup reads."""

    leaf: int
    entries: np.ndarray  # positions in the parameter of those of the matrices [groups, inputs, outputs]
    side: int  # which operand of the product it is
    positions: int
    primitive: str  # which product


class Bias(NamedTuple):
    """A parameter, or a part of one, that is added to a product, one number an output."""

    leaf: int
    entries: np.ndarray  # positions in the parameter, [groups, outputs]


class ParameterUses:
    """One walk over a program.

    Args:
        jaxpr: its first inputs are the parameters.
        shapes: of the parameters.
    """

    def __init__(self, jaxpr: Jaxpr, shapes: list[tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.uses: list[list[int]] = [[] for _ in shapes]  # equations that every parameter enters, whatever for
        self.kernels: dict[int, Kernel] = {}  # by their equations
        self.biases: dict[int, Bias] = {}  # by the equations of their products
        self._forms: dict[Any, _Form] = {}
        self._counts: dict[Any, int] = {}
        for x in [*(x for equation in jaxpr.eqns for x in equation.invars), *jaxpr.outvars]:
            if not isinstance(x, Literal):
                self._counts[x] = self._counts.get(x, 0) + 1
        for leaf, variable in enumerate(jaxpr.invars[: len(shapes)]):
            self._forms[variable] = _Form(False, leaf, _positions(shapes[leaf]))
        for place, equation in enumerate(jaxpr.eqns):
            self._visit(place, equation)

    def _visit(self, place: int, equation: Any) -> None:
        forms = [None if isinstance(x, Literal) else self._forms.get(x) for x in equation.invars]
        name = equation.primitive.name
        if all(form is None for form in forms) or name == "stop_gradient":
            return
        if name in FORMS and forms[0] is not None:
            source = equation.invars[0]
            if forms[0].is_output and self._counts[source] > 1:
                return  # its gradient is more than that of the sum with a bias
            self._forms[equation.outvars[0]] = forms[0]._replace(positions=FORMS[name](forms[0].positions, **equation.params))
            return
        if name in ("add", "add_any"):
            self._bias(equation, forms)
        if name in (*PRODUCTS, LOOKUP):
            self._product(place, equation, forms)
        for form in forms:
            if form is not None and not form.is_output:
                self.uses[form.source].append(place)

    def _product(self, place: int, equation: Any, forms: list[_Form | None]) -> None:
        sides = [(side, form) for side, form in enumerate(forms) if form is not None and not form.is_output]
        if len(sides) != 1:
            return
        ((side, form),) = sides
        rows = kernel_rows(equation, form.positions, side) if form.positions.size else None
        if rows is None or np.unique(rows).size < rows.size:
            return
        shape = equation.outvars[0].aval.shape
        outputs = output_rows(equation, _positions(shape), side)
        self.kernels[place] = Kernel(form.source, rows, side, outputs.shape[1], equation.primitive.name)
        if equation.primitive.name == LOOKUP:
            return  # what is added to it is no bias: rows of the table hold it already
        index = np.empty(outputs.size, np.int32)
        index[outputs.ravel()] = np.arange(outputs.size)
        self._forms[equation.outvars[0]] = _Form(True, place, index.reshape(shape))

    def _bias(self, equation: Any, forms: list) -> None:
        """Note a parameter that is added to a layer's output, one number an output."""
        if any(form is None for form in forms) or {form.is_output for form in forms} != {True, False}:
            return
        output, bias = sorted(forms, key=lambda form: not form.is_output)
        if any(self._counts[x] > 1 for x, form in zip(equation.invars, forms, strict=True) if form.is_output):
            return
        groups, _, outputs = self.kernels[output.source].entries.shape
        if output.source in self.biases or equation.outvars[0].aval.shape != output.positions.shape:
            return
        values = np.empty(output.positions.size, np.int32)
        values[output.positions.ravel()] = np.broadcast_to(bias.positions, output.positions.shape).ravel()
        values = values.reshape(groups, -1, outputs)
        entries = values[:, 0]
        if np.all(values == entries[:, None]) and np.unique(entries).size == entries.size:
            self.biases[output.source] = Bias(bias.source, entries)
