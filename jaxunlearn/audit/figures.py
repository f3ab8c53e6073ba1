"""Plots of an audit, each a matplotlib `Figure` of its own; matplotlib is imported when one is drawn."""

from typing import Any

import numpy as np

from jaxunlearn.audit.metrics import METRICS
from jaxunlearn.audit.run import Audit

KINDS = {"original": "do nothing", "unlearned": "unlearned", "retrained": "retrained"}
COLOURS = {"original": "#767676", "unlearned": "#0072B2", "retrained": "#1A1A1A"}


def shifts(audit: Audit) -> np.ndarray:
    """Mean margin of each row of the forget set, unlearned minus retrained, in standard deviations over retrained models."""
    unlearned, retrained = audit.margins["unlearned"], audit.margins["retrained"]
    return (unlearned.mean(axis=0) - retrained.mean(axis=0)) / np.maximum(retrained.std(axis=0, ddof=1), 1e-6)


def word(audit: Audit) -> str:
    """What single rows are looked at by."""
    return "margin" if audit.settings.get("score", "margin") == "margin" else "score"


def _axes(width: float = 6.4, height: float = 4.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def floors(audit: Audit) -> Any:
    """Every metric between its floor (0) and doing nothing (1)."""
    figure, panel = _axes(7.5, 0.9 + 0.36 * len(audit.judgements))
    for place, judged in enumerate(audit.judgements.values()):
        centre = float(judged.floor.estimate)
        scale = float(judged.ceiling) - centre or 1.0
        low, high = sorted((float(x) - centre) / scale for x in (judged.floor.low, judged.floor.high))
        value, first, last = ((float(x) - centre) / scale for x in judged.value)
        panel.barh(place, high - low, left=low, height=0.6, color="#DADADA")
        panel.plot([first, last], [place, place], color=COLOURS["unlearned"], linewidth=1.8)
        panel.plot(value, place, "o", color=COLOURS["unlearned"])
        panel.plot(1, place, "x", color=COLOURS["original"])
    panel.set_yticks(range(len(audit.judgements)), [METRICS[name].label for name in audit.judgements])
    panel.invert_yaxis()
    panel.set_xlabel("0: middle of the floor, 1: do nothing")
    return figure


def margins(audit: Audit) -> Any:
    """Mean margin of each row of the forget set, against that of retrained models."""
    figure, panel = _axes()
    retrained = audit.margins["retrained"].mean(axis=0)
    for kind in ("original", "unlearned"):
        panel.plot(
            retrained, audit.margins[kind].mean(axis=0), "o", markersize=4, alpha=0.7, color=COLOURS[kind], label=KINDS[kind]
        )
    ends = [float(retrained.min()), float(retrained.max())]
    panel.plot(ends, ends, color=COLOURS["retrained"], linewidth=1, linestyle="--", label="retrained")
    unit = "nats" if word(audit) == "margin" else audit.settings["score"]
    panel.set_xlabel(f"mean {word(audit)} of retrained models [{unit}]")
    panel.set_ylabel(f"mean {word(audit)} [{unit}]")
    panel.legend(frameon=False)
    return figure


def roc(audit: Audit) -> Any:
    """ROC curves of the loss attack, on logarithmic axes."""
    figure, panel = _axes()
    for kind, (false_positive, true_positive) in audit.roc.items():
        panel.plot(false_positive, true_positive, color=COLOURS[kind], label=KINDS[kind])
    panel.plot([1e-3, 1], [1e-3, 1], color="#767676", linewidth=1, linestyle=":", label="chance")
    panel.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1))
    panel.set_xlabel("false positive rate")
    panel.set_ylabel("true positive rate")
    panel.legend(frameon=False)
    return figure


def attacks(audit: Audit) -> Any:
    """How far single rows are from retrained models, which a mean over the forget set hides."""
    figure, panel = _axes()
    found = shifts(audit)
    panel.hist(found, bins=30, color=COLOURS["unlearned"])
    panel.axvline(0, color=COLOURS["retrained"], linewidth=1, linestyle="--")
    panel.axvline(float(np.mean(found)), color="#D55E00", linewidth=1.5, label="mean over the forget set")
    panel.set_xlabel(f"shift of the mean {word(audit)} [retrained standard deviations]")
    panel.set_ylabel("rows of the forget set")
    panel.legend(frameon=False)
    return figure
