"""Releases of a ledger: taken back, limited by a budget, sealed with a key."""

import hashlib
import json
import re
import secrets
import shutil
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from jaxunlearn import certificates
from jaxunlearn.certificates.publish import publish
from jaxunlearn.service import intents, journal, ledger, repair, show
from jaxunlearn.service.errors import BudgetError, LedgerError, ReleaseError
from jaxunlearn.service.ledger import Ledger
from tests.certificates.test_manifest import write_key
from tests.crashes import IDS, SALT, certify, unlearn
from tests.service.books import KEY, contents, everything_on_disk, reopen

WHY = "trained on people who were removed later"


def release(book, toy, who, **options):
    book.submit([who])
    book.apply(unlearn, *toy, KEY)
    return book.publish(publish, book.certify(certify, *toy, **options), toy[0])


# taking back


def test_an_earlier_release_is_retracted_and_later_ones_do_not_need_it(book, toy, about, capsys):
    first = release(book, toy, "ada")
    assert book.state.superseded == ()
    book.submit(["bob"])
    book.apply(unlearn, *toy, KEY)
    assert book.state.superseded == (1,)
    second = book.publish(publish, book.certify(certify, *toy), toy[0])
    book.purge()
    show.main([str(book.directory)])
    assert "trained on rows that were removed since, which no epsilon protects there: releases 1;" in capsys.readouterr().out
    released = first.path.read_bytes()
    book.retract(1, WHY)
    assert not first.path.exists()
    assert released not in everything_on_disk(book.directory)
    assert book.state.superseded == ()
    head = book.head
    book.retract(1, "once more")
    assert book.head == head
    show.main([str(book.directory)])
    said = capsys.readouterr().out
    assert f"release 1: {WHY}" in said
    assert "no epsilon protects" not in said
    third = release(book, toy, "cyd")
    assert (third.number, third.total_epsilon) == (3, 3.0)  # what was seen counts
    with reopen(book, about) as again:
        assert again.state == book.state
        with pytest.raises(ReleaseError, match="has no release 7 to retract"):
            again.retract(7, WHY)
        for reason in ("", " ", None, "\ud800"):
            with pytest.raises(ValueError, match="a retraction needs a reason in words"):
                again.retract(2, reason)
        again.retract(second.number, WHY)
        assert again.publish(publish, again.certify(certify, *toy), toy[0]).sha256 == third.sha256


def test_retracted_weights_are_not_released_again(book, toy):
    release(book, toy, "ada")
    book.retract(1, WHY)
    with pytest.raises(ReleaseError, match=f"were release 1, which was retracted .{WHY}., and it is not written again"):
        book.publish(publish, book.certify(certify, *toy), toy[0])
    other = book.publish(publish, book.certify(certify, *toy, epsilon=0.5), toy[0])
    assert (other.number, other.total_epsilon) == (2, 1.5)


@pytest.mark.parametrize("point", ["before the intent", "before the file is deleted"])
def test_a_retraction_that_was_interrupted_is_finished(book, toy, about, monkeypatch, point):
    def stop(*_):
        raise KeyboardInterrupt

    first = release(book, toy, "ada")
    with monkeypatch.context() as patch:
        patch.setattr(intents, "write" if point == "before the intent" else "remove_file", stop)
        with pytest.raises(KeyboardInterrupt):
            book.retract(1, WHY)
    with reopen(book, about) as again:
        assert not first.path.exists()
        assert release(again, toy, "bob").number == 2


def test_a_promise_that_was_never_kept_is_retracted_with_its_seed(book, toy, monkeypatch):
    def stop(path, content):
        if path.suffix == ".npz":
            raise KeyboardInterrupt
        write(path, content)

    write = journal.write
    with monkeypatch.context() as patch:
        patch.setattr(journal, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            release(book, toy, "ada")
    (path,) = (book.directory / "releases" / "private").iterdir()
    assert json.loads(path.read_bytes())["seed"]
    book.retract(1, WHY)
    assert not json.loads(path.read_bytes())["seed"]
    assert release(book, toy, "bob").total_epsilon == 2.0


def test_a_release_that_was_never_recorded_is_not_forgotten(book, toy, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    book.submit(["ada"])
    book.apply(unlearn, *toy, KEY)
    certificate = book.certify(certify, *toy)
    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            book.publish(publish, certificate, toy[0])
    assert book.state.releases == ()
    assert len(list((book.directory / "releases" / "public").glob("*.npz"))) == 1
    assert release(book, toy, "bob").number == 2
    assert book.state.superseded == (1,)
    book.retract(1, WHY)
    assert book.state.superseded == ()


def test_a_directory_without_a_ledger_retracts_too(book, toy, tmp_path):
    book.submit(["ada"])
    result = book.apply(unlearn, *toy, KEY)
    with pytest.raises(ReleaseError, match="holds no releases to retract"):
        certificates.retract(tmp_path / "alone", 1, WHY)
    published = publish(result, book.certify(certify, *toy), tmp_path / "alone")
    certificates.retract(tmp_path / "alone", 1, WHY)
    assert not published.path.exists()
    with pytest.raises(ReleaseError, match=r"has no release 2 to retract: it has \[1\]"):
        certificates.retract(tmp_path / "alone", 2, WHY)


def test_totals_say_whom_they_protect():
    for text in (certificates.Release.__doc__, sys.modules[publish.__module__].__doc__):
        assert "models trained on them" in text or "a model trained on\nthem" in text
        assert re.search(r"removed\s+before", text)


# a hard budget


def test_a_budget_is_not_exceeded(book, toy, about):
    book.declare_budget(1.5, 1e-4)
    release(book, toy, "ada")
    book.submit(["bob"])
    book.apply(unlearn, *toy, KEY)
    before = contents(book.directory / "releases")
    dear = book.certify(certify, *toy)
    with pytest.raises(BudgetError, match=r"costs \(1, 1e-05\) on top of \(1, 1e-05\), and the budget is \(1\.5, 0\.0001\)"):
        book.publish(publish, dear, toy[0])
    with reopen(book, about) as again:
        with pytest.raises(BudgetError, match="nothing was released: certify with less, or stop here"):
            again.publish(publish, again.certify(certify, *toy), toy[0])
        with pytest.raises(BudgetError):
            again.publish(publish, again.certify(certify, *toy, epsilon=0.1, delta=0.01), toy[0])
        assert contents(book.directory / "releases") == before
        cheap = again.publish(publish, again.certify(certify, *toy, epsilon=0.5), toy[0])
        assert cheap.total_epsilon == 1.5
        again.retract(1, WHY)
        assert again.publish(publish, again.certify(certify, *toy, epsilon=0.5), toy[0]).sha256 == cheap.sha256  # repeated
        with pytest.raises(BudgetError):
            release(again, toy, "cyd", epsilon=0.001)
    assert "all releases together may cost (1.5, 0.0001)" in ledger.table(book.directory)


def test_a_budget_only_shrinks(book):
    book.declare_budget(1.0, 1e-5)
    head = book.head
    book.declare_budget(1.0, 1e-5)
    assert book.head == head
    for more in ((2.0, 1e-5), (0.5, 1e-4)):
        with pytest.raises(LedgerError, match="raises the privacy budget, which may only shrink"):
            book.declare_budget(*more)
    book.declare_budget(0.5, 0)
    for strange in ((np.inf, 0), (-1, 0), (1, 2), (np.nan, 0)):
        with pytest.raises(ValueError, match="expected a finite epsilon"):
            book.declare_budget(*strange)
    assert book.state.privacy_budget == (0.5, 0.0)


def test_publish_alone_takes_a_budget(book, toy, tmp_path):
    book.submit(["ada"])
    result = book.apply(unlearn, *toy, KEY)
    certificate = book.certify(certify, *toy)
    with pytest.raises(BudgetError, match=r"on top of \(0, 0\), and the budget is \(0\.9, 1\)"):
        publish(result, certificate, tmp_path / "alone", budget=(0.9, 1))
    with pytest.raises(ValueError, match="expected a finite epsilon of at least 0"):
        publish(result, certificate, tmp_path / "alone", budget=(-1, 1))
    assert publish(result, certificate, tmp_path / "alone", budget=(1, 1e-5)).number == 1


# a key


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(secrets.token_bytes(32))
    return path


@pytest.fixture
def sealed(tmp_path, about, key_file):
    with Ledger.create(tmp_path / "sealed", IDS, salt=SALT, key=key_file, **about) as opened:
        yield opened


def test_a_key_seals_the_journal(sealed, toy, about, key_file, tmp_path, capsys):
    release(sealed, toy, "ada")
    with reopen(sealed, about, key=key_file.read_bytes()) as again:
        assert again.state == sealed.state
        release(again, toy, "bob")
    before = contents(sealed.directory)
    with pytest.raises(LedgerError, match=r"record 0 of .* was sealed with a key: pass the one that it was created with"):
        reopen(sealed, about)
    with pytest.raises(LedgerError, match=r"record 0 of .* does not fit this key: pass the one that it was created with"):
        reopen(sealed, about, key=bytes(32))
    with pytest.raises(FileNotFoundError, match=r"there is no key at .*nowhere: for a new ledger make one"):
        reopen(sealed, about, key=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a key has at least 16 bytes, got 3"):
        reopen(sealed, about, key=b"abc")
    with pytest.raises(ValueError, match=r"lies inside of .*, which it protects: keep it outside"):
        reopen(sealed, about, key=sealed.directory / "journal.jsonl")
    for command in (show.main, repair.main):
        assert command([str(sealed.directory)]) == 1
        assert "was sealed with a key" in capsys.readouterr().err
        assert command([str(sealed.directory), "--key", str(key_file)]) == 0
    assert contents(sealed.directory) == before
    assert key_file.read_bytes() not in everything_on_disk(sealed.directory)


def forge(path, key=None, **changes):
    """What somebody without the key can write: contents changed, plain hash or a guess."""
    fields = {**json.loads(path.read_bytes()), **changes}
    fields.pop("hash")
    content = journal.canonical(fields)
    made = hashlib.sha256(content).hexdigest()
    path.write_bytes(journal.canonical({**fields, "hash": f"hmac:{made}" if key == "guess" else made}))


@pytest.mark.parametrize(("guess", "message"), [(None, "was not sealed with a key"), ("guess", "does not fit this key")])
def test_an_intent_with_another_epsilon_is_refused(sealed, toy, about, key_file, guess, message):
    release(sealed, toy, "ada")
    path = sealed.directory / "releases" / "private" / "release-000001.json"
    cheap = {**json.loads(path.read_bytes())["certificate"], "epsilon": 0.001}
    forge(path, guess, certificate=cheap)
    with reopen(sealed, about, key=key_file) as again:
        with pytest.raises(ReleaseError, match=f"release-000001.json {message}"):
            release(again, toy, "bob")
        assert len(list((sealed.directory / "releases" / "public").glob("*.npz"))) == 1


def test_without_a_key_the_journal_still_knows_what_was_released(book, toy):
    first = release(book, toy, "ada")
    path = book.directory / "releases" / "private" / "release-000001.json"
    kept = path.read_bytes()
    forge(path, certificate={**json.loads(kept)["certificate"], "epsilon": 0.001})
    with pytest.raises(ReleaseError, match=r"says another epsilon than the journal recorded: restore it from a backup"):
        release(book, toy, "bob")
    path.unlink()
    first.path.unlink()
    with pytest.raises(ReleaseError, match=r"release-000001\.json is gone, and the journal recorded its release"):
        book.publish(publish, book.certify(certify, *toy), toy[0])
    assert not list((book.directory / "releases" / "public").glob("*.npz"))


def test_publish_alone_takes_a_key(book, toy, tmp_path, key_file):
    book.submit(["ada"])
    result = book.apply(unlearn, *toy, KEY)
    certificate = book.certify(certify, *toy)
    folder = tmp_path / "alone"
    first = publish(result, certificate, folder, seal_key=key_file)
    assert publish(result, certificate, folder, seal_key=key_file).sha256 == first.sha256
    for options, message in [({}, "was sealed with a key"), ({"seal_key": bytes(32)}, "does not fit this key")]:
        with pytest.raises(ReleaseError, match=message):
            publish(result, certificate, folder, **options)
    path = folder / "private" / "release-000001.json"
    forge(path, certificate={**json.loads(path.read_bytes())["certificate"], "epsilon": 0.001})
    with pytest.raises(ReleaseError, match="was not sealed with a key"):
        publish(result, certificate, folder, seal_key=key_file)


def test_a_journal_written_anew_needs_the_key(sealed, about, key_file, tmp_path):
    sealed.submit(["ada"])
    sealed.close()
    with Ledger.create(tmp_path / "plain", IDS, salt=SALT, **about):
        pass
    shutil.copy(tmp_path / "plain" / "journal.jsonl", sealed.directory / "journal.jsonl")  # nobody asked for anything
    with pytest.raises(LedgerError, match="was not sealed with a key, so that anybody may have written it"):
        reopen(sealed, about, key=key_file)


def test_torn_records_of_a_sealed_journal_are_mended_with_the_key(sealed, about, key_file):
    sealed.submit(["ada"])
    sealed.close()
    path = sealed.directory / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b'{"body":')
    with reopen(sealed, about, key=key_file, recover=True) as again:
        assert len(again.state.pending) == 1
    assert all(record.hash.startswith("hmac:") for record in journal.read(path, key_file.read_bytes()).records)


# a signature


def test_releases_of_a_ledger_are_signed_and_retracted_with_their_signatures(book, toy, tmp_path):
    private, public = write_key(tmp_path, ed25519.Ed25519PrivateKey.generate())
    book.submit(["ada"])
    book.apply(unlearn, *toy, KEY)
    certificate = book.certify(certify, *toy)
    first = book.publish(publish, certificate, toy[0], signing_key=private)
    found = certificates.verify(first.path, public)
    assert found.valid
    assert found.manifest.sha256 == first.sha256 == book.state.releases[0]["sha256"]
    assert book.publish(publish, certificate, toy[0], signing_key=private).sha256 == first.sha256
    with pytest.raises(ReleaseError, match="and is asked for without a signature"):
        book.publish(publish, certificate, toy[0])
    book.retract(1, WHY)
    assert not list(first.path.parent.iterdir())
