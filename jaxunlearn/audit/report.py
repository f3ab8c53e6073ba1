"""An audit for readers: a table in the terminal, Markdown for papers, JSON, and one HTML page with plots.

Everything here takes an `Audit`, as `jaxunlearn.audit.run` returns it; its tables are made of its JSON, by `saved`. rich
and matplotlib are imported where they are used.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.audit import figures, pages, saved
from jaxunlearn.audit.ensembles.sides import row_sides
from jaxunlearn.audit.pages import Table
from jaxunlearn.audit.run import Audit
from jaxunlearn.audit.statistics.verdict import Judgement, Verdict
from jaxunlearn.version import __version__

ANSWERS = {
    "influence of examples": (
        "Question: is the influence of the forget set gone, as it is from models that never saw it? Retraining is the "
        "reference. Whether a concept can be brought back is another question, which this report does not answer."
    )
}


def table(audit: Audit) -> Table:
    """The main table, one row per metric; every gap has its sign and every value an interval."""
    return saved.verdicts(to_json(audit))


def _name(judged: Judgement) -> str:
    code = int(judged.verdict)
    return Verdict(code).name.lower() if code >= 0 else "unknown"


def worst_examples(audit: Audit, count: int = 20) -> list[dict[str, float]]:
    """Rows of the forget set whose mean margin is furthest from retrained, in standard deviations over retrained models."""
    shift = figures.shifts(audit)
    means = {kind: audit.margins[kind].mean(axis=0) for kind in ("unlearned", "retrained", "original")}
    return [
        {"row": int(row), "shift": float(shift[row]), **{kind: float(mean[row]) for kind, mean in means.items()}}
        for row in np.argsort(-np.abs(shift))[:count]
    ]


def _sides(audit: Audit) -> str:
    margins: list[Any] = [audit.margins[kind] for kind in ("unlearned", "retrained", "original")]
    if not all(np.all(np.isfinite(x)) for x in margins):
        return "Which rows lie on which side is unknown, since some margins are infinite."
    found = row_sides(*margins)
    shares = f"{float(found.under):.0%} of the rows lie on the side of the original, {float(found.over):.0%} on the other side"
    return f"{shares}; by chance 2.5 % each."


def remarks(audit: Audit) -> list[str]:
    """What stands in for margins, and which metrics are left out, of models that are no classifiers."""
    return saved.remarks(to_json(audit))


def print_report(audit: Audit) -> None:
    """The tables in the terminal; needs rich.

    Args:
        audit: what to show.

    Raises:
        ImportError: without rich.

    Example:
        >>> jaxunlearn.audit.print_report(audit)  # doctest: +SKIP
    """
    import rich
    import rich.box
    import rich.markup
    import rich.table

    for title, shown in (
        (f"means over {audit.settings['num_models']} models of each kind", saved.means(to_json(audit))),
        ("gaps and distances to retrained models", table(audit)),
    ):
        drawn = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
        for heading in shown.headings:
            drawn.add_column(heading)
        for line in shown.rows:
            drawn.add_row(*line)
        rich.print(drawn)
    for line in (ANSWERS[audit.settings["question"]], *remarks(audit)):
        rich.print(rich.markup.escape(line))


def to_markdown(audit: Audit) -> str:
    """The main table in GitHub's Markdown, with its question in front.

    Args:
        audit: what to show.

    Returns:
        The text.

    Example:
        >>> print(jaxunlearn.audit.to_markdown(audit))  # doctest: +SKIP
    """
    models = audit.settings["num_models"], audit.settings["num_held_out"]
    note = (
        f"{models[0]} models of each kind, {models[1]} held out; 95 % intervals over models, and over models and rows; "
        f"level {audit.settings['alpha']:g} per verdict."
    )
    return "\n\n".join([ANSWERS[audit.settings["question"]], note, *remarks(audit), pages.to_markdown(table(audit))])


def to_json(audit: Audit) -> dict[str, Any]:
    """Numbers of the report as plain Python; what is not finite becomes None. Margins of single models are left out.

    Args:
        audit: what to show.

    Returns:
        What `json.dumps` takes.

    Example:
        >>> jaxunlearn.audit.to_json(audit)["judgements"]["u_lira"]["verdict"]  # doctest: +SKIP
    """

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
        "worst_examples": [plain(x) for x in worst_examples(audit)],
        "left_out": audit.left_out,
    }


def write_html(audit: Audit, path: str | Path, *, title: str = "jaxunlearn audit") -> Path:
    """One page that needs no other file: tables, definitions, plots of margins, ROC curves, floors. Needs matplotlib.

    Args:
        audit: what to show.
        path: of the page; folders on the way are made.
        title: of the page.

    Returns:
        The path.

    Raises:
        ImportError: without matplotlib.

    Example:
        >>> jaxunlearn.audit.write_html(audit, "out/audit.html")  # doctest: +SKIP
    """
    drawn = [
        (
            figures.floors(audit),
            "Unlearned (dot, interval) between floor (band) and do nothing (cross), scaled to the ceiling.",
        ),
        (
            figures.margins(audit),
            f"Mean {figures.word(audit)} of each row of the forget set: unlearned and original models against retrained ones.",
        ),
        (figures.roc(audit), "Loss attack, mean over models, logarithmic axes"),
        (figures.attacks(audit), "Each example, in retrained standard deviations: what a mean over the forget set hides"),
    ]
    found = {**to_json(audit), "environment": {"jaxunlearn": __version__}}
    sections = saved.of_audit(found, figures=drawn, sides=_sides(audit))
    return pages.write_page(path, title, sections, intro=ANSWERS[audit.settings["question"]])
