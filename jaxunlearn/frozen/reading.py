"""Programs that are run with frozen weights in them, none of which is put together where a product will do."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxunlearn.curvature.programs import bind, scan_counts
from jaxunlearn.frozen.weights import FORMS, Weight, product

CALLS = ("jit", "pjit", "closed_call", "core_call")  # not what has a derivative of its own: it would be lost
REMATERIALISED = ("checkpoint", "remat", "remat2")


class Use(NamedTuple):
    """A weight in a product, or in something else."""

    name: str
    primitive: str
    contracted: frozenset[int] | None  # axes of the parameter; None if it is no product
    groups: frozenset[int] = frozenset()  # axes of the parameter that the product, or a loop, goes along
    free: frozenset[int] = frozenset()  # axes of the parameter that the product leaves as they are

    def parts_an_axis(self) -> bool:
        """Whether a reshape cut an axis of the parameter in two that are not used alike."""
        contracted = self.contracted or frozenset()
        return bool(contracted & self.groups or contracted & self.free or self.groups & self.free)


Note: TypeAlias = Callable[[Use], None]


def run(program: ClosedJaxpr, arguments: Sequence[Any], note: Note | None = None) -> list[Any]:
    """Run a program some of whose arguments are `Weight`s.

    Args:
        program: of a forward pass.
        arguments: arrays and weights, as many as it has inputs.
        note: is told every use of a weight; without it, a use that would put a changed weight together raises.

    Raises:
        ValueError: a changed weight in something that is neither a product nor a change of its form.
    """
    return _Reader(note).arrays(program, arguments, "the result")


class _Reader:
    def __init__(self, note: Note | None) -> None:
        self.note = note

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
        for equation in jaxpr.eqns:
            values = [x.val if isinstance(x, Literal) else known[x] for x in equation.invars]
            known.update(zip(equation.outvars, self.step(equation, values), strict=True))
        return [x.val if isinstance(x, Literal) else known[x] for x in jaxpr.outvars]

    def closed(self, program: Any, arguments: Sequence[Any]) -> list[Any]:
        if isinstance(program, ClosedJaxpr):
            return self.run(program.jaxpr, program.consts, arguments)
        return self.run(program, [], arguments)

    def arrays(self, program: Any, arguments: Sequence[Any], where: str) -> list[Any]:
        """What a program returns, with no weight in it."""
        return [self.dense(x, where) for x in self.closed(program, arguments)]

    def step(self, equation: Any, values: list[Any]) -> list[Any]:
        if not any(isinstance(x, Weight) for x in values):
            return bind(equation, values)
        name, options = equation.primitive.name, equation.params
        if name in FORMS and isinstance(values[0], Weight):
            changed = FORMS[name](values[0], **options)
            if changed is not None:
                return [changed]
        if name == "dot_general" and (out := self.product(equation, values)) is not None:
            return [out]
        if name in CALLS:
            return self.closed(options.get("jaxpr", options.get("call_jaxpr")), values)
        if name in REMATERIALISED:
            again = jax.checkpoint(
                lambda *x: self.closed(options["jaxpr"], x), prevent_cse=options["prevent_cse"], policy=options["policy"]
            )
            return again(*values)
        if name == "scan":
            return self.scan(options, values)
        if name == "cond" and not isinstance(values[0], Weight):
            branches = [lambda *x, branch=branch: self.arrays(branch, x, "a branch") for branch in options["branches"]]
            return jax.lax.switch(values[0], branches, *values[1:])
        if name == "while":
            return self.while_loop(options, values)
        return bind(equation, [self.dense(x, name) for x in values])

    def product(self, equation: Any, values: list[Any]) -> jax.Array | None:
        weights = [side for side in (0, 1) if isinstance(values[side], Weight)]
        if len(weights) != 1:
            return None
        side = weights[0]
        weight: Weight = values[side]
        contracted, batch = (axes[side] for axes in equation.params["dimension_numbers"])
        if self.note is not None:
            rest = [axis for axis in range(len(weight.axes)) if axis not in (*contracted, *batch)]
            reached, along, free = (frozenset().union(*(weight.axes[x] for x in axes)) for axes in (contracted, batch, rest))
            self.note(Use(weight.name, "dot_general", reached, weight.looped | along, free))
        return product(weight, values[1 - side], equation, side)

    def scan(self, options: Any, values: list[Any]) -> list[Any]:
        consts, carried = scan_counts(options)
        fixed, first = values[:consts], [self.dense(x, "the carry of a loop") for x in values[consts : consts + carried]]
        taken = [x.spread_first() if isinstance(x, Weight) else x for x in values[consts + carried :]]

        def body(carry: list, part: list) -> tuple[list, list]:
            part = [x.first_taken() if isinstance(x, Weight) else x for x in part]
            out = self.arrays(options["jaxpr"], [*fixed, *carry, *part], "the result of a loop")
            return out[:carried], out[carried:]

        last, rest = jax.lax.scan(
            body, first, taken, length=options["length"], reverse=options["reverse"], unroll=options["unroll"]
        )
        return [*last, *rest]

    def while_loop(self, options: Any, values: list[Any]) -> list[Any]:
        first, second = options["cond_nconsts"], options["cond_nconsts"] + options["body_nconsts"]
        carry = [self.dense(x, "the carry of a loop") for x in values[second:]]
        return jax.lax.while_loop(
            lambda x: self.closed(options["cond_jaxpr"], [*values[:first], *x])[0],
            lambda x: self.arrays(options["body_jaxpr"], [*values[first:second], *x], "the result of a loop"),
            carry,
        )

    def dense(self, value: Any, where: str) -> Any:
        """The array that a weight stands for, if it is one that has not been changed."""
        if not isinstance(value, Weight):
            return value
        if self.note is not None:
            self.note(Use(value.name, where, None))
        elif value.down is not None:
            raise ValueError(
                f"parameter {value.name!r} has a low-rank change and enters {where}, where it would have to be put together: "
                "it did not when the change was made for the model; leave it out of `targets`"
            )
        return value.dense()
