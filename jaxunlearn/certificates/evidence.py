"""What a certificate rests on: the gradient of the retained objective at the weights, taken anew, and what rounding can hide.

Nothing that a removal says of itself is believed. Strong convexity turns the gradient at any weights into a distance to the
optimum, `||W - W'|| <= ||grad L'(W)|| / (l2 n')`, so that one pass over the rows at hand decides: a stale factorisation, rows
that a selection skipped, weights of another request and a bound that never saw the rows all show as a long gradient.

**Rounding.** With `u = 2^-53`, rows x_i of d features, slopes s_i = slope(x_i W) of c entries and a problem whose curvature is
at most M, the computed gradient is off by at most

    u [ n' sum ||x_i|| ||s_i|| + (c + 8) sum ||x_i|| max(1, ||s_i||) + (d + 8) M ||W|| sum ||x_i||^2 + 4 l2 n' ||W|| + 2 ||B|| ]

where the terms are the sum over rows, the slopes themselves, the scores that they are taken at, the penalty, and a secret B.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn import tree
from jaxunlearn.certificates.certificate import Evidence, Subject
from jaxunlearn.convex.objective import perturbation_of, sum_over_rows
from jaxunlearn.convex.problems import Problem
from jaxunlearn.convex.removal import row_norm_of
from jaxunlearn.convex.rows import check_data, kernel_of
from jaxunlearn.sampling import retain_weights
from jaxunlearn.slots import PERTURBATION
from jaxunlearn.types import Data, ForgetRequest, Result

UNIT = 2.0**-53


def collect(
    result: Result, data: Data, request: ForgetRequest, problem: Problem, stats: dict[str, float]
) -> tuple[Evidence, Subject]:
    """Look at weights and rows; host only, one pass over the rows.

    Args:
        result: its weights are looked at, nothing else.
        data: the training rows; those of the request may already be marked as removed.
        request: rows that must be gone.
        problem: what the weights are an optimum of.
        stats: numbers that a mechanism reads, handed on.

    Raises:
        ValueError: weights, rows or targets that do not belong to the problem.
    """
    with jax.enable_x64(True):
        kernel = kernel_of(problem, result.variables, data)
        retained = np.asarray(retain_weights(data, request)) > 0
        if retained.any():
            check_data(problem, data._replace(present=retained))
        linear = perturbation_of(data, kernel)
        rows = data.train._replace(inputs=jnp.asarray(data.train.inputs), targets=jnp.asarray(data.train.targets))
        found = jax.device_get(_look(problem)(rows, jnp.asarray(retained), kernel, linear))
    gradient, slopes, steep, squares, longest = map(np.asarray, found)
    size, count, (d, c) = float(np.linalg.norm(kernel)), int(retained.sum()), kernel.shape
    rounding = UNIT * (
        count * slopes
        + (c + 8) * steep
        + (d + 8) * problem.max_curvature * size * squares
        + 4 * problem.l2 * count * size
        + 2 * float(np.linalg.norm(linear))
    )
    secret = PERTURBATION.find(data)
    used = np.unique(np.asarray(request.indices)[np.asarray(request.weights) > 0])
    named = int(((used >= 0) & (used < retained.size)).sum())  # present or not
    evidence = Evidence(
        residual=float(np.linalg.norm(gradient)),
        rounding=float(rounding) * (1 + 1e-6),
        l2=float(problem.l2),
        row_norm=float(longest),
        num_retain=count,
        num_forget=max(named, int(stats.get("num_forget", 0))),
        num_unknown=used.size - named,
        num_params=int(np.size(kernel)),
        secret=None if secret is None else np.asarray(secret, np.float64),
        stats=stats,
    )
    subject = Subject(
        weights=tree.content_digest(result.variables.params),
        retained_rows=tree.content_digest(jax.tree.map(lambda x: np.asarray(x)[retained], data.train)),
        secret="" if secret is None else tree.content_digest(secret),
        problem=f"{problem.name} with {c} outputs, l2 {problem.l2!r}",
        request=tree.content_digest(used.astype(np.int64)),
    )
    return evidence, subject


@lru_cache(maxsize=16)
def _look(problem: Problem) -> Any:
    @jax.jit
    def look(rows, retained, kernel: Float[Array, "d c"], linear: Float[Array, "d c"]):
        def block(inputs, targets, counts):
            slopes = problem.slope(inputs @ kernel, targets)
            long, steep = jnp.linalg.norm(inputs, axis=1), jnp.linalg.norm(slopes, axis=1)
            del counts  # rows that do not count are zeros
            sums = jnp.sum(long * steep), jnp.sum(long * jnp.maximum(1, steep)), jnp.sum(long**2)
            return (slopes.T @ inputs).T, *sums

        total, *sums = sum_over_rows(block, rows, retained)
        return total + problem.l2 * jnp.sum(retained) * kernel + linear, *sums, row_norm_of(Data(rows, retained))

    return look
