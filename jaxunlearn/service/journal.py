"""Files that survive a crash: atomic writes, a lock for one writer, and an append-only file of hash-chained records.

A journal is a file of JSON lines. Every record holds its number, the hash of the record before it and its own SHA-256 hash, so
that a changed, lost, inserted or reordered record is found. What the chain alone cannot show is that records were cut off
at the end, or that somebody wrote the whole file anew: note the hash of the last record elsewhere for that.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 1


class LedgerError(RuntimeError):
    """What is on disk is torn, tampered with, foreign or in use, or a step of a ledger came out of turn."""


class Record(NamedTuple):
    """One line of a journal."""

    version: int
    number: int  # 0, 1, 2, ...
    time: str  # UTC, for people; nothing depends on it
    kind: str
    body: dict[str, Any]
    previous: str  # hash of the record before, empty for the first
    hash: str


class Journal(NamedTuple):
    """What a file holds: whole records, and the bytes of one that a crash cut short."""

    records: tuple[Record, ...]
    torn: bytes


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces; the form that is hashed. Floats keep all their digits; NaN and inf are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sync_directory(path: Path) -> None:
    """Make names in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Make a directory durable, with all that is in it."""
    for folder, _, names in os.walk(path):
        for name in names:
            handle = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_directory(Path(folder))
    sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """A durable directory that only its owner may read; nothing happens if it is there."""
    if not path.is_dir():
        if not path.parent.is_dir():
            make_directory(path.parent)
        os.mkdir(path, 0o700)
        sync_directory(path.parent)


def write(path: Path, content: bytes) -> None:
    """Write or replace a file at once and durably: a crash leaves the old file or the new one. Only its owner may read it."""
    new = path.with_name(f"{path.name}.new")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        _write_all(handle, content)
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(new, path)
    sync_directory(path.parent)


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]


def lock(path: Path) -> int:
    """Take a lock that dies with its process; closing the returned file descriptor gives it back.

    Raises:
        LedgerError: somebody else holds it.
    """
    import fcntl  # POSIX only

    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise LedgerError(
            f"{path.parent} is open for writing already, and takes one writer at a time: close the other one, or wait for it"
        ) from error
    return handle


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """`lock` for the length of a block."""
    handle = lock(path)
    try:
        yield
    finally:
        os.close(handle)


def read(path: Path) -> Journal:
    """All records of a journal, checked one by one. Nothing is skipped or repaired.

    Raises:
        FileNotFoundError: no journal.
        LedgerError: names the first record that is not what its hash, its number or its predecessor say.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no journal at {path}")
    *lines, torn = path.read_bytes().split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(lines):
        records.append(_parse(line, number, records[-1].hash if records else "", f"record {number} of {path}"))
    return Journal(tuple(records), torn)


def _parse(line: bytes, number: int, previous: str, name: str) -> Record:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise LedgerError(f"{name} was tampered with: it is no JSON") from error
    if not isinstance(fields, dict) or "version" not in fields:
        raise LedgerError(f"{name} was tampered with: it has no version")
    if fields["version"] != VERSION:
        raise LedgerError(
            f"{name} has version {fields['version']}, this library reads version {VERSION}: use the one that fits"
        )
    if set(fields) != set(Record._fields):
        raise LedgerError(f"{name} was tampered with: expected the fields {Record._fields}, got {tuple(sorted(fields))}")
    record = Record(**fields)
    if _seal(record) != record.hash or line != canonical(fields):
        raise LedgerError(f"{name} was tampered with: its content does not have the hash that it carries")
    if record.number != number or record.previous != previous:
        raise LedgerError(f"{name} does not follow the record before it: records were removed, added or reordered")
    return record


def _seal(record: Record) -> str:
    return hashlib.sha256(canonical({**record._asdict(), "hash": ""})).hexdigest()


def following(last: Record | None, kind: str, body: dict[str, Any]) -> Record:
    """The record that comes after `last`; nothing is written."""
    number, previous = (0, "") if last is None else (last.number + 1, last.hash)
    record = Record(VERSION, number, datetime.now(UTC).isoformat(timespec="seconds"), kind, body, previous, "")
    return record._replace(hash=_seal(record))


def line_of(record: Record) -> bytes:
    """A record as it stands in the file."""
    return canonical(record._asdict()) + b"\n"


def append(path: Path, record: Record) -> None:
    """Add a record durably. If that fails, the file is as it was."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        size = os.fstat(handle).st_size
        try:
            _write_all(handle, line_of(record))
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def torn_message(path: Path, journal: Journal) -> str:
    """What a crash left of a last record, in words."""
    return f"record {len(journal.records)} of {path} is torn: a crash left {len(journal.torn)} bytes of it"


def repair(path: Path, journal: Journal) -> Record:
    """Cut off a torn record, and say so in a record of its own, in one atomic step."""
    lost = {"bytes": len(journal.torn), "sha256": hashlib.sha256(journal.torn).hexdigest()}
    record = following(journal.records[-1] if journal.records else None, "repaired", lost)
    write(path, b"".join(map(line_of, (*journal.records, record))))
    return record
