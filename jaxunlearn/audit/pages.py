"""Tables of formatted cells, and pages made of them: Markdown, and one HTML file that needs no other.

A page has sections; a section has text, tables and figures. All text is escaped, figures lie inside the page as data URIs, and
readers who prefer dark pages get one. Tables are sorted by a click on a heading; without JavaScript they stay as they are.
Figures are matplotlib's, which is not imported here.
"""

import base64
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxunlearn.audit.page_style import HEAD, SCRIPT, STYLE
from jaxunlearn.proportions import Interval

MISSING = "–"  # noqa: RUF001
DOTS_PER_INCH = 160
SMALLEST = 0.7  # of the size a figure was drawn in: on narrow screens it is scrolled rather than made smaller
LONG = 40  # letters of a cell that is not to become a narrow column
Kind = Literal["good", "bad", "open"]
MARKS: dict[Kind, str] = {"good": "✓", "bad": "✗", "open": "?"}  # so that a verdict is more than its colour


class Table(NamedTuple):
    """Formatted cells under headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numbers: Collection[int] = ()  # positions of the columns that are aligned right
    links: Mapping[str, str] | None = None  # from the text of a cell to the `id` on the page that it leads to
    kinds: Mapping[str, Kind] | None = None  # from the text of a cell that is a verdict to what it is


class Section(NamedTuple):
    """A part of a page."""

    title: str = ""
    text: str = ""  # blank lines separate paragraphs
    tables: Sequence[Table] = ()
    figures: Sequence[tuple[Any, str]] = ()  # matplotlib figures, each with a caption that says what is to be seen
    terms: Sequence[tuple[str, str, str]] = ()  # (`id`, term, definition)
    role: Literal["part", "summary", "folded"] = "part"  # a summary stands on top; what is folded opens by a click


def cell(value: Any, specification: str = "") -> str:
    """A value as it stands in a table.

    Args:
        value: text, a number, an `Interval` of numbers, or None for a value that is missing.
        specification: format of a number, e.g. `.1%` or `+.3f`.

    Returns:
        The text: a dash for None, `estimate [low, high]` for an interval, `estimate` if both limits are NaN.

    Raises:
        ValueError: a specification that does not fit the value.

    Example:
        >>> from jaxunlearn.audit import Interval
        >>> from jaxunlearn.audit.pages import cell
        >>> cell(Interval(0.5, 0.4, 0.6), ".1%"), cell(0.5, "+.2f")
        ('50.0% [40.0, 60.0]', '+0.50')
    """
    if value is None:
        return MISSING
    if not isinstance(value, Interval):
        return format(value, specification)
    estimate, low, high = (format(float(x), specification) for x in value)
    if np.isnan(float(value.low)) and np.isnan(float(value.high)):
        return estimate
    return f"{estimate} [{low.removesuffix('%')}, {high.removesuffix('%')}]"


def to_markdown(table: Table) -> str:
    """A table in GitHub's Markdown, its caption as a paragraph in front.

    Args:
        table: what to show; links are left out.

    Returns:
        The text, which ends with a line break.

    Example:
        >>> from jaxunlearn.audit.pages import Table, to_markdown
        >>> print(to_markdown(Table(["method", "time"], [["scrub", "3 s"]], numbers=[1])), end="")
        | method | time |
        | --- | ---: |
        | scrub | 3 s |
    """
    lines = [table.headings, ["---:" if place in table.numbers else "---" for place in range(len(table.headings))], *table.rows]
    body = "".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |\n" for line in lines)
    return f"{table.caption}\n\n{body}" if table.caption else body


def page(title: str, sections: Iterable[Section], *, intro: str = "") -> str:
    """One HTML page that needs no other file.

    Args:
        title: of the page.
        sections: its parts, in order; summaries come first, before the introduction, and folded ones last.
        intro: paragraphs in front of the first section, separated by blank lines.

    Returns:
        The page as text.

    Example:
        >>> from jaxunlearn.audit.pages import Section, Table, page
        >>> text = page("Audit", [Section("Times", "In seconds.", [Table(["method", "time"], [["a < b", "3"]])])])
        >>> "<p>In seconds.</p>" in text, "a &lt; b" in text
        (True, True)
    """
    sections = list(sections)
    parts = {role: [section for section in sections if section.role == role] for role in ("summary", "part", "folded")}
    body = [f"<h1>{escape(title)}</h1>"]
    for section in parts["summary"]:
        body += ['<section class="summary">', *_body(section), "</section>"]
    body += _paragraphs(intro)
    for section in parts["part"]:
        body += ["<section>", *_body(section), "</section>"]
    for section in parts["folded"]:
        body += [f"<details>\n<summary>{escape(section.title)}</summary>", *_body(section._replace(title="")), "</details>"]
    end = f"\n</main>\n<script>\n{SCRIPT}\n</script>\n</body>\n</html>\n"
    return HEAD.format(title=escape(title), style=STYLE) + "\n".join(body) + end


def _body(section: Section) -> list[str]:
    body = [*([f"<h2>{escape(section.title)}</h2>"] if section.title else []), *_paragraphs(section.text)]
    body += [_table(table) for table in section.tables]
    body += [_figure(figure, caption) for figure, caption in section.figures]
    if section.terms:
        terms = (f'<dt id="{escape(name)}">{escape(term)}</dt><dd>{escape(text)}</dd>' for name, term, text in section.terms)
        body += ["<dl>", *terms, "</dl>"]
    return body


def write_page(
    path: str | Path, title: str, sections: Iterable[Section], *, intro: str = "", summary: Section | None = None
) -> Path:
    """Write a page to a file.

    Args:
        path: of the file; folders on the way are made, a file that is there is replaced.
        title, sections, intro: as for `page`.

    Returns:
        The path.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from jaxunlearn.audit.pages import write_page
        >>> write_page(f"{tempfile.mkdtemp()}/new/page.html", "Audit", [], intro="Nothing yet.").name
        'page.html'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(title, sections, intro=intro), encoding="utf-8")
    return path


def _paragraphs(text: str) -> list[str]:
    return [f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip()]


def _table(table: Table) -> str:
    links, kinds = table.links or {}, table.kinds or {}
    numbers = [' class="number"' if x in table.numbers else "" for x in range(len(table.headings))]

    def drawn(text: str, place: int) -> str:
        shown = f'<a href="#{escape(links[text])}">{escape(text)}</a>' if text in links else escape(text)
        if text in kinds:
            shown = f'<span class="{kinds[text]}">{MARKS[kinds[text]]} {shown}</span>'
        if place == 0 and not numbers[0]:
            return f'<th scope="row">{shown}</th>'
        kind = numbers[place] or (' class="long"' if len(text) > LONG else "")
        return f"<td{kind}>{shown}</td>"

    headings = (f'<th scope="col"{kind}>{escape(text)}</th>' for text, kind in zip(table.headings, numbers, strict=True))
    rows = ("<tr>" + "".join(drawn(text, place) for place, text in enumerate(row)) + "</tr>" for row in table.rows)
    return "\n".join(
        [
            '<div class="scroll" tabindex="0">',
            "<table>",
            *([f"<caption>{escape(table.caption)}</caption>"] if table.caption else []),
            f"<thead><tr>{''.join(headings)}</tr></thead>",
            "<tbody>",
            *rows,
            "</tbody>",
            "</table>",
            "</div>",
        ]
    )


def _figure(figure: Any, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor="white", bbox_inches="tight")
    image = buffer.getvalue()
    # a CSS pixel is 1/96 inch: letters get the size that they were drawn in
    width = round(int.from_bytes(image[16:20], "big") * 96 / DOTS_PER_INCH)
    source = "data:image/png;base64," + base64.b64encode(image).decode("ascii")
    text = escape(caption)
    drawn = f'<img src="{source}" width="{width}" style="min-width: {round(SMALLEST * width)}px" alt="{text}">'
    return f'<figure>\n<div class="scroll" tabindex="0">{drawn}</div>\n<figcaption>{text}</figcaption>\n</figure>'
