"""What the next window would do, for whoever runs the service: which rows, what it costs, what it changes, what stays near."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.answering.effects import Effect, effects
from jaxunlearn.answering.near import Near
from jaxunlearn.answering.plan import ASKED
from jaxunlearn.answering.release import current
from jaxunlearn.answering.service import Service
from jaxunlearn.audit.pages import Table, cell, to_markdown


class Record(NamedTuple):
    """One record id that a request names."""

    name: str  # as text: numbers as they are, texts in quotes
    rows: tuple[int, ...]  # that would go; empty if they are gone already
    effect: Effect | None  # None if it was not asked for, or nothing would go


class Preview(NamedTuple):
    """One line of the inbox."""

    entry: int
    place: str
    request: str
    outcome: str  # asked, repeated or refused
    reason: str
    records: tuple[Record, ...]
    near: tuple[Near, ...]  # rows that stay


def preview(service: Service, *, most: int = 256, expected: bool = False) -> list[Preview]:
    """Look at the window that would be answered next; nothing is written.

    Args:
        service: open.
        most: lines of a window.
        expected: answer every record id by itself, 16 side by side, to see its effect; the method must be one that `jax.vmap`
            takes. Costs about as much as that many requests.

    Returns:
        One entry per line that waits, up to `most`.

    Raises:
        InboxError: see `Service.answer`.

    Example:
        >>> preview(service, expected=True)  # doctest: +SKIP
    """
    plan = service.waiting(most)
    if plan is None:
        return []
    gone = service.book.rows_of(service.book.state.removed)
    present = np.asarray(service.setup.data.present) > 0
    rows = {
        name: tuple(row for row in service.lookup.rows.get(name, []) if row not in gone and present[row]) for name in plan.names
    }
    near = service.near(plan) or {}
    found: dict[str, Effect] = {}
    names = [name for name in plan.names if rows[name]]
    if expected and names:
        variables, data = current(service.book, service.setup)
        key = jax.random.fold_in(service.setup.key, plan.window)
        lists = [rows[name] for name in names]
        values = effects(service.setup.unlearn, service.setup.model, variables, data, lists, key)
        found = dict(zip(names, values, strict=True))
    return [
        Preview(
            plan.first + place,
            entry.place,
            entry.request,
            entry.outcome,
            entry.reason,
            tuple(Record(name, rows[name], found.get(name)) for name in entry.names),
            tuple(near.get(place, ())),
        )
        for place, entry in enumerate(plan.entries)
    ]


def as_json(found: list[Preview], service: Service) -> dict[str, Any]:
    """A preview as JSON can hold it."""
    entries = [
        {
            **entry._asdict(),
            "records": [{**each._asdict(), "effect": each.effect and each.effect._asdict()} for each in entry.records],
            "near": [{**each._asdict(), "name": service.lookup.of_rows[each.row]} for each in entry.near],
        }
        for entry in found
    ]
    return {"entries": entries, "seconds_of_last_window": service.seconds_of_last_window}


def as_text(found: list[Preview], service: Service) -> str:
    """A preview in Markdown: one line per row, then what is refused, then near-duplicates."""
    rows, near, refused = [], [], []
    for entry in found:
        if entry.outcome != ASKED:
            refused.append([str(entry.entry), entry.place, entry.request, entry.outcome, entry.reason])
        for each in entry.records:
            effect, shown = each.effect, [str(entry.entry), entry.request, each.name]
            more = [None] * 4
            if effect is not None:
                more = [effect.seconds, effect.loss_before, effect.loss_after, effect.stats.get("distance_bound")]
            numbers = [cell(x, form) for x, form in zip(more, (".2g", ".4g", ".4g", ".2g"), strict=True)]
            rows += [[*shown, str(row), *numbers] for row in each.rows] or [[*shown, "gone already", *numbers]]
        near += [
            [str(entry.entry), str(each.row), service.lookup.of_rows[each.row], str(each.like), f"{each.similarity:.4f}"]
            for each in entry.near
        ]
    headings = ["entry", "request", "record id", "row", "seconds", "loss before", "loss after", "distance bound"]
    tables = [Table(headings, rows, f"{len(found)} lines wait", (4, 5, 6, 7))]
    if refused:
        tables.append(Table(["entry", "place", "request", "outcome", "reason"], refused, "not done"))
    if near:
        tables.append(Table(["entry", "row", "record id", "like row", "cosine"], near, "near-duplicates that stay", (4,)))
    seconds = service.seconds_of_last_window
    cost = "no window was answered yet" if seconds is None else f"the last window took {seconds:.3g} s"
    return "\n".join(map(to_markdown, tables)) + f"\nA window is removed and released at once: {cost}.\n"
