"""Diffusion over the weights of a network that predicts the clean weights (G.pt: Peebles, Radosavovic, Brooks, Efros, Malik:
Learning to learn with generative models of neural network checkpoints, 2022, arXiv 2209.12892).

    x_t = sqrt(a_t) x + sqrt(1 - a_t) e,    e ~ N(0, I),    a_t = prod_{i <= t} (1 - beta_i)
    loss = mean_j (H(x_t, start, condition, t) - x)_j^2

H sees the network that it starts from, and what it is told, at every step. All functions take one network; `jax.vmap` makes
batches of them.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks
from jaxunlearn.types import Scalar

NUM_STEPS, FIRST, LAST = 1000, 1e-4, 0.02  # of G.pt, as of Ho, Jain, Abbeel 2020


class Denoise(Protocol):
    """`denoise(params, noised, start, condition, step) -> Float[p]`: the clean vector, of one network.

    A network whose last layer is zero at first, and that adds `start` to it, begins as the identity `H == start`.
    """

    def __call__(
        self,
        params: PyTree,
        noised: Float[Array, " p"],
        start: Float[Array, " p"],
        condition: Float[Array, " q"],
        step: Int[Array, ""],
        /,
    ) -> Float[Array, " p"]: ...


class Schedule(NamedTuple):
    """How much noise a step of the diffusion has, least first."""

    steps: Int[Any, " t"]  # the number that the denoiser is told
    signal: Float[Any, " t"]  # sqrt(a_t)
    noise: Float[Any, " t"]  # sqrt(1 - a_t)
    beta: Float[Any, " t"]  # variance that a step adds


class Hypernetwork(NamedTuple):
    """A denoiser and what belongs to its training. Its `denoise` is static: close over it under `jit`."""

    denoise: Denoise
    params: PyTree
    scale: Scalar = 1.0  # that parameters were multiplied by, see `scale_of`
    schedule: Schedule | None = None  # None for `linear_schedule()`


def linear_schedule(num_steps: int = NUM_STEPS, *, first: float = FIRST, last: float = LAST) -> Schedule:
    """Variances from `first` to `last`, which are those of a thousand steps: fewer steps have larger ones.

    Args:
        num_steps: T, static.
        first, last: `beta_t` runs from `1000 / T first` to `1000 / T last`.

    Returns:
        A `Schedule` on the host, in float64.

    Raises:
        ValueError: a number of steps so small that a variance reaches 1, or variances that are not in (0, 1).

    Example:
        >>> jaxunlearn.hypernetworks.linear_schedule(50).beta.shape
        (50,)
    """
    checks.require_count("num_steps", num_steps)
    beta = np.linspace(first, last, num_steps) * (NUM_STEPS / num_steps)
    if not np.all((beta > 0) & (beta < 1)):
        raise ValueError(
            f"variances of steps must lie in (0, 1), got {beta.min():.3g} to {beta.max():.3g}: with last={last} take more than "
            f"{NUM_STEPS * last:.0f} steps; fewer come from respaced(schedule, num_steps)"
        )
    return _schedule(np.arange(num_steps), np.cumprod(1 - beta))


def respaced(schedule: Schedule, num_steps: int) -> Schedule:
    """Some steps of a schedule, at equal distances with the first and the last one: sampling in fewer calls of the denoiser.

    Args:
        schedule: of the training.
        num_steps: how many are kept, at least 2 if there are as many.

    Returns:
        A `Schedule` whose `steps` are numbers of the one given.

    Raises:
        ValueError: more steps than there are, or none.

    Example:
        >>> schedule = jaxunlearn.hypernetworks.linear_schedule(1000)
        >>> jaxunlearn.hypernetworks.respaced(schedule, 4).steps.tolist()
        [0, 333, 666, 999]
    """
    there = len(schedule.steps)
    checks.require_count("num_steps", num_steps, least=min(2, there))
    if num_steps > there:
        raise ValueError(f"the schedule has {there} steps, fewer than num_steps={num_steps}")
    places = np.round(np.linspace(0, there - 1, num_steps)).astype(int)
    return _schedule(np.asarray(schedule.steps)[places], np.asarray(schedule.signal, np.float64)[places] ** 2)


def _schedule(steps: np.ndarray, kept: np.ndarray) -> Schedule:
    beta = 1 - kept / np.concatenate([[1.0], kept[:-1]])
    return Schedule(steps.astype(np.int32), np.sqrt(kept), np.sqrt(1 - kept), beta)


def noised(
    schedule: Schedule, clean: Float[Array, " p"], place: int | Int[Array, ""], noise: Float[Array, " p"]
) -> Float[Array, " p"]:
    """A clean vector after some steps: `sqrt(a_t) x + sqrt(1 - a_t) e`.

    Args:
        schedule: of the diffusion.
        clean: x.
        place: Int[], which entry of the schedule, from 0.
        noise: e, standard normal.

    Returns:
        Float[p].

    Example:
        >>> schedule = jaxunlearn.hypernetworks.linear_schedule()
        >>> late = jaxunlearn.hypernetworks.noised(schedule, jnp.full(3, 100.0), 999, jnp.zeros(3))
        >>> bool(jnp.all(late < 1))
        True
    """
    signal, spread = (jnp.asarray(x, clean.dtype)[place] for x in (schedule.signal, schedule.noise))
    return signal * clean + spread * noise


def denoising_loss(
    hypernetwork: Hypernetwork,
    start: Float[Array, " p"],
    goal: Float[Array, " p"],
    condition: Float[Array, " q"],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """What a hypernetwork is trained on: the mean squared error of its prediction of the clean vector, at a random step.

    Args:
        hypernetwork: its `params` are what is trained: `loss(hypernetwork._replace(params=params), ...)`.
        start: the network that it starts from, scaled, see `to_vector`.
        goal: the network that it shall make.
        condition: what it is told of the two, see `jaxunlearn.hypernetworks.condition`.
        key: of step and noise.

    Returns:
        Float[], of one pair; a batch is `jax.vmap` over pairs and keys, and a mean.

    Raises:
        ValueError: vectors that differ in shape, or a denoiser that makes another one.

    Example:
        >>> from jaxunlearn import hypernetworks
        >>> def denoise(params, noised, start, condition, step):
        ...     return start + params["gain"] * noised
        >>> before = hypernetworks.Hypernetwork(denoise, {"gain": jnp.zeros(5)})
        >>> loss = hypernetworks.denoising_loss(before, jnp.zeros(5), jnp.ones(5), jnp.zeros(3), key)
        >>> float(loss)  # it begins as the identity
        1.0
    """
    if jnp.shape(start) != jnp.shape(goal):
        raise ValueError(f"start and goal are two networks of one form, got vectors {jnp.shape(start)} and {jnp.shape(goal)}")
    schedule = _schedule_of(hypernetwork)
    step_key, noise_key = jax.random.split(key)
    place = jax.random.randint(step_key, (), 0, len(schedule.steps))
    seen = noised(schedule, goal, place, jax.random.normal(noise_key, goal.shape, goal.dtype))
    made = _predicted(hypernetwork, seen, start, condition, jnp.asarray(schedule.steps)[place])
    return jnp.mean((made - goal) ** 2)


def sample(
    hypernetwork: Hypernetwork,
    start: Float[Array, " p"],
    condition: Float[Array, " q"],
    key: PRNGKeyArray,
    *,
    eta: Scalar = 1.0,
) -> Float[Array, " p"]:
    """A network, from noise, in as many calls of the denoiser as its schedule has steps.

    With x the prediction of H at x_t, s = t - 1 and z ~ N(0, I),

        x_s = sqrt(a_s) x + sqrt(1 - a_s - eta^2 beta_t (1 - a_s) / (1 - a_t)) (x_t - sqrt(a_t) x) / sqrt(1 - a_t)
              + eta sqrt(beta_t) z,

    without noise in the last step, which returns x. Nothing is clipped.

    Args:
        hypernetwork: with `schedule=respaced(schedule, n)` it samples in n steps.
        start: the network that it starts from, scaled.
        condition: what it is told.
        key: of all noise.
        eta: in [0, 1], may be traced. 1 is ancestral sampling with the variance of G.pt; 0 draws noise at the start only (DDIM:
            Song, Meng, Ermon, ICLR 2021, arXiv 2010.02502).

    Returns:
        Float[p], scaled.

    Raises:
        ValueError: `eta` outside [0, 1], or a denoiser that makes a vector of another shape.

    Example:
        >>> from jaxunlearn import hypernetworks
        >>> identity = hypernetworks.Hypernetwork(lambda params, noised, start, condition, step: start, ())
        >>> hypernetworks.sample(identity, jnp.arange(3.0), jnp.zeros(0), key).tolist()
        [0.0, 1.0, 2.0]
    """
    checks.check_range("eta", eta, low=0, high=1)
    schedule = _schedule_of(hypernetwork)
    steps = jnp.asarray(schedule.steps)
    signal, noise, beta = (jnp.asarray(x, start.dtype) for x in schedule[1:])
    eta = jnp.asarray(eta, start.dtype)
    first_key, loop_key = jax.random.split(key)

    def back(x, now):
        place, step, signal, noise, beta, signal_before, noise_before = now
        made = _predicted(hypernetwork, x, start, condition, step)
        kept = noise_before * jnp.sqrt(jnp.maximum(1 - eta**2 * beta / noise**2, 0))  # rounding alone would make it negative
        spread = jnp.where(place > 0, eta * jnp.sqrt(beta), 0)
        fresh = jax.random.normal(jax.random.fold_in(loop_key, place), x.shape, x.dtype)
        return signal_before * made + kept * (x - signal * made) / noise + spread * fresh, None

    signal_before = jnp.concatenate([jnp.ones(1, start.dtype), signal[:-1]])
    noise_before = jnp.concatenate([jnp.zeros(1, start.dtype), noise[:-1]])
    passed = (jnp.arange(len(steps)), steps, signal, noise, beta, signal_before, noise_before)
    x = jax.random.normal(first_key, start.shape, start.dtype)
    return jax.lax.scan(back, x, passed, reverse=True)[0]


def _schedule_of(hypernetwork: Hypernetwork) -> Schedule:
    return linear_schedule() if hypernetwork.schedule is None else hypernetwork.schedule


def _predicted(hypernetwork: Hypernetwork, x, start, condition, step) -> Float[Array, " p"]:
    made = hypernetwork.denoise(hypernetwork.params, x, start, condition, step)
    if jnp.shape(made) != jnp.shape(start):
        raise ValueError(f"denoise must return the vector of one network, shape {jnp.shape(start)}, got {jnp.shape(made)}")
    return jnp.asarray(made, start.dtype)
