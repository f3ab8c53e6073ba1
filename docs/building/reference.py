"""The reference: every public name with its docstring, a page for each namespace."""

import ast
import inspect
import textwrap
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxunlearn as ju
from docs.building import docstrings
from docs.building.methods import link, signature, toctree


def names_of(space: ModuleType) -> dict[str, Any]:
    """What a namespace shows: a folder what its `__init__` imports, a file what it defines.

    Args:
        space: a module.

    Returns:
        Public functions and classes of this package, and namespaces below, by name.
    """
    assert space.__file__ is not None
    tree = ast.parse(Path(space.__file__).read_text())
    if Path(space.__file__).stem == "__init__":
        nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        found = [alias.asname or alias.name for node in nodes for alias in node.names]
    else:
        found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    shown = {name: getattr(space, name) for name in found if name[0] != "_"}
    return {name: value for name, value in shown.items() if _home(value).startswith("jaxunlearn")}


def _home(value: Any) -> str:
    return value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "") or ""


def spaces() -> dict[str, ModuleType]:
    """Namespaces by the name that users reach them by, below `jaxunlearn`; those inside others too."""
    found = {name: getattr(ju, name) for name in dir(ju) if isinstance(getattr(ju, name), ModuleType)}
    inner = {
        f"{outer}.{name}": value
        for outer, space in found.items()
        for name, value in names_of(space).items()
        if isinstance(value, ModuleType)
    }
    return dict(sorted((found | inner).items()))


def entry(name: str, value: Any) -> str:
    """One function or class.

    Args:
        name: that it is reached by.
        value: what it is.

    Returns:
        Markdown, with a heading of level 2.
    """
    text = inspect.getdoc(value) or ""
    if inspect.isclass(value):
        parts = [f"## `{name}`", f"```python\n{_outline(value)}\n```", docstrings.to_markdown(text)]
        return "\n\n".join([*parts, *(_method(f"{name}.{each}", function) for each, function in _methods(value))])
    if not inspect.isfunction(value):
        return f"## `{name}`\n\n{docstrings.to_markdown(text)}"
    return f"## `{name}`\n\n```python\n{signature(value)}\n```\n\n{docstrings.to_markdown(text)}"


def _outline(value: type) -> str:
    """Name, bases and fields of a class with their comments."""
    source = textwrap.dedent(inspect.getsource(value))
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    lines = source.splitlines()
    first = node.body[0].lineno - 1
    shown = [*lines[node.lineno - 1 : first]]
    for field in node.body:
        if isinstance(field, ast.AnnAssign) or (isinstance(field, ast.Assign) and issubclass(value, Enum)):
            shown += lines[_with_comments(lines, field.lineno - 1) : field.end_lineno]
    return "\n".join(shown)


def _with_comments(lines: list[str], line: int) -> int:
    while lines[line - 1].strip().startswith("#"):
        line -= 1
    return line


def _methods(value: type) -> list[tuple[str, Any]]:
    """Methods of a class with a docstring; those of fields and of classes of others are left out."""
    own = [(name, x) for name, x in vars(value).items() if name[0] != "_" and inspect.isfunction(x) and inspect.getdoc(x)]
    return [(name, inspect.unwrap(x)) for name, x in own if x.__module__.startswith("jaxunlearn")]


def _method(name: str, function: Any) -> str:
    text = docstrings.to_markdown(inspect.getdoc(function) or "", level=0)
    return f"### `{name}`\n\n```python\n{signature(function)}\n```\n\n{text}"


def page_of(title: str, space: ModuleType, shown: dict[str, Any]) -> str:
    """The page of a namespace; methods of the catalogue have pages of their own.

    Args:
        title: name of the namespace.
        space: the module.
        shown: its names.

    Returns:
        Markdown.
    """
    cards = [name for name, value in shown.items() if name in ju.METHODS and ju.METHODS[name].factory is value]
    parts = [f"# `{title}`", docstrings.to_markdown(inspect.getdoc(space) or "", level=2)]
    if cards:
        parts.append("Methods: " + ", ".join(link(name, "../methods/") for name in sorted(cards)) + ".")
    parts += [
        entry(name, shown[name]) for name in sorted(shown, key=str.lower) if name not in cards and _has_entry(shown[name])
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _has_entry(value: Any) -> bool:
    return inspect.isfunction(value) or inspect.isclass(value)


def all_pages() -> dict[str, str]:
    """Pages by their paths in the folder of generated ones."""
    top = {name: getattr(ju, name) for name in dir(ju) if not isinstance(getattr(ju, name), ModuleType)}
    found = {"reference/jaxunlearn.md": page_of("jaxunlearn", ju, top)}
    found |= {f"reference/{name}.md": page_of(f"jaxunlearn.{name}", space, names_of(space)) for name, space in spaces().items()}
    lines = ["- [`jaxunlearn`](reference/jaxunlearn.md): what is reached without a namespace"]
    for name, space in spaces().items():
        first = (inspect.getdoc(space) or "").split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".:")
        lines.append(f"- [`jaxunlearn.{name}`](reference/{name}.md): {docstrings.escaped(first)}")
    below = toctree(f"reference/{name}" for name in ["jaxunlearn", *spaces()])
    return {
        **found,
        "reference.md": "# Reference\n\nUsually `import jaxunlearn as ju`.\n\n" + "\n".join(lines) + f"\n\n{below}\n",
    }
