"""Exposure of a canary: how far in front of other texts of its kind a model puts a secret that it was trained on.

Carlini, Liu, Erlingsson, Kos, Song: The secret sharer: evaluating and testing unintended memorization in neural networks, 2019,
arXiv 1802.08232. A canary is a text with some tokens drawn at random, so that a model that never saw it has no reason to prefer
it: the exposure of such a model has mean 1 / ln 2 = 1.44 bits, whatever the model.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.proportions import Interval, clopper_pearson

Method = Literal["enumeration", "sampling", "skew-normal", "gaussian"]
LARGEST_SKEW = 0.99  # a skew-normal law has less than 0.9953
ALL_BELOW = 10.0  # deviations below which every skew-normal law has all of its mass, to 1e-22
NUM_RESAMPLES = 200


def alternatives(
    canary: Int[Array, " t"],
    free: Bool[Array, " t"],
    choices: Int[Array, " c"],
    key: PRNGKeyArray | None = None,
    *,
    count: int | None = None,
) -> Int[Array, "n t"]:
    """Texts that a canary might have been: all of them, or some that are drawn.

    Args:
        canary: tokens.
        free: which f of them were drawn at random; known values, since they decide how many texts there are.
        choices: tokens that each of these was drawn from.
        key: draws `count` texts, with replacement; without it all `c^f` are listed.
        count: how many to draw.

    Returns:
        Tokens. A list of all has the canary itself in it, where `jnp.all(texts == canary, axis=1)` is True.

    Raises:
        ValueError: no free token, shapes that do not fit, more than a million texts to list, a key without a count.

    Example:
        >>> jaxunlearn.audit.language.alternatives(jnp.array([7, 0]), [False, True], jnp.arange(3)).tolist()
        [[7, 0], [7, 1], [7, 2]]
    """
    canary, choices, places = jnp.asarray(canary), jnp.asarray(choices), np.flatnonzero(np.asarray(free))
    if canary.ndim != 1 or np.shape(free) != canary.shape or choices.ndim != 1 or not len(places):
        raise ValueError(
            f"alternatives: expected canary [t], free [t], choices [c], got {canary.shape}, {np.shape(free)}, {choices.shape}"
        )
    if (key is None) != (count is None):
        raise ValueError("alternatives: pass key and count to draw texts, neither to list all")
    if key is None:
        total = choices.size ** len(places)
        if total > 10**6:
            raise ValueError(f"alternatives: {total} texts are too many to list; draw some with key and count")
        digits = jnp.stack(jnp.unravel_index(jnp.arange(total), (choices.size,) * len(places)), axis=1)
    else:
        checks.require_count("count", count)
        total = int(count or 0)
        digits = jax.random.randint(key, (total, len(places)), 0, choices.size)
    return jnp.broadcast_to(canary, (total, canary.size)).at[:, places].set(choices[digits].astype(canary.dtype))


def exposure(
    canaries: Float[Array, " c"],
    others: Float[Array, "... n"],
    key: PRNGKeyArray | None = None,
    *,
    method: Method = "sampling",
    space: float | None = None,
    level: float = 0.95,
) -> Interval:
    """Exposure in bits, `log2 |R| - log2 rank = -log2 P[loss of a text of R <= loss of the canary]`.

        enumeration: the rank itself, among the losses of all texts of R; ties count half. No estimate, so no width.
        sampling:    the share of drawn texts that are at least as probable, with Clopper and Pearson's limits for that share;
                     it knows no exposure beyond log2(n + 1), and says so by an upper limit that is infinite, or log2 |R|
        skew-normal: the paper's extrapolation: the tail of a skew-normal law with mean, variance and skewness of drawn texts
        gaussian:    the same with a normal law, which is wrong where losses are skew

    Limits of the last two are quantiles over resampled texts; that the law is another one is not in them.

    Args:
        canaries: losses of c canaries, summed over their free tokens (or all: the others are the same for every text).
        others: losses of other texts, [n] for all canaries or [c, n]: of the whole space for `enumeration`, with the very
            number of the canary among them, of drawn texts otherwise.
        key: for the resamples, needed by `skew-normal` and `gaussian`.
        method: as above.
        space: |R|, which bounds exposures from above.
        level: confidence level.

    Returns:
        `Interval` of bits [c], at least 0. NaN where a loss is.

    Raises:
        ValueError: shapes that do not fit, another method, a key that is missing, a space below 1.

    Example:
        >>> losses = jnp.arange(8.0)
        >>> jaxunlearn.audit.language.exposure(losses[:2], losses, method="enumeration").estimate.tolist()
        [3.0, 2.0]
    """
    canaries, others = jnp.asarray(canaries), jnp.asarray(others)
    if (
        canaries.ndim != 1
        or others.ndim not in (1, 2)
        or (others.ndim == 2 and len(others) != len(canaries))
        or not others.size
    ):
        raise ValueError(f"exposure: expected canaries [c] and others [n] or [c, n], got {canaries.shape}, {others.shape}")
    if method not in ("enumeration", "sampling", "skew-normal", "gaussian"):
        raise ValueError(f"exposure: method must be enumeration, sampling, skew-normal or gaussian, got {method!r}")
    if space is not None:
        checks.check_range("space", space, low=1)
    most = jnp.inf if space is None else jnp.log2(space)
    number = others.shape[-1]

    def ranked(canary: Float[Array, ""], others: Float[Array, " n"]) -> Interval:
        less, same = jnp.sum(others < canary), jnp.sum(others == canary)
        if method == "enumeration":
            bits = jnp.log2(number) - jnp.log2(less + (jnp.maximum(same, 1) + 1) / 2)
            return Interval(bits, bits, bits)
        share = clopper_pearson(less + same, number, level)
        return Interval(jnp.log2((number + 1) / (less + same + 1)), -jnp.log2(share.high), -jnp.log2(share.low))

    def fitted(canary: Float[Array, ""], others: Float[Array, " n"], rows: Int[Array, "r n"]) -> Interval:
        def bits(others: Float[Array, " n"]) -> Float[Array, ""]:
            return -_log_share(canary, others, skew=method == "skew-normal") / np.log(2)

        # one at a time, so that memory does not grow with the resamples
        around = jax.lax.map(lambda chosen: bits(others[chosen]), rows)
        tail = (1 - level) / 2
        return Interval(bits(others), jnp.quantile(around, tail), jnp.quantile(around, 1 - tail))

    axes = (0, 0 if others.ndim == 2 else None)
    if method in ("enumeration", "sampling"):
        found = jax.vmap(ranked, axes)(canaries, others)
    else:
        if key is None:
            raise ValueError(f"exposure: {method} takes a key, for the resamples of its interval")
        checks.check_key(key)
        rows = jax.random.randint(key, (NUM_RESAMPLES, number), 0, number)
        found = jax.vmap(fitted, (*axes, None))(canaries, others, rows)
    known = ~jnp.isnan(canaries) & ~jnp.any(jnp.isnan(others), axis=-1)
    return jax.tree.map(lambda x: jnp.where(known, jnp.clip(x, 0, most), jnp.nan), found)


def _log_share(canary: Float[Array, ""], others: Float[Array, " n"], *, skew: bool) -> Float[Array, ""]:
    """Log of the share of a law fitted by its moments that lies at or below the canary."""
    mean, deviation = jnp.mean(others), jnp.std(others)
    spread = jnp.where(deviation > 0, deviation, 1)
    z = (canary - mean) / spread
    if skew:
        skewness = jnp.clip(jnp.mean(((others - mean) / spread) ** 3), -LARGEST_SKEW, LARGEST_SKEW)
        power = jnp.abs(skewness) ** (2 / 3)
        delta = jnp.sign(skewness) * jnp.sqrt(jnp.pi / 2 * power / (power + (2 - jnp.pi / 2) ** (2 / 3)))
        scale = 1 / jnp.sqrt(1 - 2 * delta**2 / jnp.pi)
        log = _skew_normal_log_cdf(z / scale + delta * jnp.sqrt(2 / jnp.pi), delta / jnp.sqrt(1 - delta**2))
    else:
        log = jax.scipy.stats.norm.logcdf(z)
    return jnp.where(deviation > 0, log, jnp.where(canary >= mean, 0, -jnp.inf))


def _skew_normal_log_cdf(z: Float[Array, ""], shape: Float[Array, ""]) -> Float[Array, ""]:
    """`log int_0^inf 2 phi(z - w) Phi(shape (z - w)) dw`, by the trapezoidal rule in log w."""
    steps = jnp.linspace(jnp.log(1e-6), jnp.log(100.0), 1024)
    x = z - jnp.exp(steps)
    density = jnp.log(2.0) + jax.scipy.stats.norm.logpdf(x) + jax.scipy.stats.norm.logcdf(shape * x)
    inside = jnp.minimum(jax.nn.logsumexp(density + steps) + jnp.log(steps[1] - steps[0]), 0)
    return jnp.where(z > ALL_BELOW, 0, inside)  # from there on the mass lies between steps, or beyond the last one
