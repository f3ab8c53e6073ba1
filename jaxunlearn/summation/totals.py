"""The sum that a learner keeps, with what rounding may have done to it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.evaluation import sum_rows
from jaxunlearn.precision import in_float64
from jaxunlearn.summation.learners import Learner
from jaxunlearn.types import Data, Examples, Variables

CHUNK = 1024  # rows that are multiplied together


class Totals(NamedTuple):
    """`sum + rest` is the cross product over the rows that are left; both are float64."""

    sum: Float[Array, "p q"]
    rest: Float[Array, "p q"]  # what rounding took from the sum
    error: Float[Array, "p q"]  # by how much `sum + rest` may be off

    @property
    def value(self) -> Float[Array, "p q"]:
        """The best that is known."""
        return self.sum + self.rest


def fit(learner: Learner, data: Data) -> Variables:
    """Fit a learner to the rows that are present; wrap it in `jax.jit` for many rows.

    Args:
        learner: of `jaxunlearn.summation`.
        data: the rows.

    Returns:
        Variables in float64, although float64 may be off: do not calculate with them outside of `jax.enable_x64(True)`, which
        would round them. `params` are the learner's parameters, `state` the `Totals` that removals work on.

    Raises:
        ValueError, TypeError: targets that do not fit the learner.

    Example:
        >>> learner = jaxunlearn.summation.nearest_mean(3)
        >>> fitted = jaxunlearn.summation.fit(learner, data)
        >>> float(jax.device_get(fitted.state.sum)[:, 0].sum())  # rows
        60.0
    """

    @in_float64
    def run(train: Examples, present: jax.Array) -> Variables:
        totals = summed(learner, train, present)
        return Variables(learner.solve(totals.value), totals)

    return run(data.train, data.present)


def summed(learner: Learner, rows: Examples, weights: Float[Array, " n"]) -> Totals:
    """Totals of rows with weight, block by block, each added without loss."""
    count = weights.shape[0]

    def block(part: Examples, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        return crossed(learner, part, w)

    sums, sizes = sum_rows(block, rows, weights.astype(jnp.float64), chunk=CHUNK)
    terms = min(count, CHUNK) + -(-count // CHUNK)
    return Totals(sums, jnp.zeros_like(sums), rounding(terms) * sizes)


def crossed(learner: Learner, rows: Examples, weights: Float[Array, " b"]) -> tuple[jax.Array, jax.Array]:
    """The cross product over rows with weight, and that of absolute values, which bounds what rounding may do to it."""
    counted = weights[:, None] > 0
    left, right = (jnp.where(counted, side(rows), 0) for side in (learner.left, learner.right))
    product = lambda a, b: jnp.matmul(a.T, b, precision="highest")  # noqa: E731
    return product(left * weights[:, None], right), product(jnp.abs(left) * weights[:, None], jnp.abs(right))


def rounding(terms: int) -> float:
    """The largest relative error of a float64 sum of so many products, in any order."""
    unit = float(jnp.finfo(jnp.float64).eps) / 2
    return (terms + 2) * unit / (1 - (terms + 2) * unit)


def without(totals: Totals, part: jax.Array, size: jax.Array, terms: int) -> Totals:
    """Totals less a part, without loss; `size` is the part with absolute values, a sum of so many terms."""
    # Knuth's sum of two numbers: what is rounded off is known exactly
    first, second = totals.sum, -part
    total = first + second
    shadow = total - first
    lost = (first - (total - shadow)) + (second - shadow)
    rest = totals.rest + lost
    unit = jnp.finfo(jnp.float64).eps / 2
    return Totals(total, rest, totals.error + rounding(terms) * size + unit * jnp.abs(rest))
