"""Windows: every line is answered once, whatever is in it and whatever happens in between."""

import errno
import os
import sqlite3
import sys
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.answering import InboxBusy, InboxError, ReceiptError, Service, serve, verify
from jaxunlearn.answering.inbox import TABLE
from jaxunlearn.service import journal
from jaxunlearn.service.errors import LedgerError
from tests.answering.crashes import setup
from tests.answering.toys import ask, ids, keys
from tests.crashes import certify, retrained, unlearn
from tests.service.books import everything_on_disk


@pytest.fixture
def place(tmp_path):
    keys(tmp_path)
    (tmp_path / "inbox.jsonl").touch()
    return tmp_path


def opened(place, *, inbox="inbox.jsonl", restart=False, **changes):
    options = {"inbox": place / inbox, "signing_key": place / "release.pem", "restart": restart}
    return Service.open(place / "service", setup()._replace(**changes), **options)


def answer_all(place, *, most=100, **changes):
    with opened(place, **changes) as service:
        return list(iter(lambda: service.answer(most=most), None))


def receipts(place):
    return [verify(path, place / "release.pub") for path in sorted((place / "service" / "receipts").glob("*.json"))]


def outcomes(place):
    return [(each.request, each.outcome) for each in receipts(place)]


def kinds(place):
    return [record.kind for record in journal.read(place / "service" / "ledger" / "journal.jsonl").records]


def weights(place):
    with opened(place) as service:
        return np.asarray(service.book.load(*service.setup[:2])[0].params["kernel"])


def test_every_line_is_answered_once_and_the_weights_are_those_of_retraining(place):
    ask(place / "inbox.jsonl", ids("r-1", "ada", "bob"), "nonsense\n", ids("r-3", "bob", "cyd"), ids("r-1", "bob", "ada"))
    ask(place / "inbox.jsonl", ids("r-1", "dan"), ids("r-6", "nobody"), {"request": "r-7", "indices": [2]}, '{"request": "r-8"')
    (found,) = answer_all(place)
    assert (found.entries, found.outcome, found.requests, found.records, found.release) == ((1, 7), "forgotten", 2, 3, 1)
    expected = ["forgotten", "refused", "forgotten", "repeated", "refused", "refused", "refused"]
    assert [each.outcome for each in receipts(place)] == expected
    assert [each.place for each in receipts(place)] == [f"line {number}" for number in range(1, 8)]
    first, _, third, again, other, *_ = receipts(place)
    verify(place / "service" / "receipts" / "receipt-00000001.json", place / "release.pub", record_ids=["bob", "ada"])
    assert (first.release, first.guarantee, first.journal) == (1, "certified", third.journal)
    assert first.salt != third.salt
    assert not set(first.records) & set(third.records)  # Bob is in both, and the two cannot be joined
    assert "answered as entry 1 in window 1" in again.reason
    assert "asked for other rows" in other.reason
    np.testing.assert_allclose(weights(place), retrained(0, 1, 2, 3), rtol=1e-12)
    ask(place / "inbox.jsonl", ', "ids": ["dan"]}\n', ids("r-1", "ada", "bob"), ids("r-9", "ada"))
    (found,) = answer_all(place)
    assert (found.window, found.entries) == (2, (8, 10))
    assert outcomes(place)[7:] == [("r-8", "forgotten"), ("r-1", "repeated"), ("r-9", "forgotten")]
    assert [each.release for each in receipts(place)[7:]] == [2, 0, 2]  # Ada is not in this release either
    np.testing.assert_allclose(weights(place), retrained(0, 1, 2, 3, 4), rtol=1e-12)
    assert answer_all(place) == []
    assert kinds(place).count("submitted") == kinds(place).count("applied") == kinds(place).count("released") == 2
    said = everything_on_disk(place / "service")
    assert not [name for name in (b'ada"', b"bob", b"cyd", b"dan") if name in said]
    assert not list((place / "service" / "open").iterdir())


def test_released_weights_belong_to_their_receipts(place):
    ask(place / "inbox.jsonl", ids("r-1", "ada"))
    answer_all(place)
    public = place / "service" / "ledger" / "releases" / "public"
    path = place / "service" / "receipts" / "receipt-00000001.json"
    verify(path, place / "release.pub", weights=public / "release-000001.npz")
    assert ju.certificates.verify(public / "release-000001.npz", place / "release.pub").valid
    assert "r-1" in (place / "service" / "reports" / "window-000001.html").read_text()


def test_a_window_ends_with_its_rows_and_a_larger_request_has_one_of_its_own(place):
    ask(place / "inbox.jsonl", ids("r-1", "bob"), ids("r-2", "bob"), ids("r-3", "ada"), ids("r-4", "cyd"), ids("r-5", "dan"))
    found = answer_all(place, capacity=1)
    assert [each.entries for each in found] == [(1, 2), (3, 3), (4, 4), (5, 5)]
    assert [outcome for _, outcome in outcomes(place)] == ["forgotten"] * 5


def test_what_would_leave_too_little_is_refused_and_the_rest_is_done(place):
    def check(data, request):
        gone = np.asarray(request.indices)[np.asarray(request.weights) > 0]
        if 4 in gone:
            raise ValueError("row 4 is the last of its class")

    ask(place / "inbox.jsonl", ids("r-1", "ada"), ids("r-2", "dan"), ids("r-3", "bob"))
    ask(place / "inbox.jsonl", {"request": "r-4", "indices": [0, 1, 2, 3, 5]})
    answer_all(place, check=check)
    assert outcomes(place) == [("r-1", "forgotten"), ("r-2", "refused"), ("r-3", "forgotten"), ("r-4", "forgotten")]
    assert receipts(place)[1].reason == "not removed: row 4 is the last of its class"
    ask(place / "inbox.jsonl", ids("r-2", "dan"))
    answer_all(place)
    assert "no row would be left" in receipts(place)[4].reason
    np.testing.assert_allclose(weights(place), retrained(0, 1, 2, 3, 5), rtol=1e-12)


def test_what_may_not_be_released_is_withheld_and_told(place):
    ask(place / "inbox.jsonl", ids("r-1", "ada"))
    answer_all(place, certify=partial(certify, holds=False))
    assert receipts(place)[0].outcome == "withheld"
    assert receipts(place)[0].reason == "the certificate is void: row norms"
    ask(place / "inbox.jsonl", ids("r-2", "bob"))
    answer_all(place, budget=(0.5, 1e-5))
    assert "the budget is (0.5, 1e-05)" in receipts(place)[1].reason
    ask(place / "inbox.jsonl", ids("r-3", "ada"))
    answer_all(place, certify=partial(certify, epsilon=0.25))
    assert [(x.outcome, x.release) for x in receipts(place)] == [("withheld", 0), ("withheld", 0), ("forgotten", 1)]
    with pytest.raises(LedgerError, match="raises the privacy budget"):
        opened(place, budget=(2.0, 1e-5))


def test_a_method_without_a_certificate_publishes_plain_weights(place):
    ask(place / "inbox.jsonl", ids("r-1", "ada"))
    answer_all(place, certify=None)
    ask(place / "inbox.jsonl", ids("r-2", "bob"))
    answer_all(place, certify=None)
    (path,) = (place / "service" / "models").iterdir()  # the older one was retracted
    with jax.enable_x64(True):
        found = ju.checkpoint.load_variables(path, setup().variables)
    last = receipts(place)[-1]
    assert (last.outcome, last.guarantee, last.manifest) == ("forgotten", "none", "")
    assert last.weights == ju.ledger.fingerprint(found)
    np.testing.assert_allclose(np.asarray(found.params["kernel"]), retrained(0, 1, 2), rtol=1e-12)


def test_a_method_that_fails_leaves_the_window_open_for_a_better_one(place):
    def broken(variables, data, request, key):
        return unlearn(variables, data, request, key)._replace(status=jnp.asarray(np.int32(ju.Status.NONFINITE)))

    ask(place / "inbox.jsonl", ids("r-1", "ada"), ids("r-2", "bob"))
    with opened(place, unlearn=broken) as service:
        for _ in range(2):
            with pytest.raises(ju.UnlearningError):
                service.answer()
    (place / "inbox.jsonl").unlink()  # what was taken is in the plan
    ask(place / "inbox.jsonl", ids("r-3", "cyd"))
    with opened(place) as service:
        assert service.under_way
        assert service.answer().entries == (1, 2)
        with pytest.raises(InboxError, match="rotated"):
            service.answer()
    assert [each.entries for each in answer_all(place, restart=True)] == [(3, 3)]
    assert outcomes(place) == [("r-1", "forgotten"), ("r-2", "forgotten"), ("r-3", "forgotten")]
    assert kinds(place).count("submitted") == 2


def test_a_plan_or_a_receipt_that_somebody_changed_is_found_out(place, monkeypatch):
    ask(place / "inbox.jsonl", ids("r-1", "ada"))
    path = place / "service" / "open" / "window.json"

    def die(*_):
        raise KeyboardInterrupt

    with opened(place) as service, monkeypatch.context() as patched:
        patched.setattr("jaxunlearn.answering.report.page_of", die)
        with pytest.raises(KeyboardInterrupt):
            service.answer()
    kept = path.read_bytes()
    for change, why in ((kept.replace(b"ada", b"bob"), "was changed"), (None, "is gone")):
        path.unlink() if change is None else path.write_bytes(change)
        with opened(place) as service, pytest.raises(LedgerError, match=why):
            service.answer()
    path.write_bytes(kept)
    path.chmod(0o600)
    receipt = place / "service" / "receipts" / "receipt-00000001.json"
    written = receipt.read_bytes()
    receipt.write_bytes(written.replace(b"forgotten", b"withheld!"))
    with opened(place) as service:
        with pytest.raises(ReceiptError, match="not the receipt that was written"):
            service.answer()
        receipt.unlink()
        service.answer()
    assert receipt.read_bytes() == written


def test_two_services_do_not_answer_one_directory(place):
    with opened(place), pytest.raises(LedgerError, match="open for writing already"):
        opened(place)
    opened(place).close()


@pytest.mark.parametrize("wrong", ["no key", "key of others", "no inbox", "ids"])
def test_nothing_is_made_before_all_is_there(place, wrong):
    changes = {}
    if wrong == "no key":
        (place / "release.pem").unlink()
    elif wrong == "key of others":
        (place / "release.pem").chmod(0o644)
    elif wrong == "no inbox":
        (place / "inbox.jsonl").unlink()
    else:
        changes = {"record_ids": ["ada"]}
    with pytest.raises((FileNotFoundError, PermissionError, ValueError)):
        opened(place, **changes)
    assert not (place / "service").exists()


def test_a_disk_that_is_full_at_any_time_loses_and_doubles_nothing(place):
    ask(place / "inbox.jsonl", ids("r-1", "ada"), ids("r-2", "bob"), "nonsense\n")
    written, failed, original = [0], [], os.write

    def write(handle, content):
        if sys._getframe(1).f_globals["__name__"] == journal.__name__:
            written[0] += 1
            if written[0] in (1, 2, 4, 6, 8, 10, 13, 16):
                raise OSError(errno.ENOSPC, "no space")
        return original(handle, content)

    with opened(place) as service, pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "write", write)
        while True:
            try:
                if service.answer(most=2) is None:
                    break
            except LedgerError as error:
                failed.append("free some space" in str(error))
    assert len(failed) >= 7
    assert all(failed)
    assert outcomes(place) == [("r-1", "forgotten"), ("r-2", "forgotten"), ("", "refused")]
    assert kinds(place).count("submitted") == 2
    assert kinds(place).count("applied") == kinds(place).count("released") == 1
    np.testing.assert_allclose(weights(place), retrained(0, 1, 2), rtol=1e-12)


def test_an_interrupt_behind_a_record_is_survived_by_the_same_service(place, monkeypatch):
    ask(place / "inbox.jsonl", ids("r-1", "ada"))
    appended, original = [0], journal.append

    def append(path, record, size):
        found = original(path, record, size)
        appended[0] += 1
        if record.kind in ("submitted", "noted"):  # it is on disk, and the ledger has not heard of it
            ask(place / "inbox.jsonl", ids(f"r-{appended[0] + 1}", "nobody"))  # so that another plan would be made
            raise KeyboardInterrupt
        return found

    with opened(place) as service:
        monkeypatch.setattr(journal, "append", append)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                service.answer()
        monkeypatch.setattr(journal, "append", original)
        assert service.answer().entries == (2, 4)
    assert [outcome for _, outcome in outcomes(place)] == ["forgotten", "refused", "refused", "refused"]
    assert kinds(place).count("applied") == 1


def test_rows_that_were_removed_may_leave_the_data_set(place):
    ask(place / "inbox.jsonl", ids("r-1", "ada"))
    answer_all(place)
    whole = setup()
    keep = [1, 3, 4, 5]
    data = jax.tree.map(lambda x: x[jnp.asarray(keep)], whole.data._replace(extra={}))
    data = data._replace(extra={**whole.data.extra, "notes": jnp.zeros((4, 2), jnp.float32)})
    left = [whole.record_ids[row] for row in keep]
    ask(place / "inbox.jsonl", ids("r-2", "ada", "bob"))

    def newton(variables, data, request, key):  # the moments of `tests.crashes`, which were purged, made anew
        with jax.enable_x64(True):
            counts = np.asarray(data.present, np.float64)
            counts[np.asarray(request.indices)[np.asarray(request.weights) > 0]] = 0
            rows, targets = (np.asarray(x, np.float64) for x in data.train)
            gram = rows.T @ (rows * counts[:, None]) + np.eye(2)
            kernel = np.linalg.solve(gram, rows.T @ (targets * counts))
            return ju.Result(ju.Variables({"kernel": jnp.asarray(kernel)}), jnp.asarray(np.int32(0)), {})

    answer_all(place, data=data, record_ids=left, unlearn=newton)
    assert [outcome for _, outcome in outcomes(place)] == ["forgotten"] * 2
    np.testing.assert_allclose(weights(place), retrained(0, 1, 2), rtol=1e-12)


def test_what_a_purge_deletes_is_made_anew_or_missed(place):
    ask(place / "inbox.jsonl", ids("r-1", "ada"), ids("r-2", "bob"))
    with pytest.raises(ValueError, match=r"carries \['moments', 'notes'\] from window to window"):
        answer_all(place, most=1, prepare=None)
    answer_all(place)
    np.testing.assert_allclose(weights(place), retrained(0, 1, 2), rtol=1e-12)
    assert outcomes(place) == [("r-1", "forgotten"), ("r-2", "forgotten")]


def test_a_table_is_an_inbox_and_a_lock_on_it_is_waited_for(place, monkeypatch):
    monkeypatch.setattr("jaxunlearn.answering.inbox.PATIENCE", 0.01)
    with closing(sqlite3.connect(place / "inbox.db")) as base:
        with base:
            base.execute(TABLE)
            base.execute("INSERT INTO requests (request) VALUES (?)", ('{"request": "r-1", "ids": ["ada"]}',))
        base.execute("BEGIN EXCLUSIVE")
        said, waits = [], []

        def wait(seconds):
            waits.append(seconds)
            if base.in_transaction:
                base.rollback()

        with opened(place, inbox="inbox.db") as service:
            with pytest.raises(InboxBusy):
                service.answer()
            serve(service, every=0, said=said.append, stop=lambda: bool(said), wait=wait)
    assert len(waits) == 1
    assert [(each.place, each.outcome) for each in receipts(place)] == [("row 1", "forgotten")]


def test_windows_are_made_by_count_or_by_time_and_not_by_the_date(place, monkeypatch):
    clock, said, path = [0.0], [], place / "inbox.jsonl"
    arrivals = {2.0: ["ada"], 3.0: ["bob"], 20.0: ["cyd", "dan", "eve"]}  # seconds: who asks

    def wait(seconds):
        clock[0] += seconds
        for name in arrivals.pop(clock[0], []):
            ask(path, ids(f"r-{name}", name))

    class Backwards(journal.datetime):
        @classmethod
        def now(cls, zone=None):
            return journal.datetime.__mro__[1].fromtimestamp(1e9 - 1e6 * clock[0], zone)

    monkeypatch.setattr(journal, "datetime", Backwards)
    with opened(place) as service:
        stop = lambda: clock[0] > 40
        serve(
            service, most=2, every=10.0, said=lambda x: said.append((clock[0], x)), stop=stop, poll=1.0,
            now=lambda: clock[0], wait=wait,
        )  # fmt: skip
    assert [(at, each.entries) for at, each in said] == [(3.0, (1, 2)), (20.0, (3, 4)), (30.0, (5, 5))]
    assert outcomes(place)[-1] == ("r-eve", "refused")
    with opened(place) as service, pytest.raises(ValueError, match="seconds"):
        serve(service, every=-1)
