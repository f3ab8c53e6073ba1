"""The sums that a learner keeps, with what rounding may have done to them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxunlearn import checks
from jaxunlearn.evaluation import sum_rows
from jaxunlearn.precision import in_float64
from jaxunlearn.summation.learners import Learner
from jaxunlearn.types import Data, Examples, Variables

CHUNK = 1024  # rows that are multiplied together


class Side(NamedTuple):
    """What is known of the left (or right) factors of a group's sum, column by column; all of it float64."""

    squares: Float[Array, "g p"]  # sum of squares over the rows that are left
    wrong: Float[Array, "g p"]  # sum of squares of all that was ever added or taken away, each times its relative error
    used: Float[Array, "g p"]  # rows with an entry that is not 0: without one the sum is exactly 0


class Totals(NamedTuple):
    """`sum + rest` are the cross products over the rows that are left; all of it float64."""

    sum: Float[Array, "g p q"]
    rest: Float[Array, "g p q"]  # what rounding took from the sum
    left: Side
    right: Side
    rows: Float[Array, ""]  # that are left

    @property
    def value(self) -> Float[Array, "g p q"]:
        """The best that is known."""
        return self.sum + self.rest

    @property
    def error(self) -> Float[Array, "g p q"]:
        """By how much `value` may be off, entry by entry.

        An error is at most `sum_t e_t sum_rows |left_i| |right_j|` over all that was summed, t, with its relative error e_t; by
        Cauchy and Schwarz that is at most the root of the product of two sums of squares, of which two columns are kept in
        place of a matrix.
        """
        return jnp.sqrt(self.left.wrong[:, :, None] * self.right.wrong[:, None])

    @property
    def relative(self) -> Float[Array, ""]:
        """The largest error, relative to what the entry would be if its rows did not cancel.

        In the units of every column, so that large columns do not hide small ones; NaN where a sum is not finite.
        """

        def worst(side: Side) -> jax.Array:
            there = side.used > 0.5
            share = side.wrong / jnp.where(there & (side.squares > 0), side.squares, 1)
            share = jnp.where(side.squares > 0, share, jnp.where(jnp.isnan(side.squares), jnp.nan, jnp.inf))
            return jnp.max(jnp.where(there | jnp.isnan(side.squares), share, 0), axis=1)

        return jnp.max(jnp.sqrt(worst(self.left) * worst(self.right)))


def fit(learner: Learner, data: Data) -> Variables:
    """Fit a learner to the rows that are present; wrap it in `jax.jit` for many rows.

    Args:
        learner: of `jaxunlearn.summation`.
        data: the rows.

    Returns:
        Variables in float64, although float64 may be off: do not calculate with them outside of `jax.enable_x64(True)`, which
        would round them. `params` are the learner's parameters, `state` the `Totals` that removals work on.

    Raises:
        ValueError, TypeError: targets that do not fit the learner. Inside `jit` labels are not known: one that is no class
            makes parameters NaN there.

    Example:
        >>> learner = jaxunlearn.summation.nearest_mean(3)
        >>> fitted = jaxunlearn.summation.fit(learner, data)
        >>> float(fitted.state.rows)
        60.0
    """
    _require_classes(learner, data)

    @in_float64
    def run(train: Examples, present: jax.Array) -> Variables:
        totals = summed(learner, train, present)
        return Variables(learner.solve(totals.value), totals)

    return run(data.train, data.present)


def _require_classes(learner: Learner, data: Data) -> None:
    """ValueError where labels of present rows are known, and are none."""
    targets, present = data.train.targets, data.present
    if learner.num_classes is None or not (checks.is_concrete(targets) and checks.is_concrete(present)):
        return
    labels = np.asarray(targets)[np.asarray(present) > 0] if np.ndim(targets) == 1 else np.zeros(0, int)
    if np.issubdtype(labels.dtype, np.integer) and labels.size and not 0 <= labels.min() <= labels.max() < learner.num_classes:
        raise ValueError(
            f"{learner.name} has the classes 0 to {learner.num_classes - 1}, but labels of present rows run from "
            f"{labels.min()} to {labels.max()}"
        )


def summed(learner: Learner, rows: Examples, weights: Float[Array, " n"]) -> Totals:
    """Totals of rows with weight, block by block."""
    count = weights.shape[0]
    groups = jnp.arange(learner.groups, dtype=jnp.int32)
    terms = min(count, CHUNK) + -(-count // CHUNK)

    def block(part: Examples, w: jax.Array) -> Totals:
        return crossed(learner, part, w > 0, groups, terms)

    return sum_rows(block, rows, (weights > 0).astype(jnp.float64), chunk=CHUNK)


def crossed(learner: Learner, rows: Examples, counted: Array, groups: Int[Array, " s"], terms: int) -> Totals:
    """Totals of some groups, over rows that count; a sum of so many terms in all."""
    left, right = (jnp.where(counted[:, None], side(rows), 0) for side in (learner.left, learner.right))
    among = (counted[:, None] & (learner.group(rows)[:, None] == groups)).astype(jnp.float64)  # [b, s]
    apart = (among[:, :, None] * left[:, None]).reshape(left.shape[0], -1)
    sums = jnp.matmul(apart.T, right, precision="highest").reshape(groups.shape[0], left.shape[1], right.shape[1])
    more = jnp.zeros((groups.shape[0], 1), jnp.float64)
    if learner.slack is not None:
        # (l + s) (r + s) is off by s (l + r + s), with entries up to m at most by the product of two roots of 2 s m + s^2
        wrong, entries = (jnp.where(counted, x, 0) for x in learner.slack(rows))
        more = (among.T @ (wrong * (2 * entries + wrong)))[:, None]

    def side(values: jax.Array) -> Side:
        squares = jnp.matmul(among.T, values**2, precision="highest")
        used = jnp.matmul(among.T, (values != 0).astype(jnp.float64), precision="highest")
        return Side(squares, rounding(terms) * squares + more, used)

    return Totals(sums, jnp.zeros_like(sums), side(left), side(right), jnp.sum(counted).astype(jnp.float64))


def rounding(terms: int) -> float:
    """The largest relative error of a float64 sum of so many products, in any order, and of taking it out of another one."""
    unit = float(jnp.finfo(jnp.float64).eps) / 2
    return (terms + 4) * unit / (1 - (terms + 4) * unit)


def without(totals: Totals, part: Totals, groups: Int[Array, " s"] | None) -> Totals:
    """Totals less those of some groups, of all in their order by None; a group may be named several times.

    What is rounded off stays in `rest`.
    """

    def pick(whole: jax.Array) -> jax.Array:
        return whole if groups is None else whole[groups]

    def put(whole: jax.Array, new: jax.Array) -> jax.Array:
        return new if groups is None else whole.at[groups].set(new)

    def less(before: Side, gone: Side) -> tuple[Side, Side]:
        used = pick(before.used) - gone.used
        squares = jnp.where(used > 0.5, pick(before.squares) - gone.squares, 0)
        wrong = jnp.where(used > 0.5, pick(before.wrong) + gone.wrong, 0)
        new = Side(squares, wrong, used)
        return new, Side(*map(put, before, new))

    (left, lefts), (right, rights) = less(totals.left, part.left), less(totals.right, part.right)
    there = (left.used > 0.5)[:, :, None] & (right.used > 0.5)[:, None]
    # Knuth's sum of two numbers: what is rounded off is known exactly
    first, second = pick(totals.sum), -part.sum
    total = first + second
    shadow = total - first
    rest = pick(totals.rest) + ((first - (total - shadow)) + (second - shadow))
    sums, rests = (put(whole, jnp.where(there, new, 0)) for whole, new in ((totals.sum, total), (totals.rest, rest)))
    return Totals(sums, rests, lefts, rights, totals.rows - part.rows)
