"""Noise for a given sensitivity: the exact privacy of the Gaussian mechanism (Balle, Wang: Improving the Gaussian mechanism for
differential privacy, ICML 2018, arXiv 1805.06530).

Two Gaussians of deviation `sigma` whose means are `sensitivity = mu sigma` apart are (epsilon, delta) close exactly if

    delta(epsilon) = Phi(-x) - e^epsilon Phi(-x - mu) <= delta,    x = epsilon / mu - mu / 2

for every epsilon, while the textbook scale `sensitivity sqrt(2 ln(1.25 / delta)) / epsilon` is proved for epsilon < 1 only
and is too small for large ones. The difference cancels for small `mu`; since `e^epsilon phi(x + mu) = phi(x)`, it is
computed without cancellation as

    delta = phi(x) int_0^inf exp(-x s - s^2 / 2) (1 - exp(-mu s)) ds.

Everything runs in float64, whatever the session's default, and maps and compiles like any JAX function. Results are rounded
to the safe side: scales, epsilons and deltas up, by about 1e-12 of their value. They are float64 arrays: outside of
`jax.enable_x64(True)` the next operation on them rounds to float32, maybe down.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfcx, ndtr
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxunlearn import checks

HALVINGS = 80  # of an interval of at most 1500 on the logarithmic scale
EPS = float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float64).tiny)  # smaller numbers count as 0 on accelerators and in XLA


def gaussian_scale(sensitivity: ArrayLike, epsilon: ArrayLike, delta: ArrayLike) -> Float[Array, "..."]:
    """Smallest deviation `sigma` of the noise that makes means at most `sensitivity` apart (epsilon, delta) close.

    Args:
        sensitivity: largest Euclidean distance of the means, at least 0; any shape, may be traced.
        epsilon: positive and finite; broadcast.
        delta: in (0, 1); broadcast.

    Returns:
        Float64[...], never below the true value; in the unit of `sensitivity`. Traced values out of range give NaN.

    Raises:
        ValueError: a value out of range.

    References:
        Balle, Wang: Improving the Gaussian mechanism for differential privacy, 2018, arXiv 1805.06530.

    Example:
        >>> print(f"{jaxunlearn.certificates.gaussian_scale(1.0, 1.0, 1e-5):.3f}")
        3.731
    """
    _check(sensitivity=sensitivity, epsilon=epsilon, delta=delta)
    with jax.enable_x64(True):
        sensitivity, epsilon, delta = _float64(sensitivity, epsilon, delta)
        tail = jnp.sqrt(-2 * jnp.log(delta))
        # Phi(-x) <= exp(-x^2 / 2) and delta(epsilon) <= delta(0) <= mu / sqrt(2 pi) prove the one end, delta(epsilon) = 1 up to
        # rounding the other.
        allowed = jnp.maximum(2 * epsilon / (jnp.sqrt(tail**2 + 2 * epsilon) + tail), delta * np.sqrt(2 * np.pi)) * (1 - 1e-12)
        refused = jnp.sqrt(2 * epsilon) + 40
        mu = jax.lax.fori_loop(0, HALVINGS, _halve_mu, (allowed, refused, epsilon, jnp.log(delta)))[0]
        return _valid(sensitivity / mu * (1 + 4 * EPS), sensitivity, epsilon, delta)


def epsilon_of(sigma: ArrayLike, sensitivity: ArrayLike, delta: ArrayLike) -> Float[Array, "..."]:
    """Smallest epsilon at which noise of deviation `sigma` makes means at most `sensitivity` apart (epsilon, delta) close.

    Args:
        sigma: deviation of the noise, positive; any shape, may be traced.
        sensitivity: largest Euclidean distance of the means, at least 0; broadcast.
        delta: in (0, 1); broadcast.

    Returns:
        Float64[...], never below the true value; 0 where delta alone covers the difference. Traced values out of range
        give NaN.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> print(f"{jaxunlearn.certificates.epsilon_of(1.0, 1.0, 1e-5):.2f}")
        4.38
    """
    _check(sigma=sigma, sensitivity=sensitivity, delta=delta)
    with jax.enable_x64(True):
        sigma, sensitivity, delta = _float64(sigma, sensitivity, delta)
        mu = _ratio(sensitivity, sigma)
        allowed = mu * (jnp.sqrt(-2 * jnp.log(delta)) + mu / 2) * (1 + 1e-12)
        ends = (allowed, jnp.zeros_like(allowed), mu, jnp.log(delta))
        epsilon = jax.lax.fori_loop(0, HALVINGS, _halve_epsilon, ends)[0]
        epsilon = jnp.where(_log_delta(mu, jnp.zeros_like(mu)) <= jnp.log(delta), 0, epsilon)
        return _valid(epsilon, sensitivity, jnp.where(sigma > 0, 1, jnp.nan), delta)


def delta_of(sigma: ArrayLike, sensitivity: ArrayLike, epsilon: ArrayLike) -> Float[Array, "..."]:
    """Smallest delta at which noise of deviation `sigma` makes means at most `sensitivity` apart (epsilon, delta) close.

    Args:
        sigma: deviation of the noise, positive; any shape, may be traced.
        sensitivity: largest Euclidean distance of the means, at least 0; broadcast.
        epsilon: at least 0 and finite; broadcast.

    Returns:
        Float64[...], never below the true value. Traced values out of range give NaN.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> print(f"{jaxunlearn.certificates.delta_of(1.0, 1.0, 1.0):.4f}")
        0.1269
    """
    _check(sigma=sigma, sensitivity=sensitivity, spent=epsilon)
    with jax.enable_x64(True):
        sigma, sensitivity, epsilon = _float64(sigma, sensitivity, epsilon)
        delta = jnp.minimum(jnp.exp(_log_delta(_ratio(sensitivity, sigma), epsilon)), 1)
        sound = (sigma > 0) & (epsilon >= 0) & (epsilon < jnp.inf)
        return _valid(delta, sensitivity, jnp.where(sound, 1, jnp.nan), jnp.full_like(delta, 0.5))


def textbook_scale(sensitivity: ArrayLike, epsilon: ArrayLike, delta: ArrayLike) -> Float[Array, "..."]:
    """The noise scale of textbooks, `sensitivity sqrt(2 ln(1.25 / delta)) / epsilon`, for comparison with published constants.

    Larger than needed for epsilon < 1, without proof from 1 on, and too small for large ones: nothing here certifies with it.

    Args:
        sensitivity, epsilon, delta: as for `gaussian_scale`.

    Returns:
        Float64[...], in the unit of `sensitivity`.

    Raises:
        ValueError: a value out of range.

    References:
        Dwork, Roth: The algorithmic foundations of differential privacy, 2014, appendix A.

    Example:
        >>> print(f"{jaxunlearn.certificates.textbook_scale(1.0, 1.0, 1e-5):.3f}")
        4.845
    """
    _check(sensitivity=sensitivity, epsilon=epsilon, delta=delta)
    with jax.enable_x64(True):
        sensitivity, epsilon, delta = _float64(sensitivity, epsilon, delta)
        return _valid(sensitivity * jnp.sqrt(2 * jnp.log(1.25 / delta)) / epsilon, sensitivity, epsilon, delta)


# The loops take all they read as their state: a closure would be compiled anew in every call.
def _halve_mu(_, state):
    allowed, refused, epsilon, log_delta = state
    middle = jnp.sqrt(allowed) * jnp.sqrt(refused)
    good = _log_delta(middle, epsilon) <= log_delta
    return jnp.where(good, middle, allowed), jnp.where(good, refused, middle), epsilon, log_delta


def _halve_epsilon(_, state):
    allowed, refused, mu, log_delta = state
    middle = (allowed + refused) / 2
    good = _log_delta(mu, middle) <= log_delta
    return jnp.where(good, middle, allowed), jnp.where(good, refused, middle), mu, log_delta


def _mills(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """`Phi(-y) / phi(y)` for y of at least 0; JAX's `erfcx` is 0 around 37.54, where `erfc` is below the normal numbers."""
    far, near = jnp.maximum(y, 30), jnp.minimum(y, 30)
    term, series = jnp.ones_like(far), jnp.ones_like(far)
    for k in range(1, 17, 2):  # 1 - 1/y^2 + 3/y^4 - 15/y^6 ..., the first term left out is 3e-17
        term = -term * k / far**2
        series += term
    return jnp.where(y > 30, series / far, np.sqrt(np.pi / 2) * erfcx(near / np.sqrt(2)))


def _log_delta(mu: Float[Array, "..."], epsilon: Float[Array, "..."]) -> Float[Array, "..."]:
    """Upper bound of the logarithm of delta(epsilon), by 1e-12 and what rounding of x can do."""
    x = epsilon / mu - mu / 2
    mills = _mills(jnp.maximum(x + mu, 0))
    log_density = -(x**2) / 2 - 0.5 * np.log(2 * np.pi)
    right = jnp.log(_mills(jnp.maximum(x, 0)) - mills) + log_density
    left = jnp.log(ndtr(-jnp.minimum(x, 0)) - jnp.exp(jnp.where(x < 0, log_density, -jnp.inf)) * mills)
    near = jnp.log(_difference_of_mills(jnp.where(mu <= 1, mu, 1), jnp.where(mu <= 1, x, 0))) + log_density
    exact = jnp.where(mu <= 1, near, jnp.where(x >= 0, right, left))
    rounding = 8 * EPS * (epsilon / mu + mu) * (1 + jnp.abs(x))
    return jnp.where(mu > 0, exact + 1e-12 + rounding, -jnp.inf)


def _difference_of_mills(mu: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`int_0^inf exp(-x s - s^2 / 2) (1 - exp(-mu s)) ds` for mu <= 1 and x >= -1/2, where every term is positive.

    Gauss-Legendre on the part where the first factor is above e^-45.
    """
    nodes, weights = _legendre()
    length = (90 / (jnp.sqrt(x**2 + 90) + x))[..., None]
    s = length * nodes
    terms = jnp.exp(-x[..., None] * s - s**2 / 2) * -jnp.expm1(-mu[..., None] * s)
    return jnp.sum(length * weights * terms, axis=-1)


@lru_cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(80)
    return (nodes + 1) / 2, weights / 2


def _ratio(sensitivity: Float[Array, "..."], sigma: Float[Array, "..."]) -> Float[Array, "..."]:
    return sensitivity / jnp.where(sigma > 0, sigma, jnp.nan) * (1 + 2 * EPS)


def _float64(*values: ArrayLike) -> list[Float[Array, "..."]]:
    return jnp.broadcast_arrays(*(jnp.asarray(value).astype(jnp.float64) for value in values))


def _valid(value: Float[Array, "..."], sensitivity: Array, epsilon: Array, delta: Array) -> Float[Array, "..."]:
    sound = (sensitivity >= 0) & (epsilon > 0) & (epsilon < jnp.inf) & (delta > 0) & (delta < 1)
    return jnp.where(sound, value, jnp.nan)


RANGES = {
    "sensitivity": ("at least 0 and finite", lambda x: (x >= 0) & (x < np.inf)),
    "spent": ("at least 0 and finite", lambda x: (x >= 0) & (x < np.inf)),
    "epsilon": ("positive and finite", lambda x: (x >= TINY) & (x < np.inf)),
    "sigma": ("positive", lambda x: x > 0),
    "delta": ("between 0 and 1, both excluded", lambda x: (x >= TINY) & (x < 1)),
}


def _check(**values: ArrayLike) -> None:
    for name, value in values.items():
        expected, sound = RANGES[name]
        if checks.is_concrete(value) and not np.all(sound(np.asarray(value))):
            raise ValueError(f"{'epsilon' if name == 'spent' else name} must be {expected}, got {value}")
