"""Noisy stochastic gradient descent on fixed batches (Chien, Wang, Chen, Li: Certified machine unlearning via noisy stochastic
gradient descent, NeurIPS 2024, arXiv 2403.17105), for convex problems.

    W <- W - h grad F'_j(W) + sqrt(2 h) sigma N(0, I),    j = 1, ..., B in turn,    F'_j the mean over retained rows of batch j

Batches are rows in their stored order, and stay what they are when rows go: a removed row leaves its batch smaller. A row is
met once in an epoch, so that what it did fades over the steps of the other batches. A full batch is `langevin`. Strong
convexity stands where the authors project.
"""

from jaxunlearn.card import Method
from jaxunlearn.convex.noisy_descent import noisy_descent
from jaxunlearn.convex.problems import Problem
from jaxunlearn.types import Scalar, UnlearnFn

METHOD = Method(
    summary="noisy steps on fixed batches of the retain set of a convex problem that was learned by such steps",
    cites="chien2024certified",
    family="closed form",
    reads=frozenset({"retain"}),
    guarantee="certified",
    on_empty="finetune",
    takes="problem",
)


def pnsgd(
    problem: Problem,
    *,
    sigma: Scalar,
    epochs: int,
    batch_size: int,
    learning_rate: Scalar | None = None,
    row_norm: Scalar = 1.0,
) -> UnlearnFn:
    """Epochs of noisy steps on fixed batches; with an empty request, of all present rows, the learning.

    Args:
        problem: `logistic` or `softmax`: gradients of least squares have no bound.
        sigma: each step adds noise of variance `2 h sigma^2`, at least 0; may be traced.
        epochs: K.
        batch_size: rows of a batch, counted before anything was removed; the last batch may have fewer, which the certificate
            pays for. Learning and unlearning need the same.
        learning_rate: h, at most 1 / L, may be traced; None for `1 / (l2 + row_norm^2 max_curvature)`.
        row_norm: promised bound of the norm of every row; the certificate checks it.

    Returns:
        An `UnlearnFn`; `stats` as those of `langevin`, `smallest_batch` of batches with a present row before the request.

    Raises:
        ValueError: a ridge problem, params or data that do not belong to the problem, a value out of range.

    Example:
        >>> unlearn = jaxunlearn.convex.pnsgd(jaxunlearn.convex.softmax(1e-2, 3), sigma=0.01, epochs=2, batch_size=16)
    """
    options = {"learning_rate": learning_rate, "row_norm": row_norm, "on_empty": METHOD.on_empty}
    return noisy_descent(problem, sigma=sigma, passes=epochs, batch_size=batch_size, **options)
