"""What the records of a ledger's journal amount to: its state, rebuilt record by record."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.journal import Record


class Application(NamedTuple):
    """One batch of requests that was removed from the model."""

    record: int  # in the journal; its checkpoint has this name
    ids: tuple[str, ...]
    spent: float  # of the budget, by this application
    digests: dict[str, str]  # of the parts of its checkpoint
    stats: dict[str, list]  # dtype and shape of each statistic
    carried: dict[str, str]  # names in Result.extra, and how each was made; empty words where it has no stamp
    releases: int  # that were promised before it, from models trained on its rows


class Note(NamedTuple):
    """What a caller wanted to remember, see `Ledger.submit` and `Ledger.note`."""

    record: int  # in the journal
    time: str  # of the record, UTC
    hash: str  # of the record
    value: Any  # JSON


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
    retractions: tuple[tuple[int, str], ...] = ()  # numbers of releases, and why
    privacy_budget: tuple[float, float] | None = None  # the epsilon and delta that all releases may cost together
    purging: int = -1  # application whose release allowed the last purge
    purged: int = -1  # the same, once its files are gone
    notes: tuple[Note, ...] = ()  # oldest first

    @property
    def pending(self) -> tuple[str, ...]:
        """Hashed ids still to be removed, oldest first."""
        return tuple(name for submission in self.submissions for name in submission)

    @property
    def retracted(self) -> dict[int, str]:
        """Numbers of the releases that were retracted, and why."""
        return dict(self.retractions)

    @property
    def superseded(self) -> tuple[int, ...]:
        """Releases from before the newest application that were not retracted: models trained on rows removed since."""
        if not self.applications:
            return ()
        newest = self.applications[-1]
        current = {release["number"] for release in self.releases if release["application"] == newest.record}
        return tuple(sorted(set(range(1, newest.releases + 1)) - current - self.retracted.keys()))

    @property
    def spent(self) -> float:
        """Budget that all applications took together, see `spend` of `Ledger.apply`."""
        return math.fsum(application.spent for application in self.applications)

    @property
    def spent_before(self) -> float:
        """Budget that the applications before the newest one took."""
        return math.fsum(application.spent for application in self.applications[:-1])


def replay(records: Iterable[Record]) -> State:
    """Rebuild a ledger's state from its records. Pure.

    Args:
        records: of one journal, from the first one on.

    Returns:
        `State`.

    Raises:
        LedgerError: no record, or one that cannot follow those before it; it is named.

    Example:
        >>> from jaxunlearn.service import journal
        >>> sealed = {"model": "a", "original": "b", "data": "b", "salt": "c"}
        >>> jaxunlearn.ledger.replay([journal.following(None, "created", sealed)]).pending
        ()
    """
    state = None
    for record in records:
        name = f"record {record.number} ({record.kind})"
        if (state is None) != (record.kind == "created"):
            raise LedgerError(f"{name}: a ledger starts with one record of its creation, and has no other")
        try:
            state = State(**record.body) if state is None else follow(state, record)
        except (KeyError, TypeError) as error:
            raise LedgerError(f"{name} lacks a field or has one too many: {error}") from error
        except LedgerError as error:
            raise LedgerError(f"{name}: {error}") from error
    if state is None:
        raise LedgerError("the journal is empty")
    return state


def follow(state: State, record: Record) -> State:
    """The state after one more record.

    Raises:
        LedgerError: the record cannot follow.
    """
    body = dict(record.body)
    newest = state.applications[-1].record if state.applications else -1
    if record.kind == "submitted":
        ids = tuple(body["ids"])
        if set(ids) & (state.removed | set(state.pending)) or len(set(ids)) < len(ids):
            raise LedgerError("it submits an id again")
        state = state._replace(submissions=(*state.submissions, ids)) if ids else state
        return _with_note(state, record) if "note" in body else state
    if record.kind == "noted":
        return _with_note(state, record)
    if record.kind == "applied":
        data, ids = body.pop("data"), tuple(body.pop("ids"))
        if not set(ids) <= set(state.pending) or not ids:
            raise LedgerError("it removes ids that are not pending")
        application = Application(record.number, ids, **body)
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
    if record.kind == "retracted":
        if body["number"] in state.retracted:
            raise LedgerError("it retracts a release again")
        return state._replace(retractions=(*state.retractions, (body["number"], body["reason"])))
    if record.kind == "budgeted":
        budget, known = (body["epsilon"], body["delta"]), state.privacy_budget
        if known and (budget[0] > known[0] or budget[1] > known[1]):
            raise LedgerError("it raises the privacy budget, which may only shrink")
        return state._replace(privacy_budget=budget)
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


def _with_note(state: State, record: Record) -> State:
    return state._replace(notes=(*state.notes, Note(record.number, record.time, record.hash, record.body["note"])))


def plain_certificate(certificate: Any) -> dict[str, Any]:
    """A certificate as JSON can hold it; numbers that are not finite become words."""

    def number(value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        return float(value) if math.isfinite(float(value)) else str(float(value))

    fields = {name: getattr(certificate, name) for name in ("mechanism", "epsilon", "delta", "sensitivity", "noise_scale")}
    failed = [each.name for each in certificate.assumptions if not each.holds]
    return {**{name: number(x) for name, x in fields.items()}, "valid": bool(certificate.valid), "failed": failed}
