"""All methods by name, assembled from the cards in their files; citations and the README's table."""

import re
import sys
from collections.abc import Collection
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from jaxunlearn import convex, guards, methods, rl, sisa, summation
from jaxunlearn.card import Method


def _assembled() -> dict[str, Method]:
    found = {}
    for folder in (methods, convex, guards, rl, sisa, summation):
        for name, factory in vars(folder).items():
            card = getattr(sys.modules.get(f"{folder.__name__}.{name}"), "METHOD", None)
            if isinstance(card, Method):
                found[name] = card._replace(factory=factory)
    return found


METHODS: dict[str, Method] = _assembled()
# Of methods by what they take; the others stand on top
NAMESPACES = {"problem": "convex.", "learner": "summation.", "trainer": "sisa.", "generator": "guards.", "environment": "rl."}
TARGETS = {
    "problem": "of the convex problem", "learner": "of the learner", "trainer": "of the trained model",
    "generator": "not looked at", "environment": "of the environments",
}  # fmt: skip


def method_of(name: str) -> str:
    """The name in `METHODS` of a method or of one of its aliases.

    Raises:
        ValueError: neither; the message names near misses.

    Example:
        >>> from jaxunlearn.catalogue import method_of
        >>> method_of("leace")
        'concept_erasure'
    """
    names = {alias: own for own, card in METHODS.items() for alias in (own, *card.aliases)}
    name = name.lower()
    if name not in names:
        near = get_close_matches(name, names, n=3, cutoff=0.5) or sorted(METHODS)
        raise ValueError(f"unknown method {name!r}; did you mean {', '.join(near)}?")
    return names[name]


@cache
def references() -> dict[str, str]:
    """BibTeX entries of `methods/references.bib` by their keys."""
    text = (files("jaxunlearn.methods") / "references.bib").read_text(encoding="utf-8")
    return {match[1]: match[0] for match in re.finditer(r"^@\w+\{([^,]+),$.*?^\}$", text, re.MULTILINE | re.DOTALL)}


def citation(*names: str) -> None:
    """Print the BibTeX of what methods come from, each entry once; of all methods if none is named.

    Args:
        names: of methods, or other names that people use for them.

    Raises:
        ValueError: an unknown method.

    Example:
        >>> jaxunlearn.citation("leace")  # doctest: +ELLIPSIS
        @inproceedings{belrose2023leace,
        ...
    """
    chosen = [METHODS[method_of(name)] for name in names] or METHODS.values()
    print("\n\n".join(dict.fromkeys(references()[card.cites] for card in chosen)))


def path_of(name: str) -> str:
    """How a method is reached, e.g. `jaxunlearn.scrub` or `jaxunlearn.convex.newton_removal`."""
    return f"jaxunlearn.{NAMESPACES.get(METHODS[name].takes, '')}{name}"


def fits(card: Method, task: str) -> bool:
    """Whether a method of models can be used for a task.

    Args:
        card: of the method.
        task: what the targets of the rows are: `classes`, `tokens` (sequences of them), `labels` (yes and no) or `values`.

    Returns:
        False too for methods that take no model.

    Example:
        >>> from jaxunlearn.catalogue import METHODS, fits
        >>> fits(METHODS["undial"], "tokens"), fits(METHODS["undial"], "values")
        (True, False)
    """
    wanted = {"classes": {"any", "classes", "tokens"}, "tokens": {"any", "tokens"}}.get(task, {"any"})
    return card.takes == "model" and card.targets in wanted


def chosen(
    *,
    about: Collection[str] = (),
    reads: Collection[str] | None = None,
    guarantee: Collection[str] = (),
    family: Collection[str] = (),
    task: str | None = None,
    takes: Collection[str] = (),
) -> dict[str, Method]:
    """Methods that fit, by name; what is not given leaves none out.

    Args:
        about: words that all stand in the name, the aliases or the summary.
        reads: all that may be read, words of `Method.reads`: methods that need anything else are left out.
        guarantee, family, takes: one of these, as on the cards.
        task: what the targets of the rows are, see `fits`.

    Returns:
        Cards in the order of their names.

    Raises:
        ValueError: `reads` names something that no method reads.

    Example:
        >>> from jaxunlearn.catalogue import chosen
        >>> "gradient_ascent" in chosen(reads=["forget"]), "npo" in chosen(reads=["forget"])
        (True, False)
        >>> list(chosen(guarantee=["exact"], takes=["model"]))
        ['retrain']
    """
    known = set().union(*(card.reads for card in METHODS.values()))
    if reads is not None and set(reads) - known:
        raise ValueError(f"no method reads {', '.join(sorted(set(reads) - known))}; there are {', '.join(sorted(known))}")

    def fitting(name: str, card: Method) -> bool:
        text = " ".join((name, *card.aliases, card.summary)).lower()
        return (
            all(word.lower() in text for word in about)
            and (reads is None or card.reads <= set(reads))
            and (not guarantee or card.guarantee in guarantee)
            and (not family or card.family in family)
            and (not takes or card.takes in takes)
            and (task is None or fits(card, task))
        )

    return {name: card for name, card in sorted(METHODS.items()) if fitting(name, card)}


def markdown_table() -> str:
    """The README's table of methods: what each does, which targets it fits, what it reads, and what it guarantees."""
    rows = ["| method | what it does | targets | family | reads | guarantee | empty request |", "|---|---|---|---|---|---|---|"]
    for name in sorted(METHODS):
        card = METHODS[name]
        shown = path_of(name).replace("jaxunlearn.", "ju.")
        also = f" ({', '.join(card.aliases)})" if card.aliases else ""
        note = "; reconstruction" if card.reconstruction else ""
        reads = ", ".join(sorted(card.reads)) or "nothing"
        targets = TARGETS.get(card.takes, card.targets)
        cells = (f"`{shown}`{also}", f"{card.summary}{note}", targets, card.family, reads, card.guarantee, card.on_empty)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
