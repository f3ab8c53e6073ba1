"""Where a model's parameters meet its activations, read from the model's own program.

K-FAC needs the inputs of every linear map and the gradients of its outputs. Instead of asking for wrapped layers, the forward
pass of one row is traced and every product with a parameter, dense or convolution, is found in it, through jit, remat, custom
derivatives, casts, transposes and flips. So it works with any module library, and with plain functions. A parameter that
several products multiply in the same form is one layer, whose positions are those of all of them. A scan is written out: a
parameter of which every turn takes a part is one layer with a group for every part. Where it is asked for, tables that rows are
looked up in are layers too, and so is a matrix that is looked up in one place and multiplied in another, or multiplied as it is
and transposed: one layer with several uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.curvature.parameter_uses import Kernel, MatrixForm, ParameterUses, matrix_form
from jaxunlearn.curvature.products import LOOKUP, activation_rows, output_rows, shifted
from jaxunlearn.curvature.programs import evaluate_program, multiplied, open_program

IN_LOOP = "multiplied inside a branch or a long loop"
CUSTOM = "multiplied inside a function with a backward pass of its own (custom_vjp), which factors would leave out"
INSIDE = {"loop": IN_LOOP, "custom": CUSTOM}
SEVERAL = "used in several ways"
CHANGED = "changed before its product, or multiplied in an unknown way"


Use: TypeAlias = Literal["lookup", "product", "transpose"]
Activations: TypeAlias = Float[Array, "g T i"] | Int[Array, "g T"]  # activations, or the numbers of rows that are looked up


@dataclass(frozen=True)
class Layer:
    """Linear maps `s = W' a (+ b)`, one for every group; static, so that it may be part of a pytree's structure."""

    name: str
    kernel: int  # position of the leaf among the params
    bias: int | None
    form: MatrixForm  # of the kernel
    positions: int  # of one row, of all products together
    spatial: bool = False  # of a convolution: positions are those of an image
    uses: tuple[Use, ...] = ("product",)  # whose gradients add up; "transpose" multiplies by W and not by W'

    def matrix(self, leaves: Sequence[jax.Array]) -> Float[Array, "g i o"]:
        """Kernel, and bias as a last row, as one matrix for every group."""
        kernel = self.form.matrices(leaves[self.kernel])
        if self.bias is None:
            return kernel
        return jnp.concatenate([kernel, leaves[self.bias].reshape(self.form.groups, 1, self.form.outputs)], axis=1)

    def parts(self, matrix: Float[Array, "g i o"], like: Sequence[jax.Array]) -> dict[int, jax.Array]:
        """The leaves that `matrix` was made of, by their positions."""
        found = {self.kernel: self.form.leaf(matrix[:, : self.form.inputs], like[self.kernel].shape)}
        if self.bias is not None:
            found[self.bias] = matrix[:, self.form.inputs].reshape(like[self.bias].shape)
        return found


class Unfactored(NamedTuple):
    """A parameter that takes part in a product and has no layer."""

    name: str
    leaf: int
    reason: str


class Taps(NamedTuple):
    """What `find` returns."""

    layers: tuple[Layer, ...]
    others: tuple[int, ...]  # leaves that are no kernel and no bias of a layer
    unfactored: tuple[Unfactored, ...]  # those of them that one would expect to have one
    run: Callable  # (params, row, shifts) -> (outputs, `Activations` of every use of every layer)
    zeros: Callable[[], list[list[jax.Array]]]  # shifts: what is added to the outputs of every product of every use
    rows: Callable[[list[list[jax.Array]]], list[Float[Array, "g T o"]]]  # gradients of the shifts, for every use


def find(forward: Callable[[PyTree, PyTree], PyTree], params: PyTree, row: PyTree, *, tables: int | None = None) -> Taps:
    """Trace `forward(params, row)` and find its layers.

    Args:
        forward: of one row; returns any tree of arrays.
        params: or their shapes and dtypes.
        row: or its shapes and dtypes.
        tables: parameters of more entries than this are layers where they are nothing but looked up. None: layers are products
            of one form alone.
    """
    leaves = jax.tree.leaves(params)
    names = [tree.path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    program, outputs = jax.make_jaxpr(forward, return_shape=True)(params, row)
    program = open_program(program, range(len(leaves)))
    found = ParameterUses(program.jaxpr, [np.shape(x) for x in leaves])
    layers, products = _layers(found, names, tables)
    taken = {x for layer in layers for x in (layer.kernel, layer.bias) if x is not None}
    flat_uses = [[place for part in parts for place in part] for parts in products]
    places = {place: (layer, use) for layer, uses in enumerate(flat_uses) for use, place in enumerate(uses)}
    equations = [[program.jaxpr.eqns[place] for place in uses] for uses in flat_uses]

    def joined(of_uses: list[list[Any]]) -> list[Any]:
        """Rows of every use: products of one part after another along positions, parts along groups."""
        whole = []
        for parts, rows in zip(products, of_uses, strict=True):
            rest = iter(rows)
            whole.append(jnp.concatenate([jnp.concatenate([next(rest) for _ in part], axis=1) for part in parts]))
        return whole

    def run(params: PyTree, row: PyTree, shifts: list[list[jax.Array]]) -> tuple[PyTree, list[Activations]]:
        activations: list[list[Any]] = [[None] * len(uses) for uses in flat_uses]

        def tap(place: int, equation: Any, values: list, result: list) -> list:
            if place not in places:
                return result
            layer, use = places[place]
            activations[layer][use] = activation_rows(equation, values, found.kernels[place].side)
            return [shifted(equation, values, result[0], shifts[layer][use])]

        arguments = [*jax.tree.leaves(params), *jax.tree.leaves(row)]
        flat = evaluate_program(program.jaxpr, program.consts, arguments, tap)
        return jax.tree.unflatten(jax.tree.structure(outputs), flat), joined(activations)

    def zeros() -> list[list[jax.Array]]:
        return [[jnp.zeros(x.outvars[0].aval.shape, x.outvars[0].aval.dtype) for x in uses] for uses in equations]

    def rows(gradients: list[list[jax.Array]]) -> list[Float[Array, "g T o"]]:
        sides = [[found.kernels[place].side for place in uses] for uses in flat_uses]
        return joined([list(map(output_rows, *uses)) for uses in zip(equations, gradients, sides, strict=True)])

    others = tuple(x for x in range(len(leaves)) if x not in taken)
    reasons = _reasons(program, found, names)
    unfactored = tuple(Unfactored(names[x], x, reasons[x]) for x in others if x in reasons)
    return Taps(layers, others, unfactored, run, zeros, rows)


def _layers(found: ParameterUses, names: list[str], tables: int | None) -> tuple[tuple[Layer, ...], list[list[list[int]]]]:
    """Layers, and for every use of each the products of every part: parameters that are multiplied in one form, or in its
    transpose, or looked up, and used for nothing else."""
    by_leaf: dict[int, dict[int, Kernel]] = {}
    for place, kernel in found.kernels.items():
        if tables is not None or kernel.primitive != LOOKUP:
            by_leaf.setdefault(kernel.leaf, {})[place] = kernel
    layers, products = [], []
    for leaf, uses in by_leaf.items():
        parts = _parts(uses, turned=tables is not None)
        positions = {tuple((use, sum(uses[x].positions for x in part[use])) for use in sorted(part)) for part in parts}
        form = _whole([_entries(part, uses) for part in parts], found.shapes[leaf])
        if form is None or len(positions) > 1 or len(uses) < len(found.uses[leaf]):
            continue
        counts = dict(positions.pop())
        kinds: tuple[Use, ...] = tuple(counts)  # type: ignore[assignment]
        if kinds == ("lookup",) and form.groups * form.inputs * form.outputs <= (tables or 0):
            continue
        of_uses = [[part[use] for part in parts] for use in kinds]
        bias = _bias_of(found, of_uses[0]) if kinds == ("product",) else None
        spatial = any(use.primitive == "conv_general_dilated" for use in uses.values())
        layers.append(Layer(names[leaf], leaf, bias, form, sum(counts.values()), spatial, kinds))
        products.extend(of_uses)
    return tuple(layers), products


def _parts(uses: dict[int, Kernel], *, turned: bool) -> list[dict[str, list[int]]]:
    """The parts of a parameter that are multiplied, and how: the places of lookups, of products and of transposed ones."""
    parts: dict[bytes, dict[str, list[int]]] = {}

    def key(entries: np.ndarray) -> bytes:
        return repr(entries.shape).encode() + entries.tobytes()

    for place, kernel in sorted(uses.items(), key=lambda item: item[1].primitive != LOOKUP):  # tables say which way is up
        own, other = key(kernel.entries), key(kernel.entries.swapaxes(1, 2))
        if turned and own not in parts and other in parts:
            parts[other].setdefault("transpose", []).append(place)
        else:
            parts.setdefault(own, {}).setdefault("lookup" if kernel.primitive == LOOKUP else "product", []).append(place)
    return sorted(parts.values(), key=lambda part: int(_entries(part, uses).min()))


def _entries(part: dict[str, list[int]], uses: dict[int, Kernel]) -> np.ndarray:
    return uses[(part.get("lookup") or part["product"])[0]].entries


def _whole(entries: list[np.ndarray], shape: tuple[int, ...]) -> MatrixForm | None:
    """The form of a parameter from the entries of its parts; None if they are not all of it, each once, in one form."""
    if len({part.shape for part in entries}) > 1:
        return None
    rows = np.concatenate(entries)
    size = int(np.prod(shape, dtype=int))
    return matrix_form(rows) if rows.size == size and np.unique(rows).size == size else None


def _bias_of(found: ParameterUses, parts: list[list[int]]) -> int | None:
    """The leaf that is added to all products of a layer, part by part, and used for nothing else."""
    entries = []
    for part in parts:
        biases = [found.biases.get(place) for place in part]
        if any(x is None or x.leaf != biases[0].leaf or np.any(x.entries != biases[0].entries) for x in biases):  # type: ignore[union-attr]
            return None
        entries.append(biases[0])
    leaf = entries[0].leaf
    rows = np.concatenate([x.entries for x in entries])
    whole = np.array_equal(rows.ravel(), np.arange(int(np.prod(found.shapes[leaf], dtype=int))))
    alone = len(found.uses[leaf]) == sum(map(len, parts))
    return leaf if whole and alone and {x.leaf for x in entries} == {leaf} else None


def _reasons(program: Any, found: ParameterUses, names: list[str]) -> dict[int, str]:
    """Why a parameter has no layer, for those that take part in a product as matrices."""
    reasons, kernels = {}, {kernel.leaf for kernel in found.kernels.values()}
    for leaf, where in multiplied(program, len(names)).items():
        if where.inside == "ragged":
            raise ValueError(
                f"{names[leaf]} is multiplied by ragged_dot in a loop, or in another form than [m, k] with [g, k, n], which "
                "JAX cannot differentiate for many rows of a batch: multiply all groups and take for every row its own"
            )
        if where.as_it_is or sum(size > 1 for size in found.shapes[leaf]) > 1:
            reasons[leaf] = INSIDE.get(where.inside) or (SEVERAL if leaf in kernels else CHANGED)
    return reasons
