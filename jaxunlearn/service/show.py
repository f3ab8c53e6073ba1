"""A ledger's journal as a table: `python -m jaxunlearn.service.show DIRECTORY`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxunlearn.service import journal, seals
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.journal import Record
from jaxunlearn.service.records import replay
from jaxunlearn.service.seals import Key, key_of


def table(directory: str | Path, *, key: Key | None = None) -> str:
    """The journal of a ledger as a table, read without a lock.

    Args:
        directory: of the ledger.
        key: as given to `Ledger.create`, bytes or a path.

    Returns:
        Lines of text: one per record, then what is pending, removed and spent.

    Raises:
        FileNotFoundError: no journal, or no file with the key.
        LedgerError: a journal that was tampered with, or sealed with another key.

    Example:
        >>> print(jaxunlearn.ledger.table("ledger"))  # doctest: +SKIP
    """
    path = Path(directory) / "journal.jsonl"
    found = journal.read(path, key_of(key, Path(directory)))
    state = replay(found.records)
    rows = [("record", "time", "kind", "what", "hash")]
    rows += [(str(each.number), each.time, each.kind, _summary(each), seals.short(each.hash)) for each in found.records]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"{len(state.pending)} ids pending, {len(state.removed)} removed, budget spent {state.spent:.6g}")
    if state.privacy_budget:
        lines.append("all releases together may cost ({:.6g}, {:.6g})".format(*state.privacy_budget))
    if state.superseded:
        numbers = ", ".join(map(str, state.superseded))
        lines.append(
            f"trained on rows that were removed since, which no epsilon protects there: releases {numbers}; retract them"
        )
    if state.purged != state.purging:
        lines.append("a purge was interrupted; it is finished when the ledger is opened")
    if found.torn:
        lines.append(f"{journal.torn_message(path, found)}, unless it is being written just now")
    return "\n".join(lines)


def _summary(record: Record) -> str:
    body = record.body
    if record.kind == "created":
        return f"model {body['model'][:8]}, data {body['data'][:8]}"
    if record.kind == "submitted":
        return f"{len(body['ids'])} ids"
    if record.kind == "noted":
        return "a note"
    if record.kind == "applied":
        return f"{len(body['ids'])} ids, spent {body['spent']:.6g}"
    if record.kind == "repaired":
        return f"{body['bytes']} bytes set aside"
    if record.kind == "retracted":
        return f"release {body['number']}: {body['reason']}"
    if record.kind == "budgeted":
        return f"at most ({body['epsilon']:.6g}, {body['delta']:.6g}) together"
    about = f"application {body['application']}"
    if record.kind == "certified":
        found = body["certificate"]
        void = "" if found["valid"] else f", void: {', '.join(found['failed'])}"
        return f"{about}, {found['mechanism']} ({found['epsilon']}, {found['delta']}){void}"
    if record.kind == "released":
        total = f"({body['total_epsilon']:.6g}, {body['total_delta']:.6g})"
        return f"{about}, release {body['number']}, together {total}, noise from {body['noise_key']}"
    return about


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit code: 1 where there is no journal, or one that was tampered with.
    """
    parser = argparse.ArgumentParser(
        prog="python -m jaxunlearn.service.show", description="Print the journal of a ledger of deletion requests as a table."
    )
    parser.add_argument("directory", type=Path, help="of the ledger")
    parser.add_argument("--key", type=Path, help="file with the key that its journal was sealed with")
    given = parser.parse_args(arguments)
    try:
        print(table(given.directory, key=given.key))
    except (LedgerError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
