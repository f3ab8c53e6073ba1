"""The deletion requests of one model as they come in: who asked for what, in a journal that one writer holds open."""

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeAlias, TypeVar

from jaxunlearn import modes
from jaxunlearn.service import archive, journal
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.fingerprints import RecordId, keyed, names_in, names_of
from jaxunlearn.service.journal import Journal, Record
from jaxunlearn.service.lock import Lock
from jaxunlearn.service.records import State, follow, replay
from jaxunlearn.service.seals import Key, key_of

Mode: TypeAlias = Literal["merge", "stream"]
LEAST_SALT = 16  # bytes
Options = ParamSpec("Options")
Answer = TypeVar("Answer")


def in_turn(step: Callable[Concatenate[Any, Options], Answer]) -> Callable[Concatenate[Any, Options], Answer]:
    """One step of a ledger at a time; requests are taken meanwhile."""

    @wraps(step)
    def run(self: "Register", /, *arguments: Options.args, **options: Options.kwargs) -> Answer:
        self._require_owner()  # a fork copies locks as they are, held by threads that it does not have
        with self._turn:
            self._make_ready()
            return step(self, *arguments, **options)

    return run


class Register:
    """What `jaxunlearn.ledger.Ledger` is before anything is applied. Threads may share it; processes may not."""

    def __init__(self, directory: Path, names: list[str], salt: bytes, key: bytes | None, found: Journal, lock: Lock):
        self.directory = directory
        self._path = directory / "journal.jsonl"
        self._names = names
        self._salt = salt
        self._key = key
        self._take(found)
        self._attempted: Record | None = None  # what is being written; stays if an exception came in between
        self._lock = lock
        self._owner = os.getpid()
        self._turn = threading.RLock()  # held by a whole step, taken before the other one
        self._writing = threading.RLock()  # held from a look at the state to the record that follows from it

    @classmethod
    def create(
        cls,
        directory: str | Path,
        record_ids: Sequence[RecordId],
        *,
        model_fingerprint: str,
        data_fingerprint: str,
        salt: bytes | None = None,
        key: Key | None = None,
    ) -> Self:
        """Start a ledger.

        Args:
            directory: made if absent.
            record_ids: the stable id of every training row, [n]; rows of one person may share it.
            model_fingerprint: `fingerprint(variables)` of the trained model.
            data_fingerprint: `data_fingerprint(data, record_ids)`.
            salt: at least 16 secret bytes that the caller keeps; by default they are drawn and kept in the directory.
            key: at least 16 secret bytes, or the path of a file outside of the directory that holds them. Every record of the
                journal and of a release is then sealed with it, so that who may write there but has no key can forge none.

        Raises:
            FileExistsError: there is a ledger already.
            FileNotFoundError: there is no file with the key.
            ValueError, TypeError: ids that are neither strings nor integers, empty or no valid text; a salt or a key that is
                too short.
            LedgerError: somebody else is writing there, or the system does not let us.
        """
        names, directory = names_of(record_ids), Path(directory)
        secret = key_of(key, directory)
        if salt is not None and len(salt) < LEAST_SALT:
            raise ValueError(f"a salt has at least {LEAST_SALT} bytes, got {len(salt)}: draw it with secrets.token_bytes(32)")
        journal.make_directory(directory)
        path = directory / "journal.jsonl"
        with ExitStack() as on_error:
            lock = Lock(directory / "lock")
            on_error.callback(lock.release)
            if path.exists():
                raise FileExistsError(f"{directory} holds a ledger: open it, or choose another directory")
            if salt is None:
                salt = secrets.token_bytes(32)
                journal.write(directory / "salt", salt.hex().encode())
            data = keyed(salt, data_fingerprint)
            sealed = {"model": keyed(salt, model_fingerprint), "original": data, "data": data, "salt": keyed(salt, "salt")}
            first = journal.following(None, "created", sealed, secret)
            journal.make_directory(directory / "checkpoints")
            journal.write(path, journal.line_of(first))
            ledger = cls(directory, names, salt, secret, Journal((first,), b""), lock)
            on_error.pop_all()
        return ledger

    @classmethod
    def open(
        cls,
        directory: str | Path,
        record_ids: Sequence[RecordId],
        *,
        model_fingerprint: str | None,
        data_fingerprint: str | None,
        salt: bytes | None = None,
        key: Key | None = None,
        head: str | None = None,
        recover: bool = False,
    ) -> Self:
        """Open a ledger for writing. Every record is checked, and files that no record speaks of are deleted.

        Args:
            directory, model_fingerprint, data_fingerprint, salt, key: as given to `create`; both fingerprints are the first
                ones. None where they are gone: `load` and `apply` still compare the rows that are left, and the model before
                its first application.
            record_ids: the id of every training row as the data set is now.
            head: `ledger.head` as noted after an earlier session, to find out whether records were cut off since.
            recover: set a last record aside that a crash tore, and write down that this was done. It was never acknowledged.

        Raises:
            FileNotFoundError: no ledger there, or no file with the key.
            LedgerError: torn, tampered, foreign, sealed with another key or of another version, naming the record; or somebody
                else is writing. Nothing was changed then.
        """
        names, directory = names_of(record_ids), Path(directory)
        secret = key_of(key, directory)
        path = directory / "journal.jsonl"
        if not path.exists():
            raise FileNotFoundError(f"{directory} holds no ledger: make one with Ledger.create")
        with ExitStack() as on_error:
            lock = Lock(directory / "lock")
            on_error.callback(lock.release)
            found = journal.read(path, secret)
            state = replay(found.records)
            salt = _stored_salt(directory) if salt is None else salt
            for what, given, known in (
                ("salt", "salt", state.salt),
                ("model", model_fingerprint, state.model),
                ("data set", data_fingerprint, state.original),
            ):
                if given is not None and keyed(salt, given) != known:
                    raise LedgerError(f"record 0 of {path} belongs to another {what}: open the ledger of this one")
            if head is not None and head not in [record.hash for record in found.records]:
                raise LedgerError(f"record {len(found.records) - 1} of {path} is the last one, but the noted head is missing")
            if found.torn:
                if not recover:
                    told = journal.torn_message(path, found)
                    raise LedgerError(f"{told}; open(..., recover=True) sets it aside and records that")
                found = journal.repair(path, found, secret)
            ledger = cls(directory, names, salt, secret, found, lock)
            ledger._clean()
            on_error.pop_all()
        return ledger

    def close(self) -> None:
        """Let others write, once a step that another thread is in has ended. A closed ledger does nothing more.

        A ledger that is dropped is closed, too; in a fork, `close` does nothing.
        """
        if os.getpid() == self._owner:
            with self._turn, self._writing:
                self._lock.release()

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

    def submit(self, record_ids: Iterable[RecordId], *, note: Any = None) -> int:
        """Record a request to forget all rows of some ids, durably. Ids that were submitted before count once.

        Once it returns, the request is on disk. Interrupted, it may or may not be: submit it again.

        Args:
            record_ids: of the rows, as given to `create`: 1 and "1" are two ids, and so are two spellings of one letter.
            note: see `note`; it is recorded with the request, both or neither, and then there may be no id.

        Returns:
            How many ids are new.

        Raises:
            ValueError: no id and no note, ids that no row has, or that are empty or no valid text. Nothing is recorded then.
            TypeError: ids that are neither strings nor integers.
            LedgerError: the disk is full or read-only, or somebody else wrote to the journal.
        """
        names = names_in(record_ids)
        if not names and note is None:
            raise ValueError("a request names at least one record id")
        hashed = {keyed(self._salt, name): name for name in names}
        self._require_owner()
        with self._writing:
            self._make_ready()
            known = self.state.removed | set(self.state.pending)
            new = [name for name in hashed if name not in known]
            strangers = [hashed[name] for name in new if name not in self._rows]
            if strangers:
                other = [name for name in strangers if _other_spelling(name) in self._names]
                hint = '; 1 and "1" are two ids, pass them as given to create' if other else ""
                raise ValueError(f"no row has the record ids {', '.join(strangers[:5])}; nothing was submitted{hint}")
            if note is not None:
                self._append("submitted", ids=new, note=_plain(note))
            elif new:
                self._append("submitted", ids=new)
        return len(new)

    def note(self, value: Any) -> None:
        """Record what a caller wants to remember about its requests, durably; it is found again in `state.notes`.

        Args:
            value: what JSON can hold. The journal is no place for names: `hashed` them.

        Raises:
            ValueError, TypeError: no JSON.
            LedgerError: the disk is full or read-only, or somebody else wrote to the journal.
        """
        self._require_owner()
        with self._writing:
            self._append("noted", note=_plain(value))

    def hashed(self, text: str) -> str:
        """A name as it may stand in the journal: a hash that tells nothing to whoever does not know the ledger's salt."""
        return keyed(self._salt, text)

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

    def settle(self) -> None:
        """After an exception in the middle of a step, make `state` say what is on disk; every step begins with that.

        Raises:
            LedgerError: closed, forked, or somebody else wrote to the journal.
        """
        self._make_ready()

    def rows_of(self, hashed: Iterable[str]) -> set[int]:
        """Numbers of the rows of hashed ids, such as `state.pending`, among those whose ids the ledger was opened with."""
        return {row for name in hashed for row in self._rows.get(name, [])}

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self._names):
            rows.setdefault(name, []).append(row)
        return {keyed(self._salt, name): each for name, each in rows.items()}

    def _append(self, kind: str, **body: Any) -> None:
        with self._writing:
            self._make_ready()
            record = journal.following(self._last, kind, body, self._key)
            state = follow(self._state, record)
            self._attempted = record
            self._size = journal.append(self._path, record, self._size)
            self._last, self._state = record, state
            self._attempted = None

    def _take(self, found: Journal) -> None:
        self._size, self._last, self._state = found.size, found.records[-1], replay(found.records)

    def _make_ready(self) -> None:
        """Refuse what may not write, and after an exception in the middle of a record believe the disk."""
        self._require_owner()
        with self._writing:
            if not self._lock.held:
                raise LedgerError("this ledger was closed: open it again")
            if self._attempted is None:
                return
            found = journal.read(self._path, self._key)
            kept = [record.hash for record in found.records[: self._last.number + 1]]
            later = found.records[self._last.number + 1 :]
            if kept[-1:] != [self._last.hash] or any(
                each.hash != self._attempted.hash and each.kind != "repaired" for each in later
            ):
                raise LedgerError(f"{self._path} was changed by somebody else: close this ledger, and open it again")
            if found.torn:
                found = journal.repair(self._path, found, self._key)
            journal.sync(self._path)  # a record that counts from here on must be on disk
            self._take(found)
            self._attempted = None

    def _require_owner(self) -> None:
        if os.getpid() != self._owner:
            raise LedgerError(
                f"process {self._owner} opened this ledger, and process {os.getpid()} is a fork of it: close it there and open "
                "it here, or send the requests there"
            )

    def _clean(self) -> None:
        """Delete what no record speaks of and what a purge has to take, and finish that purge."""
        applications, purging = self.state.applications, self.state.purging
        kept = {each.record: {"weights"} for each in applications if each.record >= purging}
        if applications and applications[-1].record != purging:
            kept[applications[-1].record].add("carried")  # what the next request starts from
        with self._writing:
            archive.clean(self.directory / "checkpoints", kept)
        if self.state.purged != self.state.purging:
            self._append("purged", application=self.state.purging)


def _plain(value: Any) -> Any:
    """A value as it is read back."""
    return json.loads(journal.canonical(value))


def _stored_salt(directory: Path) -> bytes:
    path = directory / "salt"
    if not path.exists():
        raise LedgerError(f"{path} is not there: pass the salt that the ledger was created with")
    try:
        return bytes.fromhex(modes.read_private(path).decode())
    except ValueError as error:
        raise LedgerError(f"{path} is damaged: restore it from a backup, or pass the salt if you noted it") from error


def _other_spelling(name: str) -> str:
    """The integer as text, or the text as an integer; see `names_of`."""
    return name[1:-1] if name.startswith('"') else f'"{name}"'
