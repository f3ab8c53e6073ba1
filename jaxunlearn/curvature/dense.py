"""Representations from explicit matrices: dense over all or some layers, and the Gram form for few rows."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import checks
from jaxunlearn.curvature.approximations import Fit, LowRank, RowFit, chosen_leaves, pack, unpack
from jaxunlearn.curvature.logit_gradients import Kind, check_kind, draws
from jaxunlearn.curvature.matvecs import hvp, widened
from jaxunlearn.curvature.single_rows import row_factors
from jaxunlearn.curvature.spectral import without_derivative
from jaxunlearn.evaluation import map_rows
from jaxunlearn.tree import Layers
from jaxunlearn.types import Model


def dense(
    model: Model, *, kind: Kind | Literal["hessian"] = "ggn", layers: Layers | None = None, chunk: int | None = None
) -> Fit:
    """The matrix itself, by its eigenvalues; `O(n d^2 + d^3)` time and `O(d^2)` memory, so for d up to some thousands.

    Args:
        model: in evaluation mode.
        kind: see `jaxunlearn.curvature.logit_gradients`, or `hessian`.
        layers: leaves it is about, by their paths, e.g. `"head"` for the last layer; the others are held fixed.
        chunk: rows in memory together.

    Returns:
        A `Fit` that makes a `LowRank` of full rank.

    Raises:
        ValueError: layers that name nothing, a kind that does not fit the targets.

    Example:
        >>> fit = jaxunlearn.curvature.dense(model, layers="head")
        >>> last_layer = jax.jit(fit)(variables, data.train, data.present, key)
    """

    def hessian(variables, rows, chosen):
        params = widened(variables.params)
        product = rows.product(partial(hvp, model, chunk=chunk), variables, together=64)
        flat = pack(params, chosen)
        basis = jnp.eye(flat.size, dtype=flat.dtype)
        columns = product(jax.vmap(lambda e: unpack(e, params, chosen))(basis))
        return jax.vmap(lambda v: pack(v, chosen))(columns)

    def outer_products(kind, variables, rows, key, chosen):
        check_kind(kind, rows.one, key)

        def outer(part, weights):
            factors = row_factors(kind, model, variables, *part)
            flat = jax.vmap(jax.vmap(lambda v: pack(v, chosen)))(factors)
            return jnp.einsum("b,bsd,bse->de", weights.astype(flat.dtype), flat, flat)

        return rows.means(lambda part: part, partial(draws, kind, key))(outer)

    def fit(variables, rows, key):
        chosen = chosen_leaves(variables.params, layers)
        matrix = hessian(variables, rows, chosen) if kind == "hessian" else outer_products(kind, variables, rows, key, chosen)
        values, vectors = jnp.linalg.eigh(without_derivative((matrix + matrix.T) / 2))
        return LowRank(values, vectors.T, chosen)

    return RowFit(fit, chunk)


def gram(model: Model, *, kind: Kind = "ggn", layers: Layers | None = None, chunk: int | None = None) -> Fit:
    """Exact from few rows: the eigenvectors of `C = F F'` come from those of the small matrix `F' F`.

    `O((n s)^2 d)` time and `O(n s d)` memory for s vectors per row (c of `ggn` and `fisher`, else 1), whatever the number of
    weights; the tangent-kernel form of the same matrix.

    Args:
        model, layers, chunk: as in `dense`.
        kind: see `jaxunlearn.curvature.logit_gradients`.

    Returns:
        A `Fit` that makes a `LowRank` of rank at most `n s`.

    Raises:
        ValueError: layers that name nothing, a kind that does not fit the targets.

    Example:
        >>> fit = jaxunlearn.curvature.gram(model, kind="empirical")
    """

    def fit(variables, examples, weights, key):
        check_kind(kind, examples, key)
        chosen = chosen_leaves(variables.params, layers)
        seeds = draws(kind, key, weights.shape[0])

        def rows(part):
            factors = row_factors(kind, model, variables, *part)
            return jax.vmap(jax.vmap(lambda v: pack(v, chosen)))(factors)

        factors = map_rows(rows, (examples, seeds), chunk=chunk)  # [n, s, d]
        share = jnp.sqrt(weights / jnp.sum(weights)).astype(factors.dtype)
        factors = jnp.where(weights[:, None, None] > 0, factors, 0) * share[:, None, None]
        return from_factors(factors.reshape(-1, factors.shape[-1]), chosen)

    return fit


def from_factors(factors: Float[Array, "r d"], chosen: tuple[bool, ...]) -> LowRank:
    """`C = F F'` from its factors: what is below rounding has eigenvalue 0, and no eigenvector."""
    factors = without_derivative(factors)
    if factors.shape[0] >= factors.shape[1]:
        values, vectors = jnp.linalg.eigh(jnp.dot(factors.T, factors, precision="highest"))
        return LowRank(jnp.maximum(values, 0), vectors.T, chosen)
    values, vectors = jnp.linalg.eigh(jnp.dot(factors, factors.T, precision="highest"))
    real = ~(values <= values[-1] * factors.shape[0] * jnp.finfo(values.dtype).eps)  # NaN stays NaN
    spanned = jnp.dot(vectors.T, factors, precision="highest")
    unit = jnp.where(real[:, None], spanned * jax.lax.rsqrt(jnp.where(real, values, 1))[:, None], 0)
    return LowRank(jnp.where(real, values, 0), unit, chosen)


def check_rank(rank: int, dimension: int) -> None:
    """ValueError unless `1 <= rank <= dimension`."""
    checks.require_count("rank", rank)
    if rank > dimension:
        raise ValueError(f"rank must be at most the number of weights {dimension}, got {rank}")
