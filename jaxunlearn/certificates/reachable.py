"""All parameters that training can end at when rows of its batches are missing, and predictions that none of them changes
(Sosnin, Müller, Baader, Tsay, Wicker: Abstract gradient training, 2024, arXiv 2406.05670 and 2410.09947).

For plain SGD on fixed batches, with bounds [gl_i, gu_i] of the gradient of row i that hold for all parameters in the box of
the step, and sums over the rows of a batch, coordinate by coordinate,

    box <- box - h [dl, du],    dl = mean of the b - k smallest gl_i,    du = mean of the b - k largest gu_i        (remaining)
                                dl = (sum gl - sum of the k largest max(gl, 0)) / b,    du likewise                 (fixed)

so that it holds whichever rows are gone, as long as they are at most k of each batch: the mean of more rows than b - k is never
smaller than that of the smallest b - k. Gradients are bounded by `intervals`, for any model whose operations have a rule there.
The authors' code is for dense layers, and its bounds are not rounded outwards.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import checks, passes, tree
from jaxunlearn.certificates.certificate import Assumption
from jaxunlearn.certificates.intervals import Interval, bounds, point, rounded
from jaxunlearn.loop.fixed_batches import Divide, batch_of, slope_of
from jaxunlearn.types import Data, Model, Scalar, Variables

ASSUMPTIONS = (
    Assumption("rounding outwards", True, "every operation is widened by what its dtype may be off", "enforced"),
    Assumption("same batches", True, "a row that goes leaves its batch; start, order, batches and rates stay", "declared"),
    Assumption("removals per batch", True, "at most as many rows of a batch go as the bounds are for", "declared"),
    Assumption("arithmetic", True, "operations are as exact as IEEE says, elementary functions to 8 roundings", "assumed"),
)


class Box(NamedTuple):
    """An interval for every parameter, float64, and the state that training leaves as it was."""

    lower: PyTree
    upper: PyTree
    state: PyTree
    zeros: PyTree  # one number per leaf, in the dtype that training runs in


def reachable(
    model: Model,
    variables: Variables,
    data: Data,
    batches: Int[Array, "t b"],
    *,
    learning_rate: Scalar,
    removals: Any,
    divide: Divide = "remaining",
    start: Box | None = None,
) -> Box:
    """A box that holds the parameters of every training from which at most `removals` rows of each batch are missing.

    The training is `jaxunlearn.recollect` without vectors (`divide="fixed"`), or the same with means over rows that are left.

    Args:
        model: in evaluation mode, rows one by one, without loops.
        variables: where training starts; it must not depend on rows that may go.
        data: rows that are not present are in no batch.
        batches: row numbers of every step, -1 for none, none twice in a batch: `jaxunlearn.fixed_batches`.
        learning_rate: h, at least 0, may be traced.
        removals: k, rows of each batch, at least 0, may be traced; all from the size of the batch on.
        divide: what sums of gradients are divided by: the rows that are `remaining`, or the size of the batch (`fixed`).
        start: where the box begins, to go on with one; None for the point of `variables`.

    Returns:
        A `Box` of leaves like the params. NaN or inf where there is no bound: boxes grow with every step, the faster the
        larger the rate and the deeper the network.

    Raises:
        ValueError: a value out of range, rows that are not there or come twice in a batch, as far as they are known.
        TypeError: the model holds an operation without a rule, or a `start` that was rounded to float32.

    Example:
        >>> batches = jaxunlearn.fixed_batches(60, key, num_steps=3, batch_size=20)
        >>> box = jaxunlearn.certificates.reachable(model, variables, data, batches, learning_rate=0.05, removals=1)
        >>> stable = jaxunlearn.certificates.stable_predictions(model, box, test.inputs)
        >>> stable.labels.shape
        (20,)
    """
    checks.check_range("learning_rate", learning_rate, low=0)
    checks.check_range("removals", removals, low=0)
    if divide not in ("remaining", "fixed"):
        raise ValueError(f"divide must be 'remaining' or 'fixed', got {divide!r}")
    checks.check_variables(variables)
    _check_batches(batches, jnp.shape(data.present)[0])
    wide = [tree.path_of(path) for path, x in jax.tree.leaves_with_path(variables.params) if jnp.result_type(x) == jnp.float64]
    if wide:
        raise TypeError(f"bounds are kept in float64, which must be wider than the params: {', '.join(wide)} is float64")
    bare, params = model._replace(regularizer=None), variables.params
    form = jax.tree.structure(params)
    sample, _ = batch_of(data, jnp.asarray(batches)[0], jnp.asarray(data.present))

    def row_slope(params, example):
        row = jax.tree.map(lambda x: x[None], example)
        return slope_of(bare, variables.state, row, jnp.ones(1), "fixed")(params)

    of_row = jax.make_jaxpr(row_slope)(params, jax.tree.map(lambda x: x[0], sample))
    of_penalty = None
    if model.regularizer is not None:
        of_penalty = jax.make_jaxpr(jax.grad(lambda p: passes.penalty(model, p)))(params)

    gone = jnp.ceil(removals)  # rows are whole

    def step(carry, rows):
        low, high = carry
        examples, weights = batch_of(data, rows, jnp.asarray(data.present))

        def one(example):
            return bounds(of_row, [*map(Interval, low, high), *jax.tree.leaves(example)])

        slopes = jax.vmap(one)(examples)
        drag = bounds(of_penalty, list(map(Interval, low, high))) if of_penalty is not None else [None] * len(slopes)
        moved = [
            _moved(Interval(*ends), slope, pull, weights, learning_rate, gone, divide, leaf.dtype)
            for *ends, slope, pull, leaf in zip(low, high, slopes, drag, jax.tree.leaves(params), strict=True)
        ]
        return ([x.low for x in moved], [x.high for x in moved]), None

    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        if start is not None:
            _require_wide(start)
        first = [point(x).low for x in jax.tree.leaves(params)]
        ends = (first, first) if start is None else tuple(jax.tree.leaves(x) for x in start[:2])
        low, high = jax.lax.scan(step, tuple(map(list, ends)), jnp.asarray(batches))[0]
    return Box(jax.tree.unflatten(form, low), jax.tree.unflatten(form, high), variables.state, jax.tree.map(_zero, params))


def _check_batches(batches: Any, num_rows: int) -> None:
    if not checks.is_concrete(batches):
        return
    rows = np.sort(np.asarray(batches), axis=1)
    if rows.max(initial=-1) >= num_rows:
        raise ValueError(f"batches name row {rows.max()}, and there are {num_rows} rows")
    twice = rows[:, 1:][(rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)]
    if twice.size:
        raise ValueError(f"row {twice[0]} comes twice in a batch, which `removals` would count once: name it once")


def _zero(leaf: Any) -> Array:
    return jnp.zeros((), jnp.result_type(leaf))


def _moved(box, slope, pull, weights, rate, removals, divide, dtype):
    """One step of one leaf."""
    size = weights.shape[0]
    there = (weights > 0).reshape(size, *(1,) * (slope.low.ndim - 1))
    number = jnp.arange(size).reshape(there.shape)
    valid = jnp.sum(weights > 0)
    lost = jnp.isnan(jnp.where(there, slope.low + slope.high, 0)).any(axis=0)

    def least(values):
        """The smallest that the mean can be, of the low ends; of negated high ends it is the largest."""
        if divide == "fixed":
            positive = -jnp.sort(-jnp.where(there, jnp.maximum(values, 0), 0), axis=0)
            return (jnp.sum(jnp.where(there, values, 0), 0) - jnp.sum(jnp.where(number < removals, positive, 0), 0)) / size
        kept = jnp.maximum(valid - removals, 1)
        ascending = jnp.sort(jnp.where(there, values, jnp.inf), axis=0)
        mean = jnp.sum(jnp.where((number < kept) & (number < valid), ascending, 0), 0) / kept
        return jnp.where(valid > removals, mean, jnp.minimum(mean, 0))  # an empty batch makes no step

    both = jnp.where(there, jnp.maximum(jnp.abs(slope.low), jnp.abs(slope.high)), 0)
    parts = size if divide == "fixed" else jnp.maximum(valid - removals, 1)
    mean = Interval(jnp.where(lost, jnp.nan, least(slope.low)), jnp.where(lost, jnp.nan, -least(-slope.high)))
    mean = rounded(mean, dtype, 2 * size + 8, jnp.sum(both, axis=0) / parts)
    if pull is not None:
        mean = rounded(Interval(mean.low + pull.low, mean.high + pull.high), dtype, 2)
    reach = jnp.abs(rate) * jnp.maximum(jnp.abs(mean.low), jnp.abs(mean.high))
    away = jnp.maximum(jnp.abs(box.low), jnp.abs(box.high)) + reach
    return rounded(Interval(box.low - rate * mean.high, box.high - rate * mean.low), dtype, 4, away)


def _require_wide(box: Box) -> None:
    if any(x.dtype != jnp.float64 for x in jax.tree.leaves(box[:2])):
        raise TypeError(
            "a Box holds float64, and this one was rounded to float32, which is no bound: make the box inside of the same jit, "
            "or pass it outside of one"
        )


class Stable(NamedTuple):
    """What no parameters of a box change."""

    labels: Int[Array, " b"]  # the class that all of them predict, -1 where they may differ
    low: Float[Array, "b c"]  # bounds of the logits
    high: Float[Array, "b c"]

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """What the labels rest on, and who answers for it."""
        return ASSUMPTIONS


def stable_predictions(model: Model, box: Box, inputs: PyTree) -> Stable:
    """A deterministic certificate for every row: the class that every model of a box predicts.

    Args:
        model: the one that was trained.
        box: of `reachable`.
        inputs: rows, leading axis b.

    Returns:
        `Stable`. No noise, no delta, no attacker that it depends on; what it assumes is named in it.

    Raises:
        TypeError: the model holds an operation without a rule, or a box that was rounded to float32 on its way into `jit`.
        ValueError: logits that are not [b, c] or [b].

    Example:
        >>> batches = jaxunlearn.fixed_batches(60, key, num_steps=3, batch_size=20)
        >>> box = jaxunlearn.certificates.reachable(model, variables, data, batches, learning_rate=0.05, removals=0)
        >>> stable = jaxunlearn.certificates.stable_predictions(model, box, test.inputs)
        >>> stable.low.shape, bool((stable.low <= stable.high).all())
        ((20, 3), True)
    """
    _require_wide(box)
    inputs = jax.tree.map(jnp.asarray, inputs)

    def logits(params, row):
        found = model.forward(Variables(params, box.state), jax.tree.map(lambda x: x[None], row)).logits
        if found.ndim not in (1, 2):
            raise ValueError(f"expected logits [b, c] or [b], got {found.shape} for one row")
        return found.reshape(-1)

    narrow = jax.tree.map(lambda x, zero: jax.ShapeDtypeStruct(x.shape, zero.dtype), box.lower, box.zeros)
    program = jax.make_jaxpr(logits)(narrow, jax.tree.map(lambda x: x[0], inputs))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        ends = list(map(Interval, jax.tree.leaves(box.lower), jax.tree.leaves(box.upper)))
        (found,) = jax.vmap(lambda row: bounds(program, [*ends, *jax.tree.leaves(row)]))(inputs)
        low, high = found
        if low.shape[1] == 1:
            low, high = (jnp.concatenate([jnp.zeros_like(x), x], axis=1) for x in (low, high))
        most, classes = jnp.max(low, axis=1), jnp.arange(low.shape[1])
        # argmax is lowered in the precision of the session, not of this scope
        best = jnp.min(jnp.where(low == most[:, None], classes, low.shape[1] - 1), axis=1)
        others = jnp.max(jnp.where(classes == best[:, None], -jnp.inf, high), axis=1)
        certain = (most > others) & jnp.isfinite(low).all(axis=1) & jnp.isfinite(high).all(axis=1)
        return Stable(jnp.where(certain, best, -1).astype(jnp.int32), low, high)
