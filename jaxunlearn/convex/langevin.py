"""Langevin unlearning (Chien, Wang, Chen, Li: Langevin unlearning, a new perspective of noisy gradient descent for machine
unlearning, NeurIPS 2024, arXiv 2401.10371), for convex problems.

    W <- W - h grad F'(W) + sqrt(2 h) sigma N(0, I),    F' = L' / n' the mean over the retain set

Learning makes the same steps on all rows, so that unlearning is to go on without the forget set: its traces shrink by
`1 - h l2` in every step and are hidden by the noise. `jaxunlearn.certificates.Langevin` turns steps and noise into an
epsilon. The authors clip gradients of single rows and project on a ball; rows of bounded norm make the first superfluous and
strong convexity the second. Their bound for losses that are not convex is, in their own words, too loose to use.
"""

from jaxunlearn.card import Method
from jaxunlearn.convex.noisy_descent import noisy_descent
from jaxunlearn.convex.problems import Problem
from jaxunlearn.types import Scalar, UnlearnFn

METHOD = Method(
    summary="noisy gradient steps on the retain set of a convex problem that was learned by such steps",
    cites="chien2024langevin",
    family="closed form",
    reads=frozenset({"retain"}),
    guarantee="certified",
    on_empty="finetune",
    takes="problem",
)


def langevin(
    problem: Problem, *, sigma: Scalar, steps: int, learning_rate: Scalar | None = None, row_norm: Scalar = 1.0
) -> UnlearnFn:
    """Noisy steps on the retain set; with an empty request, on all present rows, the learning.

    Args:
        problem: `logistic` or `softmax`: gradients of least squares have no bound.
        sigma: each step adds noise of variance `2 h sigma^2`, at least 0; may be traced.
        steps: K, passes over the rows.
        learning_rate: h, at most 1 / L, may be traced; None for `1 / (l2 + row_norm^2 max_curvature)`.
        row_norm: promised bound of the norm of every row; the certificate checks it.

    Returns:
        An `UnlearnFn`; `stats` Float[]: `row_norm` (measured), `promised_norm`, `gradient_bound`, `convexity`, `smoothness`,
        `learning_rate`, `sigma`, `descent_steps`, `num_batches` (1), `smallest_batch` (rows before the request);
        `asked` UInt32[4], which rows the run read.

    Raises:
        ValueError: a ridge problem, params or data that do not belong to the problem, a value out of range.

    Example:
        >>> unlearn = jaxunlearn.convex.langevin(jaxunlearn.convex.softmax(1e-2, 3), sigma=0.01, steps=20)
    """
    options = {"learning_rate": learning_rate, "row_norm": row_norm, "on_empty": METHOD.on_empty}
    return noisy_descent(problem, sigma=sigma, passes=steps, batch_size=None, **options)
