"""Membership inference attacks that know how the margin of one row varies over models: LiRA, and U-LiRA for unlearning.

Every row gets its own Gaussians, fitted to the margins (`jaxunlearn.audit.margins`) of models that did and did not see it.
An attack on the whole forget set flatters unlearning; these find the rows for which it failed.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxunlearn.audit.statistics.checks import require_finite, require_margins, require_models
from jaxunlearn.audit.statistics.intervals import t_interval
from jaxunlearn.checks import is_concrete
from jaxunlearn.proportions import Interval

LEAST_SPREAD = 1e-6  # of a Gaussian: margins that all models agree on
Variance = Literal["each", "pooled"]
Score = Literal["online", "tail", "density"]


def lira(
    target_margins: Float[Array, "... e"],
    shadow_margins: Float[Array, "m e"],
    members: Bool[Array, "m e"],
    *,
    score: Score = "online",
    variance: Variance = "each",
) -> Float[Array, "... e"]:
    """Likelihood ratio of having seen a row against not having seen it.

        online:  log N(phi; mu_in, s_in) - log N(phi; mu_out, s_out)
        tail:    -log P[Z > phi],  Z ~ N(mu_out, s_out)    (offline, the paper's)
        density: -log N(phi; mu_out, s_out)                (offline, the published code's; high on both sides of mu_out)

    Args:
        target_margins: of attacked models on e rows; leading axes are kept.
        shadow_margins: of m other models that were trained on random halves of the rows.
        members: which of them saw which row.
        score: as above; `tail` and `density` use only the models that did not see a row.
        variance: unbiased, of `each` row by itself, or `pooled` within rows, for fewer than about 64 shadow models. The
            published code's fixed variance is that of all margins about one mean, differences between rows included.

    Returns:
        Scores of the shape of `target_margins`, in nats, higher for members.

    Raises:
        ValueError: shapes that do not fit, margins that are not finite, or a row with fewer than two models on a side that is
            needed.

    References:
        Carlini, Chien, Nasr, Song, Terzis, Tramer: Membership inference attacks from first principles, 2022, arXiv 2112.03570.

    Example:
        >>> margins, members = jax.random.normal(key, (9, 5)), jnp.arange(8)[:, None] % 2 == jnp.arange(5) % 2
        >>> jaxunlearn.audit.lira(margins[8], margins[:8] + 3 * members, members).shape
        (5,)
    """
    target, shadows, members = jnp.asarray(target_margins), jnp.asarray(shadow_margins), jnp.asarray(members, bool)
    if shadows.ndim != 2 or members.shape != shadows.shape or target.shape[-1:] != shadows.shape[1:]:
        raise ValueError(
            f"lira: expected target margins [..., e], shadow margins and members [m, e], got {target.shape}, {shadows.shape}, "
            f"{members.shape}"
        )
    if variance not in ("each", "pooled"):
        raise ValueError(f"lira: variance must be 'each' or 'pooled', got {variance!r}")
    if score not in ("online", "tail", "density"):
        raise ValueError(f"lira: score must be 'online', 'tail' or 'density', got {score!r}")
    require_finite("lira", **{"target margins": target, "shadow margins": shadows})
    if is_concrete(members):
        counts = np.asarray(members).sum(axis=0)
        scarce = np.minimum(counts, len(members) - counts) if score == "online" else len(members) - counts
        require_models("lira", int(scarce.min()), 2)
    unseen = _gaussian(shadows, ~members, variance)
    if score == "tail":  # as a logarithm: the probability itself is 1 for all confident members
        return -jax.scipy.stats.norm.logsf(target, *unseen)
    if score == "density":
        return -jax.scipy.stats.norm.logpdf(target, *unseen)
    seen = _gaussian(shadows, members, variance)
    return jax.scipy.stats.norm.logpdf(target, *seen) - jax.scipy.stats.norm.logpdf(target, *unseen)


def _gaussian(margins: Array, chosen: Array, variance: Variance) -> tuple[Array, Array]:
    """Mean and deviation [e] over the chosen models."""
    count = chosen.sum(axis=0)
    mean = jnp.sum(jnp.where(chosen, margins, 0), axis=0) / count
    squares = jnp.sum(jnp.where(chosen, (margins - mean) ** 2, 0), axis=0)
    spread = squares.sum() / (count - 1).sum() if variance == "pooled" else squares / (count - 1)
    return mean, jnp.maximum(jnp.sqrt(spread), LEAST_SPREAD)


class ULira(NamedTuple):
    """What `u_lira` returns."""

    accuracy: Interval  # over examples, of balanced guesses on models that no Gaussian was fitted to; 0.5 is perfect unlearning
    by_example: Float[Array, " e"]
    candidate_scores: Float[Array, "n e"]  # probability that the model saw the row and unlearned it
    reference_scores: Float[Array, "m e"]


def u_lira(
    candidate_margins: Float[Array, "n e"], reference_margins: Float[Array, "m e"], *, variance: Variance = "each"
) -> ULira:
    """Tell models that unlearned a row from models that never saw it, with separate Gaussians for each row.

        score(z) = N(z; mu_u, s_u) / (N(z; mu_u, s_u) + N(z; mu_r, s_r)),    "unlearned" if above 1/2

    Gaussians are fitted to one half of the models and score the other half, both ways round, so that nothing is scored by what
    it helped to fit: leaving out single models would pull the accuracy of perfect unlearning below 0.5.

    A constant margin makes the attack useless without any forgetting: read it beside accuracies.

    Args:
        candidate_margins: of n unlearned models, each from an original of its own.
        reference_margins: of m retrained models.
        variance: as in `lira`.

    Returns:
        `ULira`. The interval takes examples as independent and models as fixed.

    Raises:
        ValueError: margins that are not [models, examples], different examples, fewer than four models, margins that are
            not finite, an unknown `variance`.

    References:
        Hayes, Shumailov, Triantafillou, Khalifa, Papernot: Inexact unlearning needs more careful evaluations to avoid a
        false sense of privacy, 2024, arXiv 2403.01218.

    Example:
        >>> retrained, other = jax.random.normal(key, (2, 64, 50))
        >>> bool(jaxunlearn.audit.u_lira(other + 2, retrained).accuracy.low > 0.7)
        True
    """
    candidate, compared = require_margins("u_lira", candidate_margins, reference_margins, least=4)
    require_finite("u_lira", **{"candidate margins": candidate, "reference margins": compared})
    if variance not in ("each", "pooled"):
        raise ValueError(f"u_lira: variance must be 'each' or 'pooled', got {variance!r}")
    halves = [(x[: x.shape[0] // 2], x[x.shape[0] // 2 :]) for x in (candidate, compared)]

    def scored(fit: int) -> list[Array]:
        laws = [_gaussian(side[fit], jnp.ones_like(side[fit], bool), variance) for side in halves]
        tests = [side[1 - fit] for side in halves]
        log = [[jax.scipy.stats.norm.logpdf(test, *law) for law in laws] for test in tests]
        return [jax.nn.sigmoid(unlearned - retrained) for unlearned, retrained in log]

    (late_candidate, late_reference), (early_candidate, early_reference) = scored(0), scored(1)
    candidate_scores = jnp.concatenate([early_candidate, late_candidate])
    reference_scores = jnp.concatenate([early_reference, late_reference])

    def votes(scores: Array) -> Array:
        return jnp.mean(jnp.where(jnp.isnan(scores), scores, jnp.where(scores == 0.5, 0.5, scores > 0.5)), axis=0)

    by_example = (votes(candidate_scores) + 1 - votes(reference_scores)) / 2
    return ULira(t_interval(by_example), by_example, candidate_scores, reference_scores)
