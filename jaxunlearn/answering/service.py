"""A service that answers deletion requests in windows: one merged removal, one release, one receipt per request.

    read the inbox -> plan -> ledger: opened, with the submission -> remove -> certify -> publish -> purge
                   -> ledger: closed -> receipts, report -> ledger: answered

    DIRECTORY/ledger      the ledger (`jaxunlearn.ledger`); ledger/releases/public may be handed out
    DIRECTORY/receipts    receipts and their signatures, one per line of the inbox
    DIRECTORY/reports     one page per window
    DIRECTORY/models      weights of a method without certificates
    DIRECTORY/open        the plan of the window under way: who asked for what, deleted when all is answered

**Killed at any point**, a service that is started again finishes the window under way and goes on: what was asked is in the
ledger once the window is opened, every later step is repeated without effect, and receipts are computed from plan and journal,
so that they come out the same to the last bit. Every line of the inbox gets one receipt: malformed ones and impossible ones
are refused in it, requests that come again are told what they were told. A request id is answered once.

**What it does not do.** It does not delete rows from the caller's data set, and an inbox that was read is the caller's to
delete. Who may write there may ask for anything: check requesters before their requests go in. Two services in one directory
cannot be (the ledger is locked); two directories are two models.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from jaxunlearn import checks
from jaxunlearn.answering import inbox as inboxes
from jaxunlearn.answering import intake, plan, receipts, release, report
from jaxunlearn.answering.near import Near, near_duplicates
from jaxunlearn.answering.plan import ASKED, REPEATED, Entry, Plan, Windows
from jaxunlearn.answering.receipts import Receipt
from jaxunlearn.answering.setup import Setup, checked, lookup_of
from jaxunlearn.certificates import signing
from jaxunlearn.service import archive, journal
from jaxunlearn.service.ledger import Ledger, data_fingerprint, fingerprint
from jaxunlearn.service.records import Note
from jaxunlearn.service.seals import Key


class Answered(NamedTuple):
    """One window, all of whose receipts are out."""

    window: int
    entries: tuple[int, int]  # numbers of its first and its last entry
    outcome: str  # forgotten, withheld, or nothing: no request had to be answered
    reason: str
    requests: int  # that were answered as asked
    records: int  # ids that they named
    release: int  # number of the release, 0 without one
    seconds: float  # for removal, certificate and release


class Service:
    """Answers one inbox for one model; make it with `Service.open`, and close it.

    Example:
        >>> with Service.open("service", setup, inbox="inbox.jsonl", signing_key="release.pem") as service:  # doctest: +SKIP
        ...     while answered := service.answer(most=256):
        ...         print(answered)
    """

    def __init__(self, directory: Path, setup: Setup, inbox: Path, signing_key: Path, book: Ledger, restart: bool):
        self.directory, self.setup, self.inbox, self.book = directory, setup, inbox, book
        self.lookup = lookup_of(setup)
        self._key_path, self._key = signing_key, signing.read_private_key(signing_key)
        self._windows = Windows(book)
        self._restart = restart

    @classmethod
    def open(
        cls,
        directory: str | Path,
        setup: Setup,
        *,
        inbox: str | Path,
        signing_key: str | Path,
        seal_key: Key | None = None,
        restart: bool = False,
    ) -> Self:
        """Begin, or go on where the last service in this directory was closed or killed.

        Args:
            directory: made if absent.
            setup: model, data and method.
            inbox: a file of JSON lines or an SQLite database, see `jaxunlearn.answering.inbox`.
            signing_key: PEM file of mode 0600 with an Ed25519 key, for receipts and manifests.
            seal_key: of the ledger's journal, see `Ledger.create`.
            restart: read the inbox from its beginning, because it is another file than before.

        Raises:
            FileNotFoundError: no inbox or no key.
            PermissionError: the signing key may be read by others.
            LedgerError: another service is at work there, another model, or the directory was tampered with.
            ValueError, TypeError: a setup that does not fit together.
            ImportError: the extras `sign` and `checkpoint` are not installed.
        """
        directory, setup = Path(directory), checked(setup)
        signing.read_private_key(signing_key)  # before anything is made
        with closing(inboxes.lines(inbox, None, str)):
            pass
        for folder in (directory, *(directory / name for name in ("receipts", "reports", "open"))):
            journal.make_directory(folder)
        book = _book(directory / "ledger", setup, seal_key)
        try:
            service = cls(directory, setup, Path(inbox), Path(signing_key), book, restart)
            if setup.budget is not None:
                book.declare_budget(*setup.budget)
            service._windows.follow()
            service._clean()
        except BaseException:
            book.close()
            raise
        return service

    def close(self) -> None:
        """Let another service work in this directory."""
        self.book.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def seconds_of_last_window(self) -> float | None:
        """What the newest window cost, receipts not counted."""
        return None if self._windows.closed is None else self._windows.closed.value["seconds"]

    def waiting(self, most: int) -> Plan | None:
        """The window that would be answered next, of at most that many lines; nothing is written. None if no line waits.

        Args:
            most: lines of a window.

        Returns:
            The plan.
        """
        self._follow()
        place = None if self._restart else self._windows.place
        with closing(inboxes.lines(self.inbox, place, self.book.hashed)) as lines:
            return intake.plan_of(self._desk(), lines, most)

    def lines_waiting(self, most: int) -> int:
        """How many whole lines wait, counted up to `most`."""
        self._follow()
        place = None if self._restart else self._windows.place
        with closing(inboxes.lines(self.inbox, place, self.book.hashed)) as lines:
            return sum(1 for _ in zip(range(most), lines, strict=False))

    @property
    def under_way(self) -> bool:
        """Whether a window was begun and is to be finished."""
        self._follow()
        return self._windows.under_way

    def near(self, window: Plan) -> dict[int, list[Near]] | None:
        """Near-duplicates that would stay, each with the entry whose row it is most like; None without features in the setup.

        Args:
            window: what is asked.

        Returns:
            Lists by the position of an entry in the window.
        """
        if self.setup.features is None:
            return None
        asked = [(place, entry) for place, entry in enumerate(window.entries) if entry.outcome == ASKED]
        entry_of = {row: place for place, entry in reversed(asked) for row in self.rows_of(entry)}
        stays = np.array(self.setup.data.present) > 0
        stays[list(self.book.rows_of(self.book.state.removed))] = False
        found: dict[int, list[Near]] = {place: [] for place, _ in asked}
        for each in near_duplicates(np.asarray(self.setup.features), sorted(entry_of), stays, least=self.setup.near):
            found[entry_of[each.like]].append(each)
        return found

    def rows_of(self, entry: Entry) -> list[int]:
        """Rows that an entry names and that are there."""
        return sorted(row for name in entry.names for row in self.lookup.rows.get(name, []))

    def answer(self, *, most: int = 256) -> Answered | None:
        """Finish the window under way, or else answer the next one. None if nothing waits.

        Whatever it raises, it may be called again: nothing is lost, and nothing is done twice.

        Args:
            most: lines of a new window.

        Returns:
            What was answered, once all of it is on disk.

        Raises:
            InboxError: the inbox was truncated, rotated or is locked.
            UnlearningError, ValueError: the method failed. The window stays open; mend the setup and start again.
            LedgerError, ReleaseError: the disk is full, or files were tampered with.
        """
        checks.require_count("most", most)
        self._follow()
        found = self._under_way() or self._open(most)
        return None if found is None else self._finish(found)

    def _under_way(self) -> Plan | None:
        if not self._windows.under_way or self._windows.opened is None:
            return None
        return plan.read(self._plan, self._windows.opened, self.book)

    def _open(self, most: int) -> Plan | None:
        found = self.waiting(most)
        if found is None:
            return None
        content = plan.save(found, self._plan)
        ids = [json.loads(name) for name in found.names]
        there = [each for each, name in zip(ids, found.names, strict=True) if name in self.lookup.rows]
        self.book.submit(there, note=plan.opening(found, content, self.book))
        self._restart = False
        self._windows.follow()
        return found

    def _finish(self, window: Plan) -> Answered:
        note = self._windows.closing() or self._close(window)
        if self._windows.answered < window.window:
            self._answer_all(window, note)
            self.book.note({"service": "answered", "window": window.window})
            self._windows.follow()
        plan.clean(self.directory / "open", all_files=True)
        asked = [entry for entry in window.entries if entry.outcome == ASKED]
        value, last = note.value, window.first + len(window.entries) - 1
        return Answered(
            window.window, (window.first, last), value["outcome"], value["reason"], len(asked), len(window.names),
            value["release"], value["seconds"],
        )  # fmt: skip

    def _close(self, window: Plan) -> Note:
        """Remove and release; the note of what came of it."""
        begun = time.monotonic()
        came = {"outcome": "nothing", "reason": "", **release.NOTHING}
        if window.names:
            release.remove(self.book, self.setup)
            came = release.release(self.book, self.setup, window.window, self.directory / "models", self._key_path)
        seconds = round(time.monotonic() - begun, 3)
        self.book.note({"service": "closed", "window": window.window, "seconds": seconds, **came})
        return self.book.state.notes[-1]

    def _answer_all(self, window: Plan, note: Note) -> None:
        for receipt in self._receipts(window, note):
            receipts.write(receipt, self.directory / "receipts", self._key)
        near = self.near(window)
        counts = None if near is None else {place: len(found) for place, found in near.items()}
        path = self.directory / "reports" / f"window-{window.window:06d}.html"
        journal.write(path, report.page_of(window, note, counts, self.book.state).encode())

    def _receipts(self, window: Plan, note: Note) -> Iterator[Receipt]:
        about = {name: note.value[name] for name in release.NOTHING}
        signer = signing.name_of(self._key.public_key())
        for number, entry in enumerate(window.entries, start=window.first):
            salt = self.book.hashed(f"receipt {number}")
            asked = entry.outcome == ASKED
            yield Receipt(
                entry=number,
                place=entry.place,
                request=entry.request,
                outcome=note.value["outcome"] if asked else "repeated" if entry.outcome == REPEATED else "refused",
                reason=note.value["reason"] if asked else entry.reason,
                records=tuple(receipts.record_of(salt, name) for name in entry.names),
                salt=salt,
                window=window.window,
                journal=note.hash,
                time=note.time,
                signer=signer,
                **(about if asked else release.NOTHING),
            )

    def _follow(self) -> None:
        """Believe what is on disk, also after an exception in the middle of a record."""
        self.book.settle()
        self._windows.follow()

    def _desk(self) -> intake.Desk:
        return intake.Desk(self.setup, self.lookup, self.book, self._windows)

    @property
    def _plan(self) -> Path:
        return self.directory / "open" / "window.json"

    def _clean(self) -> None:
        """Delete what a crash left behind."""
        for name in ("receipts", "reports", "open"):
            plan.clean(self.directory / name, all_files=name == "open" and not self._windows.under_way)
        models = self.directory / "models"
        for path in sorted(models.iterdir()) if models.is_dir() else []:
            if not re.fullmatch(r"window-\d{6,}", path.name):
                archive.remove(path)


def serve(
    service: Service,
    *,
    most: int = 256,
    every: float = 60.0,
    said: Callable[[Answered], Any] = print,
    stop: Callable[[], bool] = lambda: False,
    poll: float = 0.5,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], Any] = time.sleep,
) -> None:
    """Answer a window whenever `most` lines wait, or one waits for `every` seconds, until `stop`.

    Args:
        service: open.
        most: lines of a window.
        every: seconds that a line waits at most before its window is begun.
        said: told of every window.
        stop: asked between windows and while nothing waits.
        poll: seconds between two looks at the inbox.
        now: a clock that never goes back; the time of the day does not matter.
        wait: sleeps.

    Raises:
        ValueError: `every` or `poll` is negative.
        InboxError, LedgerError, UnlearningError: see `Service.answer`. A locked inbox is looked at again.

    Example:
        >>> serve(service, most=100, every=10.0)  # doctest: +SKIP
    """
    if every < 0 or poll < 0:
        raise ValueError(f"every and poll are seconds, got {every} and {poll}")
    since: float | None = None
    while not stop():
        try:
            count = service.lines_waiting(most)
            since = (now() if since is None else since) if count else None
            due = count == most or (since is not None and now() - since >= every)
            answered = service.answer(most=most) if due or service.under_way else None
        except inboxes.InboxBusy:
            answered = None
        if answered is None:
            wait(poll)
        else:
            since = None
            said(answered)


def _book(path: Path, setup: Setup, key: Key | None) -> Ledger:
    if (path / "journal.jsonl").exists():
        return Ledger.open(path, setup.record_ids, model_fingerprint=None, data_fingerprint=None, key=key, recover=True)
    rows = data_fingerprint(setup.data, setup.record_ids)
    weights = fingerprint(setup.variables)
    return Ledger.create(path, setup.record_ids, model_fingerprint=weights, data_fingerprint=rows, key=key)
