"""Docstrings as Markdown: paragraphs, lists, indented blocks, and sections such as `Args:`."""

import inspect
import re
import textwrap
from collections.abc import Callable

SECTIONS = ("Args", "Returns", "Raises", "References", "Example", "Examples", "Yields", "Attributes", "Note")
_HEADING = re.compile(rf"^({'|'.join(SECTIONS)}):$")
_CODE = re.compile(r"(``.+?``|`[^`\n]+`|\*\*[^*\n]+\*\*)", re.DOTALL)
_LINK = re.compile(r"(https?://[^\s)>,]+[^\s)>,.;:])")


def literal(text: str) -> str:
    """An indented block as it stands."""
    return f"```text\n{text}\n```"


def escaped(text: str) -> str:
    """Plain text for Markdown; `code` and **bold** stay, and addresses become links.

    Args:
        text: one or more lines.

    Returns:
        Text in which no other character means anything.

    Example:
        >>> from docs.building.docstrings import escaped
        >>> escaped("`a_b` and |x*y| [n]")
        '`a_b` and |x\\\\*y| \\\\[n\\\\]'
    """

    def plain(part: str) -> str:
        return _LINK.sub(r"<\1>", re.sub(r"([\\*_<\[\]{}$])", r"\\\1", part))

    return "".join(part if place % 2 else plain(part) for place, part in enumerate(_CODE.split(text)))


def to_markdown(text: str, indented: Callable[[str], str] = literal, *, level: int = 3) -> str:
    """A docstring as Markdown.

    Args:
        text: as `inspect.getdoc` gives it.
        indented: what becomes of an indented block that is no example.
        level: of the headings of its sections; 0 writes them in bold.

    Returns:
        Markdown.

    Example:
        >>> from docs.building.docstrings import to_markdown
        >>> print(to_markdown("Add.\\n\\nArgs:\\n    x, y: numbers,\\n        any.\\n\\nReturns:\\n    Their sum.", level=0))
        Add.
        <BLANKLINE>
        **Args**
        <BLANKLINE>
        - `x`, `y`: numbers, any.
        <BLANKLINE>
        **Returns**
        <BLANKLINE>
        Their sum.
    """
    parts, name, body = [], "", []
    for line in [*inspect.cleandoc(text).splitlines(), "Args:"]:  # the last one closes what stands before it
        if found := _HEADING.match(line):
            parts += _section(name, textwrap.dedent("\n".join(body)).strip("\n"), indented, level)
            name, body = found[1], []
        elif name and line and not line.startswith(" "):  # back to plain text
            parts += _section(name, textwrap.dedent("\n".join(body)).strip("\n"), indented, level)
            name, body = "", [line]
        else:
            body.append(line)
    return "\n\n".join(parts)


def _section(name: str, body: str, indented: Callable[[str], str], level: int) -> list[str]:
    if not body:
        return []
    heading = [f"{'#' * level} {name}" if level else f"**{name}**"] if name else []
    if name.startswith("Example"):
        return [*heading, f"```pycon\n{body}\n```"]
    if name in ("Args", "Raises", "Attributes"):
        return [*heading, _entries(body)]
    return [*heading, *_blocks(body, indented)]


def _entries(body: str) -> str:
    """`name: text` and its indented lines, as a list."""
    entries: list[str] = []
    for line in body.splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += f" {line.strip()}"
        elif line.strip():
            entries.append(line.strip())
    shown = []
    for entry in entries:
        names, colon, text = entry.partition(": ")
        names = re.sub(r"[*\w.]+", lambda match: f"`{match[0]}`", names) if colon and re.fullmatch(r"[*\w., ]+", names) else ""
        shown.append(f"- {names}: {escaped(text)}" if names else f"- {escaped(entry)}")
    return "\n".join(shown)


def _blocks(body: str, indented: Callable[[str], str]) -> list[str]:
    """Paragraphs, lists and indented blocks; a block may have blank lines in it."""
    found: list[tuple[bool, str]] = []
    for part in re.split(r"\n[ ]*\n", body):
        deep = all(line.startswith("    ") for line in part.splitlines())
        if deep and found and found[-1][0]:
            found[-1] = (True, f"{found[-1][1]}\n\n{part}")
        else:
            found.append((deep, part))
    shown = []
    for deep, part in found:
        if not deep:
            shown.append(_text(part))
        elif part.lstrip().startswith(">>>"):
            shown.append(f"```pycon\n{textwrap.dedent(part)}\n```")
        else:
            shown.append(indented(textwrap.dedent(part)))
    return shown


def _text(part: str) -> str:
    """A paragraph or a list, whose items keep their marks; an indented block may follow without a blank line."""
    lines = escaped(part).splitlines()
    return "\n".join(re.sub(r"^(\s*)(#|\+ |> |(\d+)\) )", r"\1\\\2", line) for line in lines)
