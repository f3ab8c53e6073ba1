"""Five findings, each as a function of figures: reproduced, not reproduced, or not testable with so many seeds.

Nasirigerdeh, Razmi, Schnabel, Rueckert, Kaissis: Machine unlearning for medical imaging, 2024, arXiv 2407.07539.

The paper's abstract states the findings and no rule to decide them; the rules here are a reconstruction. A gap is close to zero
if its interval lies within the tolerance, and far if the interval leaves out zero while the estimate is beyond the
tolerance. What is neither is not decided. Where a finding looks at several gaps, their intervals are wider (Bonferroni).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import jaxunlearn as ju

ROUNDING = 1e-6  # of a mean gap that is zero
NO_REFERENCE = "the aim is a concept, for which retraining is no reference"
REPRODUCED, NOT, UNTESTABLE = "reproduced", "not reproduced", "not testable here"
Gaps = Float[np.ndarray, " s"]  # signed, unlearned minus retrained; one per seed
Answer = bool | None  # None: not decided


class Finding(NamedTuple):
    """A row of the table of findings."""

    claim: str
    verdict: str
    figure: str  # what decided it
    by_method: dict[str, str]


def interval(gaps: Gaps, comparisons: int = 1) -> ju.audit.Interval:
    """Of the mean over seeds, at 95 % for all of several comparisons together."""
    return ju.audit.t_interval(jnp.asarray(gaps), level=1 - 0.05 / comparisons)


def is_close(gaps: Gaps, tolerance: float, comparisons: int = 1) -> Answer:
    """Whether a mean gap is close to zero."""
    estimate, low, high = map(float, interval(gaps, comparisons))
    if math.isnan(low):
        return None
    if -tolerance <= low and high <= tolerance:
        return True
    return False if abs(estimate) > tolerance and (low > 0 or high < 0) else None


def is_below(gaps: Gaps, tolerance: float, comparisons: int = 1) -> Answer:
    """Whether a mean gap is below zero; False where it cannot be lower than the tolerance."""
    _, low, high = map(float, interval(gaps, comparisons))
    if math.isnan(low):
        return None
    return True if high < -ROUNDING else False if low > -tolerance else None


def every(answers: Sequence[Answer]) -> Answer:
    """Whether all of them are true."""
    if not answers:
        return None
    return False if False in answers else None if None in answers else True


def either(answers: Sequence[Answer]) -> Answer:
    """Whether one of them is true."""
    if not answers:
        return None
    return True if True in answers else None if None in answers else False


def in_words(answer: Answer) -> str:
    """The verdict."""
    return {True: REPRODUCED, False: NOT, None: UNTESTABLE}[answer]


def _told(gaps: Gaps, comparisons: int, unit: str = "points") -> str:
    """A gap with its interval, in points of accuracy."""
    values = [100 * float(x) for x in interval(gaps, comparisons)]
    return "{:+.1f} [{:+.1f}, {:+.1f}] ".format(*values) + unit


def _finding(
    claim: str, methods: Mapping[str, Any], judge: Callable[[Any], tuple[Answer, str]], join: Callable[..., Answer]
) -> Finding:
    answers, figures = {}, []
    for name, figure in methods.items():
        answers[name], told = judge(figure)
        figures.append(f"{name}: {told}")
    verdict = in_words(join(list(answers.values())))
    return Finding(claim, verdict, "; ".join(figures) or "no figure", {name: in_words(x) for name, x in answers.items()})


def performs_well(methods: Mapping[str, Mapping[str, Mapping[float, Gaps]]], tolerance: float) -> Finding:
    """1: on the retain set and the forget set the methods are close to retraining.

    Close are the means over forget shares; single shares, whose forget sets may be small, only must not be far.

    Args:
        methods: by method, set ("retain", "forget") and forget share, the gaps of accuracies.
        tolerance: that counts as close.
    """

    def judge(gaps: Mapping[str, Mapping[float, Gaps]]) -> tuple[Answer, str]:
        means = {name: np.mean([*by_share.values()], axis=0) for name, by_share in gaps.items()}
        single = {f"{name} at {100 * share:g} %": x for name, by_share in gaps.items() for share, x in by_share.items()}
        far = [is_close(x, tolerance, len(single)) is False for x in single.values()]
        answer = every([not any(far), *(is_close(x, tolerance, len(means)) for x in means.values())])
        worst = max(single, key=lambda name: abs(float(np.mean(single[name]))))
        told = ", ".join(f"{name} {_told(x, len(means))}" for name, x in means.items())
        return answer, f"mean over shares {told}; largest, {worst}, {_told(single[worst], len(single))}"

    return _finding("1. retain and forget accuracy are close to those of exact retraining", methods, judge, every)


def hurts_generalisation(methods: Mapping[str, Mapping[float, Gaps]], tolerance: float) -> Finding:
    """2: test accuracy falls below that of retraining, more so for larger forget sets.

    Args:
        methods: by method and forget share, the gaps of test accuracy.
        tolerance: damage that does not count; slopes are judged over the range of the shares.
    """

    def judge(gaps: Mapping[float, Gaps]) -> tuple[Answer, str]:
        shares = np.array(sorted(gaps))
        if len(shares) < 2:
            return None, "one forget share has no slope"
        values = np.stack([np.asarray(gaps[share]) for share in shares])
        centred = shares - shares.mean()
        rise = (centred @ values) / (centred @ centred) * (shares[-1] - shares[0])
        answer = every([is_below(values[-1], tolerance, 2), is_below(rise, tolerance, 2)])
        largest = f"{shares[-1]:.0%} forgotten".replace("%", " %")
        return answer, f"{_told(values[-1], 2)} at {largest}, {_told(rise, 2)} from the smallest share to it"

    return _finding("2. test accuracy falls, more so for larger forget sets", methods, judge, every)


def treats_groups_alike(methods: Mapping[str, Mapping[str, Gaps]], tolerance: float) -> Finding:
    """3: no bias between groups.

    Args:
        methods: by method and comparison, differences between two groups in their gaps to retrained models.
        tolerance: of such a difference.
    """

    def judge(gaps: Mapping[str, Gaps]) -> tuple[Answer, str]:
        if not gaps:
            return None, "no two groups"
        answer = every([is_close(x, tolerance, len(gaps)) for x in gaps.values()])
        worst = max(gaps, key=lambda name: abs(float(np.mean(gaps[name]))))
        return answer, f"largest difference, {worst}, {_told(gaps[worst], len(gaps))}"

    return _finding("3. no bias between groups", methods, judge, every)


def differs_by_difficulty(methods: Mapping[str, tuple[Gaps, Gaps]], tolerance: float) -> Finding:
    """4: a possible bias between easy and hard rows; one method that shows it is enough.

    Args:
        methods: by method, gaps of forget accuracy for the easiest and for the hardest rows.
        tolerance: of their difference.
    """

    def judge(sides: tuple[Gaps, Gaps]) -> tuple[Answer, str]:
        easy, hard = map(np.asarray, sides)
        close = is_close(easy - hard, tolerance)
        told = f"easiest {_told(easy, 1)}, hardest {_told(hard, 1)}, difference {_told(easy - hard, 1)}"
        return None if close is None else not close, told

    return _finding("4. a possible bias between easy and hard rows", methods, judge, either)


class Cost(NamedTuple):
    """Seconds of a method for one request."""

    unlearn: float
    tuning: float  # (points tried) x (time of a run), for one forget share
    search: float  # what the search took in fact for one share: several runs of a point, and the retrained models to judge by
    retrain: float
    points: int

    @property
    def advantage(self) -> float:
        """How many times faster than retraining, without the tuning."""
        return self.retrain / self.unlearn

    @property
    def tuned_advantage(self) -> float:
        """With the tuning, for a single request."""
        return self.retrain / (self.unlearn + self.tuning)

    @property
    def pays_after(self) -> float:
        """Requests from which one search and its runs are faster than retraining; infinite where a run is not."""
        saved = self.retrain - self.unlearn
        return self.search / saved if saved > 0 else math.inf


def costs_more_than_it_looks(methods: Mapping[str, Cost]) -> Finding:
    """5: with the tuning counted the advantage over retraining is smaller than it looks: for a single request it is gone.

    Args:
        methods: by method, its cost; not decided where a method is slower than retraining without any tuning.
    """

    def judge(cost: Cost) -> tuple[Answer, str]:
        told = (
            f"{cost.advantage:.1f} times faster than retraining, {cost.tuned_advantage:.2f} times with {cost.points} points "
            f"tried, a search pays after {cost.pays_after:.0f} requests"
        )
        return (cost.tuned_advantage < 1 if cost.advantage > 1 else None), told

    return _finding("5. tuning takes the advantage in cost of a single request away", methods, judge, every)


def of_a_concept() -> list[Finding]:
    """All five where the aim is a concept: there is no retrained model to compare with."""
    claims = (performs_well({}, 1), hurts_generalisation({}, 1), treats_groups_alike({}, 1), differs_by_difficulty({}, 1))
    return [found._replace(verdict=UNTESTABLE, figure=NO_REFERENCE) for found in (*claims, costs_more_than_it_looks({}))]
