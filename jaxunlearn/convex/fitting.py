"""Training a convex problem to machine precision."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import checks, tree
from jaxunlearn.convex.objective import Solver, gradient, newton_direction, perturbation_of
from jaxunlearn.convex.problems import Problem
from jaxunlearn.convex.rows import check_data
from jaxunlearn.slots import PERTURBATION
from jaxunlearn.status import UnlearningError
from jaxunlearn.types import Data, Examples, Variables


class Optimum(NamedTuple):
    """Where Newton's method ended."""

    kernel: Float[Array, "d c"]
    gradient: Float[Array, "d c"]
    steps: jax.Array  # Int[]


def minimise(
    problem: Problem,
    examples: Examples,
    weights: Float[Array, " n"],
    start: Float[Array, "d c"],
    linear: Float[Array, "d c"],
    *,
    solver: Solver = "dense",
    max_steps: int = 100,
) -> Optimum:
    """Newton's method with step halving, until the gradient no longer shrinks.

    The norm of the gradient is the merit: it falls along Newton's direction, and at the optimum nothing but rounding is left.
    """

    def gradient_at(kernel):
        return gradient(problem, kernel, examples, weights, linear)

    def improve(state):
        kernel, slope, steps, _ = state
        direction = newton_direction(problem, kernel, examples, weights, slope, solver)

        def shorter(trial):
            length, _ = trial
            return length / 2, gradient_at(kernel + length / 2 * direction)

        def too_long(trial):
            length, found = trial
            return ~(tree.norm(found) <= (1 - length / 4) * tree.norm(slope)) & (length > 1e-6)

        length, found = jax.lax.while_loop(too_long, shorter, (jnp.float64(1), gradient_at(kernel + direction)))
        better = tree.norm(found) <= (1 - length / 4) * tree.norm(slope)
        kernel, slope = tree.select(better, (kernel + length * direction, found), (kernel, slope))
        return kernel, slope, steps + 1, better

    first = (start, gradient_at(start), jnp.int32(0), jnp.array(True))
    kernel, slope, steps, _ = jax.lax.while_loop(lambda s: s[3] & (s[2] < max_steps), improve, first)
    return Optimum(jnp.where(jnp.isfinite(tree.norm(slope)), kernel, jnp.nan), slope, steps)


CONVERGED = 1e-7  # largest distance to the optimum, relative to the weights, that counts as trained


def fit(problem: Problem, data: Data, *, row_norm: float | None = 1.0, solver: Solver = "dense") -> Variables:
    """Train on all present rows to machine precision.

    Args:
        problem: see `ridge`, `logistic`, `softmax`.
        data: `train.inputs` [n, d] (see `feature_rows`), `train.targets` as the problem wants them. The secret of an objective
            perturbation, if any, in `extra["perturbation"]` (`with_perturbation`).
        row_norm: longer rows are refused, since most certificates need a bound; None takes any.
        solver: `cg` where a matrix [d c, d c] does not fit.

    Returns:
        Variables with params `{"kernel": float64 [d, c]}`, although float64 may be off: do not calculate with them outside
        of `jax.enable_x64(True)`, which would round them.

    Raises:
        ValueError: inputs that are not [n, d], NaN or inf, labels outside of the problem's set, rows too long, no row.
        UnlearningError: the optimum was not reached.

    Example:
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> jaxunlearn.convex.fit(jaxunlearn.convex.softmax(1e-3, 3), rows).params["kernel"].shape
        (5, 3)
    """
    check_data(problem, data, row_norm=row_norm)
    with jax.enable_x64(True):
        start = jnp.zeros((data.train.inputs.shape[1], problem.num_outputs), jnp.float64)
        linear = perturbation_of(data, start)
        run = jax.jit(lambda data, start, linear: minimise(problem, data.train, data.present, start, linear, solver=solver))
        found = run(data._replace(extra={}), start, linear)
        rows = float(jnp.sum(data.present > 0))
        distance = float(jnp.linalg.norm(found.gradient)) / (problem.l2 * rows)
        size = float(jnp.linalg.norm(found.kernel))
    if not distance <= CONVERGED * max(1.0, size):
        raise UnlearningError(
            f"training stopped after {int(found.steps)} steps up to {distance:.1e} away from the optimum (weights of norm "
            f"{size:.1e}); a larger l2 than {problem.l2} makes the problem easier"
        )
    return Variables({"kernel": found.kernel})


def with_perturbation(data: Data, kernel_shape: tuple[int, int], sigma: float, key: jax.Array) -> Data:
    """Data with a secret `B ~ N(0, sigma^2)` for objective perturbation; draw it once, before `fit`, and never release it.

    Args:
        data: what will be trained on.
        kernel_shape: (d, c), of the weights.
        sigma: standard deviation of every entry.
        key: of the draw; keep it as secret as B.

    Returns:
        The data with B, Float64[d, c], in slot `perturbation`.

    Raises:
        ValueError: a negative `sigma`. TypeError: no typed key.

    Example:
        >>> secret = jaxunlearn.convex.with_perturbation(data, (4, 3), 1.0, key)
        >>> jaxunlearn.slots.PERTURBATION.get(secret).shape
        (4, 3)
    """
    checks.check_key(key)
    checks.check_range("sigma", sigma, low=0)
    with jax.enable_x64(True):
        secret = sigma * jax.random.normal(key, kernel_shape, jnp.float64)
    return PERTURBATION.put(data, secret)
