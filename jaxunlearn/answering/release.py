"""From what is pending in a ledger to what is out: one merged removal, a certificate where there is one, one release."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import requests, tree
from jaxunlearn.answering.setup import Setup
from jaxunlearn.certificates.manifest import digest_of
from jaxunlearn.certificates.publish import publish
from jaxunlearn.service import archive, checkpoint, journal
from jaxunlearn.service.errors import BudgetError
from jaxunlearn.service.intents import name_of
from jaxunlearn.service.ledger import Ledger
from jaxunlearn.types import Data, ForgetRequest, Variables

NOTHING = {"guarantee": "none", "release": 0, "weights": "", "manifest": "", "certificate": ""}


def current(book: Ledger, setup: Setup) -> tuple[Variables, Data]:
    """The weights as they are, and the data as the next removal meets them, prepared."""
    given = setup.data
    newest = book.state.applications[-1] if book.state.applications else None
    carried = [] if newest is None else sorted(newest.carried)
    purged = newest is not None and newest.record == book.state.purging
    if setup.prepare is None:
        if purged and carried:
            raise ValueError(
                f"this method carries {carried} from window to window, and a purge deleted them: give the setup "
                "prepare=, which makes them anew, or purge=False"
            )
        return book.load(setup.variables, given)
    form = jax.eval_shape(setup.prepare, setup.variables, given, setup.key).extra
    variables, data = book.load(setup.variables, given._replace(extra={**form, **given.extra}))
    if carried and not purged:
        return variables, data
    kept = {name: value for name, value in data.extra.items() if name in given.extra}
    return variables, setup.prepare(variables, data._replace(extra=kept), setup.key)


def _with_carried(book: Ledger, setup: Setup) -> Data:
    """The data with the form of what the newest application carries on, and nothing that was not made."""
    if setup.prepare is None:
        return setup.data
    form = jax.eval_shape(setup.prepare, setup.variables, setup.data, setup.key).extra
    carried = {name: form[name] for name in book.state.applications[-1].carried if name in form}
    return setup.data._replace(extra={**setup.data.extra, **carried})


def request_of(data: Data, rows: list[int], capacity: int | None) -> ForgetRequest:
    """One request, of the size that a window's has."""
    stacked = requests.from_indices(data, [rows], capacity=fitting(len(rows), capacity))
    return ForgetRequest(*(jnp.asarray(np.asarray(x)[0]) for x in stacked[:2]))


def fitting(rows: int, capacity: int | None) -> int | None:
    """The capacity of a setup, or None for a single request that is larger."""
    return capacity if capacity is not None and rows <= capacity else None


def remove(book: Ledger, setup: Setup) -> None:
    """Remove all that is pending in one merged request. Nothing happens if nothing is."""
    if not book.state.pending:
        return
    variables, data = current(book, setup)
    capacity = fitting(len(book.rows_of(book.state.pending)), setup.capacity)
    book.apply(setup.unlearn, variables, data, setup.key, capacity=capacity)


def release(book: Ledger, setup: Setup, window: int, models: Path, signing_key: str | Path) -> dict[str, Any]:
    """Certify and publish the newest application where that is possible; again, the same.

    Args:
        book: with nothing pending and at least one application.
        setup: of the user.
        window: its number.
        models: folder of models that go out without a certificate.
        signing_key: of manifests.

    Returns:
        Outcome (`forgotten` or `withheld`), reason, and what a receipt says of the release.
    """
    if setup.certify is None:
        return _plain(book, setup, window, models)
    newest = book.state.applications[-1]
    if not any(each["application"] == newest.record for each in book.state.releases):
        gone = len(book.rows_of(newest.ids))
        capacity = fitting(gone, setup.capacity)
        certificate = book.certify(setup.certify, setup.variables, _with_carried(book, setup), capacity=capacity)
        if not certificate.valid:
            failed = [each.name for each in certificate.assumptions if not each.holds]
            return _withheld(f"the certificate is void: {', '.join(failed) or 'it names no assumption'}")
        try:
            book.publish(publish, certificate, setup.variables, signing_key=signing_key)
        except BudgetError as error:
            return _withheld(str(error))
    found = next(each for each in reversed(book.state.releases) if each["application"] == newest.record)
    if why := book.state.retracted.get(found["number"]):
        return _withheld(f"release {found['number']} was retracted: {why}")
    if setup.purge:
        book.purge()
    if setup.retract:
        reasons = dict.fromkeys(book.state.superseded, f"superseded in window {window}")
        for number, reason in (reasons or dict(book.state.retractions[-1:])).items():  # one again finishes them all
            book.retract(number, reason)
    manifest = book.directory / "releases" / "public" / name_of(found["number"], "json")
    return {
        "outcome": "forgotten",
        "reason": "",
        "guarantee": "certified",
        "release": found["number"],
        "weights": found["sha256"],
        "manifest": digest_of(manifest),
        "certificate": hashlib.sha256(journal.canonical(book.state.certificate)).hexdigest(),
    }


def _withheld(reason: str) -> dict[str, Any]:
    return {"outcome": "withheld", "reason": reason, **NOTHING}


def _plain(book: Ledger, setup: Setup, window: int, models: Path) -> dict[str, Any]:
    """The weights as they are, without noise and without a promise."""
    variables, _ = book.load(setup.variables, _with_carried(book, setup))
    journal.make_directory(models)
    path = models / f"window-{window:06d}"
    if not path.exists():
        with jax.enable_x64(True):
            checkpoint.save_variables(path, variables)
        journal.sync_tree(path)
    if setup.retract:
        for older in sorted(models.iterdir()):
            if older != path:
                archive.remove(older)
    return {**NOTHING, "outcome": "forgotten", "reason": "", "weights": tree.content_digest(variables)}
