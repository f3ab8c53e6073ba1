"""Bounds of a spectral norm that hold from above, and decompositions that are not differentiated by accident.

Power iteration approaches the norm from below, so a bound built on it certifies nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def without_derivative(matrix: Array) -> Array:
    """The matrix itself, to be decomposed; differentiating through it is an error.

    The derivative of eigenvectors divides by differences of eigenvalues. Where some coincide, as the zeros of any matrix of low
    rank do, it is NaN or, by rounding, any number.

    Raises:
        TypeError: when a derivative through the decomposition is asked for.
    """
    return matrix


@without_derivative.defjvp
def _refuse(primals, tangents):
    raise TypeError(
        "derivatives through an eigendecomposition are not to be trusted, as eigenvalues may coincide: use solver='cg', which "
        "has derivatives, or hold the decomposition fixed with jax.lax.stop_gradient on what it is made from"
    )


def spectral_norm_bound(gram: Float[Array, "d d"], *, num_rows: int = 2**20) -> Float[Array, ""]:
    """Upper bound of the spectral norm of X, from `X^T X`.

        ||X||_2 <= sqrt(min(lambda_max, trace) + (num_rows + 32 d) eps trace)

    with the largest eigenvalue and the trace as computed and `eps` the spacing of the dtype's numbers at 1. The last term
    pays for rounding: sums over `num_rows` products move the Gram matrix by at most `num_rows eps trace / 2` in norm, and the
    eigenvalue solver moves the eigenvalue by a small multiple of `d eps trace`. The trace is the Frobenius bound. In float64
    the term is worth less than 1e-7 of the bound for any d below 400; in float32 it is large, and `num_rows` should be given.

    Args:
        gram: `X^T X`, symmetric, computed at full precision in its own dtype (on accelerators: `precision="highest"`).
        num_rows: at least the rows of X; static.

    Returns:
        The bound, in the dtype of `gram`; NaN or inf if `gram` holds one.

    Raises:
        ValueError: a matrix that is not square or not floating, or num_rows below 1.

    References:
        Higham: Accuracy and stability of numerical algorithms, 2002, doi 10.1137/1.9780898718027 (chapters 3 and 19).

    Example:
        >>> x = jnp.array([[3.0, 0.0], [0.0, 4.0]])
        >>> bound = jaxunlearn.curvature.spectral_norm_bound(x.T @ x, num_rows=2)
        >>> print(f"{bound:.3f}", bool(bound >= 4))
        4.000 True
    """
    gram = jnp.asarray(gram)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"expected a square matrix X^T X [d, d], got shape {gram.shape}")
    if not jnp.issubdtype(gram.dtype, jnp.floating):
        raise ValueError(f"expected a floating-point matrix, got {gram.dtype}")
    if num_rows < 1:
        raise ValueError(f"num_rows is the number of rows of X, at least 1, got {num_rows}")
    eps = float(jnp.finfo(gram.dtype).eps)
    trace = jnp.trace(gram)
    largest = jnp.minimum(jnp.linalg.eigvalsh(gram)[-1], trace)
    return jnp.sqrt(jnp.maximum(largest, 0) + (num_rows + 32 * gram.shape[0]) * eps * trace) * (1 + 4 * eps)
