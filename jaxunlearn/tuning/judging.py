"""How answers to proxy requests are judged: gaps to retrained models, or to what held-out rows let expect, in spreads."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from jaxunlearn.audit.single.outcome import Outcome
from jaxunlearn.types import ForgetRequest

MEASURES = ("retain", "forget", "test", "auc")
LEAST_SPREAD = 0.005  # half a point, and half a percent of a loss: spreads of few models can be 0 by chance

Spreads: TypeAlias = dict[str, float]
Objective: TypeAlias = Callable[[Outcome, Outcome, Spreads], float]


def worst_gap(found: Outcome, reference: Outcome, spreads: Spreads) -> float:
    """The objective of `tune`: the largest gap to retrained models, in their spreads, over accuracies and the attack's AUC.

    A gap is the root mean square over proxies, so that gaps of both signs do not cancel.

    Args:
        found: [p], of p proxies.
        reference: [s, p], of s retrained models for each of them.
        spreads: of one retrained model.

    Returns:
        In spreads; infinite if a value is NaN.

    Example:
        >>> found, reference = (jaxunlearn.audit.Outcome(*[jnp.full(shape, v)] * 5) for shape, v in ((2, 0.75), ((3, 2), 0.5)))
        >>> jaxunlearn.worst_gap(found, reference, dict.fromkeys(("retain", "forget", "test", "auc"), 0.125))
        2.0
    """
    worst = max(float(np.sqrt(np.mean(gap**2))) / spreads[name] for name, gap in gaps_to(found, reference).items())
    return math.inf if math.isnan(worst) else worst


def gaps_to(found: Outcome, reference: Outcome) -> dict[str, np.ndarray]:
    """[p], unlearned minus the mean of retrained models."""
    return {name: np.asarray(getattr(found, name)) - np.mean(getattr(reference, name), axis=0) for name in MEASURES}


def spreads_of(reference: Outcome) -> Spreads:
    """Of one retrained model at a fixed request, root mean square over proxies; never below the stated floor."""

    def spread(name: str) -> float:
        values = np.asarray(getattr(reference, name), np.float64)
        least = LEAST_SPREAD * max(1.0, abs(float(np.mean(values))))
        return max(float(np.sqrt(np.var(values, axis=0, ddof=1).mean())), least)

    return {name: spread(name) for name in MEASURES}


def gap_losses(found: Outcome, reference: Outcome, proxies: Sequence[int]) -> Float[np.ndarray, " p"]:
    """The larger one of forget and retain gap on some proxies, in [0, 1]; 1 where a model is broken."""
    gaps = gaps_to(found, reference)
    worst = np.maximum(np.abs(gaps["forget"]), np.abs(gaps["retain"]))[np.asarray(proxies)]
    return np.where(np.isnan(worst), 1, np.clip(worst, 0, 1))


def expected(before: Outcome, asked: ForgetRequest, alike: Float[np.ndarray, "p m"]) -> tuple[Outcome, Spreads]:
    """What to expect where nothing can be retrained, [1, p], and how far one such number is off by chance.

    The retain set stays as known as it was, the forget set becomes as known as held-out rows, or as a class that was never
    seen: not at all. The attack guesses.

    Args:
        before: of the trained model, [p].
        asked: p proxies.
        alike: which test rows are drawn like each of them.
    """
    rows, others = asked.weights.sum(axis=1), alike.sum(axis=1)
    forget: Any = before.unseen
    test: Any = before.test
    if not np.all(alike):
        forget, test = np.zeros_like(forget), (test * alike.shape[1] - before.unseen * others) / alike.shape[1]
    guessing: Any = np.full_like(before.auc, 0.5)
    wanted = Outcome(before.retain, forget, test, forget, guessing)
    shares = np.all((forget >= 0) & (forget <= 1))
    chance = np.sqrt(np.mean(forget * (1 - forget) / rows)) if shares else np.std(forget)
    attack = np.sqrt(np.mean((rows + others + 1) / (12 * rows * others)))
    known = {"forget": float(chance), "auc": float(attack)}
    spreads = {name: max(known.get(name, 0.0), LEAST_SPREAD) for name in MEASURES}
    return jax.tree.map(lambda x: np.asarray(x)[None], wanted), spreads
