"""How answers to proxy requests are judged: gaps to retrained models, or to what held-out rows let expect, in spreads."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from jaxunlearn.audit.single.outcome import Outcome
from jaxunlearn.tuning.proxies import Proxies

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
    worst = np.max([np.sqrt(np.mean(gap**2)) / spreads[name] for name, gap in gaps_to(found, reference).items()])
    return math.inf if np.isnan(worst) else float(worst)


def gaps_to(found: Outcome, reference: Outcome) -> dict[str, np.ndarray]:
    """[p], unlearned minus the mean of retrained models."""
    return {name: np.asarray(getattr(found, name)) - np.mean(getattr(reference, name), axis=0) for name in MEASURES}


def spreads_of(reference: Outcome, *, shares: bool) -> Spreads:
    """Of one retrained model at a fixed request, root mean square over proxies; never below a floor.

    Args:
        reference: [s, p].
        shares: whether values are accuracies, whose floor is half a point, or losses: half a percent.

    Raises:
        ValueError: values that are NaN.
    """
    if broken := [name for name in MEASURES if np.any(np.isnan(getattr(reference, name)))]:
        raise ValueError(f"the references have no {', '.join(broken)} (NaN): check the retraining, the labels and test")

    def spread(name: str) -> float:
        values = np.asarray(getattr(reference, name), np.float64)
        least = LEAST_SPREAD * (1.0 if shares or name == "auc" else abs(float(np.mean(values))))
        return max(float(np.sqrt(np.var(values, axis=0, ddof=1).mean())), least, np.finfo(float).tiny)

    return {name: spread(name) for name in MEASURES}


def gap_losses(found: Outcome, reference: Outcome, proxies: Sequence[int]) -> Float[np.ndarray, " p"]:
    """The larger one of forget and retain gap on some proxies, in [0, 1]; 1 where a model is broken."""
    gaps = gaps_to(found, reference)
    worst = np.maximum(np.abs(gaps["forget"]), np.abs(gaps["retain"]))[np.asarray(proxies)]
    return np.where(np.isnan(worst), 1, np.clip(worst, 0, 1))


def expected(before: Outcome, proxies: Proxies, *, shares: bool) -> tuple[Outcome, Spreads]:
    """What to expect where nothing can be retrained, [1, p], and how far one such number is off by chance.

    The retain set stays as known as it was, the forget set becomes as known as held-out rows of its classes; of a class of
    which no row stays, none is told any more, held-out ones included. The attack guesses.

    Args:
        before: of the trained model, [p].
        proxies: what was asked.
        shares: whether values are accuracies, or losses, whose standard deviation is taken for that of squared errors.
    """
    rows, others = proxies.requests.weights.sum(axis=1), (proxies.alike > 0).sum(axis=1)
    forget: Any = before.unseen * (1 - proxies.gone)
    test: Any = before.test - before.unseen * proxies.gone_of_test
    guessing: Any = np.full_like(before.auc, 0.5)
    wanted = Outcome(before.retain, forget, test, forget, guessing)
    variance = forget * (1 - forget) if shares else 2 * forget**2
    attack = np.sqrt(np.mean((rows + others + 1) / (12 * rows * others)))
    known = {"forget": float(np.sqrt(np.mean(variance / rows))), "auc": float(attack)}
    floors = {x: LEAST_SPREAD * (1.0 if shares or x == "auc" else abs(float(np.mean(getattr(wanted, x))))) for x in MEASURES}
    spreads = {name: max(known.get(name, 0.0), floors[name], np.finfo(float).tiny) for name in MEASURES}
    return jax.tree.map(lambda x: np.asarray(x)[None], wanted), spreads
