"""Whether to retrain or to search, decided before anything is spent. The unit is one retraining."""

import math
from typing import Literal, NamedTuple


class Costs(NamedTuple):
    """In retrainings: estimates, but for a search that took place."""

    retraining: float  # all requests
    unlearning: float  # all requests
    search: float  # with its references; 0 if an earlier one was given


class Plan(NamedTuple):
    """What to do, and why."""

    way: Literal["retrain", "unlearn", "blind"]  # "blind": with a search that retrains nothing to compare with
    why: str = ""


def estimated(requests: int, points: int, *, num_proxies: int, num_references: int, each: float, searches: bool) -> Costs:
    """Costs of answering.

    A search tries all points on half of the proxies, a third of them on the others, and the best one on as many new ones.

    Args:
        requests: how many.
        points: of the search.
        num_proxies, num_references: see `jaxunlearn.tune`.
        each: one answer by unlearning.
        searches: False if there is an earlier search.
    """
    half = max(1, num_proxies // 2)
    tries = points * half + math.ceil(points / 3) * (num_proxies - half)
    search = 2 * num_proxies * num_references + (tries + num_proxies) * each
    return Costs(requests, requests * each, search if searches else 0.0)


def planned(costs: Costs, *, budget: float, to_come: int, blind: float, comparable: bool, searches: bool) -> Plan:
    """The cheaper way that the budget allows.

    Args:
        costs: see `estimated`.
        budget: retrainings that may be spent.
        to_come: requests that a search serves as well.
        blind: what a search without references costs.
        comparable: whether there are proxies for these requests.
        searches: False if there is an earlier search.

    Raises:
        ValueError: the budget allows no answer.
    """
    count, full = costs.retraining, costs.search + costs.unlearning
    if not comparable:
        why = "there are no requests like these to try on: whole classes go, with some requests or with nearly all classes"
        if count <= budget:
            return Plan("retrain", why)
        raise ValueError(f"{why}; and {count:g} retrainings are beyond the budget of {budget:g}")
    times = (count + to_come) / count
    cheaper = full <= budget and costs.search + times * costs.unlearning < times * count
    if count <= budget and not cheaper:
        others = f"a search about {costs.search:.3g} and then " if searches else ""
        return Plan("retrain", f"that costs {count:g} retrainings, {others}unlearning {costs.unlearning:.3g}")
    if full <= budget:
        return Plan("unlearn")
    if not searches or blind + costs.unlearning > budget:
        raise ValueError(
            f"a budget of {budget:g} retrainings allows neither {count:g} of them nor unlearning, that costs "
            f"{costs.unlearning:.3g}"
        )
    return Plan("blind")
