"""Programs of models: opened where parameters enter, run with taps, and asked which parameters their products multiply."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias
from typing import Literal as Word

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxprs_in_params

PRODUCTS = ("dot_general", "conv_general_dilated")
RAGGED = ("ragged_dot", "ragged_dot_general")  # products whose rows are grouped by numbers of the run
LOOPS = ("scan", "while", "cond")
LONGEST_LOOP = 64  # turns of scans, one inside the other, up to which they are written out
OPENED = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call")


def _broadcast(index: np.ndarray, shape: Sequence[int], broadcast_dimensions: Sequence[int], **_: Any) -> np.ndarray:
    spread = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, index.shape, strict=True):
        spread[axis] = size
    return np.broadcast_to(index.reshape(spread), shape)


# What changes the form of an array alone, told by the positions of its elements
FORMS: dict[str, Callable[..., np.ndarray]] = {
    "transpose": lambda index, permutation, **_: index.transpose(permutation),
    "reshape": lambda index, new_sizes, **_: index.reshape(new_sizes),
    "slice": lambda index, start_indices, limit_indices, strides, **_: index[
        tuple(map(slice, start_indices, limit_indices, strides or [None] * index.ndim))
    ],
    "squeeze": lambda index, dimensions, **_: index.squeeze(tuple(dimensions)),
    "rev": lambda index, dimensions, **_: np.flip(index, tuple(dimensions)),
    "broadcast_in_dim": _broadcast,
    "convert_element_type": lambda index, **_: index,
    "copy": lambda index, **_: index,
    "copy_p": lambda index, **_: index,
    "reduce_precision": lambda index, **_: index,
    "sharding_constraint": lambda index, **_: index,
}


def evaluate_program(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], visit: Callable) -> list[Any]:
    """Run a program; `visit(place, equation, values, result)` may change what an equation returns."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    for place, equation in enumerate(jaxpr.eqns):
        values = [x.val if isinstance(x, Literal) else known[x] for x in equation.invars]
        result = bind(equation, values)
        known.update(zip(equation.outvars, visit(place, equation, values, result), strict=True))
    return [x.val if isinstance(x, Literal) else known[x] for x in jaxpr.outvars]


def bind(equation: Any, values: Sequence[Any]) -> list:
    """What an equation returns for these values."""
    with equation.ctx.manager:
        result = equation.primitive.bind(*values, **equation.primitive.get_bind_params(equation.params))
    return list(result) if equation.primitive.multiple_results else [result]


def open_program(program: ClosedJaxpr, params: Sequence[int]) -> ClosedJaxpr:
    """The program with every inner program that a parameter enters written out in line, a scan turn by turn.

    Others stay as they are, and so do functions with a derivative of their own, such as ReLU, unless they multiply: then the
    derivative is that of the products. A ragged product becomes that of all rows with all groups, of which every row takes its
    own: JAX has no derivative of it for many rows of a batch.
    """

    def run(
        jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], marked: Sequence[bool], room: int
    ) -> tuple[list, list[bool]]:
        variables = [*jaxpr.constvars, *jaxpr.invars]
        known = dict(zip(variables, [*consts, *arguments], strict=True))
        reached = dict(zip(variables, [*([False] * len(consts)), *marked], strict=True))
        for equation in jaxpr.eqns:
            values = [x.val if isinstance(x, Literal) else known[x] for x in equation.invars]
            marks = [not isinstance(x, Literal) and reached[x] for x in equation.invars]
            inner = _inner(equation) if any(marks) else None
            if any(marks) and equation.primitive.name in RAGGED and _is_plain(equation):
                product = jax.make_jaxpr(partial(_all_groups, equation.params["preferred_element_type"]))(
                    *[x.aval for x in equation.invars]
                )
                result, new = run(product.jaxpr, product.consts, values, marks, room)
            elif any(marks) and equation.primitive.name == "scan" and 0 < equation.params["length"] <= room:
                result, new = turns(equation.params, values, marks, room // equation.params["length"])
            elif inner is not None:
                result, new = run(inner[0], inner[1], values, marks, room)
            else:
                # What a parameter reaches by anything but a change of its form is an activation.
                result, new = bind(equation, values), [any(marks) and equation.primitive.name in FORMS] * len(equation.outvars)
            known.update(zip(equation.outvars, result, strict=True))
            reached.update(zip(equation.outvars, new, strict=True))
        outputs = [(x.val, False) if isinstance(x, Literal) else (known[x], reached[x]) for x in jaxpr.outvars]
        return [x for x, _ in outputs], [x for _, x in outputs]

    def turns(options: Any, values: list[Any], marks: list[bool], room: int) -> tuple[list, list[bool]]:
        consts, carried = scan_counts(options)
        first, length = consts + carried, options["length"]
        carry, carry_marks = values[consts:first], [False] * (first - consts)  # what goes round is an activation
        made: list[list[Any]] = [[] for _ in options["jaxpr"].out_avals[first - consts :]]
        for turn in reversed(range(length)) if options["reverse"] else range(length):
            part = [jax.lax.index_in_dim(x, turn, keepdims=False) for x in values[first:]]
            arguments, entered = [*values[:consts], *carry, *part], [*marks[:consts], *carry_marks, *marks[first:]]
            out, _ = run(options["jaxpr"].jaxpr, options["jaxpr"].consts, arguments, entered, room)
            carry = out[: first - consts]
            for some, x in zip(made, out[first - consts :], strict=True):
                some.append(x)
        stacked = [jnp.stack(some[::-1] if options["reverse"] else some) for some in made]
        return [*carry, *stacked], [False] * (len(carry) + len(stacked))

    marked = [place in params for place in range(len(program.jaxpr.invars))]
    return jax.make_jaxpr(lambda *x: run(program.jaxpr, program.consts, x, marked, LONGEST_LOOP)[0])(*program.in_avals)


def _is_plain(equation: Any) -> bool:
    """Whether a ragged product is that of rows [m, k] with groups [g, k, n], groups of rows one after another."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    places = [*contracted, *batch, numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions]
    return [tuple(x) for x in places] == [(1,), (1,), (), (), (0,), (0,)] and equation.params["group_offset"] is None


def _all_groups(dtype: Any, rows: jax.Array, groups: jax.Array, sizes: jax.Array) -> jax.Array:
    every = jnp.broadcast_to(rows, (groups.shape[0], *rows.shape))
    products = jax.lax.dot_general(every, groups, (((2,), (1,)), ((0,), (0,))), preferred_element_type=dtype)
    ends, place = jnp.cumsum(sizes)[:, None], jnp.arange(rows.shape[0])
    own = (place < ends) & (place >= ends - sizes[:, None])
    return jnp.sum(jnp.where(own[:, :, None], products, 0), axis=0)


def scan_counts(options: Any) -> tuple[int, int]:
    """How many inputs of a scan are the same in every turn, and how many go round; the others are taken apart turn by turn."""
    if "num_consts" in options:
        return options["num_consts"], options["num_carry"]
    consts, carried, _ = options["ft_in"].unpack()  # since JAX 0.11
    return len(consts), len(carried)


def _inner(equation: Any) -> tuple[Jaxpr, Sequence[Any]] | None:
    if equation.primitive.name not in OPENED:
        return None
    program, consts = _parts(equation.params.get("jaxpr", equation.params.get("call_jaxpr")))
    return None if equation.primitive.name == "custom_jvp_call" and not _multiplies(program) else (program, consts)


def _parts(program: Any) -> tuple[Jaxpr, Sequence[Any]]:
    return (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, [])


def _multiplies(program: Jaxpr) -> bool:
    inner = (x for equation in program.eqns for x in jaxprs_in_params(equation.params))
    return any(x.primitive.name in (*PRODUCTS, *RAGGED) for x in program.eqns) or any(map(_multiplies, inner))


# Which parameters are multiplied


Inside: TypeAlias = Word["", "loop", "custom", "ragged"]


class Multiplied(NamedTuple):
    """What `multiplied` finds about a parameter that takes part in a product."""

    inside: Inside  # of what that is not written out
    as_it_is: bool  # in nothing but another form, in one of the products at least


class _Value(NamedTuple):
    """What an array is made of."""

    params: frozenset[int] = frozenset()  # none for what depends on the row: an activation
    as_it_is: bool = False
    of_row: bool = False


def _joined(values: Sequence[_Value], *, as_it_is: bool = False) -> _Value:
    if any(x.of_row for x in values):
        return _Value(of_row=True)
    return _Value(frozenset().union(*(x.params for x in values)), as_it_is and any(x.as_it_is for x in values))


def multiplied(program: ClosedJaxpr, params: int) -> dict[int, Multiplied]:
    """Which of the first `params` inputs take part in a dot product or a convolution, whatever became of them before.

    All other inputs are the row. What a parameter and the row make together is an activation, and none of the parameter's.
    """
    found: dict[int, Multiplied] = {}

    def run(jaxpr: Jaxpr, inputs: Sequence[_Value], inside: Inside) -> list[_Value]:
        known = {x: _Value() for x in jaxpr.constvars} | dict(zip(jaxpr.invars, inputs, strict=True))
        read = lambda x: _Value() if isinstance(x, Literal) else known[x]  # noqa: E731
        for equation in jaxpr.eqns:
            known.update(zip(equation.outvars, step(equation, [read(x) for x in equation.invars], inside), strict=True))
        return [read(x) for x in jaxpr.outvars]

    def step(equation: Any, values: list[_Value], inside: Inside) -> list[_Value]:
        name, options = equation.primitive.name, equation.params
        if name == "stop_gradient":
            return [_Value(of_row=x.of_row) for x in values]
        if name in PRODUCTS:
            note(values, inside)
        elif name in RAGGED:
            note(values, "ragged")
        elif name == "scan":
            return looped(options["jaxpr"].jaxpr, values, *scan_counts(options))
        elif name == "while":
            first, second = options["cond_nconsts"], options["cond_nconsts"] + options["body_nconsts"]
            run(options["cond_jaxpr"].jaxpr, [*values[:first], *values[second:]], "loop")
            return looped(options["body_jaxpr"].jaxpr, values[first:], options["body_nconsts"], len(values) - second)
        elif name == "cond":
            branches = [run(branch.jaxpr, values[1:], "loop") for branch in options["branches"]]
            return [_joined([_Value(of_row=values[0].of_row), *outputs]) for outputs in zip(*branches, strict=True)]
        else:
            inner = [_parts(x)[0] for x in jaxprs_in_params(options)]
            inside = "custom" if name.startswith("custom_vjp") and not inside else inside
            if inner and len(inner[0].invars) == len(values) and len(inner[0].outvars) == len(equation.outvars):
                return run(inner[0], values, inside)
            if any(map(_multiplies, inner)):
                note(values, inside)
        return [_joined(values, as_it_is=name in FORMS)] * len(equation.outvars)

    def looped(body: Jaxpr, values: list[_Value], consts: int, carried: int) -> list[_Value]:
        """What comes round after some turns, until it changes no more."""
        while True:
            outputs = run(body, values, "loop")
            both = list(zip(values[consts : consts + carried], outputs[:carried], strict=True))
            carry = [x if x == y else _joined([x, y]) for x, y in both]
            if carry == values[consts : consts + carried]:
                return [*carry, *outputs[carried:]]
            values = [*values[:consts], *carry, *values[consts + carried :]]

    def note(values: Sequence[_Value], inside: Inside) -> None:
        for value in values:
            for leaf in value.params:
                before = found.get(leaf, Multiplied("", False))
                found[leaf] = Multiplied(before.inside or inside, before.as_it_is or value.as_it_is)

    inputs = [_Value(frozenset([x]), True) for x in range(params)]
    run(program.jaxpr, [*inputs, *[_Value(of_row=True)] * (len(program.jaxpr.invars) - params)], "")
    return found
