"""How alike two sets of features of the same rows are: linear CKA, Procrustes, alignment of subspaces.

A high similarity to the original and a low one to retrained models says that unlearning did not reach the features. All of
these depend on rows and widths: a value means nothing without the similarity of retrained models among themselves.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import checks, tree
from jaxunlearn.heads import alignment, eigenspace
from jaxunlearn.types import Scalar

Features = Float[Array, "n D"]
Weights = Float[Array, " n"]


def linear_cka(
    x: Features, y: Float[Array, "n E"], weights: Weights | None = None, *, debiased: bool = True
) -> Float[Array, ""]:
    """Centred kernel alignment with linear kernels, `HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y))`.

    Biased it is `|X'Y|_F^2 / (|X'X|_F |Y'Y|_F)` of centred features, which is far from 0 for unrelated features unless there
    are many more rows than dimensions: 0.5 for as many. The debiased estimator has no such offset, and can be negative.

    Args:
        x, y: features of the same n rows, of any widths.
        weights: 1 for rows that count, 0 for others, which may hold anything.
        debiased: use the unbiased estimator of HSIC; needs at least four rows.

    Returns:
        Float[], at most 1; NaN where features do not vary.

    Raises:
        ValueError: different numbers of rows, or too few of them.

    References:
        Kornblith, Norouzi, Lee, Hinton: Similarity of neural network representations revisited, 2019, arXiv 1905.00414.
        Song, Smola, Gretton, Bedo, Borgwardt: Feature selection via dependence maximization, 2012 (unbiased estimator).

    Example:
        >>> z = jax.random.normal(key, (50, 8))
        >>> round(float(jaxunlearn.audit.linear_cka(z, 3 * z + 1)), 3)
        1.0
    """
    x, y, w = _checked(x, y, weights, least=4 if debiased else 2)
    return _ratio(_hsic_terms(x, y, w, debiased))


def minibatch_cka(
    x: Features, y: Float[Array, "n E"], weights: Weights | None = None, *, batch_size: int, debiased: bool = True
) -> Float[Array, ""]:
    """`linear_cka` with the three HSIC terms averaged over batches before the ratio is taken.

    With the unbiased estimator the means are unbiased whatever the batch size; published code averages ratios instead. Rows
    that do not fill a last batch are left out. Shuffle rows first if they are stored class by class.

    Args:
        x, y, weights, debiased: as in `linear_cka`.
        batch_size: rows per batch.

    Returns:
        Float[], at most 1; NaN where features do not vary.

    Raises:
        ValueError: as `linear_cka`, for one batch; a batch larger than the data.

    References:
        Nguyen, Raghu, Kornblith: Do wide and deep networks learn the same things?, 2020, arXiv 2010.15327.

    Example:
        >>> z = jax.random.normal(key, (50, 8))
        >>> round(float(jaxunlearn.audit.minibatch_cka(z, 3 * z + 1, batch_size=16)), 3)
        1.0
    """
    checks.require_count("batch_size", batch_size)
    x, y, w = _checked(x, y, weights, least=batch_size)
    if debiased and batch_size < 4:
        raise ValueError(f"minibatch_cka: the unbiased estimator needs batches of at least 4 rows, got {batch_size}")
    whole = x.shape[0] // batch_size * batch_size
    parts = jax.tree.map(lambda v: v[:whole].reshape(-1, batch_size, *v.shape[1:]), (x, y, w))
    terms = jax.lax.map(lambda part: _hsic_terms(part[0], part[1], part[2], debiased), parts)
    counts = jnp.sum(parts[2], axis=1) >= (4 if debiased else 2)  # batches with enough rows that count
    return _ratio(tuple(jnp.sum(jnp.where(counts, term, 0)) for term in terms))


def procrustes_similarity(x: Features, y: Float[Array, "n E"], weights: Weights | None = None) -> Float[Array, ""]:
    """Nuclear norm of `X'Y` for centred features of unit Frobenius norm: 1 if a rotation and a scale make them equal.

    It is one minus half of the squared distance after the best rotation.

    Args:
        x, y, weights: as in `linear_cka`.

    Returns:
        Float[], in [0, 1]; NaN where features do not vary.

    Raises:
        ValueError: different numbers of rows, or fewer than two.

    References:
        Ding, Denain, Steinhardt: Grounding representation similarity with statistical testing, 2021, arXiv 2108.01661.

    Example:
        >>> z = jax.random.normal(key, (50, 8))
        >>> round(float(jaxunlearn.audit.procrustes_similarity(z, z[:, ::-1])), 3)
        1.0
    """
    x, y, w = _checked(x, y, weights, least=2)
    x, y = _centred(x, w), _centred(y, w)
    singular = jnp.linalg.svd(jnp.dot(x.T, y, precision="highest"), compute_uv=False)
    return jnp.sum(singular) / (jnp.linalg.norm(x) * jnp.linalg.norm(y))


def dimensional_alignment_score(
    forget: Features,
    retain: Float[Array, "m D"],
    forget_weights: Weights | None = None,
    retain_weights: Float[Array, " m"] | None = None,
    *,
    energy: Scalar = 0.95,
    ridge: Scalar | None = None,
) -> Float[Array, ""]:
    """Share of the energy of forget features in the leading eigenspace of retain features (reconstruction).

        hard: |Z_f U|_F^2 / |Z_f|_F^2, U the leading eigenvectors of C = Z_r'Z_r / m that hold a share `energy` of its trace
        soft: tr(Z_f C (C + ridge I)^{-1} Z_f') / |Z_f|_F^2

    The paper describes the score and its formula was not available; this is a reconstruction. It can be gamed: features that
    are all equal to a retained mean have score 1. Show it beside a probe.

    Args:
        forget, retain: features of both sets, not centred.
        forget_weights, retain_weights: 1 for rows that count, 0 for others, which may hold anything.
        energy: share of the trace, in (0, 1].
        ridge: use the soft form with this damping, in the unit of the eigenvalues.

    Returns:
        Float[], in [0, 1]; NaN if all features of the forget set are 0.

    Raises:
        ValueError: features of different widths, an energy out of range.

    References:
        Seo, Kim, Han: Revisiting machine unlearning with dimensional alignment, 2024, arXiv 2407.17710.

    Example:
        >>> z = jax.random.normal(key, (50, 8)) * jnp.array([1.0, 1, 0, 0, 0, 0, 0, 0])
        >>> round(float(jaxunlearn.audit.dimensional_alignment_score(z[:, ::-1], z)), 3)
        0.0
    """
    if forget.shape[1] != retain.shape[1]:
        raise ValueError(f"features of both sides must have one width, got {forget.shape[1]} and {retain.shape[1]}")
    checks.check_range("energy", energy, low=1e-6, high=1)
    f, r = _ones(forget, forget_weights), _ones(retain, retain_weights)
    space = eigenspace(retain.astype(r.dtype), r, energy=energy, ridge=ridge)
    forget = _blanked(forget, f)
    return jnp.where(jnp.any(forget != 0), alignment(forget, f, space), jnp.nan)


def _checked(x: Array, y: Array, weights: Array | None, *, least: int) -> tuple[Array, Array, Array]:
    rows = tree.leading_axis((x, y), "features")
    if rows < least:
        raise ValueError(f"expected at least {least} rows, got {rows}")
    w = _ones(x, weights)
    return _scaled(_blanked(x, w)), _scaled(_blanked(y, w)), w


def _scaled(z: Array) -> Array:
    """Features with a largest entry of 1, which changes no ratio here: their fourth powers leave the range of float32."""
    largest = jnp.max(jnp.abs(z))
    return z / jnp.where(largest > 0, largest, 1)


def _ones(z: Array, weights: Array | None) -> Array:
    dtype = jnp.promote_types(z.dtype, jnp.float32)
    return jnp.ones(z.shape[0], dtype) if weights is None else (weights > 0).astype(dtype)


def _blanked(z: Array, w: Array) -> Array:
    return jnp.where(w[:, None] > 0, z.astype(w.dtype), 0)


def _centred(z: Array, w: Array) -> Array:
    return (z - jnp.sum(z, axis=0) / jnp.maximum(jnp.sum(w), 1)) * w[:, None]


def _hsic_terms(x: Array, y: Array, w: Array, debiased: bool) -> tuple[Array, Array, Array]:
    """HSIC of (x, y), (x, x), (y, y)."""
    x, y = _centred(x, w), _centred(y, w)
    pairs = ((x, y), (x, x), (y, y))
    if not debiased:
        return tuple(jnp.sum(jnp.dot(a.T, b, precision="highest") ** 2) for a, b in pairs)  # type: ignore[return-value]
    n = jnp.sum(w)

    def unbiased(a: Array, b: Array) -> Array:
        """With K = aa' and L = bb' without diagonals: traces and sums follow from features, without an n x n matrix."""
        norms = jnp.sum(a**2, axis=1), jnp.sum(b**2, axis=1)
        trace = jnp.sum(jnp.dot(a.T, b, precision="highest") ** 2) - jnp.sum(norms[0] * norms[1])
        # rows of a centred kernel sum to 0, so without the diagonal to minus their norm
        sums = jnp.sum(norms[0]) * jnp.sum(norms[1]) / ((n - 1) * (n - 2))
        cross = 2 / (n - 2) * jnp.sum(norms[0] * norms[1])
        return (trace + sums - cross) / (n * (n - 3))

    return tuple(unbiased(a, b) for a, b in pairs)  # type: ignore[return-value]


def _ratio(terms: tuple[Array, ...]) -> Float[Array, ""]:
    cross, first, second = terms
    return cross / jnp.sqrt(first * second)
