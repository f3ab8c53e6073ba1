"""The deletion requests of one model as they come in: who asked for what, in a journal that one writer holds open."""

import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from jaxunlearn.service import archive, journal
from jaxunlearn.service.fingerprints import RecordId, keyed, names_of
from jaxunlearn.service.journal import LedgerError, Record
from jaxunlearn.service.records import State, follow, replay

Mode: TypeAlias = Literal["merge", "stream"]
LEAST_SALT = 16  # bytes


class Register:
    """What `jaxunlearn.ledger.Ledger` is before anything is applied."""

    def __init__(self, directory: Path, names: list[str], salt: bytes, records: tuple[Record, ...], lock: int):
        self.directory = directory
        self._names = names
        self._salt = salt
        self._state = replay(records)
        self._last = records[-1]
        self._lock = lock  # file descriptor; closing it gives the lock back

    @classmethod
    def create(
        cls,
        directory: str | Path,
        record_ids: Sequence[RecordId],
        *,
        model_fingerprint: str,
        data_fingerprint: str,
        salt: bytes | None = None,
    ) -> Self:
        """Start a ledger.

        Args:
            directory: made if absent.
            record_ids: the stable id of every training row, [n]; rows of one person may share it.
            model_fingerprint: `fingerprint(variables)` of the trained model.
            data_fingerprint: `data_fingerprint(data, record_ids)`.
            salt: at least 16 secret bytes that the caller keeps; by default they are drawn and kept in the directory.

        Raises:
            FileExistsError: there is a ledger already.
            ValueError, TypeError: ids that are neither strings nor integers, a salt that is too short.
            LedgerError: somebody else is writing there.
        """
        names, directory = names_of(record_ids), Path(directory)
        if salt is not None and len(salt) < LEAST_SALT:
            raise ValueError(f"a salt has at least {LEAST_SALT} bytes, got {len(salt)}: draw it with secrets.token_bytes(32)")
        journal.make_directory(directory)
        path = directory / "journal.jsonl"
        with ExitStack() as on_error:
            lock = journal.lock(directory / "lock")
            on_error.callback(os.close, lock)
            if path.exists():
                raise FileExistsError(f"{directory} holds a ledger: open it, or choose another directory")
            if salt is None:
                salt = secrets.token_bytes(32)
                journal.write(directory / "salt", salt.hex().encode())
            data = keyed(salt, data_fingerprint)
            sealed = {"model": keyed(salt, model_fingerprint), "original": data, "data": data, "salt": keyed(salt, "salt")}
            first = journal.following(None, "created", sealed)
            journal.make_directory(directory / "checkpoints")
            journal.write(path, journal.line_of(first))
            ledger = cls(directory, names, salt, (first,), lock)
            on_error.pop_all()
        return ledger

    @classmethod
    def open(
        cls,
        directory: str | Path,
        record_ids: Sequence[RecordId],
        *,
        model_fingerprint: str,
        data_fingerprint: str,
        salt: bytes | None = None,
        head: str | None = None,
        recover: bool = False,
    ) -> Self:
        """Open a ledger for writing. Every record is checked, and files that no record speaks of are deleted.

        Args:
            directory, model_fingerprint, data_fingerprint, salt: as given to `create`; both fingerprints are the first ones.
            record_ids: the id of every training row as the data set is now.
            head: `ledger.head` as noted after an earlier session, to find out whether records were cut off since.
            recover: cut off a last record that a crash tore, and write down that this was done.

        Raises:
            FileNotFoundError: no ledger there.
            LedgerError: torn, tampered, foreign or of another version, naming the record; or somebody else is writing. Nothing
                was changed then.
        """
        names, directory = names_of(record_ids), Path(directory)
        path = directory / "journal.jsonl"
        if not path.exists():
            raise FileNotFoundError(f"{directory} holds no ledger: make one with Ledger.create")
        with ExitStack() as on_error:
            lock = journal.lock(directory / "lock")
            on_error.callback(os.close, lock)
            found = journal.read(path)
            state = replay(found.records)
            salt = _stored_salt(directory) if salt is None else salt
            for what, given, known in (
                ("salt", "salt", state.salt),
                ("model", model_fingerprint, state.model),
                ("data set", data_fingerprint, state.original),
            ):
                if keyed(salt, given) != known:
                    raise LedgerError(f"record 0 of {path} belongs to another {what}: open the ledger of this one")
            if head is not None and head not in [record.hash for record in found.records]:
                raise LedgerError(f"record {len(found.records) - 1} of {path} is the last one, but the noted head is missing")
            records = found.records
            if found.torn:
                if not recover:
                    told = journal.torn_message(path, found)
                    raise LedgerError(f"{told}; open(..., recover=True) cuts it off and records that")
                records = (*records, journal.repair(path, found))
            ledger = cls(directory, names, salt, records, lock)
            ledger._clean()
            on_error.pop_all()
        return ledger

    def close(self) -> None:
        """Let others write. A closed ledger does nothing more."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def state(self) -> State:
        """What the records amount to."""
        return self._state

    @property
    def head(self) -> str:
        """Hash of the last record; note it elsewhere to find out later whether records were cut off."""
        return self._last.hash

    def submit(self, record_ids: Iterable[RecordId]) -> int:
        """Record a request to forget all rows of some ids, durably. Ids that were submitted before count once.

        Args:
            record_ids: of the rows, as given to `create`.

        Returns:
            How many ids are new.

        Raises:
            ValueError: no id, or ids that no row has. Nothing is recorded then.
            TypeError: ids that are neither strings nor integers.
        """
        names = list(dict.fromkeys(names_of([record_ids] if isinstance(record_ids, str) else record_ids)))
        if not names:
            raise ValueError("a request names at least one record id")
        hashed = {keyed(self._salt, name): name for name in names}
        known = self.state.removed | set(self.state.pending)
        new = [name for name in hashed if name not in known]
        strangers = [hashed[name] for name in new if name not in self._rows]
        if strangers:
            raise ValueError(f"no row has the record ids {', '.join(strangers[:5])}; nothing was submitted")
        if new:
            self._append("submitted", ids=new)
        return len(new)

    def plan(self, mode: Mode = "merge") -> list[tuple[str, ...]]:
        """Hashed ids in the batches in which `apply` would remove them.

        Args:
            mode: `merge` removes all at once, `stream` one submission after the other.

        Returns:
            One tuple of hashed ids per batch.

        Raises:
            ValueError: an unknown mode.
        """
        if mode not in ("merge", "stream"):
            raise ValueError(f"mode must be 'merge' or 'stream', got {mode!r}")
        pending = self.state.pending
        return list(self.state.submissions) if mode == "stream" else [pending] if pending else []

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self._names):
            rows.setdefault(name, []).append(row)
        return {keyed(self._salt, name): each for name, each in rows.items()}

    def _append(self, kind: str, **body: Any) -> None:
        self._require_open()
        record = journal.following(self._last, kind, body)
        state = follow(self.state, record)
        journal.append(self.directory / "journal.jsonl", record)
        self._last, self._state = record, state

    def _require_open(self) -> None:
        if self._lock < 0:
            raise LedgerError("this ledger was closed: open it again")

    def _clean(self) -> None:
        """Delete what no record speaks of and what a purge has to take, and finish that purge."""
        self._require_open()
        applications, purging = self.state.applications, self.state.purging
        kept = {each.record: {"weights"} for each in applications if each.record >= purging}
        if applications and applications[-1].record != purging:
            kept[applications[-1].record].add("carried")  # what the next request starts from
        archive.clean(self.directory / "checkpoints", kept)
        if self.state.purged != self.state.purging:
            self._append("purged", application=self.state.purging)


def _stored_salt(directory: Path) -> bytes:
    path = directory / "salt"
    if not path.exists():
        raise LedgerError(f"{path} is not there: pass the salt that the ledger was created with")
    return bytes.fromhex(path.read_text())
