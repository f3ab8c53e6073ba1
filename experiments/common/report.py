"""Tables of values in the terminal, and on pages together with figures; the pages are those of `jaxunlearn.audit.pages`."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import rich.box
import rich.table
from rich.console import Console
from rich.text import Text

from jaxunlearn.audit import Interval, in_short, pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICTS: dict[str, pages.Kind] = {
    **in_short.KINDS,
    "valid": "good", "refused": "bad", "reached": "good", "missed": "bad", "like retrained models": "good",
    "reproduced": "good", "not reproduced": "bad", "not testable here": "open",
}  # fmt: skip
PIPED = 10_000  # columns where output goes to a file or to another program: no line is folded there


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
    role: Literal["part", "summary", "folded"] = "part"  # see `jaxunlearn.audit.pages.Section`


def formatted(table: Table) -> pages.Table:
    """The table as it stands on a page or in Markdown (`jaxunlearn.audit.pages.to_markdown`)."""
    rows = [[_cell(row, column) for column in table.columns] for row in table.rows]
    numbers = [place for place, column in enumerate(table.columns) if column.format is not None]
    return pages.Table([column.label for column in table.columns], rows, table.caption, numbers, kinds=VERDICTS)


def _cell(row: Mapping[str, Any], column: Column) -> str:
    return pages.cell(row.get(column.key), column.format or "")


def terminal(*, quiet: bool = False) -> Console:
    """Standard output; in a pipe or a file lines are as long as they are, unless COLUMNS says otherwise."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(quiet=quiet, width=PIPED if piped else None)


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table whole, however narrow the terminal is.

    Where it is too wide, headings and texts are folded; then half the width of an interval goes below its estimate; and where
    that is not enough, columns that do not fit are printed below the others, each time with the first column in front.
    """
    console = console or terminal()
    drawn = _fitted(table, [[_cell(row, column) for column in table.columns] for row in table.rows], console.width)
    if drawn is not None:
        console.print(drawn)
        return
    rows = [[_narrow(row, column) for column in table.columns] for row in table.rows]
    left = list(range(1, len(table.columns)))
    while left:
        count, drawn = len(left) + 1, None
        while drawn is None:
            count -= 1
            places = [0, *left[:count]]
            part = table._replace(columns=[table.columns[place] for place in places])
            drawn = _fitted(part, [[row[place] for place in places] for row in rows], console.width, force=count == 1)
        console.print(drawn)
        left, table = left[count:], table._replace(caption="")


def _narrow(row: Mapping[str, Any], column: Column) -> str:
    value, text = row.get(column.key), _cell(row, column)
    if not isinstance(value, Interval) or " [" not in text:
        return text
    below, above = float(value.estimate - value.low), float(value.high - value.estimate)
    if not np.isclose(below, above, rtol=1e-3):
        return text.replace(" [", "\n[")
    half = format(above, (column.format or "").removeprefix("+")).removesuffix("%")
    return f"{text.split(' [')[0]}\n±{half}"


def _fitted(table: Table, rows: Sequence[Sequence[str]], room: int, *, force: bool = False) -> rich.table.Table | None:
    """The table in so many columns of the terminal; None if a number or a word had to be cut for that, unless forced."""
    least, most = [], []
    for place, column in enumerate(table.columns):
        lines = [line for row in rows for line in row[place].splitlines()]
        words = [word for line in lines for word in line.split()]
        whole = max(map(len, lines), default=1)
        cut = whole if column.format is not None else max(map(len, words), default=1)
        least.append(max(cut, *map(len, column.label.split())))
        most.append(max(whole, max(map(len, column.label.splitlines()))))
    room -= 2 * len(most) + 1  # a space behind every cell, and what the box takes around them
    if sum(least) > room and not force:
        return None
    widths = list(least)
    while widths != most and sum(widths) < room:  # the rest goes to those that lack most
        place = max(range(len(most)), key=lambda place: most[place] - widths[place])
        widths[place] += 1
    widths[0] = max(1, widths[0] - max(0, sum(widths) - room))
    drawn = rich.table.Table(title=table.caption or None, title_justify="left", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, width in zip(table.columns, widths, strict=True):
        justify = "left" if column.format is None else "right"
        drawn.add_column(Text(column.label), justify=justify, width=width, overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    return drawn


def compact_json(value: Any) -> str:
    """Indented JSON with lists and innermost objects on one line each."""
    text = json.dumps(value, indent=1, allow_nan=False)
    for brackets in (r"\[[^\[\]{}]*\]", r"\{[^{}]*\}"):
        text = re.sub(brackets, lambda match: re.sub(r"\s*\n\s*", " ", match.group()), text)
    return text + "\n"


def write_report(
    path: str | Path,
    title: str,
    intro: str,
    sections: Sequence[Section | pages.Section],
    *,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write one HTML page that needs no other file.

    Args:
        path: of the file; folders on the way are made.
        title: of the page.
        intro: paragraphs before the first section, separated by blank lines.
        sections: parts in order.
        settings: flags, and what the figures were taken on, see `training.environment`; folded away at the end.

    Returns:
        The path.
    """
    parts = [
        x
        if isinstance(x, pages.Section)
        else pages.Section(x.title, x.text, [formatted(table) for table in x.tables], x.figures, role=x.role)
        for x in sections
    ]
    if settings is not None:
        rows = [[name.replace("_", " "), pages.MISSING if value is None else f"{value}"] for name, value in settings.items()]
        parts.append(pages.Section("Settings and versions", tables=[pages.Table(["name", "value"], rows)], role="folded"))
    return pages.write_page(path, title, parts, intro=intro)
