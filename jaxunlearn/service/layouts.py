"""How flax lays out the weights of a `Variables` in a checkpoint, for `load_variables`.

linen saves a dict of collections, `params` and those of `Variables.state` beside each other. An nnx state is one tree:
parameters, statistics and random streams side by side as the module nests them, each leaf in a node `value` if it was saved as
a state, bare if as a pure dict.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from jaxunlearn.types import Variables


class Layout(NamedTuple):
    """One way to save a tree of weights."""

    target: PyTree  # what a checkpoint of this layout holds, with the leaves of the tree
    back: Callable[[PyTree], Any]  # from such a tree to the original one
    ignores: Callable[[Mapping[str, str]], set[str]] = lambda saved: set()  # names of saved leaves that are no weights


def layouts_of(like: PyTree) -> list[Layout]:
    """The tree as it is, and for `Variables` of nested dicts the layouts of linen and nnx."""
    own = Layout(like, lambda restored: restored)
    if not isinstance(like, Variables):
        return [own]
    flat, structure = jax.tree.flatten_with_path(like)
    leaves = [leaf for _, leaf in flat]
    places = [_keys(path[1:]) for path, _ in flat]  # behind params or state
    if () in places:
        return [own]

    def layout(paths: list[tuple[Any, ...]], ignores: Callable[[Mapping[str, str]], set[str]]) -> Layout:
        def back(restored: PyTree) -> Any:
            return jax.tree.unflatten(structure, [_at(restored, path) for path in paths])

        return Layout(_nested(paths, leaves), back, ignores)

    in_params = [path[0].name == "params" for path, _ in flat]
    linen = [("params", *place) if inside else place for place, inside in zip(places, in_params, strict=True)]
    ways = [(linen, lambda saved: set())]
    ways += [([(*place, *behind) for place in places], partial(_streams, behind=behind)) for behind in (("value",), ())]
    return [own, *(layout(paths, ignores) for paths, ignores in ways if _is_tree(paths))]


def _keys(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keys of nested dicts; none for other nodes, and for a leaf without a name."""
    keys = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
    return keys if len(keys) == len(path) else ()


def _is_tree(paths: list[tuple[Any, ...]]) -> bool:
    """Whether no leaf lies where another one lies, or on the way to it."""
    inner = {path[:length] for path in paths for length in range(1, len(path))}
    return len(set(paths)) == len(paths) and not inner & set(paths)


def _nested(paths: list[tuple[Any, ...]], leaves: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for path, leaf in zip(paths, leaves, strict=True):
        node = made
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return made


def _at(nested: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        nested = nested[key]
    return nested


def _streams(saved: Mapping[str, str], behind: tuple[str, ...]) -> set[str]:
    """Leaves of random streams: a `key` and a `count` of unsigned integers in one node."""
    names = {part: "/".join((part, *behind)) for part in ("key", "count")}

    def nodes(part: str) -> set[str]:
        kind = {name for name, form in saved.items() if form.startswith("uint32[")}
        return {name.removesuffix(names[part]) for name in kind if f"/{name}".endswith(f"/{names[part]}")}

    return {f"{node}{name}" for node in nodes("key") & nodes("count") for name in names.values()}
