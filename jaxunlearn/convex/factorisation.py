"""One eigendecomposition of the Hessian that all requests share, and Woodbury's identity for the rows of one request.

With `K = H(W0)` over the rows present when it was made, `K = U diag(e) U'`, and a request S of m rows,

    K_S = K - l2 m I - V V',    K_S^{-1} = U [Q + Q R (I - R' Q R)^{-1} R' Q] U',    Q = diag(1 / (e - l2 m)),    R = U' V,

where the columns of V are `x_j` times the root of their curvature, `V V' = sum_S x_j x_j' (x) curvature_j`. A request costs
O(D^2) with `D = d c`, and R of them side by side are matrix products. Rows removed earlier stay in R: as columns of V they
would have to be rotated again by every request, since m grows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn import checks
from jaxunlearn.convex.objective import gradient, hessian, perturbation_of, sum_over_rows
from jaxunlearn.convex.problems import Problem
from jaxunlearn.convex.removal import Setting, row_norm_of
from jaxunlearn.convex.rows import kernel_of
from jaxunlearn.curvature import spectral_norm_bound
from jaxunlearn.precision import in_float64
from jaxunlearn.slots import FACTORISATION
from jaxunlearn.types import Data, Prepare, Variables


class Factorisation(NamedTuple):
    """What removals from one model share. `D = d c`; `q` columns of rows removed since the eigendecomposition."""

    vectors: Float[Array, "D D"]
    values: Float[Array, " D"]
    centre: Float[Array, "d c"]  # the weights W0 at which the Hessian was taken
    gram: Float[Array, "d d"]  # X' X
    spectral_norm: Float[Array, ""]  # at least that of X
    row_norm: Float[Array, ""]  # largest norm of any row
    num_rows: Float[Array, ""]  # rows in the eigendecomposition
    removed: Float[Array, "D q"]  # columns of R of rows removed since; zeros where there is none yet
    num_columns: Int[Array, ""]  # of them in use
    num_removed: Float[Array, ""]
    kernel: Float[Array, "d c"]  # the current weights
    gradient: Float[Array, "d c"]  # of the current objective there, as far as it is known
    slack: Float[Array, ""]  # bound of the norm of what is not known of it


def factorise(
    problem: Problem,
    data: Data,
    kernel: Float[Array, "d c"],
    slope: Float[Array, "d c"],
    slack: Float[Array, ""],
    capacity: int,
) -> Factorisation:
    """Eigendecomposition of the Hessian over the present rows, O(n D^2 + D^3)."""
    matrix = hessian(problem, kernel, data.train, data.present)
    values, vectors = jnp.linalg.eigh(matrix)
    gram = sum_over_rows(lambda inputs, targets, counts: inputs.T @ inputs, data.train, data.present)
    return Factorisation(
        vectors=vectors,
        values=values,
        centre=kernel,
        gram=gram,
        spectral_norm=spectral_norm_bound(gram),
        row_norm=row_norm_of(data),
        num_rows=jnp.sum(data.present > 0).astype(jnp.float64),
        removed=jnp.zeros((kernel.size, capacity)),
        num_columns=jnp.int32(0),
        num_removed=jnp.float64(0),
        kernel=kernel,
        gradient=slope,
        slack=slack,
    )


def described(problem: Problem) -> str:
    """What a factorisation belongs to, besides weights, rows and `l2`."""
    return f"the Hessian of {problem.name} with {problem.num_outputs} outputs"


def prepare(problem: Problem, *, capacity: int = 0) -> Prepare:
    """Factorise the Hessian for `jaxunlearn.convex.woodbury_removal`; `jaxunlearn.prepare` does it with a method's settings.

    Args:
        problem: what the variables were trained on.
        capacity: columns kept for rows removed in a stream before it factorises anew: slots times outputs for each request,
            about `D / 10` in all. 0 where requests are alternatives (`batched`).

    Returns:
        `(variables, data, key) -> Data` with a `Factorisation` in slot `factorisation`; jit it or not.

    Raises:
        ValueError: params or data that do not belong to the problem.

    Example:
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> problem = jaxunlearn.convex.softmax(1e-2, 3)
        >>> start = jaxunlearn.Variables({"kernel": jnp.zeros((5, 3))})
        >>> shared = jax.jit(jaxunlearn.convex.prepare(problem))(start, rows, key)
        >>> jaxunlearn.slots.FACTORISATION.get(shared).value.vectors.shape
        (15, 15)
    """
    checks.require_count("capacity", capacity, least=0)

    @in_float64
    def prepared(variables: Variables, data: Data, key: jax.Array) -> Data:
        del key
        kernel = kernel_of(problem, variables, data)
        slope = gradient(problem, kernel, data.train, data.present, perturbation_of(data, kernel))
        made = factorise(problem, data, kernel, slope, jnp.float64(0), capacity)
        return FACTORISATION.put(data, made, at=(variables, problem.l2), how=described(problem))

    return prepared


class Downdate(NamedTuple):
    """The factorisation without the rows of one request."""

    vectors: Float[Array, "D D"]
    values: Float[Array, " D"]  # e - l2 m, m counting all rows removed so far
    columns: Float[Array, "D p"]  # R
    small: Float[Array, "p p"]  # lower Cholesky factor of I - R' Q R
    leverage: Float[Array, ""]  # lower bound of the largest eigenvalue of R' Q R; NaN if it reached 1

    def solve(self, b: Float[Array, "d c"]) -> Float[Array, "d c"]:
        """`K_S^{-1} b`."""
        plain = (b.ravel() @ self.vectors) / self.values
        small = jax.scipy.linalg.cho_solve((self.small, True), plain @ self.columns)
        return (self.vectors @ (plain + self.columns @ small / self.values)).reshape(b.shape)

    def multiply(self, b: Float[Array, "d c"]) -> Float[Array, "d c"]:
        """`K_S b`."""
        flat = b.ravel() @ self.vectors
        return (self.vectors @ (self.values * flat - self.columns @ (flat @ self.columns))).reshape(b.shape)


def columns_of_gone(problem: Problem, made: Factorisation, setting: Setting) -> Float[Array, "D k*c"]:
    """The columns of R of one request; zeros in unused slots."""
    inputs, (d, c) = setting.gone.inputs, made.centre.shape
    roots = problem.curvature_root(inputs @ made.centre) * setting.counts[:, None, None]
    columns = jnp.einsum("ki,kab->kbia", inputs, roots).reshape(inputs.shape[0] * c, d * c)
    return (columns @ made.vectors).T


def downdate(problem: Problem, made: Factorisation, setting: Setting) -> Downdate:
    """Take the rows of a request, and those that went before, off the factorisation."""
    columns = jnp.concatenate([made.removed, columns_of_gone(problem, made, setting)], axis=1)
    values = made.values - problem.l2 * (made.num_rows - setting.num_retain)
    small = jnp.linalg.cholesky(jnp.eye(columns.shape[1]) - columns.T @ (columns / values[:, None]))
    leverage = 1 - jnp.min(jnp.diagonal(small) ** 2)
    return Downdate(made.vectors, values, columns, small, leverage)


def carried(
    made: Factorisation,
    without: Downdate,
    setting: Setting,
    kernel: Float[Array, "d c"],
    slope: Float[Array, "d c"],
    slack: Float[Array, ""],
) -> Factorisation:
    """The factorisation after a removal: its columns are kept, the eigendecomposition stays."""
    columns = without.columns[:, made.removed.shape[1] :]
    return made._replace(
        removed=jax.lax.dynamic_update_slice(made.removed, columns, (jnp.int32(0), made.num_columns)),
        num_columns=made.num_columns + columns.shape[1],
        num_removed=made.num_rows - setting.num_retain,
        kernel=kernel,
        gradient=slope,
        slack=slack,
    )
