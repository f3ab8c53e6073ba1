"""When to retrain a model that answers a stream of requests: schedules, a rule, and what they cost in hindsight.

Time runs in blocks of requests. `harm[s, t]` is how far a model that was retrained after block s is from a retrained one after
block t, when it unlearned everything in between; `harm[t, t]` is that of a fresh one, the floor. After each block a service
keeps its model or retrains:

    cost = sum_t requests_per_block harm[s_t, t] + price (retrainings),    s_t = t after retraining, else s_{t-1}

A price says how much harm one retraining is worth, in the unit of harm times requests.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Table = Float[np.ndarray, "blocks+1 blocks+1"]  # [s, t]; only t >= s counts


class Plan(NamedTuple):
    """What a schedule did, and what it cost."""

    cost: float
    retrained: tuple[int, ...]  # after which blocks


class Rule(NamedTuple):
    """Retrain as soon as an observable is above a threshold."""

    observable: str
    threshold: float


def follow(harm: Table, price: float, requests: int, retrains: Callable[[int, int], bool]) -> Plan:
    """Go through the blocks.

    Args:
        harm: see above.
        price: of one retraining.
        requests: per block.
        retrains: `(s, t) -> bool`, after block t with a model that was retrained after block s.
    """
    since, cost, done = 0, 0.0, []
    for t in range(1, len(harm)):
        if retrains(since, t):
            since = t
            cost += price
            done.append(t)
        cost += requests * float(harm[since, t])
    return Plan(cost, tuple(done))


def every(blocks: int) -> Callable[[int, int], bool]:
    """Retrain after so many blocks, again and again."""
    return lambda since, t: t % blocks == 0


def best_interval(harm: Table, price: float, requests: int) -> tuple[int, Plan]:
    """The fixed interval of the smallest cost, never retraining among them (0), with hindsight."""
    plans = {0: follow(harm, price, requests, lambda since, t: False)}
    plans |= {blocks: follow(harm, price, requests, every(blocks)) for blocks in range(1, len(harm))}
    best = min(plans, key=lambda blocks: plans[blocks].cost)
    return best, plans[best]


def best_schedule(harm: Table, price: float, requests: int) -> Plan:
    """The schedule of the smallest cost of all, with hindsight, by dynamic programming."""
    plans = {0: Plan(0.0, ())}  # by the block that the present model was retrained after
    for t in range(1, len(harm)):
        cheapest = min(plans.values(), key=lambda plan: plan.cost)
        kept = {s: plan._replace(cost=plan.cost + requests * float(harm[s, t])) for s, plan in plans.items()}
        plans = {**kept, t: Plan(cheapest.cost + price + requests * float(harm[t, t]), (*cheapest.retrained, t))}
    return min(plans.values(), key=lambda plan: plan.cost)


def by_rule(harm: Table, price: float, requests: int, rule: Rule, observed: Mapping[str, Table]) -> Plan:
    """What the rule does, which sees nothing but the observable of its own model."""
    seen = observed[rule.observable]
    return follow(harm, price, requests, lambda since, t: bool(seen[since, t] > rule.threshold))


def chosen_rule(
    harms: Sequence[Table], observed: Sequence[Mapping[str, Table]], price: float, requests: int, most: int = 24
) -> Rule:
    """The rule of the smallest mean cost over models of another stream.

    Args:
        harms, observed: of each model.
        price, requests: as in `follow`.
        most: thresholds tried for each observable, at quantiles of what was seen; and none at all.
    """
    blocks = len(harms[0])
    later = np.triu_indices(blocks, 1)
    best = (np.inf, Rule(next(iter(observed[0])), np.inf))
    for name in observed[0]:
        values = np.concatenate([one[name][later] for one in observed])
        for threshold in (np.inf, *np.unique(np.quantile(values, np.linspace(0, 1, most)))):
            rule = Rule(name, float(threshold))
            plans = [by_rule(h, price, requests, rule, o) for h, o in zip(harms, observed, strict=True)]
            cost = float(np.mean([plan.cost for plan in plans]))
            if cost < best[0]:
                best = cost, rule
    return best[1]
