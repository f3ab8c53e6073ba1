"""One page per window, for whoever runs the service; it names requests, and no record."""

from collections.abc import Mapping
from typing import Any

from jaxunlearn.answering.plan import ASKED, Plan
from jaxunlearn.audit.pages import Section, Table, cell, page
from jaxunlearn.service.records import Note, State


def page_of(window: Plan, note: Note, near: Mapping[int, int] | None, state: State) -> str:
    """The page of a window.

    Args:
        window: what it was asked.
        note: what came of it.
        near: near-duplicates that stay, by the position of an entry; None if none were looked for.
        state: of the ledger.
    """
    value: dict[str, Any] = note.value
    counts = {name: sum(entry.outcome == name for entry in window.entries) for name in ("asked", "repeated", "refused")}
    facts = [
        ("outcome", value["outcome"]),
        ("reason", value["reason"]),
        ("guarantee", value["guarantee"]),
        ("requests answered", cell(counts["asked"])),
        ("asked before", cell(counts["repeated"])),
        ("refused", cell(counts["refused"])),
        ("record ids named", cell(len(window.names))),
        ("seconds", cell(value["seconds"], ".3f")),
        ("release", cell(value["release"] or None)),
        ("weights, SHA-256", value["weights"]),
        ("certificate, SHA-256", value["certificate"]),
        ("record in the journal", f"{note.record}, {note.hash}"),
    ]
    if value["release"]:
        last = next(each for each in state.releases if each["number"] == value["release"])
        facts.append(("epsilon, delta", f"{last['epsilon']:.6g}, {last['delta']:.6g}"))
        facts.append(("of all releases together", f"{last['total_epsilon']:.6g}, {last['total_delta']:.6g}"))
    headings = ["entry", "place", "request", "outcome", "record ids", "near-duplicates that stay", "reason"]
    rows = [
        [
            str(window.first + position),
            entry.place,
            entry.request,
            value["outcome"] if entry.outcome == ASKED else entry.outcome,
            cell(len(entry.names) if entry.outcome == ASKED else None),
            cell(None if near is None else near.get(position)),
            entry.reason,
        ]
        for position, entry in enumerate(window.entries)
    ]
    intro = (
        f"Window {window.window}, decided {note.time}. Releases from before a window are models trained on the rows that it "
        "removed, until they are retracted; no epsilon speaks of them."
    )
    sections = [
        Section("What came of it", "", [Table(["", ""], [[name, text] for name, text in facts if text])]),
        Section("Requests", "Their receipts have the numbers of the entries.", [Table(headings, rows, numbers=(0, 4, 5))]),
    ]
    return page(f"Deletion requests, window {window.window}", sections, intro=intro)
