"""Privacy of noisy steps of which only the last state is seen: the accountant of noisy fine-tuning with clipped gradients.

Two runs make the same steps on the same rows, from starts that are at most `start` apart:

    x <- f_t(x) + N(0, sigma_t^2 I),    ||f_t(x) - f_t(y)|| <= c_t ||x - y|| + d_t.

Clipping a gradient at C, a learning rate g and a weight decay l give `c_t = 1 - g l` and `d_t = 2 g C`, whatever the loss.
After t steps the two states are as close as two Gaussians of deviation 1 that are mu apart,

    mu = (prod_{i<t} c_i start + sum_i prod_{i<j<t} c_j d_i) / sqrt(sum_i prod_{i<j<t} c_j^2 sigma_i^2),

and each later step can only bring them closer, so that the smallest mu of all t counts. Linear maps attain it for t = T.

**Proof** (shifted interpolation). Between the runs x and y put a third that is moved from f_t(y) towards f_t of itself until
it is at most a_t away from the latter. It costs a Gaussian of ratio a_t / sigma_t per step, and its distance from y obeys
`z <- c_t z + d_t - a_t`. Where z ends at 0 the third run is y, and mu^2 is the sum of (a_t / sigma_t)^2. The formula is
the least sum by Cauchy and Schwarz. Where its plan would take z below 0, z is 0 at an earlier t at a lower cost, which the
smallest mu covers, as the rest of the run is the same for both.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxunlearn import checks
from jaxunlearn.certificates.calibration import gaussian_scale

ROUNDING = 1 + 1e-12  # of a step of the accountant there are at most some 1e4 that each round by 1e-16


def gaussian_mu(
    start: ArrayLike, contraction: ArrayLike, drift: ArrayLike, sigma: ArrayLike, *, num_steps: int
) -> Float[Array, ""]:
    """How far apart two noisy runs end, as two Gaussians of deviation 1: mu of Gaussian differential privacy.

    Args:
        start: largest distance of the starts, `2 C0` for weights that are clipped to norm C0.
        contraction: c_t, at least 0: Float[] or one per step [num_steps].
        drift: d_t, at least 0, in the unit of `start`: Float[] or one per step.
        sigma: deviation of the noise, at least 0: Float[] or one per step.
        num_steps: T, at least 1; static.

    Returns:
        Float64[], never below the true value; inf without noise. Traced values out of range give NaN.

    Raises:
        ValueError: a value out of range, no step.

    References:
        Bok, Su, Altschuler: Shifted interpolation for differential privacy, 2024, arXiv 2403.00278. Koloskova, Allouah, Jha,
        Guerraoui, Koyejo: Certified unlearning for neural networks, 2025, arXiv 2506.06985.

    Example:
        >>> print(f"{jaxunlearn.certificates.gaussian_mu(2.0, 0.9, 0.0, 1.0, num_steps=20):.4f}")
        0.1068
    """
    checks.require_count("num_steps", num_steps)
    for name, value in (("start", start), ("contraction", contraction), ("drift", drift), ("sigma", sigma)):
        checks.check_range(name, value, low=0, high=float(np.finfo(np.float64).max))
    with jax.enable_x64(True):
        wide = (jnp.asarray(value).astype(jnp.float64) for value in (contraction, drift, sigma))
        steps = tuple(jnp.broadcast_to(value, (num_steps,)) for value in wide)
        first = jnp.asarray(start).astype(jnp.float64)
        shift, variance, best = jax.lax.scan(_step, (first, jnp.float64(0), jnp.float64(jnp.inf)), steps)[0]
        sound = (first >= 0) & jnp.all(jnp.stack([jnp.all(value >= 0) for value in steps]))
        return jnp.where(sound & (shift >= 0) & (variance >= 0), best * ROUNDING, jnp.nan)


def _step(carry, step):
    shift, variance, best = carry
    contraction, drift, sigma = step
    shift, variance = contraction * shift + drift, contraction**2 * variance + sigma**2
    mu = jnp.where(shift > 0, shift / jnp.sqrt(jnp.where(variance > 0, variance, 0)), 0.0)
    return (shift, variance, jnp.minimum(best, mu)), None


def step_noise(
    start: ArrayLike,
    contraction: ArrayLike,
    drift: ArrayLike,
    epsilon: ArrayLike,
    delta: ArrayLike,
    *,
    num_steps: int,
    profile: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """Smallest noise per step that makes two noisy runs (epsilon, delta) close.

    Args:
        start, contraction, drift, num_steps: as for `gaussian_mu`.
        epsilon: positive and finite.
        delta: in (0, 1).
        profile: deviation of each step as a multiple of what is returned, [num_steps] or 1; see `decreasing`.

    Returns:
        Float64[], in the unit of `start`, rounded up.

    Raises:
        ValueError: a value out of range, no step.

    Example:
        >>> print(f"{jaxunlearn.certificates.step_noise(2.0, 1.0, 0.2, 1.0, 1e-5, num_steps=10):.3f}")
        4.719
    """
    unit = gaussian_mu(start, contraction, drift, profile, num_steps=num_steps)
    return gaussian_scale(unit, epsilon, delta)


def decreasing(contraction: ArrayLike, *, num_steps: int) -> Float[Array, " num_steps"]:
    """Noise of step t as a multiple of that of the last step, `c^{-(T - 1 - t)}`: every step adds as much to the last state.

    Args:
        contraction: c, positive.
        num_steps: T; static.

    Returns:
        Float64[num_steps], the last entry 1.

    Raises:
        ValueError: a contraction that is not positive, no step.

    Example:
        >>> jaxunlearn.certificates.decreasing(0.5, num_steps=3).tolist()
        [4.0, 2.0, 1.0]
    """
    checks.require_count("num_steps", num_steps)
    checks.check_range("contraction", contraction, low=float(np.finfo(np.float64).tiny))
    with jax.enable_x64(True):
        return jnp.asarray(contraction).astype(jnp.float64) ** -jnp.arange(num_steps - 1.0, -1.0, -1.0)
