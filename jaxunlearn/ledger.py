"""A durable record of deletion requests, from submission to the release of a model without the rows.

    submit -> (plan) -> apply -> certify -> publish -> purge

A ledger is a directory for one trained model and one data set. Its journal (`jaxunlearn.journal`) says what was asked for and
what was done; whatever else is there belongs to a record of the journal. A step counts once its record is on disk, and the
record is written last. Killed at any point, a ledger that is opened again has lost no request, applied none twice,
and knows its budget to the last digit; the caller repeats the steps that it did not see return.

    journal.jsonl   the audit trail: keyed hashes and numbers of certificates, never an id, a row or a weight
    salt            the key of those hashes; keep it from whoever may see the journal, or pass `salt` and keep it elsewhere
    checkpoints/    un-noised weights after each application; what the method carries on, of the newest
    releases/       see `jaxunlearn.certificates.publish`: only releases/public may be handed out

**Ids.** Records are named by the caller's stable ids, such as a customer number. Rows are found again in the caller's list
of the ids of all rows, never by number; rows that share an id go together. The fingerprint of a data set covers ids and
content of the rows that are still present, in any order, so that removed rows may be blanked, dropped or reordered, and
others may not change.

**Purge.** Once a release without the removed rows is out, `purge` deletes the checkpoints of weights that were trained on
them, and factorisations and statistics computed from them. The newest un-noised weights stay, since later requests start
from them: they were moved to the optimum without the rows, up to the distance that the certificate's noise covers. The
journal stays. Without its salt it confirms nothing about anybody.

**What a ledger does not do.** It deletes its own files, once. It does not reach the caller's data set, the original weights,
the secret of an objective perturbation, backups, snapshots and copy-on-write blocks of a file system, swap, or cells of a
solid-state disk that its controller has moved; encrypt the volume and drop the key where that matters. It does not defend
against somebody who may write in its directory: they can replace the whole journal unless `head` was noted elsewhere. One
writer at a time, on a local POSIX file system.

`python -m jaxunlearn.ledger show DIRECTORY` prints the journal as a table.
"""

import argparse
import hashlib
import hmac
import math
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from jaxunlearn import checkpoint, journal, requests, status, tree
from jaxunlearn.journal import Journal, LedgerError, Record
from jaxunlearn.status import Status
from jaxunlearn.types import Data, ForgetRequest, Result, UnlearnFn, Variables

RecordId: TypeAlias = str | int
Mode: TypeAlias = Literal["merge", "stream"]


class Application(NamedTuple):
    """One batch of requests that was removed from the model."""

    record: int  # in the journal; its checkpoint has this name
    ids: tuple[str, ...]
    spent: float  # of the budget, by this application
    digests: dict[str, str]  # of the parts of its checkpoint
    stats: dict[str, list]  # dtype and shape of each statistic
    carried: tuple[str, ...]  # names in Result.extra


class State(NamedTuple):
    """What the records of a journal amount to; see `replay`."""

    model: str  # sealed fingerprint of the weights before the first application
    original: str  # sealed fingerprint of the data before it
    data: str  # and of the rows present now
    salt: str
    submissions: tuple[tuple[str, ...], ...] = ()  # with ids still to be removed
    removed: frozenset[str] = frozenset()
    applications: tuple[Application, ...] = ()
    certificate: dict[str, Any] | None = None  # of the newest application
    releases: tuple[dict[str, Any], ...] = ()
    purging: int = -1  # application whose release allowed the last purge
    purged: int = -1  # the same, once its files are gone

    @property
    def pending(self) -> tuple[str, ...]:
        """Hashed ids still to be removed, oldest first."""
        return tuple(name for submission in self.submissions for name in submission)

    @property
    def spent(self) -> float:
        """Budget that all applications took together."""
        return math.fsum(application.spent for application in self.applications)

    @property
    def spent_before(self) -> float:
        """Budget that the applications before the newest one took."""
        return math.fsum(application.spent for application in self.applications[:-1])


def replay(records: Iterable[Record]) -> State:
    """Rebuild a ledger's state from its records. Pure.

    Raises:
        LedgerError: names the first record that cannot follow the ones before it.
    """
    state = None
    for record in records:
        name = f"record {record.number} ({record.kind})"
        if (state is None) != (record.kind == "created"):
            raise LedgerError(f"{name}: a ledger starts with one record of its creation, and has no other")
        try:
            state = State(**record.body) if state is None else _follow(state, record)
        except (KeyError, TypeError) as error:
            raise LedgerError(f"{name} lacks a field or has one too many: {error}") from error
        except LedgerError as error:
            raise LedgerError(f"{name}: {error}") from error
    if state is None:
        raise LedgerError("the journal is empty")
    return state


def _follow(state: State, record: Record) -> State:
    body = dict(record.body)
    newest = state.applications[-1].record if state.applications else -1
    if record.kind == "submitted":
        ids = tuple(body["ids"])
        if set(ids) & (state.removed | set(state.pending)) or len(set(ids)) < len(ids):
            raise LedgerError("it submits an id again")
        return state._replace(submissions=(*state.submissions, ids))
    if record.kind == "applied":
        data, ids = body.pop("data"), tuple(body.pop("ids"))
        if not set(ids) <= set(state.pending) or not ids:
            raise LedgerError("it removes ids that are not pending")
        carried = tuple(body.pop("carried"))
        application = Application(record.number, ids, carried=carried, **body)
        left = (tuple(name for name in each if name not in ids) for each in state.submissions)
        return state._replace(
            data=data,
            submissions=tuple(each for each in left if each),
            removed=state.removed | set(ids),
            applications=(*state.applications, application),
            certificate=None,
        )
    if record.kind == "repaired":
        return state
    if body["application"] != newest:
        raise LedgerError(f"it is about application {body['application']}, the newest one is {newest}")
    if record.kind == "certified":
        return state._replace(certificate=body["certificate"])
    if record.kind == "released":
        return state._replace(releases=(*state.releases, body))
    if record.kind == "purging":
        return state._replace(purging=newest)
    if record.kind == "purged":
        return state._replace(purged=newest)
    raise LedgerError("it is of a kind that is not known")


def fingerprint(variables: Variables) -> str:
    """SHA-256 of a model's weights and state: tree, dtypes, shapes and bits.

    Example:
        >>> from jaxunlearn.ledger import fingerprint
        >>> len(fingerprint(variables))
        64
    """
    return journal.digest(variables)


def data_fingerprint(data: Data, record_ids: Sequence[RecordId]) -> str:
    """SHA-256 of ids and contents of the present rows, in whatever order they come.

    Args:
        data: the training data; `extra` does not count.
        record_ids: the id of each of its rows, [n].

    Raises:
        ValueError: another number of ids than of rows.

    Example:
        >>> from jaxunlearn.ledger import data_fingerprint
        >>> len(data_fingerprint(data, range(60)))
        64
    """
    return _of_rows(_row_digests(data, _names(record_ids)))


def _of_rows(digests: dict[int, bytes]) -> str:
    return journal.digest(np.frombuffer(b"".join(sorted(digests.values())), np.uint8))


def _row_digests(data: Data, names: list[str]) -> dict[int, bytes]:
    rows = tree.leading_axis(data.train, "data.train")
    if len(names) != rows:
        raise ValueError(f"expected one record id for each of the {rows} training rows, got {len(names)}")
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(data.train)]
    form = journal.digest([np.array([str(leaf.dtype), *map(str, leaf.shape[1:])]) for leaf in leaves]).encode()
    digests = {}
    for row in np.flatnonzero(np.asarray(data.present) > 0).tolist():
        content = b"".join(leaf[row].tobytes() for leaf in leaves)
        digests[row] = hashlib.sha256(form + names[row].encode() + b"\0" + content).digest()
    return digests


def _names(record_ids: Iterable[RecordId]) -> list[str]:
    record_ids = list(record_ids)
    strange = [each for each in record_ids if isinstance(each, bool) or not isinstance(each, str | int | np.integer)]
    if strange:
        raise TypeError(f"record ids are strings or integers, got {strange[0]!r}; use ids that stay, not row numbers")
    return [str(each) for each in record_ids]


class Ledger:
    """The deletion requests of one model, open for writing; make it with `Ledger.create` or `Ledger.open`, and close it.

    Example:
        >>> from jaxunlearn.ledger import Ledger  # doctest: +SKIP
        >>> with Ledger.open("ledger", ids, model_fingerprint=model, data_fingerprint=rows) as ledger:  # doctest: +SKIP
        ...     ledger.submit(["customer-17"])
        ...     ledger.apply(unlearn, variables, data, key)
        ...     certificate = ledger.certify(certify, variables, data, epsilon=1.0, delta=1e-5)
        ...     release = ledger.publish(publish, certificate, variables)
        ...     ledger.purge()
    """

    def __init__(self, directory: Path, names: list[str], salt: bytes, records: tuple[Record, ...], handle: int):
        self.directory = directory
        self._names = names
        self._salt = salt
        self._state = replay(records)
        self._last = records[-1]
        self._lock = handle

    @classmethod
    def create(
        cls,
        directory: str | Path,
        record_ids: Sequence[RecordId],
        *,
        model_fingerprint: str,
        data_fingerprint: str,
        salt: bytes | None = None,
    ) -> "Ledger":
        """Start a ledger.

        Args:
            directory: made if absent.
            record_ids: the stable id of every training row, [n]; rows of one person may share it.
            model_fingerprint: `fingerprint(variables)` of the trained model.
            data_fingerprint: `data_fingerprint(data, record_ids)`.
            salt: at least 16 secret bytes that the caller keeps; by default they are drawn and kept in the directory.

        Raises:
            FileExistsError: there is a ledger already.
            ValueError, TypeError: ids that are no ids, a salt too short.
            LedgerError: somebody else is writing there.
        """
        names, directory = _names(record_ids), Path(directory)
        if salt is not None and len(salt) < 16:
            raise ValueError(f"a salt has at least 16 bytes, got {len(salt)}: draw it with secrets.token_bytes(32)")
        journal.make_directory(directory)
        path = directory / "journal.jsonl"
        with ExitStack() as on_error:
            handle = journal.lock(directory / "lock")
            on_error.callback(os.close, handle)
            if path.exists():
                raise FileExistsError(f"{directory} holds a ledger: open it, or choose another directory")
            if salt is None:
                salt = secrets.token_bytes(32)
                journal.write(directory / "salt", salt.hex().encode())
            data = _keyed(salt, data_fingerprint)
            sealed = {"model": _keyed(salt, model_fingerprint), "original": data, "data": data, "salt": _keyed(salt, "salt")}
            first = journal.following(None, "created", sealed)
            journal.make_directory(directory / "checkpoints")
            journal.write(path, journal.line_of(first))
            ledger = cls(directory, names, salt, (first,), handle)
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
    ) -> "Ledger":
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
        names, directory = _names(record_ids), Path(directory)
        path = directory / "journal.jsonl"
        if not path.exists():
            raise FileNotFoundError(f"{directory} holds no ledger: make one with Ledger.create")
        with ExitStack() as on_error:
            handle = journal.lock(directory / "lock")
            on_error.callback(os.close, handle)
            found = journal.read(path)
            state = replay(found.records)
            if salt is None:
                salt = _stored_salt(directory)
            for what, given, known in (
                ("salt", "salt", state.salt),
                ("model", model_fingerprint, state.model),
                ("data set", data_fingerprint, state.original),
            ):
                if _keyed(salt, given) != known:
                    raise LedgerError(f"record 0 of {path} belongs to another {what}: open the ledger of this one")
            if head is not None and head not in [record.hash for record in found.records]:
                raise LedgerError(f"record {len(found.records) - 1} of {path} is the last one, but the noted head is missing")
            records = found.records
            if found.torn:
                if not recover:
                    raise LedgerError(f"{_torn(path, found)}; open(..., recover=True) cuts it off and records that")
                records = (*records, journal.repair(path, found))
            ledger = cls(directory, names, salt, records, handle)
            ledger._clean()
            on_error.pop_all()
        return ledger

    def close(self) -> None:
        """Let others write. A closed ledger does nothing more."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "Ledger":
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

        Returns:
            How many ids are new.

        Raises:
            ValueError: no id, or ids that no row has. Nothing is recorded then.
        """
        names = list(dict.fromkeys(_names([record_ids] if isinstance(record_ids, str) else record_ids)))
        if not names:
            raise ValueError("a request names at least one record id")
        hashed = {_keyed(self._salt, name): name for name in names}
        known = self.state.removed | set(self.state.pending)
        new = [name for name in hashed if name not in known]
        strangers = [hashed[name] for name in new if name not in self._rows]
        if strangers:
            raise ValueError(f"no row has the record ids {', '.join(strangers[:5])}; nothing was submitted")
        if new:
            self._append("submitted", ids=new)
        return len(new)

    def plan(self, mode: Mode = "merge") -> list[tuple[str, ...]]:
        """Hashed ids in the batches in which `apply` would remove them: all at once, or one submission after the other."""
        if mode not in ("merge", "stream"):
            raise ValueError(f"mode must be 'merge' or 'stream', got {mode!r}")
        pending = self.state.pending
        return list(self.state.submissions) if mode == "stream" else [pending] if pending else []

    def apply(
        self,
        unlearn: UnlearnFn,
        variables: Variables,
        data: Data,
        key: PRNGKeyArray,
        *,
        mode: Mode = "merge",
        spend: str | Callable[[Result], float] | None = None,
        capacity: int | None = None,
        check: Callable[[Data, ForgetRequest], None] | None = None,
    ) -> Result:
        """Remove what is pending, batch after batch, each from the last result.

        Args:
            unlearn: the method. What it carries from request to request (`Result.extra`) is kept too.
            variables: the trained model; after the first application only tree, shapes and dtypes count
                (`jax.eval_shape` will do), since the ledger has the weights.
            data: the data set with all rows that the ledger has not removed; `present` is cleared for those it has.
            key: one typed key; application number b (from 0) uses `fold_in(key, b)`.
            mode: `merge` all pending requests, or `stream` one submission after the other.
            spend: statistic that is spent from a budget, e.g. `quartic_bound` for objective perturbation, or a function of the
                result; bounds add up in `state.spent`, and `state.spent_before` is what a certificate has to be told.
            capacity: slots of a request, see `jaxunlearn.from_indices`.
            check: `(data, request)` of all that is pending, called before anything is applied; raises to refuse it, e.g.
                `partial(jaxunlearn.convex.check_request, problem)`.

        Returns:
            The newest result, also if nothing is pending.

        Raises:
            LedgerError: another model or data set than the ledger's, a checkpoint that was tampered with, or nothing to do
                and nothing done yet.
            ValueError: a batch would remove every present row.
            UnlearningError: the method failed. Batches before that one are applied and recorded.
        """
        tree.check_key(key)
        plan = self.plan(mode)
        self._clean()
        digests = self._check_data(data)
        if not self.state.applications:
            self._check_model(variables)
        if any(name not in self._rows for name in self.state.pending):
            raise LedgerError("some pending ids have no row any more: pass record_ids of the whole data set to Ledger.open")
        rows = [sorted(row for name in ids for row in self._rows[name] if row in digests) for ids in plan]
        if sum(map(len, rows)) >= len(digests):
            raise ValueError(f"the pending requests would remove all {len(digests)} present rows; nothing was applied")
        if plan:
            variables, data = self._load(variables, data)
            if check is not None:
                check(data, _request(data, sorted(row for gone in rows for row in gone), None))
        for ids, gone in zip(plan, rows, strict=True):
            request = _request(data, gone, capacity)
            batch_key = jax.random.fold_in(key, len(self.state.applications))
            result = status.check(unlearn(variables, data, request, batch_key), allow=[Status.EMPTY_REQUEST])
            tree.check_same(variables, result.variables)
            for row in gone:
                del digests[row]
            self._record(ids, result, _spent(result, spend), digests, data)
            self._clean()
            variables = result.variables
            data = _without(data, gone)._replace(extra={**data.extra, **result.extra})
        return self.result(variables, data)

    def load(self, variables: Variables, data: Data) -> tuple[Variables, Data]:
        """The current un-noised weights, and the data as the next request meets it: `present` cleared, `extra` carried on.

        Args:
            variables: tree, shapes and dtypes of the model; the model itself before the first application.
            data: as for `apply`.
        """
        self._check_data(data)
        if not self.state.applications:
            self._check_model(variables)
        return self._load(variables, data)

    def _load(self, variables: Variables, data: Data) -> tuple[Variables, Data]:
        data = _without(data, [row for name in self.state.removed for row in self._rows.get(name, [])])
        if not self.state.applications:
            return variables, data
        newest = self.state.applications[-1]
        extra = self._read_carried(newest, data)["extra"] if newest.record != self.state.purging else {}
        return self._read_weights(variables)[0], data._replace(extra={**data.extra, **extra})

    def result(self, variables: Variables, data: Data) -> Result:
        """The newest result as it was applied; see `load` for the arguments.

        Raises:
            LedgerError: nothing was applied yet, or its statistics were purged.
        """
        newest = self._newest()
        weights, code = self._read_weights(variables)
        if newest.record == self.state.purging:
            raise LedgerError(f"the statistics of application {newest.record} were purged; its certificate is in the journal")
        carried = self._read_carried(newest, data)
        return Result(weights, code, carried["stats"], carried["extra"])

    def certify(self, certify: Callable[..., Any], variables: Variables, data: Data, **options: Any) -> Any:
        """Certify the newest application and record the certificate, void ones included.

        Args:
            certify: `(result, data, **options) -> Certificate`.
            variables, data: see `load`.
            options: for `certify`, e.g. `epsilon=1.0, delta=1e-5`.

        Raises:
            LedgerError: nothing was applied yet, or its statistics were purged.
        """
        result = self.result(variables, data)
        certificate = certify(result, self.load(variables, data)[1], **options)
        found = _plain(certificate)
        if self.state.certificate != found:
            self._append("certified", application=self._newest().record, certificate=found)
        return certificate

    def publish(
        self, publish: Callable[..., Any], certificate: Any, variables: Variables, *, key: PRNGKeyArray | None = None
    ) -> Any:
        """Release the newest weights with the certificate's noise; asked again, the same bits.

        Args:
            publish: `(result, certificate, directory, *, key) -> Release`, see `jaxunlearn.certificates.publish`.
            certificate: what `certify` returned last.
            variables: see `load`.
            key: see `jaxunlearn.certificates.publish`.

        Raises:
            LedgerError: the certificate is not that of the newest application, or the release is not the one recorded.
        """
        newest = self._newest()
        if self.state.certificate != _plain(certificate):
            raise LedgerError(f"this is not the recorded certificate of application {newest.record}: certify it first")
        weights, code = self._read_weights(variables)
        release = publish(Result(weights, code, {}), certificate, self.directory / "releases", key=key)
        body = {name: getattr(release, name) for name in ("number", "epsilon", "delta", "noise_key", "sha256")}
        known = [each for each in self.state.releases if each["number"] == release.number]
        if any(each[name] != value for each in known for name, value in body.items()):
            raise LedgerError(f"release {release.number} is not the one that the journal recorded")
        if not any(each["application"] == newest.record for each in known):
            totals = {name: getattr(release, name) for name in ("total_epsilon", "total_delta")}
            self._append("released", application=newest.record, **body, **totals)
        return release

    def purge(self) -> None:
        """Delete all un-noised weights, factorisations and statistics that were computed from removed rows.

        The newest weights and the journal stay. What a method carries on has to be prepared anew for the next request.

        Raises:
            LedgerError: the newest application was not published yet.
        """
        newest = self._newest()
        if not any(release["application"] == newest.record for release in self.state.releases):
            raise LedgerError(f"application {newest.record} was not published: publish it, then purge what came before")
        if self.state.purging != newest.record:
            self._append("purging", application=newest.record)
        self._clean()

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self._names):
            rows.setdefault(name, []).append(row)
        return {_keyed(self._salt, name): each for name, each in rows.items()}

    def _newest(self) -> Application:
        if not self.state.applications:
            raise LedgerError("nothing was applied yet: submit requests and apply them first")
        return self.state.applications[-1]

    def _append(self, kind: str, **body: Any) -> None:
        self._require_open()
        record = journal.following(self._last, kind, body)
        state = _follow(self.state, record)
        journal.append(self.directory / "journal.jsonl", record)
        self._last, self._state = record, state

    def _require_open(self) -> None:
        if self._lock < 0:
            raise LedgerError("this ledger was closed: open it again")

    def _clean(self) -> None:
        """Delete what no record speaks of, what a purge has to take, and finish that purge."""
        self._require_open()
        applications, purging = self.state.applications, self.state.purging
        kept = {_folder(each.record): {"weights"} for each in applications if each.record >= purging}
        if applications and applications[-1].record != purging:
            kept[_folder(applications[-1].record)].add("carried")  # what the next request starts from
        for folder in sorted((self.directory / "checkpoints").iterdir()):
            if folder.name not in kept:
                _remove(folder)
            else:
                for part in sorted(folder.iterdir()):
                    if part.name not in kept[folder.name]:
                        _remove(part)
        if self.state.purged != self.state.purging:
            self._append("purged", application=self.state.purging)

    def _check_model(self, variables: Variables) -> None:
        if _keyed(self._salt, fingerprint(variables)) != self.state.model:
            raise LedgerError("record 0 belongs to another model than these variables: pass the trained ones")

    def _check_data(self, data: Data) -> dict[int, bytes]:
        """Digests of the rows that are left; LedgerError unless they are the ones the ledger knows."""
        self._require_open()
        gone = {row for name in self.state.removed for row in self._rows.get(name, [])}
        digests = {row: each for row, each in _row_digests(data, self._names).items() if row not in gone}
        if _keyed(self._salt, _of_rows(digests)) != self.state.data:
            last = self.state.applications[-1].record if self.state.applications else 0
            raise LedgerError(
                f"record {last} belongs to another data set: rows that were not removed have changed, are missing or were added"
            )
        return digests

    def _record(self, ids: tuple[str, ...], result: Result, spent: float, digests: dict[int, bytes], data: Data) -> None:
        missing = [name for name in result.extra if name not in data.extra]
        if missing:
            raise ValueError(
                f"this method carries {missing} from request to request; put the first in data.extra (see prepare)"
            )
        parts = {"weights": {"variables": result.variables, "status": result.status}}
        if result.stats or result.extra:
            parts["carried"] = {"stats": dict(result.stats), "extra": dict(result.extra)}
        folder = self.directory / "checkpoints" / _folder(self._last.number + 1)
        journal.make_directory(folder)
        with jax.enable_x64(True):
            for name, part in parts.items():
                checkpoint.save_variables(folder / name, part)
        journal.sync_tree(folder)
        self._append(
            "applied",
            ids=list(ids),
            spent=spent,
            data=_keyed(self._salt, _of_rows(digests)),
            digests={name: journal.digest(part, self._salt) for name, part in parts.items()},
            stats={name: [str(np.asarray(x).dtype), list(np.shape(x))] for name, x in result.stats.items()},
            carried=sorted(result.extra),
        )

    def _read_carried(self, application: Application, data: Data) -> dict[str, Any]:
        if "carried" not in application.digests:
            return {"stats": {}, "extra": {}}
        missing = [name for name in application.carried if name not in data.extra]
        if missing:
            raise ValueError(f"the ledger carries {missing} on: pass them, or values of the same form, in data.extra")
        stats = {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (dtype, shape) in application.stats.items()}
        extra = {name: data.extra[name] for name in application.carried}
        return self._read(application, "carried", {"stats": stats, "extra": extra})

    def _read_weights(self, variables: Variables) -> tuple[Variables, jax.Array]:
        like = {"variables": variables, "status": jax.ShapeDtypeStruct((), jnp.int32)}
        found = self._read(self._newest(), "weights", like)
        return found["variables"], found["status"]

    def _read(self, application: Application, part: str, like: PyTree) -> Any:
        with jax.enable_x64(True):
            found = checkpoint.load_variables(self.directory / "checkpoints" / _folder(application.record) / part, like)
        if journal.digest(found, self._salt) != application.digests[part]:
            raise LedgerError(f"the checkpoint of record {application.record} ({part}) was tampered with")
        return found


def _keyed(salt: bytes, text: str) -> str:
    return hmac.new(salt, text.encode(), "sha256").hexdigest()


def _folder(record: int) -> str:
    return f"{record:06d}"


def _stored_salt(directory: Path) -> bytes:
    path = directory / "salt"
    if not path.exists():
        raise LedgerError(f"{path} is not there: pass the salt that the ledger was created with")
    return bytes.fromhex(path.read_text())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        os.unlink(path)
    journal.sync_directory(path.parent)


def _request(data: Data, rows: list[int], capacity: int | None) -> ForgetRequest:
    if not rows:
        return requests.empty_request(capacity or 1)
    stacked = requests.from_indices(data, [rows], capacity=capacity)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[0]), stacked)


def _without(data: Data, rows: list[int]) -> Data:
    present = np.array(data.present)
    present[rows] = 0
    return data._replace(present=jnp.asarray(present))


def _spent(result: Result, spend: str | Callable[[Result], float] | None) -> float:
    if spend is None:
        return 0.0
    if isinstance(spend, str) and spend not in result.stats:
        raise ValueError(f"spend must name a statistic of the method ({', '.join(sorted(result.stats))}), got {spend!r}")
    spent = float(result.stats[spend] if isinstance(spend, str) else spend(result))
    if not 0 <= spent < math.inf:
        raise ValueError(f"{spent} cannot be spent from a budget: spend={spend!r} must give a finite number of at least 0")
    return spent


def _plain(certificate: Any) -> dict[str, Any]:
    """A certificate as JSON can hold it; numbers that are not finite become words."""

    def number(value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        return float(value) if math.isfinite(float(value)) else str(float(value))

    fields = {name: getattr(certificate, name) for name in ("mechanism", "epsilon", "delta", "sensitivity", "noise_scale")}
    failed = [each.name for each in certificate.assumptions if not each.holds]
    return {**{name: number(x) for name, x in fields.items()}, "valid": bool(certificate.valid), "failed": failed}


def _torn(path: Path, found: Journal) -> str:
    return f"record {len(found.records)} of {path} is torn: a crash left {len(found.torn)} bytes of it"


def table(directory: str | Path) -> str:
    """The journal of a ledger as a table, read without a lock.

    Raises:
        FileNotFoundError, LedgerError: no journal, or one that does not hold together.
    """
    path = Path(directory) / "journal.jsonl"
    found = journal.read(path)
    state = replay(found.records)
    rows = [("record", "time", "kind", "what", "hash")]
    rows += [(str(each.number), each.time, each.kind, _summary(each), each.hash[:12]) for each in found.records]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"{len(state.pending)} ids pending, {len(state.removed)} removed, budget spent {state.spent:.6g}")
    if state.purged != state.purging:
        lines.append("a purge was interrupted; it is finished when the ledger is opened")
    if found.torn:
        lines.append(_torn(path, found))
    return "\n".join(lines)


def _summary(record: Record) -> str:
    body = record.body
    if record.kind == "created":
        return f"model {body['model'][:8]}, data {body['data'][:8]}"
    if record.kind == "submitted":
        return f"{len(body['ids'])} ids"
    if record.kind == "applied":
        return f"{len(body['ids'])} ids, spent {body['spent']:.6g}"
    if record.kind == "repaired":
        return f"cut off {body['bytes']} bytes"
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
    """The command line: `show DIRECTORY`."""
    parser = argparse.ArgumentParser(prog="python -m jaxunlearn.ledger", description="Look at a ledger of deletion requests.")
    show = parser.add_subparsers(required=True).add_parser("show", help="print the journal as a table")
    show.add_argument("directory", type=Path)
    try:
        print(table(parser.parse_args(arguments).directory))
    except (LedgerError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
