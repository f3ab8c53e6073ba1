"""The card of a method: what a user must know before choosing it. Each method file holds its own, as `METHOD`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from jaxunlearn.types import OnEmpty

Family: TypeAlias = Literal["exact", "objective", "closed form", "representation", "generative", "guard"]
Guarantee: TypeAlias = Literal["exact", "certified", "none"]
Takes: TypeAlias = Literal["model", "problem", "learner", "trainer", "generator", "environment"]


def _unassembled(*arguments: Any, **options: Any) -> Any:
    raise TypeError("this card was taken from a method's file; the one with its factory is jaxunlearn.METHODS[name]")


class Method(NamedTuple):
    """One method of the literature."""

    summary: str  # one line, for tables
    cites: str  # key of its entry in methods/references.bib
    family: Family
    reads: frozenset[str]  # "forget", "forget labels", "retain", "init", "head", "layer" (of features), and names of slots
    guarantee: Guarantee = "none"
    on_empty: OnEmpty = "identity"  # what an empty request gets
    takes: Takes = "model"  # what the factory is given first
    targets: Literal["any", "classes", "tokens"] = "any"  # what the rows' targets must be; tokens may be classes
    requests: Literal["rows", "classes", "attributes"] = "rows"  # what it can forget
    reconstruction: bool = False  # from an abstract or a summary, not from the paper's own equations
    aliases: tuple[str, ...] = ()  # other names that people use
    search: Mapping[str, tuple[float, ...]] = MappingProxyType({})  # settings worth trying; `learning_rate` is the optimizer's
    factory: Callable[..., Any] = _unassembled  # filled in by `jaxunlearn.METHODS`
