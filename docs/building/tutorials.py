"""Tutorials: one script in cells for each, as a page of the site and as a notebook, both with what it prints.

The format is that of editors and of jupytext (py:percent): `# %%` in front of code, `# %% [markdown]` in front of text, magics
of a notebook as comments. jupytext reads and writes it and does not run it; myst-nb and nbsphinx run notebooks in a kernel, and
had one release and none in the last year. So two functions write both forms, and `executing` runs the cells.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from docs.building import docstrings
from docs.building.copies import ROOT
from docs.building.methods import toctree

FOLDER = ROOT / "experiments" / "tutorials"
Printed = Sequence[str]  # what each cell of code printed


class Cell(NamedTuple):
    """A cell of a script."""

    is_text: bool
    body: str
    line: int  # of the script, that it begins on; counted from 1


class Script(NamedTuple):
    """A tutorial."""

    title: str
    intro: str  # Markdown
    cells: list[Cell]


def scripts() -> dict[str, Path]:
    """All tutorials by name, in the order in which they are read."""
    paths = [path for path in FOLDER.glob("*.py") if path.stem != "__init__"]
    return {path.stem: path for path in sorted(paths, key=lambda path: _number(path.read_text()))}


def _number(source: str) -> int:
    (found,) = re.findall(r'^"""Tutorial (\d+): ', source)
    return int(found)


def read(source: str) -> Script:
    """The cells of a script.

    Args:
        source: with a docstring "Tutorial N: its title." and what follows, in front of the first cell.

    Returns:
        Title, introduction and cells.

    Example:
        >>> from docs.building.tutorials import read
        >>> script = read('\"\"\"Tutorial 1: a title.\"\"\"\\n\\n# %% [markdown]\\n# ## Text\\n\\n# %%\\nprint(1)\\n')
        >>> script.title, [(cell.is_text, cell.body) for cell in script.cells]
        ('A title', [(True, '## Text'), (False, 'print(1)')])
    """
    head, *parts = re.split(r"^(?=# %%)", source, flags=re.MULTILINE)
    (words,) = re.findall(r'"""(.*?)"""', head, re.DOTALL)
    title, _, rest = words.partition("\n")
    title = title.partition(": ")[2].rstrip(".")
    cells, line = [], 2 + head.count("\n")
    for part in parts:
        kind, _, body = part.partition("\n")
        is_text = "[markdown]" in kind
        shown = re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE) if is_text else body.strip("\n")
        cells.append(Cell(is_text, shown, line + len(body) - len(body.lstrip("\n")) * (not is_text)))
        line += part.count("\n")
    return Script(f"{title[:1].upper()}{title[1:]}", docstrings.to_markdown(f"\n{rest}"), cells)


def _with_magics(code: str) -> str:
    return re.sub(r"^# (%\w)", r"\1", code, flags=re.MULTILINE)


def page(name: str, source: str, printed: Printed | None = None) -> str:
    """A tutorial as a page.

    Args:
        name: of the script.
        source: of it.
        printed: see `executing`; without it the page shows no output.

    Returns:
        Markdown.
    """
    script = read(source)
    parts = [f"# {script.title}", script.intro, f"[As a notebook]({name}.ipynb), to be opened in Jupyter or uploaded to Colab."]
    said = iter(printed or ())
    for cell in script.cells:
        if cell.is_text:
            parts.append(cell.body)
            continue
        parts.append(f"```python\n{_with_magics(cell.body)}\n```")
        if output := next(said, ""):
            parts.append(f"```text\n{output.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def notebook(source: str, printed: Printed | None = None) -> str:
    """A tutorial as a notebook of Jupyter, format 4.5.

    Args:
        source: of the script.
        printed: see `executing`; without it the notebook is one that was not run.

    Returns:
        JSON.
    """
    script = read(source)
    said, count = iter(printed or ()), 0
    cells: list[dict[str, Any]] = [_cell("markdown", 0, f"# {script.title}\n\n{script.intro}")]
    for place, cell in enumerate(script.cells, 1):
        if cell.is_text:
            cells.append(_cell("markdown", place, cell.body))
            continue
        output, count = next(said, ""), count + 1
        shown = [{"output_type": "stream", "name": "stdout", "text": _lines(output)}] if output else []
        run = count if printed is not None else None
        cells.append(_cell("code", place, _with_magics(cell.body)) | {"execution_count": run, "outputs": shown})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def _cell(kind: str, place: int, text: str) -> dict[str, Any]:
    return {"cell_type": kind, "id": f"cell-{place}", "metadata": {}, "source": _lines(text)}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def all_pages(printed: Mapping[str, Printed] | None = None) -> dict[str, str]:
    """Pages and notebooks by their paths in the folder of generated ones.

    Args:
        printed: by name of a tutorial, see `executing`.

    Returns:
        Texts.
    """
    found = {}
    for name, path in scripts().items():
        source, output = path.read_text(), (printed or {}).get(name)
        found |= {f"tutorials/{name}.md": page(name, source, output), f"tutorials/{name}.ipynb": notebook(source, output)}
    lines = [f"- [{read(path.read_text()).title}](tutorials/{name}.md)" for name, path in scripts().items()]
    words = (
        "To be read in this order; they need no accelerator, and no network but to install what they use. What cells print "
        "here is what they printed when this site was built. Every page offers itself as a notebook; the scripts in "
        "`experiments/tutorials` are the source of both, and editors open them as notebooks."
    )
    below = toctree(f"tutorials/{name}" for name in scripts())
    return {**found, "tutorials.md": "\n\n".join(["# Tutorials", words, "\n".join(lines), below]) + "\n"}
