"""Low-rank representations from products with vectors alone: Lanczos and Nystrom."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxunlearn.curvature.approximations import Fit, LowRank, RowFit, chosen_leaves, pack, unpack
from jaxunlearn.curvature.dense import check_rank
from jaxunlearn.curvature.matvecs import Matvec, widened
from jaxunlearn.curvature.spectral import without_derivative
from jaxunlearn.tree import Layers


def lanczos(matvec: Callable[..., Matvec], *, rank: int, layers: Layers | None = None) -> Fit:
    """The part of a matrix that `rank` Lanczos steps from a random vector find: its largest eigenvalues first, either sign.

    All basis vectors are orthogonalised against all others, without which float32 finds some eigenvalues several times. Where
    the steps have seen all that a matrix of low rank does, they go on from another random vector. The smallest eigenvalue
    found is an upper bound of the true one: it can refute that a matrix is positive, and never prove it.

    Args:
        matvec: `(variables, examples, weights) -> Matvec`, e.g. `partial(jaxunlearn.curvature.ggn_vp, model)`.
        rank: steps, one product each; at most the number of weights.
        layers: leaves it is about, see `jaxunlearn.curvature.dense`.

    Returns:
        A `Fit` that makes a `LowRank`. What the steps did not see has eigenvalue 0.

    Raises:
        ValueError: a rank above the number of weights.

    References:
        Lanczos: An iteration method for the solution of the eigenvalue problem of linear differential and integral operators,
        1950, doi 10.6028/jres.045.026.

    Example:
        >>> from functools import partial
        >>> fit = jaxunlearn.curvature.lanczos(partial(jaxunlearn.curvature.ggn_vp, model), rank=5)
    """

    def fit(variables, rows, key):
        product, start, chosen = _flat(matvec, variables, rows, layers, key)
        check_rank(rank, start.size)
        basis, diagonal, beside = _tridiagonal(rows.scan, product, start, rank, jax.random.fold_in(key, 2))
        values, rotation = jnp.linalg.eigh(without_derivative(jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)))
        return LowRank(values, jnp.dot(rotation.T, basis, precision="highest"), chosen)

    return RowFit(fit)


def _tridiagonal(
    scan: Callable, product: Matvec, start: Float[Array, " p"], rank: int, key: PRNGKeyArray
) -> tuple[Float[Array, "rank p"], Float[Array, " rank"], Float[Array, " rank-1"]]:
    """Orthonormal rows Q and the diagonals of `Q C Q'`; where the space is used up, a random vector goes on beside it."""
    limits = jnp.finfo(start.dtype)

    def outside(v: Float[Array, " p"], basis: Float[Array, "rank p"]) -> Float[Array, " p"]:
        for _ in range(2):  # the second time takes off what rounding left
            v = v - jnp.dot(jnp.dot(basis, v, precision="highest"), basis, precision="highest")
        return v

    def unit(v: Float[Array, " p"]) -> Float[Array, " p"]:
        return v / jnp.maximum(jnp.linalg.norm(v), limits.tiny)

    def step(carry, place):
        basis, scale, q = carry
        basis = basis.at[place].set(q)
        image = product(q)
        diagonal = jnp.vdot(q, image, precision="highest")
        rest = outside(image, basis)
        length = jnp.linalg.norm(rest)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(diagonal), length))
        used_up = length <= 100 * limits.eps * scale
        random = jax.random.normal(jax.random.fold_in(key, place), start.shape, start.dtype)
        after = unit(outside(unit(jnp.where(used_up, outside(random, basis), rest)), basis))
        return (basis, scale, after), (diagonal, jnp.where(used_up, 0, length))

    first = jnp.zeros((rank, start.size), start.dtype), jnp.zeros((), start.dtype), unit(start)
    (basis, _, _), (diagonal, beside) = scan(step, first, jnp.arange(rank))
    return basis, diagonal, beside[:-1]


def nystrom(matvec: Callable[..., Matvec], *, rank: int, layers: Layers | None = None) -> Fit:
    """The part of a positive matrix that random vectors see, `C Q (Q' C Q)^+ Q' C`: all products in one `vmap`.

    Less accurate than Lanczos for as many products and quicker where hardware likes batches; a good preconditioner.

    Args:
        matvec: as in `lanczos`; its matrix has no eigenvalue below zero.
        rank: random vectors.
        layers: leaves it is about, see `jaxunlearn.curvature.dense`.

    Returns:
        A `Fit` that makes a `LowRank`.

    Raises:
        ValueError: a rank above the number of weights.

    References:
        Frangella, Tropp, Udell: Randomized Nystrom preconditioning, 2021, arXiv 2110.02820 (algorithm 2.1).

    Example:
        >>> from functools import partial
        >>> fit = jaxunlearn.curvature.nystrom(partial(jaxunlearn.curvature.ggn_vp, model), rank=5)
    """

    def fit(variables, rows, key):
        product, start, chosen = _flat(matvec, variables, rows, layers, key, together=rank)
        check_rank(rank, start.size)
        random = jax.random.normal(key, (start.size, rank), start.dtype)
        basis = jnp.linalg.qr(random)[0]
        seen = product(basis.T).T
        limits = jnp.finfo(seen.dtype)
        shift = jnp.maximum(limits.eps * jnp.linalg.norm(seen) * jnp.sqrt(start.size), jnp.sqrt(limits.tiny))
        shifted = seen + shift * basis
        core = jnp.dot(basis.T, shifted, precision="highest")
        lower = jnp.linalg.cholesky((core + core.T) / 2)
        root = jax.scipy.linalg.solve_triangular(lower, shifted.T, lower=True)
        _, singular, vectors = jnp.linalg.svd(without_derivative(root), full_matrices=False)
        return LowRank(jnp.maximum(singular**2 - shift, 0), vectors, chosen)

    return RowFit(fit)


def _flat(matvec, variables, rows, layers, key, *, together=0):
    """A product of vectors, or of a stack of them, a random vector to start from, and the leaves it is about."""
    chosen = chosen_leaves(variables.params, layers)
    params = widened(variables.params)
    tree_product = rows.product(matvec, variables, together=together)
    flat = pack(params, chosen)
    start = jax.random.normal(jax.random.fold_in(key, 1), flat.shape, flat.dtype)
    inside, outside = lambda v: unpack(v, params, chosen), lambda v: pack(v, chosen)
    if together:
        inside, outside = jax.vmap(inside), jax.vmap(outside)
    return lambda v: outside(tree_product(inside(v))), start, chosen
