"""A durable record of deletion requests, from submission to the release of a model without the rows.

    submit -> (plan) -> apply -> certify -> publish -> purge

A ledger is a directory for one trained model and one data set. Its journal (`jaxunlearn.service.journal`) says what was asked
for and what was done; every other file belongs to a record of the journal. A step counts once its record is on disk, and the
record is written last. Killed at any point, a ledger that is opened again has lost no request, applied none twice, and knows
its budget to the last digit; the caller repeats the steps that it did not see return.

    journal.jsonl   the audit trail: keyed hashes and numbers of certificates, never an id, a row or a weight
    set-aside/      what a crash left of records that never counted
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
journal stays. Without its salt it confirms nothing about anybody. Releases stay as well, until they are retracted: those from
before a removal are models trained on the removed rows (`state.superseded`, `Ledger.retract`).

**What a ledger does not do.** It deletes its own files, once. It does not reach the caller's data set, the original weights,
the secret of an objective perturbation, backups, snapshots and copy-on-write blocks of a file system, swap, or cells of a
solid-state disk that its controller has moved; encrypt the volume and drop the key where that matters. Somebody who may write
in its directory can replace the whole journal, unless `key` seals it; with the key, they can still take its end or all of it
back to an earlier day, unless `head` was noted elsewhere. One process writes at a time, with as many threads as it likes, on a
local POSIX file system.

`python -m jaxunlearn.service.show DIRECTORY` prints the journal as a table, `python -m jaxunlearn.service.repair DIRECTORY`
mends one that does not open.
"""

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxunlearn import checks, requests, status
from jaxunlearn.service import archive, intents
from jaxunlearn.service.errors import BudgetError as BudgetError
from jaxunlearn.service.errors import LedgerError as LedgerError
from jaxunlearn.service.errors import ReleaseError
from jaxunlearn.service.fingerprints import data_fingerprint as data_fingerprint
from jaxunlearn.service.fingerprints import digest_of_rows, keyed, row_digests
from jaxunlearn.service.fingerprints import fingerprint as fingerprint
from jaxunlearn.service.records import Application, plain_certificate
from jaxunlearn.service.records import State as State
from jaxunlearn.service.records import replay as replay
from jaxunlearn.service.register import Mode, Register, in_turn
from jaxunlearn.service.show import table as table
from jaxunlearn.status import Status
from jaxunlearn.types import Data, ForgetRequest, Result, UnlearnFn, Variables


class Ledger(Register):
    """The deletion requests of one model, open for writing; make it with `Ledger.create` or `Ledger.open`, and close it.

    Example:
        >>> import tempfile
        >>> ledger = jaxunlearn.ledger
        >>> people = [f"customer-{row // 2}" for row in range(60)]
        >>> rows = ledger.data_fingerprint(data, people)
        >>> about = {"model_fingerprint": ledger.fingerprint(variables), "data_fingerprint": rows}
        >>> unlearn = jaxunlearn.output_perturbation(model, sigma=0.1)
        >>> with ledger.Ledger.create(tempfile.mkdtemp(), people, **about) as book:
        ...     submitted = book.submit(["customer-17"])
        ...     result = book.apply(unlearn, variables, data, key)
        ...     len(book.state.pending), len(book.state.removed)
        (0, 1)

    With a convex problem, `certify`, `publish` and `purge` follow, see `jaxunlearn.certificates`.
    """

    @in_turn
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
            data: the data set with all rows that the ledger has not removed; `present` is cleared for those it has. What the
                method reads in `extra` is prepared at the weights of `load`; what it carries on comes from the ledger.
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
            TypeError: `unlearn` is an `Unlearner`.
            UnlearningError: the method failed, or read what was prepared at other weights (STALE). Batches before that one are
                applied and recorded.
        """
        checks.require_unlearn_fn(unlearn, "ledger.apply")
        checks.check_key(key)
        plan = self.plan(mode)
        self._clean()
        digests = self._check(variables, data)
        if any(name not in self._rows for name in self.state.pending):
            raise LedgerError("some pending ids have no row any more: pass record_ids of the whole data set to Ledger.open")
        rows = [sorted(row for name in ids for row in self._rows[name] if row in digests) for ids in plan]
        if sum(map(len, rows)) >= len(digests):
            raise ValueError(f"the pending requests would remove all {len(digests)} present rows; nothing was applied")
        if plan:
            variables, data = self._load(variables, data)
            if check is not None:
                check(data, _request(data, sorted(row for gone in rows for row in gone), None))
        result = None
        for ids, gone in zip(plan, rows, strict=True):
            request = _request(data, gone, capacity)
            batch_key = jax.random.fold_in(key, len(self.state.applications))
            result = status.check(unlearn(variables, data, request, batch_key), allow=[Status.EMPTY_REQUEST])
            checks.check_same(variables, result.variables)
            if missing := [name for name in result.extra if name not in data.extra]:
                raise ValueError(
                    f"this method carries {missing} from request to request; put the first in data.extra (see prepare)"
                )
            for row in gone:
                del digests[row]
            spent = _spent(result, spend)
            left = keyed(self._salt, digest_of_rows(digests))
            with self._writing:  # the checkpoint has the number of the record that follows
                self._make_ready()
                saved = archive.save(self.directory / "checkpoints", self._last.number + 1, result, self._salt)
                promised = intents.count(self._releases)
                self._append("applied", ids=list(ids), spent=spent, data=left, releases=promised, **saved)
            self._clean()
            variables = result.variables
            data = _without(data, gone)._replace(extra={**data.extra, **result.extra})
        return self.result(variables, data) if result is None else result

    @in_turn
    def load(self, variables: Variables, data: Data) -> tuple[Variables, Data]:
        """The current un-noised weights, and the data as the next request meets it: `present` cleared, `extra` carried on.

        Args:
            variables: tree, shapes and dtypes of the model; the model itself before the first application.
            data: as for `apply`.

        Returns:
            Variables and data, for `jaxunlearn.prepare` and the next `apply`.

        Raises:
            LedgerError: another model or data set than the ledger's, or a checkpoint that was tampered with.
            ValueError: `data.extra` lacks what the method carries on, or holds values that were made in another way.
        """
        self._check(variables, data)
        return self._load(variables, data)

    def _load(self, variables: Variables, data: Data) -> tuple[Variables, Data]:
        data = _without(data, self.rows_of(self.state.removed))
        if not self.state.applications:
            return variables, data
        newest = self.state.applications[-1]
        extra = self._carried(newest, data)[1] if newest.record != self.state.purging else {}
        return self._weights(variables)[0], data._replace(extra={**data.extra, **extra})

    @in_turn
    def result(self, variables: Variables, data: Data) -> Result:
        """The newest result as it was applied.

        Args:
            variables, data: as for `load`.

        Raises:
            LedgerError: nothing was applied yet, its statistics were purged, or a checkpoint was tampered with.
        """
        newest = self._newest()
        weights, code = self._weights(variables)
        if newest.record == self.state.purging:
            raise LedgerError(f"the statistics of application {newest.record} were purged; its certificate is in the journal")
        return Result(weights, code, *self._carried(newest, data))

    @in_turn
    def certify(
        self, certify: Callable[..., Any], variables: Variables, data: Data, *, capacity: int | None = None, **options: Any
    ) -> Any:
        """Certify the newest application and record the certificate, void ones included.

        Args:
            certify: `(result, data, request, **options) -> Certificate`, see `jaxunlearn.certificates.certify`; `request` names
                those of the newest application's rows that are still in the data, which lie removed there.
            variables, data, capacity: as for `apply`.
            options: for `certify`, e.g. `problem=problem, epsilon=1.0, delta=1e-5`.

        Returns:
            The certificate.

        Raises:
            LedgerError: nothing was applied yet, or its statistics were purged.
        """
        self._check(variables, data)
        result = self.result(variables, data)
        left = _without(data, self.rows_of(self.state.removed))._replace(extra={**data.extra, **result.extra})
        gone = sorted(self.rows_of(self._newest().ids))
        request = _request(data._replace(present=jnp.ones(len(data.present))), gone, capacity)
        certificate = certify(result, left, request, **options)
        found = plain_certificate(certificate)
        if self.state.certificate != found:
            self._append("certified", application=self._newest().record, certificate=found)
        return certificate

    @in_turn
    def publish(
        self,
        publish: Callable[..., Any],
        certificate: Any,
        variables: Variables,
        *,
        key: PRNGKeyArray | None = None,
        signing_key: str | Path | None = None,
    ) -> Any:
        """Release the newest weights with the certificate's noise; asked again, the same bits.

        Args:
            publish: `(result, certificate, directory, *, key, seal_key, budget) -> Release`, see
                `jaxunlearn.certificates.publish`.
            certificate: what `certify` returned last.
            variables: as for `load`.
            key, signing_key: see `jaxunlearn.certificates.publish`.

        Returns:
            The release.

        Raises:
            LedgerError: the certificate is not that of the newest application, or the release is not the one recorded.
            ReleaseError: what is in the folder of releases is not what was recorded, or these weights were retracted.
            BudgetError: the release would cost more than is left of the declared budget. Nothing was released.
        """
        newest = self._newest()
        if self.state.certificate != plain_certificate(certificate):
            raise LedgerError(f"this is not the recorded certificate of application {newest.record}: certify it first")
        weights, code = self._weights(variables)
        if self.state.retracted:
            intents.retract_all(self._releases, self.state.retracted, self._key)  # if a crash came in between
        intents.require_recorded(self._releases, self.state.releases, self._key)
        options: dict[str, Any] = {"key": key, "seal_key": self._key, "budget": self.state.privacy_budget}
        if signing_key is not None:
            options["signing_key"] = signing_key
        release = publish(Result(weights, code), certificate, self._releases, **options)
        body = {name: getattr(release, name) for name in ("number", "epsilon", "delta", "noise_key", "sha256")}
        known = [each for each in self.state.releases if each["number"] == release.number]
        if any(each[name] != value for each in known for name, value in body.items()):
            raise LedgerError(f"release {release.number} is not the one that the journal recorded")
        if not any(each["application"] == newest.record for each in known):
            totals = {name: getattr(release, name) for name in ("total_epsilon", "total_delta")}
            self._append("released", application=newest.record, **body, **totals)
        return release

    @in_turn
    def declare_budget(self, epsilon: float, delta: float) -> None:
        """Limit the privacy budget of all releases together, for good: `publish` refuses what would exceed it.

        It may only shrink. Releases that were made already count, retracted and interrupted ones included. Whom the sum
        protects: `jaxunlearn.certificates.publish`. It is not what `spend` of `apply` adds up.

        Args:
            epsilon: at least 0, of all releases together.
            delta: in [0, 1].

        Raises:
            ValueError: a value out of range.
            LedgerError: more than was declared before.
        """
        epsilon, delta = float(epsilon), float(delta)
        if not (0 <= epsilon < math.inf and 0 <= delta <= 1):
            raise ValueError(f"expected a finite epsilon of at least 0 and a delta in [0, 1], got ({epsilon}, {delta})")
        if self.state.privacy_budget != (epsilon, delta):
            self._append("budgeted", epsilon=epsilon, delta=delta)

    @in_turn
    def retract(self, release: int, reason: str) -> None:
        """Take a release back: its file is deleted and never written again, and later releases do not need it.

        Releases that were made before somebody was removed are models trained on them (`state.superseded`); `purge` leaves them
        in `public/`, since only the caller knows who uses them. What they cost stays counted.

        Args:
            release: its number.
            reason: for the journal; no names in it.

        Raises:
            ReleaseError: no such release, or the folder of releases was tampered with.
            ValueError: no reason.
        """
        intents.require_reason(reason)
        if release not in {each.number for each in intents.read(self._releases, self._key)}:
            raise ReleaseError(f"{self._releases} has no release {release} to retract")
        if release not in self.state.retracted:
            self._append("retracted", number=int(release), reason=reason)
        intents.retract_all(self._releases, self.state.retracted, self._key)

    @in_turn
    def purge(self, *, exact: bool = False) -> None:
        """Delete all un-noised weights, factorisations and statistics that were computed from removed rows.

        The newest weights and the journal stay. What a method carries on has to be prepared anew for the next request. Earlier
        releases stay, too, and were trained on the removed rows: `retract` each of `state.superseded`.

        Args:
            exact: you say that the newest application was that of an exact method, whose weights need no release.

        Raises:
            LedgerError: the newest application was not published yet, and is not exact.
        """
        newest = self._newest()
        if not exact and not any(release["application"] == newest.record for release in self.state.releases):
            raise LedgerError(f"application {newest.record} was not published: publish it, or say exact=True if it is exact")
        if self.state.purging != newest.record:
            self._append("purging", application=newest.record)
        self._clean()

    def _clean(self) -> None:
        super()._clean()
        for number in self.state.retracted:
            intents.remove_file(self._releases, number)

    @property
    def _releases(self) -> Path:
        return self.directory / "releases"

    def _newest(self) -> Application:
        if not self.state.applications:
            raise LedgerError("nothing was applied yet: submit requests and apply them first")
        return self.state.applications[-1]

    def _check(self, variables: Variables, data: Data) -> dict[int, bytes]:
        """Digests of the rows that are left; LedgerError unless model and rows are the ones that the ledger knows."""
        gone = self.rows_of(self.state.removed)
        digests = {row: each for row, each in row_digests(data, self._names).items() if row not in gone}
        if keyed(self._salt, digest_of_rows(digests)) != self.state.data:
            last = self.state.applications[-1].record if self.state.applications else 0
            raise LedgerError(
                f"record {last} belongs to another data set: rows that were not removed have changed, are missing or were added"
            )
        if not self.state.applications and keyed(self._salt, fingerprint(variables)) != self.state.model:
            raise LedgerError("record 0 belongs to another model than these variables: pass the trained ones")
        return digests

    def _weights(self, like: Variables) -> tuple[Variables, jax.Array]:
        return archive.load_weights(self.directory / "checkpoints", self._newest(), like, self._salt)

    def _carried(self, application: Application, data: Data) -> tuple[dict, dict]:
        return archive.load_carried(self.directory / "checkpoints", application, data, self._salt)


def _request(data: Data, rows: list[int], capacity: int | None) -> ForgetRequest:
    if not rows:
        return requests.empty_request(capacity or 1)
    stacked = requests.from_indices(data, [rows], capacity=capacity)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[0]), stacked)


def _without(data: Data, rows: Collection[int]) -> Data:
    present = np.array(data.present)
    present[list(rows)] = 0
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
