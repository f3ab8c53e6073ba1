"""Tutorials as pages; that they run is tested in `tests/experiments/test_tutorials.py`."""

import re
from pathlib import Path

import pytest

from docs.building.tutorials import tutorial

FOLDER = Path(__file__).parents[2] / "experiments" / "tutorials"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_page_holds_every_line_of_code_once_and_in_order(path):
    source = path.read_text()
    page = tutorial(source)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    cells = re.split(r"^# %%(.*)$", source, flags=re.MULTILINE)[1:]
    kept = "\n".join(body for kind, body in zip(cells[::2], cells[1::2], strict=True) if "markdown" not in kind)
    assert [line for line in code.splitlines() if line] == [line for line in kept.splitlines() if line]
    titles = re.findall(r"^# (## .*)$", source, re.MULTILINE)
    assert re.findall(r"^## .*$", page, re.MULTILINE) == titles
    assert f"python experiments/tutorials/{path.name}" in page
