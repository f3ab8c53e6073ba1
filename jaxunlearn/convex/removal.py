"""What removals from a convex problem share: the rows of the forget set, the exact residual, and bounds of it.

One Newton step from `W` along `E` leaves the gradient

    grad L(W + E) = (grad L(W) + H(W) E) + remainder,    ||remainder|| <= (M / 2) ||X|| (sum_i ||x_i E||^4)^{1/2},

`M` the Lipschitz constant of the curvature in the scores and `||X||` the spectral norm of the rows: the *quartic* bound. The
*data* bound replaces the last factor by `max_i ||x_i|| ||E|| ||X E||`, the *worst case* bounds `E` itself without data (Guo,
Goldstein, Hannun, van der Maaten, 2020, arXiv 1911.03030; the factor 1/2 and the sharper `M` are ours, so that all three are
below the published ones). The first term is rounding for an exact Newton step; it is measured, not assumed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import sampling, tree
from jaxunlearn.convex.objective import perturbation_of, sum_over_rows
from jaxunlearn.convex.problems import Problem
from jaxunlearn.convex.rows import kernel_of
from jaxunlearn.types import Data, Examples, ForgetRequest, Variables


class Setting(NamedTuple):
    """One removal, prepared."""

    kernel: Float[Array, "d c"]  # the trained weights
    linear: Float[Array, "d c"]  # the secret of an objective perturbation, or zeros
    gone: Examples  # the forget set, float64 inputs [k, d]; zeros in unused slots
    counts: Float[Array, " k"]  # 1 in used slots
    num_forget: Float[Array, ""]
    num_retain: Float[Array, ""]
    num_present: Float[Array, ""]  # both together; the same for all requests of a batch


def prepare_removal(problem: Problem, variables: Variables, data: Data, request: ForgetRequest) -> Setting:
    """Look up the forget set; costs O(k d)."""
    kernel = kernel_of(problem, variables, data)
    counts = sampling.usable_slots(data, request).astype(jnp.float64)
    rows = jnp.where(counts > 0, sampling.row_numbers(request), 0)
    gone = sampling.blank(jax.tree.map(lambda x: jnp.asarray(x)[rows], data.train), counts)
    gone = gone._replace(inputs=gone.inputs.astype(jnp.float64))
    num_forget = jnp.sum(counts)
    num_present = jnp.sum(data.present > 0).astype(jnp.float64)
    return Setting(kernel, perturbation_of(data, kernel), gone, counts, num_forget, num_present - num_forget, num_present)


def gradient_of_gone(problem: Problem, setting: Setting, kernel: Float[Array, "d c"]) -> Float[Array, "d c"]:
    """What the forget set contributes to the gradient over all present rows, its share of the penalty included."""
    slopes = setting.counts[:, None] * problem.slope(setting.gone.inputs @ kernel, setting.gone.targets)
    return setting.gone.inputs.T @ slopes + problem.l2 * setting.num_forget * kernel


class Measured(NamedTuple):
    """One pass over the retain set."""

    gradient: Float[Array, "d c"]  # of the retained objective at `W + E`, exact
    linear_residual: Float[Array, ""]  # ||grad L(W) + H(W) E||
    quartic: Float[Array, ""]  # (sum_i ||x_i E||^4)^{1/2}
    quadratic: Float[Array, ""]  # ||X E||
    frobenius: Float[Array, ""]  # ||X||_F, at least the spectral norm


def measure(
    problem: Problem,
    data: Data,
    setting: Setting,
    before: Float[Array, "d c"],
    step: Float[Array, "d c"],
    *,
    retained: Float[Array, " n"] | None = None,
) -> Measured:
    """Exact gradient after a step, and what its bounds need. Rows are read once.

    Sums run over the retain set if it is given; else over the present rows, which requests share, and the forget set is taken
    off again.

    Args:
        problem, data, setting: of the removal.
        before: weights W before the step.
        step: E.
        retained: 1 on the retain set.
    """

    def terms(inputs, targets, counts):
        del counts  # rows that do not count are zeros
        scores, change = inputs @ before, inputs @ step
        slopes = problem.slope(scores + change, targets)
        predicted = problem.slope(scores, targets) + jnp.einsum("bij,bj->bi", problem.curvature(scores), change)
        lengths = jnp.sum(change**2, axis=1)
        squares = jnp.sum(inputs**2)
        return (slopes.T @ inputs).T, (predicted.T @ inputs).T, jnp.sum(lengths**2), jnp.sum(lengths), squares

    if retained is None:
        everything = sum_over_rows(terms, data.train, data.present)
        forgotten = terms(setting.gone.inputs, setting.gone.targets, setting.counts)
        sums = jax.tree.map(jnp.subtract, everything, forgotten)
    else:
        sums = sum_over_rows(terms, data.train, retained)
    slopes, predicted, quartic, quadratic, squares = sums
    after = before + step
    penalty = problem.l2 * setting.num_retain
    gradient = slopes + penalty * after + setting.linear
    linear_residual = tree.norm(predicted + penalty * after + setting.linear)
    return Measured(gradient, linear_residual, *(jnp.sqrt(jnp.maximum(x, 0)) for x in (quartic, quadratic, squares)))


class Bounds(NamedTuple):
    """Upper bounds of the norm of the gradient that a removal leaves."""

    worst_case: Float[Array, ""]
    data: Float[Array, ""]
    quartic: Float[Array, ""]


def worst_case(problem: Problem, setting: Setting, row_norm: Float[Array, ""]) -> Float[Array, ""]:
    """`2 M m^2 C^2 r^5 / (l2^2 n')`, for one Newton step from an exact optimum without perturbation, rows of norm at most r."""
    if problem.curvature_lipschitz == 0:
        return jnp.zeros_like(row_norm)
    step = 2 * setting.num_forget * problem.max_slope * row_norm / (problem.l2 * setting.num_retain)
    return 0.5 * problem.curvature_lipschitz * row_norm**3 * setting.num_retain * step**2


def bounds(
    problem: Problem,
    setting: Setting,
    measured: Measured,
    step: Float[Array, "d c"],
    *,
    row_norm: Float[Array, ""],
    spectral_norm: Float[Array, ""] | None = None,
    slack: Float[Array, ""] | float = 0.0,
) -> Bounds:
    """Bounds of the residual after the measured step.

    Args:
        row_norm: at least the largest norm of a row of the retain set.
        spectral_norm: at least that of the retain set; the Frobenius norm by default.
        slack: bound of what was not known of the gradient before the step.
    """
    size = measured.frobenius if spectral_norm is None else spectral_norm
    factor = 0.5 * problem.curvature_lipschitz * size
    first = measured.linear_residual + slack
    quartic = first + factor * measured.quartic
    return Bounds(
        worst_case(problem, setting, row_norm), first + factor * row_norm * tree.norm(step) * measured.quadratic, quartic
    )


def row_norm_of(data: Data) -> Float[Array, ""]:
    """Largest norm of a present row."""
    lengths = jnp.sum(data.train.inputs.astype(jnp.float64) ** 2, axis=1)
    return jnp.sqrt(jnp.max(jnp.where(data.present > 0, lengths, 0)))


def report(
    problem: Problem,
    setting: Setting,
    limits: Bounds,
    *,
    residual: Float[Array, ""],
    residual_bound: Float[Array, ""],
    row_norm: Float[Array, ""],
) -> dict[str, Array]:
    """The statistics of every removal.

    Args:
        residual: exact norm of the gradient, NaN if it was not measured.
        residual_bound: the residual, or an upper bound of it.
    """
    stats = {
        "residual": residual,
        "residual_bound": residual_bound,
        "distance_bound": residual_bound / (problem.l2 * setting.num_retain),
        "worst_case_bound": limits.worst_case,
        "data_bound": limits.data,
        "quartic_bound": limits.quartic,
        "row_norm": row_norm,
        "l2": problem.l2,
        "num_forget": setting.num_forget,
        "num_retain": setting.num_retain,
    }
    return {name: jnp.asarray(value, jnp.float64) for name, value in stats.items()}


def report_without_bounds(problem: Problem, data: Data, setting: Setting, step: Float[Array, "d c"]) -> dict[str, Array]:
    """The statistics of a step that no bound holds for: its residual is exact all the same."""
    residual = tree.norm(measure(problem, data, setting, setting.kernel, step).gradient)
    unknown = Bounds(*[jnp.full_like(residual, jnp.inf)] * 3)
    return report(problem, setting, unknown, residual=residual, residual_bound=residual, row_norm=row_norm_of(data))


def stored(kernel: Float[Array, "d c"], variables: Variables) -> tuple[Float[Array, "d c"], Variables]:
    """Weights rounded to the dtype of `variables`, in float64 and as variables."""
    rounded = kernel.astype(variables.params["kernel"].dtype)
    return rounded.astype(jnp.float64), variables._replace(params={"kernel": rounded})
