"""The page of a stream: how far models drift, and when it is time to retrain."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.outcome import AGAIN
from experiments.common.report import Column, Section, Table
from jaxunlearn.audit import Interval

SETS = ("retain", "forgotten", "test")
Row = Mapping[str, Any]


def drift(found: Sequence[Row], bad: Mapping[str, int], models: int) -> Section:
    """Table and plots of the drift.

    Args:
        found: a row per checkpoint and method.
        bad: answers that were not OK, by method.
        models: of each kind.
    """
    columns = [
        Column("requests", "requests", "d"), Column("method", "method"), *(Column(x, f"{x} acc.", "+.1%") for x in SETS),
        Column("klom_forgotten", "KLoM forgotten", ".2f"), Column("klom_retain", "KLoM retain", ".2f"),
        Column("klom_test", "KLoM test", ".2f"), Column("moved", "moved", ".2f"), Column("to_retrained", "to retrained", ".2f"),
    ]  # fmt: skip
    figures = [
        (
            _lines(found, "requests", name, "requests answered, log scale", f"gap of accuracy, {name} rows [points]", 100),
            f"Accuracy on {name} rows, minus retrained.",
        )
        for name in ("forgotten", "test")
    ]
    caption = f"signed gaps to models retrained without all rows so far, {models} models of each kind; 95 % intervals"
    text = (
        "KLoM in nats, large for few models: compare with `retrained again`. Distances of weights over the norm of those of "
        "the other model: how far a model moved from its original, and how far it is from the retrained model that began with "
        "the same weights. `retrained again` began with other weights, which is why it is further away than models that "
        "share them."
    )
    counts = "; ".join(f"{name}: {count}" for name, count in bad.items() if count)
    text += f"\n\nAnswers with a status other than OK, {counts}." if counts else ""
    return Section("How far does it drift?", text, [Table(columns, found, caption)], figures)


def drift_in_words(found: Sequence[Row]) -> list[str]:
    """Where each method stands after the last request.

    Args:
        found: as for `drift`.

    Returns:
        A sentence for each method.
    """
    last = max(row["requests"] for row in found)
    said = []
    for row in (row for row in found if row["requests"] == last and row["method"] != AGAIN):
        apart = [f"{100 * float(row[x].estimate):+.1f} points on {x} rows" for x in SETS if _is_apart(row[x])]
        told = (
            f"accuracy is off that of retrained models by {', '.join(apart)}" if apart else "no accuracy is told from retrained"
        )
        said.append(f"After {last} requests, {row['method']}: {told}.")
    return said


def _is_apart(gap: Interval) -> bool:
    return float(gap.low) > 0 or float(gap.high) < 0


def retraining_in_words(rows: Sequence[Row]) -> list[str]:
    """What the rule is worth, over all prices.

    Args:
        rows: as for `when_to_retrain`.

    Returns:
        A sentence for each method.
    """
    said = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row["over_fixed"] for row in rows if row["method"] == name]
        worse, better = sum(float(gap.low) > 0 for gap in own), sum(float(gap.high) < 0 for gap in own)
        said.append(
            f"When to retrain, {name}: of {len(own)} prices the rule costs more than the best fixed interval at {worse}, less "
            f"at {better}, and is not told from it at {len(own) - worse - better}."
        )
    return said


def when_to_retrain(rows: Sequence[Row], per_block: int, models: int) -> Section:
    """Table and plot of the rule.

    Args:
        rows: one per method and price.
        per_block: requests between two decisions.
        models: that it was tried on.
    """
    columns = [
        Column("method", "method"), Column("price", "price of a retraining", "g"), Column("observable", "rule watches"),
        Column("threshold", "threshold", ".3g"), Column("retrainings", "it retrains", ".1f"),
        Column("fixed_retrainings", "best interval does", ".1f"),
        *(Column(x, f"cost, {x}", ".2f") for x in ("rule", "fixed", "never", "always", "best")),
        Column("over_fixed", "regret to best interval", "+.2f"), Column("over_never", "to never", "+.2f"),
        Column("over_always", "to always", "+.2f"), Column("over_best", "to best schedule", "+.2f"),
    ]  # fmt: skip
    x_label, y_label = "price of one retraining [accuracy x requests], log scale", "regret [accuracy x requests]"
    plot = _lines(rows, "price", "over_fixed", x_label, y_label, 1, "best interval in hindsight")
    text = (
        f"A service may retrain after every {per_block} requests. Harm is the mean distance of three accuracies (retained, "
        "forgotten and test rows) from those of retrained models, summed over requests. The rule retrains as soon as what it "
        "watches is above a threshold; both were chosen on another stream with other models. Interval and schedule are the "
        "best for each model with hindsight, which no service has; never retraining counts as an interval."
    )
    return Section(
        "When is it time to retrain?", text,
        [Table(columns, rows, f"costs in accuracy x requests, means over {models} models; 95 % intervals of regrets")],
        [(plot, "What the rule costs more than the best fixed interval in hindsight.")],
    )  # fmt: skip


def _lines(rows: Sequence[Row], x: str, y: str, x_label: str, y_label: str, scale: float, level: str = "retrained") -> Figure:
    """Intervals of every method over a logarithmic axis."""
    lines, bands = {}, {}
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        middle, low, high = scale * np.array([[float(value) for value in row[y]] for row in own]).T
        lines[name], bands[name] = (np.array([row[x] for row in own]), middle), (low, high)
    return plots.curves(lines, x_label=x_label, y_label=y_label, log_x=True, level=(level, 0.0), bands=bands)
