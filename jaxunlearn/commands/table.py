"""`methods`, a table of the catalogue, and `cite`."""

from typing import Literal

from jaxunlearn import catalogue
from jaxunlearn.card import Family, Guarantee, Takes


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of text as columns, two spaces apart.

    Args:
        rows: all of one length; the first holds the headings.

    Returns:
        Lines without spaces at their ends.

    Example:
        >>> from jaxunlearn.commands.table import aligned
        >>> print(aligned([("method", "reads"), ("ssd", "forget")]))
        method  reads
        ssd     forget
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def methods(
    about: tuple[str, ...] = (),
    reads: tuple[str, ...] = (),
    guarantee: tuple[Guarantee, ...] = (),
    family: tuple[Family, ...] = (),
    task: Literal["classes", "tokens", "labels", "values"] | None = None,
    takes: tuple[Takes, ...] = (),
) -> int:
    """Print the methods: what each reads, what it guarantees, and its other names.

    Args:
        about: words that stand in the name, the other names or the summary.
        reads: all that may be read, e.g. `forget head`: methods that need anything else are left out.
        guarantee: exact, certified, none.
        family: of methods.
        task: what the rows' targets are; leaves methods that take no model out.
        takes: what the factory is given first.

    Returns:
        0, or 1 if no method is left.

    Raises:
        ValueError: something that no method reads.
    """
    found = catalogue.chosen(about=about, reads=reads or None, guarantee=guarantee, family=family, task=task, takes=takes)
    rows = [("method", "reads", "guarantee", "other names", "what it does")]
    rows += [
        (
            catalogue.path_of(name).removeprefix("jaxunlearn."),
            ", ".join(sorted(card.reads)) or "nothing",
            card.guarantee,
            ", ".join(card.aliases),
            card.summary,
        )
        for name, card in found.items()
    ]
    print(aligned(rows) if found else "no method fits")
    return 0 if found else 1


def cite(names: tuple[str, ...]) -> int:
    """Print the BibTeX of what methods come from, each entry once.

    Args:
        names: of methods, or other names that people use for them.

    Returns:
        0.

    Raises:
        ValueError: no name, or an unknown one.
    """
    if not names:
        raise ValueError("name at least one method, e.g. `cite scrub leace`; `methods` lists them")
    catalogue.citation(*names)
    return 0
