"""Where requests come in: lines of a file, or rows of an SQLite table, read in their order and never written.

    {"request": "r-17", "ids": ["customer-17", 4711]}
    {"request": "r-18", "indices": [3, 5]}
    {"request": "r-19", "group": {"column": "household", "value": "h-3"}}

A file holds one such object per line and is only appended to. A line counts once its line break is there, so that one that is
just being written waits. A database has the table of `TABLE`, with the same object as text in each row; numbers must never be
given again, which is what AUTOINCREMENT is for.

How far an inbox was read is a small JSON value, which the ledger keeps. It holds a keyed hash of the last line that was read,
so that a file that was truncated, rotated or rewritten is found out.
"""

import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.service.errors import LedgerError

TABLE = "CREATE TABLE requests (id INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT NOT NULL)"
LONGEST = 2**20  # bytes of one request
TAIL = 4096  # bytes in front of the place that was read to, which must stay the same
PATIENCE = 5.0  # seconds that a locked database is waited for

Seal = Callable[[str], str]  # a keyed hash
Place = dict[str, Any]  # how far an inbox was read


class InboxError(LedgerError):
    """An inbox is not the one that was read before, is locked, or has another form. No request was taken or lost."""


class InboxBusy(InboxError):
    """Somebody else holds a lock on an inbox. It is free later."""


class Line(NamedTuple):
    """What somebody wrote into an inbox."""

    name: str  # where it stands, for people
    content: bytes
    fault: str  # why it was not read, empty if it was
    after: Place  # how far the inbox is read with it


def lines(path: str | Path, place: Place | None, seal: Seal) -> Generator[Line]:
    """Whole lines of an inbox behind a place, one by one.

    Args:
        path: of the file or the database.
        place: `after` of the last line that was taken; None for the beginning.
        seal: a keyed hash of a text, the same one as ever, see `Ledger.hashed`.

    Returns:
        An iterator. Nothing is kept open once it is closed or at its end.

    Raises:
        FileNotFoundError: there is no inbox at `path`.
        InboxError: it is not the one that was read before, is locked for longer than five seconds, or has another form.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/inbox.jsonl"
        >>> with open(path, "w") as file:
        ...     _ = file.write('{"request": "r-1", "ids": ["ada"]}\\nhalf of a line')
        >>> [(line.name, line.content) for line in lines(path, None, hash)]
        [('line 1', b'{"request": "r-1", "ids": ["ada"]}')]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no inbox at {path}: make an empty file, or an SQLite database with {TABLE}")
    with path.open("rb") as file:
        is_database = file.read(16) == b"SQLite format 3\0"
    if place is not None and is_database != (place["kind"] == "table"):
        raise InboxError(f"{path} is {'a database' if is_database else 'a file of lines'}, and another kind was read before")
    return _rows_of_table(path, place) if is_database else _lines_of_file(path, place, seal)


def _lines_of_file(path: Path, place: Place | None, seal: Seal) -> Generator[Line]:
    offset, number = (place["offset"], place["number"]) if place else (0, 0)
    with path.open("rb") as file:
        if place:
            file.seek(offset - place["tail"])
            found = file.read(place["tail"])
            if len(found) < place["tail"] or seal(found.hex()) != place["seal"]:
                raise InboxError(
                    f"{path} was truncated, rotated or rewritten: it does not go on where {number} lines were read. Give the "
                    "old file until it is read to its end; then begin the new one with restart. Requests are answered once, "
                    "so that no line that comes again is done again"
                )
        while True:
            content = file.readline(LONGEST + 1)
            size, tail, too_long = len(content), content[-TAIL:], len(content) > LONGEST and content[-1:] != b"\n"
            while content and content[-1:] != b"\n":  # the rest of a line that is too long, a piece at a time
                content = file.readline(LONGEST)
                size, tail = size + len(content), (tail + content)[-TAIL:]
            if not content:
                return  # the end, or a line that is still being written
            offset, number = offset + size, number + 1
            after = {"kind": "lines", "offset": offset, "number": number, "tail": len(tail), "seal": seal(tail.hex())}
            fault = f"it has more than {LONGEST} bytes" if too_long else ""
            yield Line(f"line {number}", b"" if too_long else content.rstrip(b"\r\n"), fault, after)


def _rows_of_table(path: Path, place: Place | None) -> Generator[Line]:
    number, count = (place["number"], place["count"]) if place else (0, 0)
    try:
        with closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, timeout=PATIENCE)) as base:
            _require_table(path, base)
            before = base.execute("SELECT count(*) FROM requests WHERE id <= ?", (number,)).fetchone()[0]
            highest = base.execute("SELECT seq FROM sqlite_sequence WHERE name = 'requests'").fetchone()
            if before > count or (number and (not highest or highest[0] < number)):
                raise InboxError(
                    f"{path} is not the database that was read before, or rows were added in front of row {number}: add rows "
                    "at the end. To read it from its beginning, restart; requests are answered once"
                )
            found = base.execute(
                "SELECT id, substr(CAST(request AS BLOB), 1, ?) FROM requests WHERE id > ? ORDER BY id", (LONGEST + 1, number)
            )
            for row, content in found:
                count += 1
                content = b"" if content is None else bytes(content)
                too_long = len(content) > LONGEST
                fault = f"it has more than {LONGEST} bytes" if too_long else ""
                after = {"kind": "table", "number": row, "count": count}
                yield Line(f"row {row}", b"" if too_long else content, fault, after)
    except sqlite3.OperationalError as error:
        kind = InboxBusy if "lock" in str(error) or "busy" in str(error) else InboxError
        raise kind(f"{path} could not be read ({error}): nothing was taken; close other transactions, and repeat") from error
    except sqlite3.DatabaseError as error:
        raise InboxError(f"{path} is no database that SQLite can read ({error}): restore it") from error


def _require_table(path: Path, base: sqlite3.Connection) -> None:
    found = base.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'requests'").fetchone()
    if found is None or "AUTOINCREMENT" not in found[0].upper():
        raise InboxError(f"{path} needs the table that is made by: {TABLE}")


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
