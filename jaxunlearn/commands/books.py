"""`ledger`: look at the journal of deletion requests, check it, mend it."""

from pathlib import Path
from typing import Literal

from jaxunlearn.service import journal, repair, show
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.records import replay
from jaxunlearn.service.seals import key_of


def verified(directory: Path, *, key: Path | None = None, head: str | None = None) -> str:
    """Check every record of a journal: its seal, its place, and whether it can follow what came before.

    Args:
        directory: of the ledger.
        key: file with the key that the journal was sealed with.
        head: `Ledger.head` as noted earlier, to find out whether records were cut off since.

    Returns:
        How many records are sound, and the head to note for the next time.

    Raises:
        FileNotFoundError: no journal, or no file with the key.
        LedgerError: names what is wrong.

    Example:
        >>> from jaxunlearn.commands.books import verified
        >>> verified("ledger")  # doctest: +SKIP
    """
    path = Path(directory) / "journal.jsonl"
    found = journal.read(path, key_of(key, Path(directory)))
    if found.torn:
        raise LedgerError(f"{journal.torn_message(path, found)}; `ledger repair` sets it aside, unless it is being written now")
    replay(found.records)
    if head is not None and head not in [record.hash for record in found.records]:
        raise LedgerError(f"the noted head is not among the {len(found.records)} records of {path}: records were cut off")
    return f"{len(found.records)} records are sound; head {found.records[-1].hash if found.records else ''}"


def ledger(
    action: Literal["list", "verify", "repair"], directory: Path, key: Path | None = None, head: str | None = None
) -> int:
    """List the journal of a ledger, verify it, or repair one that does not open.

    Args:
        action: what to do; only `repair` writes.
        directory: of the ledger.
        key: file with the key that its journal was sealed with.
        head: for `verify`: `Ledger.head` as noted earlier; says whether records were cut off since.

    Returns:
        0, or 1 where the journal is missing, was tampered with or cannot be mended.

    Raises:
        LedgerError: a journal that `verify` does not accept.
    """
    if head is not None and action != "verify":
        raise ValueError("--head belongs to `ledger verify`")
    if action == "verify":
        print(verified(directory, key=key, head=head))
        return 0
    arguments = [str(directory), *([] if key is None else ["--key", str(key)])]
    return (show if action == "list" else repair).main(arguments)
