"""The package as a whole: floors, imports, catalogue, documents, wheel."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import catalogue
from tests.problems import blobs, headed, lane, network

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxunlearn"
FLOORS = [
    {"types"},
    {"status", "tree", "precision"},
    {"risk", "rows"},
    {"losses", "transforms", "curvature"},
    {"requests", "driver", "batching", "checkpoint", "convex", "journal", "rum", "features"},
    {"exact", "objective", "closed_form", "representation", "generative", "rl", "certificates", "audit", "adapters", "ledger"},
    {"catalogue"},
    {"__init__"},
]
FAMILIES = ("exact", "objective", "closed_form", "representation", "generative", "rl")
EXTRAS = ("flax", "torch", "equinox", "haiku", "orbax", "tensorflow_datasets", "sklearn", "matplotlib", "chex", "tyro", "rich")


def floor_of(module):
    name = module.split(".")[1] if "." in module else "__init__"
    return next(height for height, names in enumerate(FLOORS) if name in names)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxunlearn":
            if node.module == "jaxunlearn":
                yield from (f"jaxunlearn.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("jaxunlearn"))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_point_down(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    height = floor_of(".".join(parts)) if parts != ("jaxunlearn", "__init__") else len(FLOORS)
    for module in imports_of(path):
        assert floor_of(module) <= height, f"{path.name} imports {module} from a floor above"


def test_import_pulls_in_no_extra_and_starts_nothing():
    code = (
        "import sys, jax, jaxunlearn; jaxunlearn.audit, jaxunlearn.certificates; from jax._src import xla_bridge; "
        f"print(sorted(set(sys.modules) & set({EXTRAS!r})), xla_bridge.backends_are_initialized())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["[]", "False"]


def test_the_compiler_is_none_that_is_known_to_be_wrong():
    rows = jnp.stack([jnp.arange(32_769.0), *[jnp.zeros(32_769)] * 2], axis=1)  # jax issue 39103
    lengths = jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))
    assert jax.jit(lengths)(rows)[-1] == lengths(rows)[-1] == 32_768.0**2

    def product(u, x):
        return jnp.einsum("sbc,bc->sb", u, x @ jnp.zeros((128, 10)))

    u, x = jnp.ones((2, 1, 500, 10)), jnp.ones((2, 500, 128))
    assert not jnp.any(jax.jit(jax.vmap(product))(u, x))


def test_catalogue_equals_the_method_files():
    files = {path.stem for family in FAMILIES for path in (PACKAGE / family).glob("*.py")} - {"__init__"}
    assert set(ju.METHODS) == files
    for name, method in ju.METHODS.items():
        assert method.factory is getattr(ju, name)
        assert method.factory.__module__ == f"jaxunlearn.{method.family}.{name}"


def test_everything_public_is_listed_and_documented():
    assert ju.__all__ == sorted(ju.__all__)
    for name in ju.__all__:
        value = getattr(ju, name)
        assert value.__doc__, name
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("jaxunlearn")
        for alias in node.names
    }
    assert imported == set(ju.__all__)


def test_factories_of_methods_share_their_first_arguments():
    import inspect

    for name, method in ju.METHODS.items():
        parameters = inspect.signature(method.factory).parameters
        model = "problem" if "problem" in parameters else "model"
        first = [model, "optimizer"] if "num_steps" in parameters else [model]
        assert list(parameters)[: len(first)] == first, name
        assert all(p.kind is not p.POSITIONAL_OR_KEYWORD for p in list(parameters.values())[len(first) :]), name


def test_citation_prints_each_entry_once(capsys):
    ju.citation("scrub", "gradient_difference")
    assert capsys.readouterr().out.count("@inproceedings{kurmanji2023towards,") == 1
    ju.citation()
    assert capsys.readouterr().out.count("@") == len({method.bibtex for method in ju.METHODS.values()})
    with pytest.raises(ValueError, match="unknown methods"):
        ju.citation("scrab")


def test_deprecated_names_warn_and_removed_ones_explain(monkeypatch):
    monkeypatch.setitem(ju._DEPRECATED, "negative_gradient", ("use gradient_ascent", ju.gradient_ascent))
    monkeypatch.setitem(ju._DEPRECATED, "forget", ("use batched", None))
    with pytest.warns(DeprecationWarning, match="use gradient_ascent"):
        assert ju.negative_gradient is ju.gradient_ascent
    with pytest.raises(AttributeError, match="was removed: use batched"):
        _ = ju.forget
    with pytest.raises(AttributeError, match="has no attribute"):
        _ = ju.nonsense


def test_readme_shows_the_generated_table_of_methods():
    assert catalogue.markdown_table() in (ROOT / "README.md").read_text()


def test_readme_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    scope = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert capsys.readouterr().out


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if ">>>" in path.read_text():
            yield name


@pytest.mark.parametrize("name", list(modules()))
def test_examples_in_docstrings_run(name):
    data = blobs()
    key = jax.random.key(0)
    scope = {
        "jaxunlearn": ju,
        "jax": jax,
        "optax": optax,
        "model": network(),
        "variables": network().init(key),
        "data": data,
        "request": lane(ju.from_indices(data, [[1, 2]]), 0),
        "key": key,
        "test": data.extra["validation"],
        "jnp": jax.numpy,
        "headed": headed(),
        "headed_variables": headed().init(key),
        "x": data.train.inputs,
    }
    result = doctest.testmod(importlib.import_module(name), extraglobs=scope, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_architecture_names_every_module_that_exists():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    top = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()
    }
    assert not [name for name in top - {"__init__"} if name not in text]
    assert ju.__version__ in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {ju.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_the_wheel_works_from_an_empty_directory(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "jaxunlearn/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "experiments"))]
    code = (
        "import jaxunlearn, pathlib; jaxunlearn.citation('scrub'); "
        "print(pathlib.Path(jaxunlearn.__file__).parents[1].name, jaxunlearn.__version__)"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=empty,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines()[-1] == f"site {ju.__version__}"
