"""Tutorials as pages and as notebooks; that they run is tested in `tests/experiments/test_tutorials.py`."""

import json
import re

import pytest

from docs.building import executing, tutorials

SCRIPTS = [pytest.param(path, id=name) for name, path in tutorials.scripts().items()]
TINY = '''"""Tutorial 1: a tiny one.

What it is about.
"""

# %%
# %pip install -q jaxunlearn

# %%
x = 1
print("first", x)

# %% [markdown]
# ## Text
# and more of it.

# %%
def double(value):
    return 2 * value


# %%
print("second", double(x))
'''


@pytest.mark.parametrize("path", SCRIPTS)
def test_page_and_notebook_hold_every_line_of_code_once_and_in_order(path):
    source = path.read_text()
    cells = re.split(r"^# %%(.*)$", source, flags=re.MULTILINE)[1:]
    kept = "\n".join(body for kind, body in zip(cells[::2], cells[1::2], strict=True) if "markdown" not in kind)
    lines = [line.replace("# %pip", "%pip") for line in kept.splitlines() if line]
    page = tutorials.page(path.stem, source)
    shown = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    assert [line for line in shown.splitlines() if line] == lines
    book = json.loads(tutorials.notebook(source))
    code = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code")
    assert [line for line in code.splitlines() if line] == lines
    titles = re.findall(r"^# (## .*)$", source, re.MULTILINE)
    assert re.findall(r"^## .*$", page, re.MULTILINE) == titles


@pytest.mark.parametrize("path", SCRIPTS)
def test_notebooks_run_on_a_machine_that_has_only_python(path):
    book = json.loads(tutorials.notebook(path.read_text()))
    first, *others = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert re.fullmatch(r'%pip install -q (jaxunlearn|"jaxunlearn\[[a-z,]+\]")( [a-z-]+)*', first)
    imported = set(re.findall(r"^(?:from|import) (\w+)", "\n".join(others), re.MULTILINE))
    installed = {"jaxunlearn", "jax", "numpy", "optax", "json", "os", "tempfile"}
    assert imported <= (installed | {"sklearn"} if "scikit-learn" in first else installed)
    assert not re.search(r"\]\((?!https)", json.dumps(book))  # links to files of a place where the notebook is not
    nbformat = pytest.importorskip("nbformat", reason="pip install 'jaxunlearn[test]'")
    nbformat.validate(nbformat.from_dict(book))


def test_tutorials_are_numbered_from_one_on():
    numbers = [int(re.findall(r'^"""Tutorial (\d+): ', path.read_text())[0]) for path in tutorials.scripts().values()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_outputs_stand_behind_the_cells_that_printed_them(tmp_path):
    script = tmp_path / "tiny.py"
    script.write_text(TINY)
    printed = executing.printed_by(script)
    assert printed == ["", "first 1\n", "", "second 2\n"]
    page = tutorials.page("tiny", TINY, printed)
    assert page.startswith("# A tiny one\n\nWhat it is about.\n\n")
    assert 'print("first", x)\n```\n\n```text\nfirst 1\n```\n\n## Text\nand more of it.' in page
    book = json.loads(tutorials.notebook(TINY, printed))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [1, 2, 3, 4]
    assert [[x["text"] for x in cell["outputs"]] for cell in code] == [[], [["first 1\n"]], [], [["second 2\n"]]]
    assert all(cell["execution_count"] is None for cell in json.loads(tutorials.notebook(TINY))["cells"] if "outputs" in cell)


def test_an_error_names_the_line_of_the_script(tmp_path):
    script = tmp_path / "tiny.py"
    script.write_text(TINY.replace("    return 2 * value", "    return 2 / 0"))
    with pytest.raises(ZeroDivisionError) as caught:
        executing.printed_by(script)
    place = next(entry for entry in caught.traceback if entry.name == "double")
    assert script.read_text().splitlines()[place.lineno] == "    return 2 / 0"


def test_what_was_printed_is_kept_until_the_script_changes(tmp_path, monkeypatch):
    runs = []

    def run(command, **options):
        runs.append(command[-1])
        return executing.subprocess.CompletedProcess(command, 0 if len(runs) < 3 else 1, '["x"]', "ValueError: why")

    script = tmp_path / "tiny.py"
    script.write_text(TINY)
    monkeypatch.setattr(executing.tutorials, "scripts", lambda: {"tiny": script})
    monkeypatch.setattr(executing.subprocess, "run", run)
    assert executing.printed_by_all(tmp_path / "kept") == executing.printed_by_all(tmp_path / "kept") == {"tiny": ["x"]}
    assert len(runs) == 1
    script.write_text(TINY + "\n")
    executing.printed_by_all(tmp_path / "kept")
    assert len(runs) == 2
    script.write_text(TINY + "\n\n")
    with pytest.raises(RuntimeError, match=r"tiny\.py failed:\nValueError: why"):
        executing.printed_by_all(tmp_path / "kept")
