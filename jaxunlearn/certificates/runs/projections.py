"""Privacy of noisy steps that project the weights on a ball: the accountant of noisy fine-tuning with clipped models.

However far two runs are apart, a projection on a ball of radius C2 brings them within 2 C2 before the next noise; a step then
has the ratio

    r = 2 C2 / sigma                      x <- clip(x - g (grad + l x), C2) + noise
    r = 2 (C2 + g C1) / sigma             x <- clip(x - g clip(grad + l x, C1) + noise, C2)

and shrinks delta at every epsilon, with theta(e, r) the delta of two Gaussians of deviation 1 that are r apart:

    delta_{t+1} = delta_t theta(e_t, r),    e_t = ln(1 + (e^epsilon - 1) / delta_t),

from delta_0 = 1, or theta(epsilon, 2 C0 / sigma_0) where the start is clipped to C0 and has noise.

**Proof.** Where `P` and `e^epsilon Q` overlap they take one way through the step; what is left has the masses delta_t and
`e^epsilon - 1 + delta_t`, so that the step sees two laws at the epsilon e_t (Balle, Barthe, Gaboardi 2018), and any two laws
become at least as close as the two farthest means.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxunlearn import checks
from jaxunlearn.certificates.calibration import TINY, delta_of

HALVINGS = 60


def projected_ratio(
    model_norm: ArrayLike, sigma: ArrayLike, *, learning_rate: ArrayLike = 0.0, gradient_norm: ArrayLike = 0.0
) -> Float[Array, ""]:
    """How far apart a step with a projection leaves two runs, in deviations of its noise.

    Args:
        model_norm: C2, radius of the ball.
        sigma: deviation of the noise, positive.
        learning_rate: g, where noise comes before the projection; else 0.
        gradient_norm: C1, norm that the whole update is clipped to there, weight decay included; else 0.

    Returns:
        Float64[], r of the module, rounded up.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> float(jaxunlearn.certificates.projected_ratio(1.0, 2.0)) < 1.0 + 1e-9
        True
    """
    for name, value in (("model_norm", model_norm), ("learning_rate", learning_rate), ("gradient_norm", gradient_norm)):
        checks.check_range(name, value, low=0)
    checks.check_range("sigma", sigma, low=TINY)
    with jax.enable_x64(True):
        radius, sigma, rate, norm = (
            jnp.asarray(x).astype(jnp.float64) for x in (model_norm, sigma, learning_rate, gradient_norm)
        )
        return 2 * (radius + rate * norm) / sigma * (1 + 1e-15)


def projected_delta(
    ratio: ArrayLike, epsilon: ArrayLike, *, num_steps: int, start_ratio: ArrayLike | None = None
) -> Float[Array, ""]:
    """Delta that is left after noisy steps with a projection.

    Args:
        ratio: r of each step, at least 0: Float[] or [num_steps].
        epsilon: at least 0 and finite.
        num_steps: T, may be 0 with a `start_ratio`; static.
        start_ratio: `2 C0 / sigma_0` of a clipped start with noise; None where it has none.

    Returns:
        Float64[], rounded up; 1 says nothing.

    Raises:
        ValueError: a value out of range.

    References:
        Koloskova, Allouah, Jha, Guerraoui, Koyejo: Certified unlearning for neural networks, 2025, arXiv 2506.06985. Balle,
        Barthe, Gaboardi: Privacy amplification by subsampling, 2018, arXiv 1807.01647.

    Example:
        >>> [float(jaxunlearn.certificates.projected_delta(1.0, 1.0, num_steps=t)) < 1e-5 for t in (2, 3)]
        [False, True]
    """
    checks.require_count("num_steps", num_steps, least=0)
    checks.check_range("ratio", ratio, low=0)
    checks.check_range("epsilon", epsilon, low=0, high=float(np.finfo(np.float64).max))
    with jax.enable_x64(True):
        epsilon = jnp.asarray(epsilon).astype(jnp.float64)
        ratios = jnp.broadcast_to(jnp.asarray(ratio).astype(jnp.float64), (num_steps,))
        first = jnp.float64(1.0) if start_ratio is None else delta_of(1.0, start_ratio, epsilon)

        def step(delta, ratio):
            known = jnp.maximum(delta, TINY)
            rest = epsilon - jnp.log(known) + jnp.log1p(-(1 - known) * jnp.exp(-epsilon))
            # delta = 1 leaves epsilon itself; rounding of `rest` is paid for by making it smaller
            rest = jnp.maximum(rest * (1 - 1e-14) - 1e-14, 0)
            return known * delta_of(1.0, ratio, rest), None

        return jnp.minimum(jax.lax.scan(step, first, ratios)[0], 1)


def projected_noise(
    model_norm: ArrayLike,
    epsilon: ArrayLike,
    delta: ArrayLike,
    *,
    num_steps: int,
    learning_rate: ArrayLike = 0.0,
    gradient_norm: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """Smallest noise per step that makes runs with a projection (epsilon, delta) close, whatever they started from.

    Args:
        model_norm, learning_rate, gradient_norm: as for `projected_ratio`.
        epsilon: positive and finite.
        delta: in (0, 1).
        num_steps: T, at least 1; static.

    Returns:
        Float64[], in the unit of `model_norm`, rounded up.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> one, ten = (float(jaxunlearn.certificates.projected_noise(1.0, 1.0, 1e-5, num_steps=t)) for t in (1, 10))
        >>> print(f"{one:.2f} {ten:.2f}")
        7.46 0.75
    """
    checks.require_count("num_steps", num_steps)
    checks.check_range("epsilon", epsilon, low=TINY, high=float(np.finfo(np.float64).max))
    checks.check_range("delta", delta, low=TINY, high=1)
    with jax.enable_x64(True):
        epsilon, delta = (jnp.asarray(x).astype(jnp.float64) for x in (epsilon, delta))

        def halve(_, ends):
            allowed, refused, epsilon, delta = ends
            middle = jnp.sqrt(allowed * refused)
            good = projected_delta(middle, epsilon, num_steps=num_steps) <= delta
            return jnp.where(good, middle, allowed), jnp.where(good, refused, middle), epsilon, delta

        # one step at this ratio is enough alone, and at the other end T steps together leave nearly all of delta_0
        low = delta * np.sqrt(2 * np.pi) * (1 - 1e-9)
        ratio = jax.lax.fori_loop(0, HALVINGS, halve, (low, 2 * jnp.sqrt(2 * epsilon) + 100.0, epsilon, delta))[0]
        return projected_ratio(model_norm, 1.0, learning_rate=learning_rate, gradient_norm=gradient_norm) / ratio * (1 + 1e-15)


def projected_epsilon(ratio: ArrayLike, delta: ArrayLike, *, num_steps: int) -> Float[Array, ""]:
    """Smallest epsilon at which noisy steps with a projection leave no more than `delta`.

    Args:
        ratio: as for `projected_delta`.
        delta: in (0, 1).
        num_steps: T, at least 1; static.

    Returns:
        Float64[], rounded up; 0 where delta alone covers the difference.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> print(f"{jaxunlearn.certificates.projected_epsilon(1.0, 1e-5, num_steps=3):.2f}")
        0.47
    """
    checks.require_count("num_steps", num_steps)
    checks.check_range("delta", delta, low=TINY, high=1)
    with jax.enable_x64(True):
        ratio, delta = (jnp.asarray(x).astype(jnp.float64) for x in (ratio, delta))
        largest = jnp.min(jnp.broadcast_to(ratio, (num_steps,)))
        # a single step proves the upper end
        top = largest * (jnp.sqrt(-2 * jnp.log(delta)) + largest / 2) * (1 + 1e-12)

        def halve(_, ends):
            allowed, refused, ratio, delta = ends
            middle = (allowed + refused) / 2
            good = projected_delta(ratio, middle, num_steps=num_steps) <= delta
            return jnp.where(good, middle, allowed), jnp.where(good, refused, middle), ratio, delta

        found = jax.lax.fori_loop(0, HALVINGS, halve, (top, jnp.zeros_like(top), ratio, delta))[0]
        return jnp.where(projected_delta(ratio, 0.0, num_steps=num_steps) <= delta, 0, found)
