"""The package as a whole: floors, sizes, names, documents, wheel."""

import ast
import doctest
import importlib
import inspect
import io
import re
import subprocess
import sys
import tokenize
import zipfile
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import catalogue
from tests.problems import blobs, headed, held_out, lane, network

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxunlearn"
FLOORS = [
    {"types", "tree", "version", "modes"},
    {"checks", "meshes", "slots", "status", "card", "sampling", "class_order"}
    | {"losses", "likelihoods", "margin", "noise", "proportions"},
    {"passes", "evaluation", "precision", "requests", "transforms", "unseen", "refusals", "hypernetworks", "guards"},
    {"loop", "batching", "curvature", "service"},
    {"heads", "convex", "certificates", "adapters", "filters", "frozen", "summation", "sisa"},
    {"methods", "rl"},
    {"audit", "catalogue"},
    {"tuning", "answering", "commands"},
    {"__init__", "__main__"},
]
EXTRAS = ("flax", "torch", "equinox", "haiku", "orbax", "tensorflow_datasets", "sklearn", "matplotlib", "chex", "tyro", "rich")
EXTRAS += ("cryptography",)
LINES, LINES_OF_A_METHOD = 400, 150
LONG_METHODS: dict[str, str] = {}  # name: why it must be longer


@cache
def files():
    """Every file of the package by its name as a module; `__init__` files keep theirs."""
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def file_of(module, name=None):
    """The file that an import reads."""
    tries = [f"{module}.{name}", f"{module}.{name}.__init__", module, f"{module}.__init__"]
    return next(found for found in tries if found in files())


@cache
def imports_of(name):
    """Files of the package that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(files()[name].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxunlearn":
            found |= {file_of(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names if alias.name.split(".")[0] == "jaxunlearn"}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name} has a relative import"
    return found


def floor_of(name):
    """0 is the ground floor."""
    unit = name.split(".")[1]
    return next(height for height, names in enumerate(FLOORS) if unit in names)


def test_imports_only_point_down():
    assert len(FLOORS) <= 10
    above = [f"{name} imports {found}" for name in files() for found in imports_of(name) if floor_of(found) > floor_of(name)]
    assert not above


def require_no_cycle(graph):
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_cycle_runs_between_files():
    require_no_cycle({name: imports_of(name) for name in files()})


def test_no_cycle_runs_between_folders():
    """A file on the top level stands for itself; so do an `__init__`, which shows what its folder holds, and a command line."""

    def folder(name):
        parts = name.split(".")
        return name if len(parts) == 2 or parts[-1] in ("__init__", "__main__") else ".".join(parts[:-1])

    graph = {}
    for name in files():
        graph.setdefault(folder(name), set()).update({folder(found) for found in imports_of(name)} - {folder(name)})
    require_no_cycle(graph)


def code_of(path):
    """Numbers of the lines that hold code: no docstrings, comments, blank lines or imports, and no card."""
    text = path.read_text()
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        is_card = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "METHOD"
        if is_text or is_card or isinstance(node, ast.Import | ast.ImportFrom):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return lines


def test_files_are_short():
    lengths = {name: len(path.read_text().splitlines()) for name, path in files().items()}
    assert not {name: length for name, length in lengths.items() if length > LINES}
    methods = {name: len(code_of(Path(inspect.getfile(card.factory)))) for name, card in ju.METHODS.items()}
    assert {name: length for name, length in methods.items() if length > LINES_OF_A_METHOD}.keys() == LONG_METHODS.keys()


def test_import_pulls_in_no_extra_and_starts_nothing():
    code = (
        "import sys, jax, jaxunlearn as ju; ju.audit, ju.certificates, ju.adapters, ju.checkpoint, ju.ledger; "
        "from jax._src import xla_bridge; "
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


def names_in(nodes):
    return {alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_dir_shows_what_is_public_and_nothing_else():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    at_once = names_in([node for node in tree.body if getattr(node, "module", None) and node.module.startswith("jaxunlearn")])
    (for_readers,) = [node for node in tree.body if isinstance(node, ast.If)]
    on_first_use = names_in(for_readers.body)
    of_models = {name for name, card in ju.METHODS.items() if card.takes == "model"}
    assert set(dir(ju)) == at_once - {"*", "methods"} | on_first_use | of_models | {"__version__"}
    assert dir(ju) == sorted(set(dir(ju)))
    assert not [name for name in dir(ju) if name[0] == "_" and name != "__version__"]
    for name in dir(ju):
        value = getattr(ju, name)
        assert name in ("METHODS", "__version__") or inspect.getdoc(value), name
        internal = isinstance(value, ModuleType) and not value.__name__.startswith("jaxunlearn")
        assert not internal, name
    for name in ("nonsense", "negative_gradient"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(ju, name)


def test_internals_stay_out_of_sight_and_namespaces_work_in_a_fresh_process():
    spaces = [name for name in dir(ju) if isinstance(getattr(ju, name), ModuleType)]
    assert {"adapters", "audit", "certificates", "checkpoint", "convex", "ledger", "losses", "slots"} <= set(spaces)
    assert not {"tree", "checks", "sampling", "passes", "evaluation", "loop", "service", "catalogue", "card"} & set(dir(ju))
    code = f"import jaxunlearn as ju; print(*[getattr(ju, name).__name__ for name in {spaces!r}])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [getattr(ju, name).__name__ for name in spaces]


@cache
def public():
    """What users call, by the name that they reach it by."""
    found = {}
    for name in dir(ju):
        value = getattr(ju, name)
        if not isinstance(value, ModuleType):
            found[name] = value
            continue
        tree = ast.parse(Path(value.__file__).read_text())
        shown = names_in(tree.body)  # of a folder
        own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        chosen = shown if Path(value.__file__).stem == "__init__" else own
        found |= {f"{name}.{inner}": getattr(value, inner) for inner in chosen if inner[0] != "_"}
    return {name: value for name, value in found.items() if getattr(value, "__module__", "").startswith("jaxunlearn")}


def test_public_functions_say_what_they_take_return_and_show_it():
    sections, example = set(), set()
    for name, value in public().items():
        text = inspect.getdoc(value)
        assert text, f"{name} has no docstring"
        if not inspect.isfunction(value):
            continue
        signature = inspect.signature(value)
        needed = ["Args:"] * bool(signature.parameters) + ["Returns:"] * (signature.return_annotation not in (None, "None"))
        if [word for word in needed if word not in text]:
            sections.add(name)
        if ">>> " not in text:
            example.add(name)
    assert not sections
    assert not example


def test_readme_shows_the_generated_table_of_methods():
    assert catalogue.markdown_table() in (ROOT / "README.md").read_text()


def test_readme_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    scope = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    said = capsys.readouterr().out
    # doing nothing fails and the answer succeeds, for one request and for many
    forgotten = [float(x) for x in re.findall(r"forget set ([\d.]+)", said)]
    assert [x > 0.95 for x in forgotten] == [True, False, False, True, False, False]
    assert max(forgotten[1:3] + forgotten[4:]) < 0.5
    retained = [float(x) for x in re.findall(r"retain set ([\d.]+)", said)]
    assert min(retained) > 0.95


def modules():
    """Names of all modules with examples."""
    return [name.removesuffix(".__init__") for name, path in files().items() if ">>>" in path.read_text()]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name):
    data, key = blobs(), jax.random.key(0)
    scope = {
        "jaxunlearn": ju,
        "jax": jax,
        "optax": optax,
        "model": network(),
        "variables": network().init(key),
        "data": data,
        "request": lane(ju.from_indices(data, [[1, 2]]), 0),
        "key": key,
        "test": held_out(),
        "jnp": jax.numpy,
        "headed": headed(),
        "headed_variables": headed().init(key),
        "x": data.train.inputs,
    }
    result = doctest.testmod(importlib.import_module(name), extraglobs=scope, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_architecture_names_every_module_that_exists():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    units = {name.split(".")[1] for name in files()}
    assert set().union(*FLOORS) == units
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert [int(height) for height, _ in rows[: len(FLOORS)]] == list(range(1, len(FLOORS) + 1))
    for names, (_, row) in zip(FLOORS, rows, strict=False):
        assert names <= set(re.findall(r"`(\w+)`", row))
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
    assert {"jaxunlearn/py.typed", "jaxunlearn/methods/references.bib"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "experiments"))]
    code = (
        "import jaxunlearn, pathlib; jaxunlearn.citation('leace'); jaxunlearn.citation(); "
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
    assert run.stdout.startswith("@inproceedings{belrose2023leace,")
    assert run.stdout.count("\n@") == len(catalogue.references())
    assert run.stdout.splitlines()[-1] == f"site {ju.__version__}"
