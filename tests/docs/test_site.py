"""The site: what is generated, and every snippet of its pages. Sphinx itself builds it in `.ci/run`, warnings as errors."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

import jaxunlearn as ju
from docs.building import comparison, copies, docstrings, equations, methods, write
from jaxunlearn.status import Status
from tests.test_package import public

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "generated" not in path.parts)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
WITH_CODE = [path for path in PAGES if "\n```python\n" in path.read_text()]


def blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def start():
    """The names of the start page, which all pages go on from."""
    scope = {"__name__": "docs"}
    exec(compile(blocks(ROOT / "README.md")[0], "README.md", "exec"), scope)
    return scope


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.stem)
def test_snippets_run_from_the_names_of_the_start_page(path, start, capsys):
    scope, said = dict(start), []
    for block in blocks(path):
        capsys.readouterr()
        exec(compile(block, str(path), "exec"), scope)
        printed = capsys.readouterr().out.splitlines()
        # `print(...)  # what it prints, perhaps with words behind`
        wanted = re.findall(r"^\s*print\(.*\)  # (\(.*?\)|\w+(?=$|:))", block, re.MULTILINE)
        said += [(want, line) for want, line in zip(wanted, printed, strict=False) if len(wanted) == len(printed)]
    assert not [pair for pair in said if pair[0] != pair[1]]


@pytest.fixture(scope="module")
def made():
    return write.every_page()


def test_every_method_and_every_public_name_has_its_place(made):
    for name, card in ju.METHODS.items():
        page = made[f"methods/{name}.md"]
        assert f"@{ju.catalogue.references()[card.cites].split('@')[1]}" in page
        assert f"{name}(\n" in page
        assert f"methods/{name}\n" in made["methods.md"]
        assert all(f"| `{setting}` |" in page for setting in card.search)
        assert f"methods/{name}.md" in made["which.md"] or card.takes != "model"
    headings = set()
    for path, page in made.items():
        if path.startswith("reference/"):
            space = path.removeprefix("reference/").removesuffix(".md")
            prefix = "" if space == "jaxunlearn" else f"{space}."
            headings |= {prefix + name for name in re.findall(r"^## `([\w.]+)`$", page, re.MULTILINE)}
    of_models = {name for name in public() if name.rpartition(".")[2] in ju.METHODS}
    constants = {name for name, value in public().items() if not isinstance(value, type) and not callable(value)}
    assert set(public()) - of_models - constants <= headings


def test_tasks_list_what_fits(made):
    for name in methods.TASKS:
        listed = set(re.findall(r"\.\./methods/(\w+)\.md", made[f"tasks/{name}.md"]))
        kind = methods.TASKS[name]
        assert set(ju.catalogue.chosen(task=kind)) <= listed
        assert all(ju.METHODS[x].takes != "model" or ju.catalogue.fits(ju.METHODS[x], kind) for x in listed)
        assert "```python" in made[f"tasks/{name}.md"]


def test_measured_figures_are_those_of_the_newest_file(made):
    found = comparison.measured()
    assert found["scrub"]["random"].file == "compare_digits_repeated"
    assert found["npo"]["random"].file == "compare_digits"
    assert "stochastic_newton" in found
    assert set(found) <= set(ju.METHODS)
    page = made["methods/npo.md"]
    assert 'role="img" aria-label="Size of the worst gap of npo' in page
    for scenario in found["npo"]:
        assert f"| {scenario} | " in page
    first, *_ = comparison.closest("random", 3)
    assert abs(first[1].worst) == min(abs(x["random"].worst) for x in found.values() if x.get("random") and x["random"].worst)


def test_every_status_says_what_to_do(made):
    assert set(copies.DO) == set(Status)
    for code in Status:
        assert f"`{code.name}`" in made["status.md"]


def test_headings_go_down_one_level_at_a_time(made):
    pages = {**made, **{str(path): path.read_text() for path in PAGES}}
    for name, text in pages.items():
        if name.endswith(".ipynb"):
            continue
        levels = [len(x) for x in re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)]
        assert levels[0] == 1, name
        assert levels.count(1) == 1, name
        assert all(below <= above + 1 for above, below in pairwise(levels)), name


def test_links_of_the_documents_in_the_root_lead_somewhere():
    for path in ["README.md", *copies.COPIES]:
        copies.relinked((ROOT / path).read_text(), Path(path).parent)
    with pytest.raises(ValueError, match=r"leads to nowhere\.md"):
        copies.relinked("[x](nowhere.md)", Path())
    assert copies.relinked("[x](README.md#top)", Path("experiments/results")) == "[x](results.md#top)"
    assert copies.relinked("[x](https://a.b/c) [y](#z)", Path()) == "[x](https://a.b/c) [y](#z)"


def test_no_equation_is_left_half_set(made):
    shown = [x for page in made.values() for x in re.findall(r'<pre class="equation".*?</pre>', page, re.DOTALL)]
    assert len(shown) > 40
    for text in shown:
        assert not re.search(r"_\{|\^\{|&lt;-|-&gt;", text), text
        assert text.count("<sub>") == text.count("</sub>")


@pytest.mark.parametrize(
    ("plain", "shown"),
    [
        ("p_w(y|x)^2", "p<sub>w</sub>(y|x)<sup>2</sup>"),
        ("mean_{forget} grad L", "mean<sub>forget</sub> ∇ L"),
        ("retain_weight num_steps", "retain_weight num_steps"),
        ("a < b <= c", "a &lt; b ≤ c"),
        ("alphabet alpha_t", "alphabet α<sub>t</sub>"),  # noqa: RUF001
        ("(A + B)^{-1}", "(A + B)<sup>-1</sup>"),
    ],
)
def test_equations(plain, shown):
    assert equations.to_html(plain) == shown


def test_docstrings_become_markdown():
    text = (
        "One.\n\n    w <- w\n\n    v <- v\n\nTwo *x*.\n\nArgs:\n    a, b: first\n        line.\n\nRaises:\n    ValueError: no."
    )
    found = docstrings.to_markdown(text)
    assert "```text\nw <- w\n\nv <- v\n```" in found  # one block
    assert "- `a`, `b`: first line." in found
    assert "- `ValueError`: no." in found
    assert "Two \\*x\\*." in found
    assert "```pycon\n>>> 1\n```" in docstrings.to_markdown("X.\n\nExample:\n    >>> 1")


def test_signatures_are_those_of_the_source():
    def example(a, /, b: int = 1, *rest: str, c: float, **more: int) -> bool: ...

    assert methods.signature(example) == (
        "example(\n    a,\n    /,\n    b: int = 1,\n    *rest: str,\n    c: float,\n    **more: int,\n) -> bool"
    )
    assert methods.signature(write.write) == "write(\n    folder: Path,\n    made: Mapping[str, str],\n) -> None"


def test_what_is_no_longer_made_is_removed(tmp_path):
    for name in ("old.md", "old.ipynb"):
        (tmp_path / name).write_text("old")
    write.write(tmp_path, {"a/b.md": "# B\n"})
    assert [path.name for path in tmp_path.rglob("*.*")] == ["b.md"]
    before = (tmp_path / "a/b.md").stat().st_mtime_ns
    write.write(tmp_path, {"a/b.md": "# B\n"})
    assert (tmp_path / "a/b.md").stat().st_mtime_ns == before  # so that a second build reads nothing
