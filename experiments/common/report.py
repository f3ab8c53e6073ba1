"""Tables and pages: the same rows for the terminal, Markdown and one self-contained HTML file."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rich
import rich.box
import rich.table
from jinja2 import Environment, StrictUndefined
from rich.console import Console
from rich.text import Text

from jaxunlearn.audit import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MISSING = "–"  # noqa: RUF001


class Column(NamedTuple):
    """One column of a table."""

    key: str  # of the rows' dicts
    label: str  # heading, with the unit
    format: str | None = None  # e.g. ".1%" or ".3g": a number, aligned right; None: text


class Table(NamedTuple):
    """Rows of values: numbers, text, `jaxunlearn.audit.Interval`; one that is None or not there is shown as a dash."""

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    caption: str = ""


class Section(NamedTuple):
    """A part of a report; blank lines in the text separate paragraphs."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[tuple["Figure", str]] = ()  # with a caption that says what is to be seen


def cells(table: Table) -> list[list[str]]:
    """Formatted values, a list a row, in the order of the columns."""
    return [[_cell(row.get(column.key), column) for column in table.columns] for row in table.rows]


def _cell(value: Any, column: Column) -> str:
    specification = column.format or ""
    if value is None:
        return MISSING
    if not isinstance(value, Interval):
        return format(value, specification)
    estimate, low, high = (format(float(x), specification) for x in value)
    if np.isnan(float(value.low)) and np.isnan(float(value.high)):
        return estimate
    return f"{estimate} [{low.removesuffix('%')}, {high.removesuffix('%')}]"


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table in the terminal; where it is too wide, half the width of an interval goes below its estimate."""
    console = console or rich.get_console()
    drawn = _drawn(table, cells(table))
    if console.measure(drawn, options=console.options.update(max_width=10_000)).maximum > console.width:
        drawn = _drawn(table, [[_narrow(row.get(column.key), column) for column in table.columns] for row in table.rows])
    console.print(drawn)


def _narrow(value: Any, column: Column) -> str:
    text = _cell(value, column)
    if not isinstance(value, Interval) or " [" not in text:
        return text
    below, above = float(value.estimate - value.low), float(value.high - value.estimate)
    if not np.isclose(below, above, rtol=1e-3):
        return text.replace(" [", "\n[")
    half = format(above, (column.format or "").removeprefix("+")).removesuffix("%")
    return f"{text.split(' [')[0]}\n±{half}"


def _drawn(table: Table, rows: Sequence[Sequence[str]]) -> rich.table.Table:
    drawn = rich.table.Table(title=table.caption or None, title_justify="left", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, column in enumerate(table.columns):
        width = max((len(line) for row in rows for line in row[place].splitlines()), default=1)
        drawn.add_column(Text(column.label), justify="left" if column.format is None else "right", min_width=width)
    for row in rows:
        drawn.add_row(*map(Text, row))
    return drawn


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown, its caption as a paragraph in front."""
    lines = [
        [column.label for column in table.columns],
        ["---" if column.format is None else "---:" for column in table.columns],
        *cells(table),
    ]
    body = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    return f"{table.caption}\n\n{body}" if table.caption else body


def compact_json(value: Any) -> str:
    """Indented JSON with lists and innermost objects on one line each."""
    text = json.dumps(value, indent=1, allow_nan=False)
    for brackets in (r"\[[^\[\]{}]*\]", r"\{[^{}]*\}"):
        text = re.sub(brackets, lambda match: re.sub(r"\s*\n\s*", " ", match.group()), text)
    return text + "\n"


def environment_table(environment: Mapping[str, Any]) -> Table:
    """What `training.environment` returns, as a table of two columns."""
    rows = [{"name": name.replace("_", " "), "value": value} for name, value in environment.items()]
    return Table([Column("name", "name"), Column("value", "value")], rows)


def write_report(
    path: str | Path,
    title: str,
    intro: str,
    sections: Sequence[Section],
    *,
    environment: Mapping[str, Any] | None = None,
) -> Path:
    """Write one HTML page that needs no other file: figures are inside it as data URIs.

    Args:
        path: of the file; folders on the way are made.
        title: of the page.
        intro: paragraphs before the first section, separated by blank lines. All text is escaped.
        sections: parts in order.
        environment: what the figures were taken on, see `training.environment`; shown at the end.

    Returns:
        The path.
    """
    from experiments.common.plots import css_width, to_data_uri

    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.globals.update(cells=cells, css_width=css_width, to_data_uri=to_data_uri, paragraphs=_paragraphs)
    page = jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        intro=intro,
        sections=sections,
        environment=environment_table(environment) if environment is not None else None,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]
