"""Mend a journal that does not open any more: `python -m jaxunlearn.service.repair DIRECTORY [--key PATH]`.

What an interrupt or several threads can do to a journal is to tear a record, in the middle of the file too, and to write two
records after the same one. Every whole record is kept: the longest chain of them as it stands, and of those beside it what can
still be said after it, such as requests. The rest is set aside in a file of the folder `set-aside`, and a record says so.

A journal that lacks a record, or one that was changed, was not damaged in this way and is refused: restore it from a backup.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxunlearn.service import journal
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.journal import Journal, Record
from jaxunlearn.service.lock import locked
from jaxunlearn.service.records import State, follow, replay
from jaxunlearn.service.seals import Key, key_of

_START = b'{"body":'  # of every record in its canonical form
_SAID_AGAIN = ("submitted", "released", "retracted", "budgeted")  # the other steps can be repeated, and must be


class Repaired(NamedTuple):
    """What a repair did."""

    kept: int  # records that stand as they stood
    again: tuple[Record, ...]  # records from beside the chain, as they stand after it now
    aside: tuple[str, ...]  # what was set aside, in words
    path: Path | None  # where it is


def repair(directory: str | Path, *, key: Key | None = None) -> Repaired:
    """Mend the journal of a ledger; a sound one stays as it is.

    Args:
        directory: of the ledger, which nobody may have open.
        key: as given to `Ledger.create`, bytes or a path.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: no journal, or no file with the key.
        LedgerError: damage that neither an interrupt nor several threads can do, another key, or somebody is writing there.
            Nothing was changed then.

    Example:
        >>> from jaxunlearn.service.repair import repair
        >>> repair("ledger").kept  # doctest: +SKIP
        12
    """
    directory = Path(directory)
    path, secret = directory / "journal.jsonl", key_of(key, directory)
    if not path.exists():
        raise FileNotFoundError(f"there is no journal at {path}")
    with locked(directory / "lock"):
        whole, torn = _whole_records(path, secret)
        chain = _longest_chain(whole, path)
        on_chain = {record.hash for record in chain}
        beside = [record for record in whole if record.hash not in on_chain]
        state = replay(chain)
        if not beside and not torn:
            return Repaired(len(chain), (), (), None)
        lost = [*torn, *(journal.line_of(record).rstrip(b"\n") for record in beside)]
        said = journal.set_aside(path, lost)
        records = [*chain, journal.following(chain[-1], "repaired", said, secret)]
        aside = [f"{len(piece)} bytes of a torn record" for piece in torn]
        for record in beside:
            state, found, reason = _say_again(state, records[-1], record, secret)
            records += found
            if reason:
                aside.append(f"a record {record.number} ({record.kind}): {reason}")
        mended = Journal(tuple(records), b"")
        journal.write(path, b"".join(map(journal.line_of, mended.records)))
    return Repaired(len(chain), mended.records[len(chain) + 1 :], tuple(aside), path.parent / "set-aside" / said["sha256"])


def _whole_records(path: Path, key: bytes | None) -> tuple[list[Record], list[bytes]]:
    """Records in the order of the file, each once, and the pieces between them."""
    *lines, last = path.read_bytes().split(b"\n")
    whole: dict[str, Record] = {}
    torn = [last] if last else []
    for number, line in enumerate(lines):
        record, before = _last_record(line, f"line {number} of {path}", key)
        torn += [before] if before else []
        if record.hash in whole:
            torn.append(line[len(before) :])
        whole.setdefault(record.hash, record)
    return list(whole.values()), torn


def _last_record(line: bytes, name: str, key: bytes | None) -> tuple[Record, bytes]:
    """The record at the end of a line, and torn ones before it: whatever is written behind those shares their line."""
    at = line.find(_START, 1)
    while at > 0:
        try:
            return journal.parse(line[at:], name, key), line[:at]
        except LedgerError:
            at = line.find(_START, at + 1)
    return journal.parse(line, name, key), b""


def _longest_chain(records: list[Record], path: Path) -> list[Record]:
    """The longest chain from the record of the creation; of two that are equal, the one that the file has first."""
    by_hash = {record.hash: record for record in records}
    length: dict[str, int] = {"": 0}
    tip = ""
    for record in records:
        if record.previous not in length or record.number != length[record.previous]:
            raise LedgerError(
                f"record {record.number} of {path} follows one that is not there: no interrupt does that, restore a backup"
            )
        length[record.hash] = record.number + 1
        tip = record.hash if length[record.hash] > length[tip] else tip
    chain: list[Record] = []
    while tip:
        chain.append(by_hash[tip])
        tip = chain[-1].previous
    return chain[::-1]


def _say_again(state: State, last: Record, record: Record, key: bytes | None) -> tuple[State, list[Record], str]:
    """The state after a record from beside the chain, that record anew, and why it cannot be said again."""
    body = dict(record.body)
    if record.kind == "submitted":
        body.pop("note", None)  # what it says may hold in its place only; the ids count anywhere
        known = state.removed | set(state.pending)
        body["ids"] = [name for name in body["ids"] if name not in known]
        if not body["ids"]:
            return state, [], ""
    if record.kind not in _SAID_AGAIN:
        return state, [], "this step has to be repeated"
    again = journal.following(last, record.kind, body, key)
    try:
        return follow(state, again), [again], ""
    except LedgerError as error:
        return state, [], str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit code: 1 where there is no journal, or one that cannot be mended.
    """
    parser = argparse.ArgumentParser(
        prog="python -m jaxunlearn.service.repair", description="Mend the journal of a ledger of deletion requests."
    )
    parser.add_argument("directory", type=Path, help="of the ledger")
    parser.add_argument("--key", type=Path, help="file with the key that its journal was sealed with")
    given = parser.parse_args(arguments)
    try:
        done = repair(given.directory, key=given.key)
    except (LedgerError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if done.path is None:
        print(f"{done.kept} records, nothing to mend")
        return 0
    print(f"{done.kept} records kept as they were, {len(done.again)} from beside the chain written after them")
    for each in done.aside:
        print(f"set aside: {each}")
    print(f"the pieces are in {done.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
