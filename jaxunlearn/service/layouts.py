"""How flax lays out the weights of a `Variables` in a checkpoint, for `load_variables`.

linen saves a dict of collections, `params` and those of `Variables.state` beside each other. An nnx state is one tree:
parameters, statistics and random streams side by side as the module nests them, each leaf in a node `value` if it was saved as
a state, bare if as a pure dict.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from jaxunlearn.tree import path_of
from jaxunlearn.types import Variables


class Layout(NamedTuple):
    """One way to save a tree of weights."""

    names: Sequence[str]  # of its leaves in a checkpoint
    ignores: Callable[[Mapping[str, str]], set[str]] = lambda saved: set()  # names of saved leaves that are no weights


def layouts_of(like: PyTree) -> list[Layout]:
    """The tree as it is, and for `Variables` the layouts of linen and nnx."""
    paths = [path for path, _ in jax.tree.leaves_with_path(like)]
    names = [path_of(path) for path in paths]
    found = [Layout(names)]
    if isinstance(like, Variables):
        found.append(Layout([name.removeprefix("state/") for name in names]))
        inner = [path_of(path[1:]) for path in paths]
        found += [Layout([name + end for name in inner], partial(_streams, end=end)) for end in ("/value", "")]
    return [layout for layout in found if len(set(layout.names)) == len(names)]


def _streams(saved: Mapping[str, str], end: str) -> set[str]:
    """Leaves of random streams: a `key` and a `count` of unsigned integers in one node."""

    def nodes(part: str) -> set[str]:
        leaf = f"{part}{end}"
        found = [name for name, form in saved.items() if form.startswith("uint32[") and f"/{name}".endswith(f"/{leaf}")]
        return {name.removesuffix(leaf) for name in found}

    return {f"{node}{part}{end}" for node in nodes("key") & nodes("count") for part in ("key", "count")}
