"""Tutorials, which are scripts in cells, as pages."""

import re

from docs.building import docstrings
from docs.building.copies import ROOT
from docs.building.methods import toctree


def tutorial(source: str) -> str:
    """A script in cells as a page: its text, and its code. It is not run here; the tests run it.

    Args:
        source: with `# %%` in front of code and `# %% [markdown]` in front of text.

    Returns:
        Markdown.
    """
    head, *cells = re.split(r"^# %%", source, flags=re.MULTILINE)
    (words,) = re.findall(r'"""(.*?)"""', head, re.DOTALL)
    title, _, rest = words.partition("\n")
    parts = [f"# {title.removeprefix('Tutorial: ').rstrip('.').capitalize()}", docstrings.to_markdown(f"\n{rest}")]
    for cell in cells:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def all_pages() -> dict[str, str]:
    """Pages by their paths in the folder of generated ones."""
    files = [path for path in sorted((ROOT / "experiments" / "tutorials").glob("*.py")) if path.stem != "__init__"]
    found = {f"tutorials/{path.stem}.md": tutorial(path.read_text()) for path in files}
    lines = [f"- [{text.splitlines()[0][2:]}]({path})" for path, text in found.items()]
    words = "Scripts in cells, run by the tests; editors open them as notebooks. They stand in `experiments/tutorials`."
    listed = "\n\n".join(["# Tutorials", words, "\n".join(lines), toctree(x.removesuffix(".md") for x in found)])
    return {**found, "tutorials.md": f"{listed}\n"}
