"""What the comparisons of `experiments/results` say of one method: a table, and a figure without any library."""

import json
import math
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn import catalogue
from jaxunlearn.audit import pages

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
FILES = ("compare_digits", "compare_digits_new", "compare_digits_repeated")  # where two hold a method, the later one counts
NOTHING = ("do nothing", "original")  # older files say `original`
FLOOR = "retrained again"


class Measured(NamedTuple):
    """A method in one scenario."""

    worst: float | None  # largest gap in seed spreads; None: not finite
    at: str  # the measure where it is
    milliseconds: float | None
    settings: dict[str, Any]
    nothing: float | None  # the same gap of doing nothing, and of a second retraining
    floor: float | None
    file: str


@cache
def measured() -> dict[str, dict[str, Measured]]:
    """`{method: {scenario: Measured}}`, names as in the catalogue."""
    found: dict[str, dict[str, Measured]] = {}
    for file in FILES:
        for scenario, one in json.loads((RESULTS / f"{file}.json").read_text())["scenarios"].items():
            lines = one["methods"]
            nothing = next(lines[name].get("worst") for name in NOTHING if name in lines)
            for name, line in lines.items():
                if name in (*NOTHING, FLOOR, "retrained"):
                    continue
                values = line.get("worst"), line.get("worst_at", ""), line.get("milliseconds")
                settings = line.get("settings", line.get("options", {}))
                levels = nothing, lines[FLOOR].get("worst")
                found.setdefault(catalogue.method_of(name), {})[scenario] = Measured(*values, settings, *levels, file)
    return found


def section(name: str) -> str:
    """The part of a method's page, empty if no comparison holds it.

    Args:
        name: of the method.

    Returns:
        Markdown.
    """
    lines = measured().get(name)
    if lines is None:
        return ""
    rows = [
        [
            scenario,
            pages.cell(line.worst, "+.1f") + (f" ({line.at})" if line.at else ""),
            pages.cell(line.floor, "+.1f"),
            pages.cell(line.nothing, "+.1f"),
            pages.cell(line.milliseconds, ".1f"),
            ", ".join(f"{key} {value:g}" for key, value in line.settings.items()) or "defaults",
        ]
        for scenario, line in lines.items()
    ]
    headings = ["scenario", "worst gap (where)", "retrained again", "do nothing", "ms a request", "settings"]
    files = ", ".join(f"`{file}.json`" for file in dict.fromkeys(line.file for line in lines.values()))
    text = (
        "Largest signed gap to retrained models over retain, forget and test accuracy, attack AUC and unseen rows, in standard "
        "deviations of one retrained model over seeds. Near *retrained again* is as good as retraining; settings were searched "
        f"on other draws. Source: {files}; see [all figures](../results.md). Settings do not travel between data sets."
    )
    return f"{text}\n\n{figure(name, lines)}\n\n{pages.to_markdown(pages.Table(headings, rows, numbers=(1, 2, 3, 4)))}"


WIDTH, LINE, LEFT, LOWEST, HIGHEST = 640, 22, 130, 0.3, 300.0


def figure(name: str, lines: dict[str, Measured]) -> str:
    """Gaps of a method on a logarithmic scale, beside those of doing nothing and of a second retraining.

    Args:
        name: of the method.
        lines: by scenario.

    Returns:
        An SVG with a text for those who do not see it.
    """

    def place(value: float) -> float:
        share = math.log(min(max(abs(value), LOWEST), HIGHEST) / LOWEST) / math.log(HIGHEST / LOWEST)
        return LEFT + share * (WIDTH - LEFT - 20)

    height = LINE * (len(lines) + 2)
    drawn = [
        f'<line x1="{place(x):.0f}" x2="{place(x):.0f}" y1="4" y2="{LINE * len(lines) + 4}" class="grid"/>'
        f'<text x="{place(x):.0f}" y="{LINE * len(lines) + 18}" text-anchor="middle">{x:g}</text>'
        for x in (1, 10, 100)
    ]
    for number, (scenario, line) in enumerate(lines.items()):
        y = LINE * number + LINE / 2 + 4
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(scenario)}</text>')
        if line.nothing is not None:
            drawn.append(f'<path d="M{place(line.nothing) - 4:.1f} {y - 4}l8 8m0 -8l-8 8" class="nothing"/>')
        if line.floor is not None:
            drawn.append(
                f'<line x1="{place(line.floor):.1f}" x2="{place(line.floor):.1f}" y1="{y - 7}" y2="{y + 7}" class="floor"/>'
            )
        if line.worst is not None:
            drawn.append(f'<circle cx="{place(line.worst):.1f}" cy="{y}" r="5" class="method"/>')
    words = f"dot: {escape(name)}; bar: retrained again; cross: do nothing; in seed spreads"
    key = f'<text x="{LEFT}" y="{height - 4}">{words}</text>'
    known = [f"{scenario} {abs(line.worst):.1f}" for scenario, line in lines.items() if line.worst is not None]
    words = f"Size of the worst gap of {name} by scenario, in seed spreads: {', '.join(known)}."
    svg = (
        f'<svg class="gaps" role="img" aria-label="{escape(words)}" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">'
        f"{''.join(drawn)}{key}</svg>"
    )
    return f"```{{raw}} html\n{svg}\n```"


def closest(scenario: str, count: int) -> list[tuple[str, Measured]]:
    """Methods with the smallest gaps in one scenario.

    Args:
        scenario: its name.
        count: how many.

    Returns:
        Names and what was measured, the closest first.
    """
    found = [(name, lines[scenario]) for name, lines in measured().items() if scenario in lines]
    known = [(abs(line.worst), name, line) for name, line in found if line.worst is not None]
    return [(name, line) for _, name, line in sorted(known, key=lambda x: x[:2])[:count]]
