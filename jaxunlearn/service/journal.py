"""Files that survive a crash: atomic writes, a lock for one writer, and an append-only file of hash-chained records.

A journal is a file of JSON lines. Every record holds its number, the hash of the record before it and its own SHA-256 hash, so
that a changed, lost, inserted or reordered record is found. Whoever may write in the folder could still write the whole file
anew; with a key (`jaxunlearn.service.seals`) they would need that, too. What no chain shows is that records were cut off at the
end: note the hash of the last record elsewhere for that.
"""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.service import seals
from jaxunlearn.service.errors import LedgerError, explained

VERSION = 1


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

    @property
    def size(self) -> int:
        """Bytes of the whole records."""
        return sum(len(line_of(record)) for record in self.records)


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
    """A durable directory that only its owner may read; nothing happens if it is there.

    Raises:
        LedgerError: the system refuses.
    """
    if not path.is_dir():
        if not path.parent.is_dir():
            make_directory(path.parent)
        with explained(path):
            os.mkdir(path, 0o700)
            sync_directory(path.parent)


def write(path: Path, content: bytes) -> None:
    """Write or replace a file at once and durably: a crash leaves the old file or the new one. Only its owner may read it.

    Raises:
        LedgerError: the system refuses, e.g. because the disk is full. The old file is as it was.
    """
    new = path.with_name(f"{path.name}.new")
    with explained(path):
        try:
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                _write_all(handle, content)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(new, path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]


def read(path: Path, key: bytes | None = None) -> Journal:
    """All records of a journal, checked one by one. Nothing is skipped or repaired.

    Raises:
        FileNotFoundError: no journal.
        LedgerError: names the first record that is not what its seal, its number or its predecessor say.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no journal at {path}")
    *lines, torn = path.read_bytes().split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(lines):
        name = f"record {number} of {path}"
        records.append(parse(line, name, key))
        if records[-1].number != number or records[-1].previous != (records[-2].hash if number else ""):
            raise LedgerError(f"{name} does not follow the record before it: records were removed, added or reordered; {_MEND}")
    return Journal(tuple(records), torn)


_MEND = (
    "if an interrupt or several threads did that, python -m jaxunlearn.service.repair keeps every whole record; if not, "
    "restore a backup"
)


def parse(line: bytes, name: str, key: bytes | None) -> Record:
    """One line of a journal, checked by itself.

    Raises:
        LedgerError: names the record and says what is wrong.
    """
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise LedgerError(f"{name} was tampered with: it is no JSON; {_MEND}") from error
    if not isinstance(fields, dict) or "version" not in fields:
        raise LedgerError(f"{name} was tampered with: it has no version")
    if fields["version"] != VERSION:
        raise LedgerError(
            f"{name} has version {fields['version']}, this library reads version {VERSION}: use the one that fits"
        )
    if set(fields) != set(Record._fields):
        raise LedgerError(f"{name} was tampered with: expected the fields {Record._fields}, got {tuple(sorted(fields))}")
    record = Record(**fields)
    try:
        content, form = _content(record), canonical(fields)
    except ValueError as error:
        raise LedgerError(f"{name} was tampered with: it holds a number that is not finite") from error
    if fault := seals.fault(content, record.hash, key):
        raise LedgerError(f"{name} {fault}")
    if line != form:
        raise LedgerError(f"{name} was tampered with: it is not in the form that was sealed")
    return record


def _content(record: Record) -> bytes:
    return canonical({**record._asdict(), "hash": ""})


def sealed(record: Record, key: bytes | None) -> Record:
    """The record with its seal."""
    return record._replace(hash=seals.seal(_content(record), key))


def following(last: Record | None, kind: str, body: dict[str, Any], key: bytes | None = None) -> Record:
    """The record that comes after `last`; nothing is written."""
    number, previous = (0, "") if last is None else (last.number + 1, last.hash)
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return sealed(Record(VERSION, number, time, kind, body, previous, ""), key)


def line_of(record: Record) -> bytes:
    """A record as it stands in the file."""
    return canonical(record._asdict()) + b"\n"


def append(path: Path, record: Record, size: int) -> int:
    """Add a record durably. If that fails or is interrupted, the bytes that it wrote are taken off again.

    Args:
        path: of the journal.
        record: that follows the last one.
        size: bytes that the journal must have, so that nothing is added to what somebody else wrote.

    Returns:
        Bytes that it has now.

    Raises:
        LedgerError: another size, or the system refuses.
    """
    line = line_of(record)
    with explained(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            if (found := os.fstat(handle).st_size) != size:
                raise LedgerError(
                    f"{path} has {found} bytes where this ledger left {size}: somebody else wrote there, so nothing was "
                    "recorded; close the ledger, find the other writer, and open it again"
                )
            try:
                _write_all(handle, line)
                os.fsync(handle)
            except BaseException:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
    return size + len(line)


def torn_message(path: Path, journal: Journal) -> str:
    """What a crash left of a last record, in words."""
    return f"record {len(journal.records)} of {path} is torn: a crash left {len(journal.torn)} bytes of it"


def repair(path: Path, journal: Journal, key: bytes | None = None) -> Journal:
    """Set a torn last record aside, and say so in a record of its own, in one atomic step."""
    lost = set_aside(path, [journal.torn])
    record = following(journal.records[-1] if journal.records else None, "repaired", lost, key)
    mended = Journal((*journal.records, record), b"")
    write(path, b"".join(map(line_of, mended.records)))
    return mended


def set_aside(path: Path, pieces: list[bytes]) -> dict[str, Any]:
    """Keep pieces of a journal in a file of the folder `set-aside`, durably; what a record of the repair says of them."""
    content = b"\n".join(pieces)
    found = hashlib.sha256(content).hexdigest()
    make_directory(path.parent / "set-aside")
    write(path.parent / "set-aside" / found, content)
    return {"bytes": len(content), "sha256": found}


def sync(path: Path) -> None:
    """Make the content of a file durable.

    Raises:
        LedgerError: the system refuses.
    """
    with explained(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
