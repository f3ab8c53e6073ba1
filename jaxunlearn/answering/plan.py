"""What one window was asked, and what a ledger knows of windows.

A window leaves three notes in the ledger's journal, and nothing else decides what was done:

    opened      with the submission itself: how far the inbox was read, keyed hashes of the requests and of the plan
    closed      what came of it, once a release is out or is withheld
    answered    all receipts are on disk

The plan holds ids of requests and records in words, so it lies in a file of its own, which is deleted once all is answered.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn import modes
from jaxunlearn.answering.inbox import Place
from jaxunlearn.certificates import strict
from jaxunlearn.service import journal
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.ledger import Ledger
from jaxunlearn.service.records import Note

ASKED, REPEATED, REFUSED = "asked", "repeated", "refused"


class Entry(NamedTuple):
    """One line of the inbox, as it was understood."""

    place: str  # in the inbox
    request: str  # its id, empty if it could not be read
    outcome: str  # asked, repeated or refused
    reason: str  # why it is not done
    names: tuple[str, ...] = ()  # record ids, as text
    marks: tuple[str, str] = ("", "")  # keyed hashes of the request's id, and of what it asks for


class Plan(NamedTuple):
    """One window: what it was asked, decided once."""

    window: int  # from 1
    first: int  # number of its first entry
    entries: tuple[Entry, ...]
    inbox: Place  # how far it is read

    @property
    def names(self) -> list[str]:
        """Record ids that are asked for, as text, each once."""
        return list(dict.fromkeys(name for entry in self.entries if entry.outcome == ASKED for name in entry.names))


class Known(NamedTuple):
    """An id of a request that was used before."""

    entry: int
    window: int
    asked: str  # keyed hash of what it asked for


class Windows:
    """What a ledger's notes say of windows; follows the ledger as it grows."""

    def __init__(self, book: Ledger):
        self._book, self._seen = book, 0
        self.known: dict[str, Known] = {}  # by the keyed hash of a request's id
        self.count = self.entries = 0
        self.place: Place | None = None
        self.opened: Note | None = None  # the newest of each
        self.closed: Note | None = None
        self.answered = 0

    def follow(self) -> None:
        """Read the notes that are new."""
        notes = self._book.state.notes
        for note in notes[self._seen :]:
            value = note.value if isinstance(note.value, dict) else {}
            if value.get("service") == "opened":
                self._open(note, value)
            elif value.get("service") == "closed":
                self.closed = note
            elif value.get("service") == "answered":
                self.answered = value["window"]
        self._seen = len(notes)

    def _open(self, note: Note, value: dict[str, Any]) -> None:
        if value["window"] != self.count + 1 or value["first"] != self.entries + 1 or self.answered != self.count:
            raise LedgerError(f"record {note.record} opens window {value['window']} out of turn: restore the ledger")
        self.opened, self.place, self.count = note, value["inbox"], value["window"]
        for number, marks in enumerate(value["marks"], start=value["first"]):
            if marks:
                self.known[marks[0]] = Known(number, self.count, marks[1])
        self.entries += len(value["marks"])

    @property
    def under_way(self) -> bool:
        """Whether a window was opened and not all is answered."""
        return self.count > self.answered

    def closing(self) -> Note | None:
        """What came of the newest window, if that is decided."""
        return self.closed if self.closed and self.closed.value["window"] == self.count else None


def save(plan: Plan, path: Path) -> bytes:
    """Write a plan down durably; its bytes."""
    content = journal.canonical({**plan._asdict(), "entries": [entry._asdict() for entry in plan.entries]})
    journal.write(path, content)
    return content


def read(path: Path, opened: Note, book: Ledger) -> Plan:
    """The plan of the window under way.

    Raises:
        LedgerError: it is gone, or another one.
    """
    if not path.exists():
        raise LedgerError(
            f"{path} is gone, and window {opened.value['window']} is not answered yet: restore it from a backup, since it says "
            "who asked for what"
        )
    content = modes.read_private(path)
    if book.hashed(content.decode(errors="replace")) != opened.value["plan"]:
        raise LedgerError(f"{path} is not the plan of window {opened.value['window']}: it was changed, so restore it")
    found = strict.parse(content, str(path))
    entries = [Entry(**{**each, "names": tuple(each["names"]), "marks": tuple(each["marks"])}) for each in found["entries"]]
    return Plan(**{**found, "entries": tuple(entries)})


def opening(plan: Plan, content: bytes, book: Ledger) -> dict[str, Any]:
    """The note that opens a window."""
    marks = [list(entry.marks) if entry.outcome == ASKED else [] for entry in plan.entries]
    about = {"window": plan.window, "first": plan.first, "marks": marks, "inbox": plan.inbox}
    return {"service": "opened", "plan": book.hashed(content.decode()), **about}


def clean(folder: Path, *, all_files: bool) -> None:
    """Delete what a crash left of files that were being written, or all files of a folder."""
    found = [path for path in folder.iterdir() if all_files or path.name.endswith(".new")]
    for path in found:
        os.unlink(path)
    if found:
        journal.sync_directory(folder)
