"""How many tries a guard needs: split conformal prediction on stopping times. It suppresses outputs and removes nothing.

A guard lets a generator try until a verifier accepts (`guarded`). The score of a prompt is the first try that is accepted, inf
if none is. With n calibration prompts, exchangeable with those to come,

    k = ceil((n + 1)(1 - alpha)),    q = the k-th smallest score,    P(a new prompt is accepted within q tries) >= k / (n + 1)

over calibration and test draws together; equal to it without ties. Given the calibration prompts the coverage is distributed as
Beta(k, n + 1 - k) without ties, and better with ties. `confidence` takes the smallest k with

    P(Beta(k, n + 1 - k) >= 1 - alpha) >= confidence

instead, so that the coverage of this one calibration is at least 1 - alpha with that probability. Where k > n or q = inf there
is no finite budget, and none is returned.

The coverage is a mean over prompts, not that of each one; it fails where prompts are chosen by an adversary or come from
elsewhere, and many questions about one thing add up. Nothing here says that an accepted output is right: that is
`verifier_error_bound`.
"""

from fractions import Fraction
from functools import lru_cache
from math import comb
from numbers import Rational
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn import checks
from jaxunlearn.proportions import Interval, beta_logit_quantile, check_level, clopper_pearson, inexact


class Budget(NamedTuple):
    """A calibrated number of tries, [] or one for each group, [g]."""

    budget: Float[Array, "..."]  # tries; inf where infeasible, never a finite number that promises nothing
    feasible: Bool[Array, "..."]
    rank: Int[Array, "..."]  # k; above `num_prompts` where there are too few prompts
    num_prompts: Int[Array, "..."]  # n, of calibration prompts
    level: Float[Array, "..."]  # 1 - alpha


def stopping_times(accepts: Bool[Array, "... t"]) -> Float[Array, "..."]:
    """The first accepted try of each prompt.

    Args:
        accepts: what the verifier said of try 1, 2, ... along the last axis.

    Returns:
        Counted from 1; inf where none was accepted.

    Example:
        >>> jaxunlearn.guards.stopping_times(jnp.array([[False, True], [False, False]])).tolist()
        [2.0, inf]
    """
    accepts = jnp.asarray(accepts, bool)
    if accepts.ndim == 0:
        raise ValueError("accepts needs an axis of tries, got a single value")
    if accepts.shape[-1] == 0:
        return jnp.full(accepts.shape[:-1], jnp.inf)
    return jnp.where(jnp.any(accepts, axis=-1), jnp.argmax(accepts, axis=-1) + 1.0, jnp.inf)


def calibrate(
    scores: Float[Array, " n"],
    *,
    alpha: float | Rational,
    groups: Int[Array, " n"] | None = None,
    num_groups: int | None = None,
    present: Float[Array, " n"] | None = None,
    confidence: float | Rational | None = None,
) -> Budget:
    """The number of tries within which a new prompt is accepted with probability 1 - alpha or more.

    Ranks are found in exact arithmetic on the host, for every number of prompts at once, and gathered; so `scores`, `present`
    and `groups` may be traced, and many requests are one `jax.vmap`. The order of prompts does not matter.

    Args:
        scores: stopping times of prompts that nothing else was chosen with; inf, or NaN, where no try was accepted.
        alpha: share of prompts that may be refused, in (0, 1), static. A float is read as the decimal that it is printed as;
            for a third write `fractions.Fraction(1, 3)`.
        groups: group of each prompt, e.g. its topic: every group gets its own budget and its own promise (Mondrian).
        num_groups: how many, with `groups`.
        present: 0 for padding, which counts for nothing.
        confidence: probability, over calibration prompts, that the coverage is at least 1 - alpha; None: it is so in the mean.

    Returns:
        A `Budget`, with an axis [g] with `groups`. Look at `feasible`: too few prompts (at least `1 / alpha - 1` in the mean),
        or too many that were never accepted, have no finite budget.

    Raises:
        ValueError: alpha or confidence outside (0, 1), shapes that do not fit, groups out of range. TypeError: a traced alpha.

    References:
        Vovk, Gammerman, Shafer: Algorithmic learning in a random world, 2005 (conditional and Mondrian prediction).
        Vovk: Conditional validity of inductive conformal predictors, 2012, arXiv 1209.2673 (the Beta distribution of coverage).
        Basu Roy Chowdhury, Kidambi, Dubey, Wang, Mergen, Ahmed, Mehta: Inference-time unlearning using conformal prediction,
        2026, arXiv 2602.03787.

    Example:
        >>> budget = jaxunlearn.guards.calibrate(jnp.arange(99) % 7 + 1.0, alpha=0.1)
        >>> int(budget.budget), int(budget.rank), bool(budget.feasible)
        (7, 90, True)
        >>> bool(jaxunlearn.guards.calibrate(jnp.ones(5), alpha=0.1).feasible)
        False
    """
    scores = inexact(scores)
    if scores.ndim != 1:
        raise ValueError(f"calibrate takes the scores of one request, [n], got {scores.shape}; jax.vmap it over requests")
    counted = jnp.ones(scores.shape, bool) if present is None else jnp.asarray(present) > 0
    if counted.shape != scores.shape:
        raise ValueError(f"present has shape {counted.shape}, and scores have {scores.shape}")
    if groups is not None:
        counted = counted & _masks(groups, num_groups, scores.shape)
    elif num_groups is not None:
        raise ValueError("num_groups goes with groups, which says the group of each prompt")
    count = jnp.sum(counted, axis=-1)
    rank = jnp.asarray(ranks(scores.shape[0], alpha, confidence))[count]
    ordered = jnp.sort(jnp.where(counted & ~jnp.isnan(scores), scores, jnp.inf), axis=-1)
    ordered = jnp.concatenate([ordered, jnp.full((*ordered.shape[:-1], 1), jnp.inf, ordered.dtype)], axis=-1)
    chosen = jnp.take_along_axis(ordered, rank[..., None] - 1, axis=-1)[..., 0]
    feasible = (rank <= count) & jnp.isfinite(chosen)
    level = jnp.full(rank.shape, 1 - float(_exact("alpha", alpha)), scores.dtype)
    return Budget(jnp.where(feasible, chosen, jnp.inf), feasible, rank, count, level)


def _masks(groups: Any, num_groups: int | None, shape: tuple[int, ...]) -> Bool[Array, "g n"]:
    if num_groups is None:
        raise ValueError("groups needs num_groups, which fixes shapes")
    checks.require_count("num_groups", num_groups)
    if jnp.shape(groups) != shape or not jnp.issubdtype(jnp.result_type(groups), jnp.integer):
        raise ValueError(f"groups must be integers of shape {shape}, got {jnp.result_type(groups)} {jnp.shape(groups)}")
    if checks.is_concrete(groups) and np.any((np.asarray(groups) < 0) | (np.asarray(groups) >= num_groups)):
        raise ValueError(f"groups must lie in 0 to {num_groups - 1}; padding is said by present")
    return jnp.asarray(groups) == jnp.arange(num_groups)[:, None]


def ranks(most: int, alpha: Any, confidence: Any = None) -> Int[np.ndarray, " m"]:
    """The rank k for every number of calibration prompts from 0 to `most`, exactly; k = n + 1 or more where none is enough."""
    level = None if confidence is None else _exact("confidence", confidence)
    return _ranks(most, _exact("alpha", alpha), level)


def _exact(name: str, value: Any) -> Fraction:
    """The decimal that a number is printed as: 0.1 is a tenth, and not the binary number next to it."""
    if not checks.is_concrete(value):
        raise TypeError(f"{name} decides a rank in exact arithmetic, so it cannot be traced")
    try:
        exact = Fraction(value) if isinstance(value, Rational) else Fraction(str(value))
    except ValueError:
        raise TypeError(f"{name} must be one number in (0, 1), got {value!r}") from None
    if not 0 < exact < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}")
    return exact


@lru_cache(maxsize=64)
def _ranks(most: int, alpha: Fraction, confidence: Fraction | None) -> Int[np.ndarray, " m"]:
    if confidence is None:
        kept = alpha.denominator - alpha.numerator
        return np.array([-(-(n + 1) * kept // alpha.denominator) for n in range(most + 1)], np.int32)
    from scipy.special import betainc

    n = np.arange(most + 1)
    low, high = np.zeros_like(n), n + 1  # k lies in (low, high]
    while np.any(high - low > 1):
        middle = (low + high) // 2
        inside = (middle > low) & (middle < high)
        at = np.where(inside, middle, 1)
        enough = betainc(np.where(inside, n + 1 - at, 1), at, float(alpha))  # P(Beta(k, n + 1 - k) >= 1 - alpha)
        close = inside & (np.abs(enough - float(confidence)) < 1e-11)
        reached = enough >= float(confidence)
        reached[close] = [_reaches(int(n[i]), int(at[i]), alpha, confidence) for i in np.flatnonzero(close)]
        low, high = np.where(inside & ~reached, middle, low), np.where(inside & reached, middle, high)
    return high.astype(np.int32)


def _reaches(n: int, rank: int, alpha: Fraction, confidence: Fraction) -> bool:
    """Whether P(Bin(n, 1 - alpha) < k) >= confidence, in whole numbers: rounding must not decide."""
    lost, all_of = alpha.numerator, alpha.denominator
    below = sum(comb(n, i) * (all_of - lost) ** i * lost ** (n - i) for i in range(rank))
    return below * confidence.denominator >= confidence.numerator * all_of**n


def coverage(budget: Budget, level: float = 0.95) -> Interval:
    """What share of new prompts will be accepted within the budget: its mean, and its spread over calibrations.

    Args:
        budget: of `calibrate`.
        level: probability that the coverage lies between the limits, static.

    Returns:
        An `Interval` of shape of the budget: `k / (n + 1)` and quantiles of Beta(k, n + 1 - k), which the coverage follows
        without ties; with ties, as stopping times have them, it is better than that. NaN where infeasible.

    Raises:
        ValueError: a level outside (0, 1).

    Example:
        >>> spread = jaxunlearn.guards.coverage(jaxunlearn.guards.calibrate(jnp.arange(99.0), alpha=0.1))
        >>> print(f"{spread.estimate:.2f} [{spread.low:.2f}, {spread.high:.2f}]")
        0.90 [0.83, 0.95]
    """
    check_level(level)
    known = budget.feasible
    rank = jnp.where(known, budget.rank, 1).astype(budget.level.dtype)
    count = jnp.where(known, budget.num_prompts, 1).astype(budget.level.dtype)
    tails = [jax.nn.sigmoid(beta_logit_quantile(rank, count + 1 - rank, tail)) for tail in ((1 - level) / 2, (1 + level) / 2)]
    return Interval(*(jnp.where(known, x, jnp.nan) for x in (rank / (count + 1), *tails)))


def verifier_error_bound(
    false_accepts: ArrayLike, trials: ArrayLike, *, confidence: float = 0.95, tries: ArrayLike = 1
) -> Float[Array, "..."]:
    """Upper bound on the probability that a guard returns an output that it should not have returned.

    A refusal violates nothing, so this bounds all violations, whatever alpha is.

    Args:
        false_accepts: of labelled trials, those that the verifier accepted and that violate the requirement.
        trials: independent ones. Best are whole runs of the guard, ended by its budget, one a prompt; `tries` is then 1.
            Single tries are fine too if none of the tries of a run is worse than they are.
        confidence: of the bound, in (1/2, 1), static; one-sided, of Clopper and Pearson.
        tries: of a run; where single tries were labelled, the budget, by the union bound. With several candidates a round,
            their number times the budget.

    Returns:
        beta, in [0, 1], of the shape of the arguments.

    Raises:
        ValueError: a confidence outside (1/2, 1), or counts that are no counts.

    References:
        Clopper, Pearson: The use of confidence or fiducial limits illustrated in the case of the binomial, 1934,
        doi 10.1093/biomet/26.4.404.

    Example:
        >>> print(f"{jaxunlearn.guards.verifier_error_bound(0, 100):.3f}")
        0.030
    """
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must lie between 1/2 and 1, got {confidence}")
    checks.check_range("tries", tries, low=0)
    concrete = [np.asarray(x) for x in (false_accepts, trials) if checks.is_concrete(x)]
    if any(np.any(x < 0) for x in concrete) or (len(concrete) == 2 and np.any(concrete[0] > concrete[1])):
        raise ValueError(f"expected 0 <= false_accepts <= trials, got {false_accepts} of {trials}")
    bound = clopper_pearson(false_accepts, trials, 2 * confidence - 1).high
    return jnp.minimum(bound * jnp.asarray(tries), 1)


def satisfied_bound(budget: Budget, beta: ArrayLike) -> Float[Array, "..."]:
    """Lower bound `1 - alpha - beta` on the probability that an answer is no refusal and meets the requirement.

    Args:
        budget: of `calibrate`; with `confidence` the bound holds with that probability, otherwise over calibrations.
        beta: see `verifier_error_bound`.

    Returns:
        In [0, 1]; 0 where the budget is infeasible.

    Example:
        >>> budget = jaxunlearn.guards.calibrate(jnp.arange(99.0), alpha=0.1)
        >>> print(f"{jaxunlearn.guards.satisfied_bound(budget, 0.03):.2f}")
        0.87
    """
    return jnp.where(budget.feasible, jnp.clip(budget.level - jnp.asarray(beta), 0, 1), 0)
