"""Low-rank representations from products with vectors alone: Lanczos and Nystrom."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxunlearn.curvature.approximations import Fit, LowRank, chosen_leaves, pack, unpack
from jaxunlearn.curvature.dense import check_rank
from jaxunlearn.curvature.matvecs import Matvec, widened
from jaxunlearn.tree import Layers


def lanczos(matvec: Callable[..., Matvec], *, rank: int, layers: Layers | None = None) -> Fit:
    """The part of a matrix that `rank` Lanczos steps from a random vector find: its largest eigenvalues first, either sign.

    All basis vectors are orthogonalised against all others, without which float32 finds some eigenvalues several times. The
    smallest eigenvalue found is an upper bound of the true one: it can refute that a matrix is positive, and never prove it.

    Args:
        matvec: `(variables, examples, weights) -> Matvec`, e.g. `partial(jaxunlearn.curvature.ggn_vp, model)`.
        rank: steps, one product each; at most the number of weights.
        layers: leaves it is about, see `jaxunlearn.curvature.dense`.

    Returns:
        A `Fit` that makes a `LowRank`. What the steps did not see has eigenvalue 0; the matrix of zeros gives NaN.

    Raises:
        ValueError: a rank above the number of weights.

    References:
        Lanczos: An iteration method for the solution of the eigenvalue problem of linear differential and integral operators,
        1950, doi 10.6028/jres.045.026; run by matfree (Kraemer et al., 2024, arXiv 2405.17277).

    Example:
        >>> from functools import partial
        >>> fit = jaxunlearn.curvature.lanczos(partial(jaxunlearn.curvature.ggn_vp, model), rank=5)
    """

    def fit(variables, examples, weights, key):
        from matfree import decomp, eig

        product, start, chosen = _flat(matvec, variables, examples, weights, layers, key)
        check_rank(rank, start.size)
        decompose = eig.eigh_partial(decomp.tridiag_sym(rank, reortho="full", custom_vjp=False))
        values, vectors = decompose(product, start)
        return LowRank(values, vectors, chosen)

    return fit


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

    def fit(variables, examples, weights, key):
        product, start, chosen = _flat(matvec, variables, examples, weights, layers, key)
        check_rank(rank, start.size)
        random = jax.random.normal(key, (start.size, rank), start.dtype)
        basis = jnp.linalg.qr(random)[0]
        seen = jax.vmap(product, in_axes=1, out_axes=1)(basis)
        limits = jnp.finfo(seen.dtype)
        shift = jnp.maximum(limits.eps * jnp.linalg.norm(seen) * jnp.sqrt(start.size), jnp.sqrt(limits.tiny))
        shifted = seen + shift * basis
        core = jnp.dot(basis.T, shifted, precision="highest")
        lower = jnp.linalg.cholesky((core + core.T) / 2)
        root = jax.scipy.linalg.solve_triangular(lower, shifted.T, lower=True)
        _, singular, vectors = jnp.linalg.svd(root, full_matrices=False)
        return LowRank(jnp.maximum(singular**2 - shift, 0), vectors, chosen)

    return fit


def _flat(matvec, variables, examples, weights, layers, key):
    """A product of vectors, a random vector to start from, and the leaves it is about."""
    chosen = chosen_leaves(variables.params, layers)
    params = widened(variables.params)
    tree_product = matvec(variables, examples, weights)
    flat = pack(params, chosen)
    start = jax.random.normal(jax.random.fold_in(key, 1), flat.shape, flat.dtype)
    return lambda v: pack(tree_product(unpack(v, params, chosen)), chosen), start, chosen
