"""An audit for readers: a table in the terminal, Markdown for papers, JSON, and one HTML page with plots.

Everything here takes an `Audit`, as `jaxunlearn.audit.run` returns it. rich and matplotlib are imported where they are used.
"""

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.audit.intervals import Interval
from jaxunlearn.audit.nulls import MESSAGES, Judgement, Verdict
from jaxunlearn.audit.run import METRICS, Audit

HEADINGS = (
    "metric",
    "unlearned",
    "over rows too",
    "floor (retrained)",
    "ceiling (do nothing)",
    "p",
    "verdict",
    "false positives",
)
KINDS = {"original": "do nothing", "unlearned": "unlearned", "retrained": "retrained"}
COLOURS = {"original": "#767676", "unlearned": "#0072B2", "retrained": "#1A1A1A"}
ANSWERS = {
    "influence of examples": (
        "Question: is the influence of the forgotten examples gone, as it is from models that never saw them? Retraining is "
        "the reference. Whether a concept can be brought back is another question, which this report does not answer."
    )
}


def table(audit: Audit) -> list[list[str]]:
    """Cells of the main table, a list a metric, under `HEADINGS`; every gap has its sign and every value an interval."""
    found = [
        _row(METRICS[name].label, METRICS[name].signed, x, audit.over_rows[name], audit.false_positives[name])
        for name, x in audit.judgements.items()
    ]
    return found + [
        _row(f"control (do nothing): {METRICS[name].label}", METRICS[name].signed, x, None, None)
        for name, x in audit.controls.items()
    ]


def _row(label: str, signed: bool, judged: Judgement, over_rows: Interval | None, rate: Interval | None) -> list[str]:
    sign = "+" if signed else ""
    return [
        label,
        _interval(judged.value, sign),
        "" if over_rows is None else "[" + ", ".join(format(float(x), f"{sign}.3f") for x in over_rows[1:]) + "]",
        _interval(judged.floor, sign),
        format(float(judged.ceiling), f"{sign}.3f"),
        f"{float(judged.p_value):.3f}",
        _name(judged),
        "" if rate is None else f"{float(rate.estimate):.0%} [{float(rate.low):.0%}, {float(rate.high):.0%}]",
    ]


def _interval(value: Interval, sign: str) -> str:
    estimate, low, high = (format(float(x), f"{sign}.3f") for x in value)
    return f"{estimate} [{low}, {high}]"


def _name(judged: Judgement) -> str:
    code = int(judged.verdict)
    return Verdict(code).name.lower() if code >= 0 else "unknown"


def means_table(audit: Audit) -> tuple[list[str], list[list[str]]]:
    """Plain means of each kind of model: headings and rows."""
    names = list(next(iter(audit.means.values())))
    rows = [[KINDS[kind], *(f"{values[name]:.3f}" for name in names)] for kind, values in audit.means.items()]
    return ["models", *(METRICS[name].label for name in names)], rows


def worst_examples(audit: Audit, count: int = 20) -> list[dict[str, float]]:
    """Forgotten rows whose mean margin is furthest from retrained, in standard deviations over retrained models."""
    unlearned, retrained = audit.margins["unlearned"], audit.margins["retrained"]
    shift = (unlearned.mean(axis=0) - retrained.mean(axis=0)) / np.maximum(retrained.std(axis=0, ddof=1), 1e-6)
    order = np.argsort(-np.abs(shift))[:count]
    return [
        {
            "row": int(row), "shift": float(shift[row]), "unlearned": float(unlearned[:, row].mean()),
            "retrained": float(retrained[:, row].mean()), "original": float(audit.margins["original"][:, row].mean()),
        }
        for row in order
    ]  # fmt: skip


def print_report(audit: Audit) -> None:
    """The tables in the terminal; needs rich."""
    import rich
    import rich.box
    import rich.table

    headings, rows = means_table(audit)
    for title, columns, lines in (
        (f"means over {audit.settings['num_models']} models of a kind", headings, rows),
        ("gaps and distances to retrained models", HEADINGS, table(audit)),
    ):
        drawn = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
        for column in columns:
            drawn.add_column(column)
        for line in lines:
            drawn.add_row(*line)
        rich.print(drawn)
    rich.print(ANSWERS[audit.settings["question"]])


def to_markdown(audit: Audit) -> str:
    """The main table in GitHub's Markdown, with its question in front."""
    lines = [list(HEADINGS), ["---"] * len(HEADINGS), *table(audit)]
    body = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    models = audit.settings["num_models"], audit.settings["num_held_out"]
    note = (
        f"{models[0]} models of a kind, {models[1]} held out; 95 % intervals over models, and over models and rows; "
        f"level {audit.settings['alpha']:g} a verdict."
    )
    return f"{ANSWERS[audit.settings['question']]}\n\n{note}\n\n{body}"


def to_json(audit: Audit) -> dict[str, Any]:
    """Numbers of the report as plain Python; what is not finite becomes None. Margins of single models are left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(x) for name, x in value.items()}
        if hasattr(value, "_asdict"):
            return plain(value._asdict())
        if isinstance(value, str | int):
            return value
        return float(value) if np.isfinite(value) else None

    judged = {
        part: {name: {**plain(x), "verdict": _name(x)} for name, x in values.items()}
        for part, values in (("judgements", audit.judgements), ("controls", audit.controls))
    }
    return {
        "settings": plain(audit.settings),
        "means": plain(audit.means),
        **judged,
        "over_rows": plain(audit.over_rows),
        "false_positives": plain(audit.false_positives),
        "worst_examples": worst_examples(audit),
    }


def write_html(audit: Audit, path: str | Path, *, title: str = "jaxunlearn audit") -> Path:
    """One page that needs no other file: tables, definitions, plots of margins, ROC curves, floors. Needs matplotlib.

    Args:
        audit: what to show.
        path: of the page; folders on the way are made.
        title: of the page.

    Returns:
        The path.
    """
    headings, rows = means_table(audit)
    definitions = "".join(
        f'<dt id="{name}">{html.escape(METRICS[name].label)}</dt><dd>{html.escape(METRICS[name].definition)}.</dd>'
        for name in audit.judgements
    )
    worst = [
        [str(x["row"]), *(f"{x[name]:+.2f}" for name in ("shift", "unlearned", "retrained", "original"))]
        for x in worst_examples(audit)
    ]
    links = {METRICS[name].label: name for name in audit.judgements}
    parts = [
        f"<p>{html.escape(ANSWERS[audit.settings['question']])}</p>",
        "<p>" + html.escape("; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in audit.settings.items())) + "</p>",
        _html_table(headings, rows),
        _html_table(HEADINGS, table(audit), links),
        "".join(f"<p>{verdict.name.lower()}: {html.escape(text)}.</p>" for verdict, text in MESSAGES.items()),
        _figure(
            _floors(audit), "Unlearned (dot, interval) between floor (band) and do nothing (cross), scaled to the ceiling."
        ),
        _figure(_margins(audit), "Mean margin of each forgotten row: unlearned and original models against retrained ones."),
        _figure(_roc(audit), "Loss attack, mean over models, logarithmic axes."),
        _figure(_attacks(audit), "Per example, in retrained standard deviations: what an average over the population hides."),
        "<h2>The worst examples</h2>",
        _html_table(["row of the request", "shift [sd]", "unlearned", "retrained", "original"], worst),
        f"<h2>Definitions</h2><dl>{definitions}</dl>",
    ]
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


STYLE = (
    "body{margin:0 auto;padding:2rem 1.25rem;max-width:72rem;font:1rem/1.55 system-ui,sans-serif;color:#1b1b1b}"
    "table{border-collapse:collapse;font-size:.85rem;margin:1rem 0}th,td{padding:.3rem .8rem .3rem 0;text-align:left}"
    "thead th{border-bottom:2px solid #d9d9d9}img{max-width:100%;height:auto}figcaption{color:#5c5c5c;font-size:.9rem}"
    "dt{font-weight:600}p{max-width:46rem}"
)


def _html_table(headings: Any, rows: list[list[str]], links: dict[str, str] | None = None) -> str:
    def cell(text: str) -> str:
        shown = html.escape(text)
        return f'<a href="#{links[text]}">{shown}</a>' if links and text in links else shown

    head = "".join(f"<th>{html.escape(x)}</th>" for x in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell(x)}</td>" for x in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figure(figure: Any, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, facecolor="white", bbox_inches="tight")
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = html.escape(caption)
    return f"<figure><img alt='{text}' src='data:image/png;base64,{source}'><figcaption>{text}</figcaption></figure>"


def _axes(width: float = 6.4, height: float = 4.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def _floors(audit: Audit) -> Any:
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


def _margins(audit: Audit) -> Any:
    figure, panel = _axes()
    retrained = audit.margins["retrained"].mean(axis=0)
    for kind in ("original", "unlearned"):
        panel.plot(
            retrained, audit.margins[kind].mean(axis=0), "o", markersize=4, alpha=0.7, color=COLOURS[kind], label=KINDS[kind]
        )
    ends = [float(retrained.min()), float(retrained.max())]
    panel.plot(ends, ends, color=COLOURS["retrained"], linewidth=1, linestyle="--", label="retrained")
    panel.set_xlabel("mean margin of retrained models [nats]")
    panel.set_ylabel("mean margin [nats]")
    panel.legend(frameon=False)
    return figure


def _roc(audit: Audit) -> Any:
    figure, panel = _axes()
    for kind, (false_positive, true_positive) in audit.roc.items():
        panel.plot(false_positive, true_positive, color=COLOURS[kind], label=KINDS[kind])
    panel.plot([1e-3, 1], [1e-3, 1], color="#767676", linewidth=1, linestyle=":", label="chance")
    panel.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1))
    panel.set_xlabel("false positive rate")
    panel.set_ylabel("true positive rate")
    panel.legend(frameon=False)
    return figure


def _attacks(audit: Audit) -> Any:
    figure, panel = _axes()
    shifts = [x["shift"] for x in worst_examples(audit, audit.margins["retrained"].shape[1])]
    panel.hist(shifts, bins=30, color=COLOURS["unlearned"])
    panel.axvline(0, color=COLOURS["retrained"], linewidth=1, linestyle="--")
    panel.axvline(float(np.mean(shifts)), color="#D55E00", linewidth=1.5, label="mean over the population")
    panel.set_xlabel("shift of the mean margin [retrained standard deviations]")
    panel.set_ylabel("forgotten rows")
    panel.legend(frameon=False)
    return figure
