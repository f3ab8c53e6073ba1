"""Interval arithmetic over the program of any function: what it can return for inputs in given intervals, rounded outwards.

Bounds are kept in float64. Every operation is widened by what an operation in the dtype of the program may be off, sums and
products of matrices by the bound that holds for every order of summation; so the bounds hold for exact arithmetic and for a run
in float32 or bfloat16 alike. Products of matrices and convolutions take middles and radii, the others the ends. An operation
without a rule is refused by its name. NaN stays NaN: it says that there is no bound.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array

ARITHMETIC, ELEMENTARY = 2, 16  # roundings that an operation is allowed; elementary functions are good to a few
INLINE = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")
FORMS = (
    *("reshape", "broadcast_in_dim", "transpose", "squeeze", "expand_dims", "slice", "rev", "concatenate", "copy", "copy_p"),
    *(
        "pad",
        "gather",
        "dynamic_slice",
        "reduce_max",
        "reduce_min",
        "max",
        "min",
        "clamp",
        "optimization_barrier",
        "split",
        "stop_gradient",
        "stack",
        "unstack",
    ),
)
RISING = ("exp", "expm1", "log", "log1p", "tanh", "logistic", "sqrt", "erf", "sign", "floor", "ceil", "cbrt", "atan")


class Interval(NamedTuple):
    """All numbers from `low` to `high`, float64; of truth values whether it is so for certain, and whether it may be."""

    low: Array
    high: Array


def point(value: Any) -> Interval:
    """The interval of one number; in a scope with float64."""
    wide = jnp.asarray(value).astype(jnp.float64)
    return Interval(wide, wide)


def bounds(program: Any, arguments: Sequence[Any]) -> list[Any]:
    """Bounds of what a program returns; in a scope with float64.

    Args:
        program: of `jax.make_jaxpr`, made in the dtypes that the function runs in.
        arguments: one per input: an `Interval`, or an array that is known; known numbers of floating point are exact.

    Returns:
        An `Interval` for every output, or an array where it is known.

    Raises:
        TypeError: the program holds an operation without a rule, such as a loop.
    """
    return _run(program.jaxpr, program.consts, arguments)


def _run(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    known: dict[Any, Any] = {}

    def read(x):
        return _own(x.val) if isinstance(x, Literal) else known[x]

    for variables, values in ((jaxpr.constvars, consts), (jaxpr.invars, arguments)):
        known.update(zip(variables, map(_own, values), strict=True))
    for equation in jaxpr.eqns:
        known.update(zip(equation.outvars, _apply(equation, [read(x) for x in equation.invars]), strict=True))
    return [read(x) for x in jaxpr.outvars]


def _own(value: Any) -> Any:
    if isinstance(value, Interval) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return value
    return point(value)


def _apply(equation: Any, values: list[Any]) -> list[Any]:
    name, options = equation.primitive.name, equation.params
    if name in INLINE:
        inner = options.get("jaxpr", options.get("call_jaxpr"))
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values)
    outputs = [x.aval for x in equation.outvars]
    if not any(isinstance(x, Interval) for x in values):
        return [_own(x) for x in _bind(equation, values)]
    if name in FORMS:
        return _on_ends(equation, values)
    rule = RULES.get(name)
    if name in RISING:
        rule = _rising
    if rule is None:
        raise TypeError(
            f"no interval is known for the operation {name!r}: write the model with sums, products, convolutions, maxima and "
            "elementary functions, without loops, and give classes by label"
        )
    found = rule(equation, values)
    dtype = outputs[0].dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        return [found]
    times = ELEMENTARY if name in RISING or name in ("exp2", "rsqrt", "integer_pow") else ARITHMETIC
    if name == "integer_pow":  # products, one after another
        unit = float(jnp.finfo(dtype).eps)
        times += math.expm1(abs(options["y"]) * math.log1p(unit)) / unit
    found = found if name in EXACT else rounded(found, dtype, times)
    least, most = RANGES.get(name, (-jnp.inf, jnp.inf))
    return [Interval(jnp.clip(found.low, least, most), jnp.clip(found.high, least, most))]


def rounded(found: Interval, dtype: Any, times: float, size: Any = None) -> Interval:
    """Wider by some roundings of a dtype, relative to `size`, or to the ends; NaN where sums of that size may overflow."""
    kind = jnp.finfo(dtype)
    unit, least, most = float(kind.eps), float(kind.tiny), float(kind.max)
    low = found.low - times * unit * (jnp.abs(found.low) if size is None else size) - least
    high = found.high + times * unit * (jnp.abs(found.high) if size is None else size) + least
    if size is not None:
        low, high = (jnp.where(size > most, jnp.nan, x) for x in (low, high))
    return Interval(jnp.where(low < -most, -jnp.inf, low), jnp.where(high > most, jnp.inf, high))


def _bind(equation: Any, values: Sequence[Any]) -> list[Any]:
    with equation.ctx.manager:
        found = equation.primitive.bind(*values, **equation.primitive.get_bind_params(equation.params))
    return list(found) if equation.primitive.multiple_results else [found]


def _on_ends(equation: Any, values: Sequence[Any]) -> list[Any]:
    """Operations that choose, or rise in all they are given: low ends give the low end. Indices have to be known."""
    if equation.primitive.name in ("gather", "dynamic_slice") and any(isinstance(x, Interval) for x in values[1:]):
        raise TypeError(f"no interval is known for {equation.primitive.name!r} at places that depend on the weights")
    low, high = (_bind(equation, [x[end] if isinstance(x, Interval) else x for x in values]) for end in (0, 1))
    return [Interval(*pair) for pair in zip(low, high, strict=True)]


def _rising(equation: Any, values: list[Any]) -> Interval:
    return _on_ends(equation, values)[0]


def _add(equation: Any, values: list[Any]) -> Interval:
    x, y = values
    return Interval(x.low + y.low, x.high + y.high)


def _sub(equation: Any, values: list[Any]) -> Interval:
    x, y = values
    return Interval(x.low - y.high, x.high - y.low)


def _ends(*candidates: Array) -> Interval:
    stacked = jnp.stack(jnp.broadcast_arrays(*candidates))
    return Interval(jnp.min(stacked, axis=0), jnp.max(stacked, axis=0))


def _mul(equation: Any, values: list[Any]) -> Interval:
    x, y = values
    if equation.invars[0] is equation.invars[1]:
        return _even(x, 2)
    return _ends(x.low * y.low, x.low * y.high, x.high * y.low, x.high * y.high)


def _div(equation: Any, values: list[Any]) -> Interval:
    x, y = values
    least = 2 * float(jnp.finfo(equation.outvars[0].aval.dtype).tiny)  # what is smaller may be 0 to a processor
    apart = (y.low > least) | (y.high < -least)
    low, high = jnp.where(apart, y.low, jnp.nan), jnp.where(apart, y.high, jnp.nan)
    return _ends(x.low / low, x.low / high, x.high / low, x.high / high)


def _even(x: Interval, power: int) -> Interval:
    found = _ends(x.low**power, x.high**power)
    return Interval(jnp.where((x.low <= 0) & (x.high >= 0), 0.0, found.low), found.high)


def _exp2(equation: Any, values: list[Any]) -> Interval:
    """As XLA has it, e^(x ln 2), whose product is rounded."""
    (x,) = values
    inner = rounded(Interval(x.low * math.log(2), x.high * math.log(2)), equation.outvars[0].aval.dtype, ARITHMETIC)
    return Interval(jnp.exp(inner.low), jnp.exp(inner.high))


def _integer_pow(equation: Any, values: list[Any]) -> Interval:
    (x,), power = values, equation.params["y"]
    if power < 0:
        ones = point(jnp.ones_like(x.low))
        return _div(equation, [ones, _even(x, -power) if power % 2 == 0 else Interval(x.low**-power, x.high**-power)])
    return _even(x, power) if power % 2 == 0 else Interval(x.low**power, x.high**power)


def _abs(equation: Any, values: list[Any]) -> Interval:
    (x,) = values
    found = _ends(jnp.abs(x.low), jnp.abs(x.high))
    return Interval(jnp.where((x.low <= 0) & (x.high >= 0), 0.0, found.low), found.high)


def _greater(x: Interval, y: Interval, or_equal: bool) -> Interval:
    if or_equal:
        return Interval(x.low >= y.high, ~(x.high < y.low))
    return Interval(x.low > y.high, ~(x.high <= y.low))


def _equal(equation: Any, values: list[Any]) -> Interval:
    x, y = _truths(values)
    same = (x.low == x.high) & (y.low == y.high) & (x.low == y.low)
    return Interval(same, ~((x.high < y.low) | (x.low > y.high)))


def _not(x: Interval) -> Interval:
    return Interval(~x.high, ~x.low)


def _truths(values: list[Any]) -> list[Interval]:
    return [x if isinstance(x, Interval) else Interval(x, x) for x in values]


def _select(equation: Any, values: list[Any]) -> Any:
    which, *cases = values
    if not isinstance(which, Interval):
        return _on_ends(equation, values)[0]
    if len(cases) != 2 or not all(isinstance(x, Interval) for x in cases):
        raise TypeError("no interval is known for a choice between integers, or of more than two, that depends on the weights")
    no, yes = cases

    def either(pick, first, second):
        return jnp.where(which.low, second, jnp.where(which.high, pick(first, second), first))

    return Interval(either(jnp.minimum, no.low, yes.low), either(jnp.maximum, no.high, yes.high))


def _convert(equation: Any, values: list[Any]) -> Any:
    dtype = equation.params["new_dtype"]
    if dtype == values[0].low.dtype:
        return values[0]
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"no interval is known for weights that are made {dtype}")
    return Interval(*(x.astype(jnp.float64) for x in values[0]))


def _reduce_precision(equation: Any, values: list[Any]) -> Interval:
    (x,), (low, high) = values, _rising(equation, values)
    return Interval(jnp.minimum(x.low, low), jnp.maximum(x.high, high))


def _sum(equation: Any, values: list[Any]) -> Interval:
    (x,), axes = values, tuple(equation.params["axes"])
    count = 1
    for axis in axes:
        count *= x.low.shape[axis]
    size = jnp.sum(jnp.maximum(jnp.abs(x.low), jnp.abs(x.high)), axis=axes)
    return rounded(Interval(jnp.sum(x.low, axes), jnp.sum(x.high, axes)), equation.outvars[0].aval.dtype, 2 * count, size)


def _scatter_add(equation: Any, values: list[Any]) -> Interval:
    x, places, y = values
    if isinstance(places, Interval):
        raise TypeError("no interval is known for sums at places that depend on the weights")

    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    options = {name: equation.params[name] for name in names}

    def at(x, y):
        return jax.lax.scatter_add(x, places, y, **options)

    size = at(*(jnp.maximum(jnp.abs(z.low), jnp.abs(z.high)) for z in (x, y)))
    found = Interval(at(x.low, y.low), at(x.high, y.high))
    return rounded(found, equation.outvars[0].aval.dtype, 2 * (y.low.size + 1), size)


def _product(equation: Any, values: list[Any]) -> Interval:
    """Middles and radii; the radius is at most half again as large as it has to be."""
    options = {**equation.params, "preferred_element_type": jnp.dtype(jnp.float64), "precision": jax.lax.Precision.HIGHEST}

    def times(x, y):
        return equation.primitive.bind(x, y, **options)

    x, y = values
    (mx, rx), (my, ry) = (((z.low + z.high) / 2, (z.high - z.low) / 2) for z in (x, y))
    middle = times(mx, my)
    radius = times(jnp.abs(mx), ry) + times(rx, jnp.abs(my) + ry)
    size = times(jnp.abs(mx) + rx, jnp.abs(my) + ry)
    if equation.primitive.name == "dot_general":
        (over, _), _ = equation.params["dimension_numbers"]
        count = 1
        for axis in over:
            count *= x.low.shape[axis]
    else:
        count = y.low.size
    return rounded(Interval(middle - radius, middle + radius), equation.outvars[0].aval.dtype, 2 * count + 8, size)


RULES: dict[str, Callable[[Any, list[Any]], Any]] = {
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": lambda _, v: Interval(-v[0].high, -v[0].low),
    "abs": _abs,
    "square": lambda _, v: _even(v[0], 2),
    "integer_pow": _integer_pow,
    "exp2": _exp2,
    "rsqrt": lambda _, v: Interval(jax.lax.rsqrt(v[0].high), jax.lax.rsqrt(v[0].low)),
    "gt": lambda _, v: _greater(*v, or_equal=False),
    "ge": lambda _, v: _greater(*v, or_equal=True),
    "lt": lambda _, v: _greater(*v[::-1], or_equal=False),
    "le": lambda _, v: _greater(*v[::-1], or_equal=True),
    "eq": _equal,
    "ne": lambda e, v: _not(_equal(e, v)),
    "is_finite": lambda _, v: Interval(jnp.isfinite(v[0].low) & jnp.isfinite(v[0].high), jnp.ones(v[0].low.shape, bool)),
    "not": lambda _, v: _not(v[0]),
    "and": lambda _, v: Interval(*(x & y for x, y in zip(*_truths(v), strict=True))),
    "or": lambda _, v: Interval(*(x | y for x, y in zip(*_truths(v), strict=True))),
    "select_n": _select,
    "convert_element_type": _convert,
    "reduce_precision": _reduce_precision,
    "reduce_sum": _sum,
    "scatter-add": _scatter_add,
    "dot_general": _product,
    "conv_general_dilated": _product,
}
RANGES = {"exp": (0, jnp.inf), "exp2": (0, jnp.inf), "logistic": (0, 1), "sqrt": (0, jnp.inf), "square": (0, jnp.inf)}
RANGES |= {"tanh": (-1, 1), "erf": (-1, 1), "rsqrt": (0, jnp.inf)}
EXACT = ("neg", "abs", "select_n", "reduce_sum", "scatter-add", "dot_general", "conv_general_dilated")
