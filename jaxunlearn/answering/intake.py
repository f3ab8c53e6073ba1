"""From lines of an inbox to the plan of a window: what is asked, what was asked before, and what is refused, and why."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxunlearn.answering.asked import Asked, Lookup, parse
from jaxunlearn.answering.inbox import Line
from jaxunlearn.answering.plan import ASKED, REFUSED, REPEATED, Entry, Known, Plan, Windows
from jaxunlearn.answering.release import request_of
from jaxunlearn.answering.setup import Setup
from jaxunlearn.service import journal
from jaxunlearn.service.ledger import Ledger


class Desk(NamedTuple):
    """What an entry is judged by."""

    setup: Setup
    lookup: Lookup
    book: Ledger
    windows: Windows


def plan_of(desk: Desk, lines: Iterable[Line], most: int) -> Plan | None:
    """The plan of the next window; None if no line is there.

    A window ends with `most` lines, or in front of the request with which its rows would not fit into the setup's capacity.

    Args:
        desk: what entries are judged by.
        lines: of the inbox, as many as it has.
        most: lines of a window.

    Returns:
        A plan. Nothing is written.
    """
    windows, size = desk.windows, desk.setup.capacity
    first = windows.entries + 1
    waiting = desk.book.rows_of(desk.book.state.pending)
    rows, entries, place, seen = set(waiting), [], None, dict(windows.known)
    for line in lines:
        entry = _entry(desk, line, seen)
        more = rows | _rows(desk, entry)
        if size is not None and len(more) > size and len(rows) > 0 and len(more) > len(rows):
            break
        if entry.outcome == ASKED:
            seen[entry.marks[0]] = Known(first + len(entries), windows.count + 1, entry.marks[1])
        entries.append(entry)
        rows, place = more, line.after
        if len(entries) == most:
            break
    if place is None:
        return None
    return Plan(windows.count + 1, first, tuple(_possible(desk, entries, waiting)), place)


def _entry(desk: Desk, line: Line, seen: dict[str, Known]) -> Entry:
    request = ""
    try:
        if line.fault:
            raise ValueError(f"{line.name} was not read: {line.fault}")
        asked = parse(line.content, line.name)
        request = asked.request
        marks = (desk.book.hashed(f"request {request}"), desk.book.hashed(_content(asked)))
        if before := seen.get(marks[0]):
            if before.asked != marks[1]:
                raise ValueError(f"entry {before.entry} has this request id and asked for other rows: choose another id")
            again = f"asked before, and answered as entry {before.entry} in window {before.window}"
            return Entry(line.name, request, REPEATED, again)
        names = desk.lookup.names(asked, lambda name: desk.book.hashed(name) in desk.book.state.removed)
    except ValueError as error:
        return Entry(line.name, request, REFUSED, str(error))
    return Entry(line.name, request, ASKED, "", tuple(names), marks)


def _content(asked: Asked) -> str:
    """What a request asks for, whatever the order that it is named in."""
    value = sorted({journal.canonical(each).decode() for each in asked.value}) if asked.kind != "group" else asked.value
    return "asked " + journal.canonical([asked.kind, value]).decode()


def _rows(desk: Desk, entry: Entry) -> set[int]:
    """Rows that an entry would newly remove."""
    if entry.outcome != ASKED:
        return set()
    new = {name for name in entry.names if desk.book.hashed(name) not in desk.book.state.removed}
    return {row for name in new for row in desk.lookup.rows[name]}


def _possible(desk: Desk, entries: list[Entry], waiting: set[int]) -> list[Entry]:
    """Refuse what would leave too little, in the order of the inbox: the method is never asked for that."""
    present = np.array(desk.setup.data.present) > 0
    present[list(desk.book.rows_of(desk.book.state.removed))] = False
    data = desk.setup.data._replace(present=present.astype(np.float32))

    def fault(rows: set[int]) -> str:
        gone = sorted(row for row in rows if present[row])
        if len(gone) >= present.sum():
            return "no row would be left to train on"
        if gone and desk.setup.check is not None:
            try:
                desk.setup.check(data, request_of(data, gone, desk.setup.capacity))
            except ValueError as error:
                return str(error)
        return ""

    every = set(waiting).union(*(_rows(desk, entry) for entry in entries))
    if not fault(every):
        return entries
    taken, found = set(waiting), []
    for entry in entries:
        more = taken | _rows(desk, entry)
        if entry.outcome == ASKED and more != taken and (why := fault(more)):
            found.append(entry._replace(outcome=REFUSED, reason=f"not removed: {why}", names=(), marks=("", "")))
        else:
            found.append(entry)
            taken = more
    return found
