"""What is unlearned from: a network and a data set by their names, or a Python file of the user's own."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax

import jaxunlearn as ju
from experiments.common.data import load
from experiments.common.models import build
from jaxunlearn.service.checkpoint import load_variables, save_variables


class Source(NamedTuple):
    """A model with its data, and how its weights are read and written."""

    name: str  # for readers: which model, on what
    model: ju.Model
    train: ju.Examples
    test: ju.Examples
    read: Callable[[Path | None], ju.Variables]
    write: Callable[[Path, ju.Variables], Any]


CONTRACT = {"model": 0, "data": 0, "variables": 1, "save": 2}  # functions of a user's file, and how many arguments they take
OPTIONAL = ("variables", "save")


def by_name(network: str, dataset: str, data_dir: str | None, *, standardise: bool) -> Source:
    """A network of `experiments.common.models` on a data set of `experiments.common.data`; it writes linen's collections."""
    loaded = load(dataset, data_dir, scaling="standardise" if standardise else "unit")
    model = build(network, loaded.train.inputs.shape[1:], loaded.num_classes)

    def write(path: Path, variables: ju.Variables) -> None:
        save_variables(path, {"params": variables.params, **(variables.state or {})})

    return Source(f"a {network} on {dataset}", model, loaded.train, loaded.test, _reader(model), write)


def from_file(path: Path) -> Source:
    """What a Python file of the user's defines; errors of its own functions are left as they are.

    Args:
        path: of a file with `model() -> Model` and `data() -> (train, test)`, two `Examples`. It may have
            `variables(checkpoint) -> Variables`, which gets a path or None, and `save(path, variables)`; by default weights are
            read and written by `jaxunlearn.checkpoint`.

    Raises:
        SystemExit: there is no such file, it lacks a function, or a function takes or returns something else.
    """
    if path.suffix != ".py" or not path.is_file():
        raise SystemExit(f"--module must be a Python file, there is none at {path}")
    functions = _functions(path, _executed(path))
    model: Any = functions["model"]()
    if not isinstance(model, ju.Model):
        pair = isinstance(model, tuple) and any(isinstance(part, ju.Model) for part in model)
        advice = "; from_nnx and from_equinox return a pair: give the first of it" if pair else ""
        raise SystemExit(f"model() in {path} must return a jaxunlearn.Model, got {_described(model)}{advice}")
    data: Any = functions["data"]()
    is_pair = isinstance(data, tuple | list) and not isinstance(data, ju.Examples) and len(data) == 2
    if not is_pair or not all(isinstance(part, ju.Examples) for part in data):
        raise SystemExit(
            f"data() in {path} must return (train, test), two jaxunlearn.Examples(inputs, targets), got {_described(data)}"
        )
    for part, examples in zip(("train", "test"), data, strict=True):
        sizes = sorted({x.shape[0] if getattr(x, "ndim", 0) else 0 for x in jax.tree.leaves(examples)})
        if len(sizes) != 1 or sizes[0] == 0:
            raise SystemExit(f"data() in {path}: {part} must hold arrays with one entry per row each, got lengths {sizes}")
    own = functions.get("variables")

    def read(checkpoint: Path | None) -> ju.Variables:
        found = own(checkpoint) if own else _reader(model)(checkpoint)
        if not isinstance(found, ju.Variables):
            raise SystemExit(f"variables() in {path} must return jaxunlearn.Variables, got {_described(found)}")
        return found

    def write(path: Path, variables: ju.Variables) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        functions.get("save", save_variables)(path, variables)

    train, test = data
    return Source(f"the model of {path.name}", model, train, test, read, write)


def _executed(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"module_of_{path.stem}", path)
    assert spec is not None  # of a Python file there is one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their names up
    sys.path.insert(0, str(path.absolute().parent))  # files beside it, as if Python ran it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.absolute().parent))
    return module


def _functions(path: Path, module: ModuleType) -> dict[str, Callable[..., Any]]:
    found: dict[str, Any] = {name: getattr(module, name) for name in CONTRACT if hasattr(module, name)}
    missing = [f"{name}()" for name in CONTRACT if name not in found and name not in OPTIONAL]
    if missing:
        raise SystemExit(f"{path} lacks {' and '.join(missing)}: it must define model() -> Model and data() -> (train, test)")
    for name, function in found.items():
        count = CONTRACT[name]
        try:
            inspect.signature(function).bind(*range(count))
        except (TypeError, ValueError):
            wanted = {0: "no argument", 1: "one argument (checkpoint)", 2: "two arguments (path, variables)"}[count]
            raise SystemExit(f"{name} in {path} must be a function that takes {wanted}, got {_described(function)}") from None
    return found


def _described(value: Any) -> str:
    if inspect.isfunction(value):
        return f"{value.__name__}{inspect.signature(value)}"
    named = isinstance(value, tuple) and hasattr(value, "_fields")
    inner = isinstance(value, tuple | list) and not named
    return f"({', '.join(type(part).__name__ for part in value)})" if inner else type(value).__name__


def _reader(model: ju.Model) -> Callable[[Path | None], ju.Variables]:
    def read(checkpoint: Path | None) -> ju.Variables:
        if checkpoint is None:
            raise SystemExit("give --checkpoint DIR, or define variables(checkpoint) in the module, which then gets None")
        if model.init is None:
            raise SystemExit(
                "what a checkpoint holds is known from Model.init, which is None: give it (create= of from_nnx and "
                "from_equinox), or define variables(checkpoint) in the module"
            )
        return load_variables(checkpoint, jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0))), partial=True)

    return read
