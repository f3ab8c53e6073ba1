"""Exceptions at chosen points of a record, two writers, and steps of several threads."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxunlearn.service import journal, ledger
from jaxunlearn.service.errors import LedgerError
from tests import crashes
from tests.crashes import retrained, unlearn
from tests.service.books import KEY, contents, kernel, reopen


def kinds(book):
    return [record.kind for record in journal.read(book.directory / "journal.jsonl").records]


@pytest.mark.parametrize("point", ["half a record", "a record that is not synced", "a record", "truncating, too"])
def test_an_interrupted_record_counts_once_or_not_at_all(book, about, monkeypatch, point):
    book.submit(["ada"])
    write, fsync = os.write, os.fsync

    def half(handle, content):
        write(handle, content[: len(content) // 2])
        raise KeyboardInterrupt

    def stop(*_):
        raise KeyboardInterrupt

    def late(handle):
        fsync(handle)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if point in ("half a record", "truncating, too"):
            patch.setattr(os, "write", half)
        if point == "truncating, too":
            patch.setattr(os, "ftruncate", stop)
        if point == "a record that is not synced":
            patch.setattr(os, "fsync", stop)
        if point == "a record":
            patch.setattr(os, "fsync", late)
        with pytest.raises(KeyboardInterrupt):
            book.submit(["bob"])
    assert book.submit(["cyd"]) == 1
    assert book.submit(["bob"]) == 1
    assert len(book.state.pending) == 3
    with reopen(book, about) as again:
        assert again.state == book.state
    assert kinds(book) == ["created", "submitted", *(["repaired"] if point == "truncating, too" else []), *["submitted"] * 2]


def test_a_record_that_reached_the_disk_counts_although_nobody_was_told(book, about, monkeypatch):
    append = journal.append

    def late(*arguments):
        append(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", late)
        with pytest.raises(KeyboardInterrupt):
            book.submit(["ada"])
    assert book.submit(["ada"]) == 0
    assert kinds(book) == ["created", "submitted"]
    reopen(book, about).close()


def test_an_application_that_was_interrupted_is_applied_once(book, toy, about, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    book.submit(["ada"])
    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            book.apply(unlearn, *toy, KEY)
    np.testing.assert_allclose(kernel(book.apply(unlearn, *toy, KEY)), retrained(0, 2), rtol=1e-12)
    assert kinds(book) == ["created", "submitted", "applied"]
    reopen(book, about).close()


def test_somebody_else_who_wrote_is_noticed_and_nothing_is_added(book, about):
    book.submit(["ada"])
    os.unlink(book.directory / "lock")  # so that a second writer gets in
    other = ledger.Ledger.open(book.directory, crashes.IDS, salt=crashes.SALT, **about)
    other.submit(["bob"])
    before = contents(book.directory)
    with pytest.raises(LedgerError, match="somebody else wrote there, so nothing was recorded; close the ledger"):
        book.submit(["cyd"])
    with pytest.raises(LedgerError, match="was changed by somebody else: close this ledger, and open it again"):
        book.submit(["cyd"])
    assert contents(book.directory) == before
    other.close()
    with reopen(book, about) as again:
        assert len(again.state.pending) == 2


def test_a_journal_that_was_exchanged_under_a_ledger_is_noticed(book, tmp_path, about):
    book.submit(["ada"])
    with ledger.Ledger.create(tmp_path / "other", crashes.IDS, salt=crashes.SALT, **about) as other:
        other.submit(["bob", "cyd", "dan"])
    shutil.copy(tmp_path / "other" / "journal.jsonl", book.directory / "journal.jsonl")
    for _ in range(2):
        with pytest.raises(LedgerError, match="somebody else"):
            book.submit(["dan"])


def test_requests_are_taken_while_others_are_applied(book, toy, about):
    inside, go_on = threading.Event(), threading.Event()

    def slow(*arguments):
        inside.set()
        assert go_on.wait(60)
        return unlearn(*arguments)

    book.submit(["ada"])
    with ThreadPoolExecutor(2) as pool:
        applying = pool.submit(book.apply, slow, *toy, KEY)
        assert inside.wait(60)
        assert pool.submit(book.submit, ["bob"]).result(60) == 1
        go_on.set()
        np.testing.assert_allclose(kernel(applying.result(60)), retrained(0, 2), rtol=1e-12)
        closing = pool.submit(book.close)
        closing.result(60)
    with reopen(book, about) as again:
        assert (len(again.state.removed), len(again.state.pending)) == (1, 1)
        np.testing.assert_allclose(kernel(again.apply(unlearn, *toy, KEY)), retrained(0, 1, 2), rtol=1e-12)


def test_many_threads_apply_and_submit(book, toy, about):
    def remove(who):
        book.submit([who])
        return book.apply(unlearn, *toy, KEY)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(remove, ["ada", "bob", "cyd", "dan"]))
    variables, _ = book.load(*toy)
    np.testing.assert_allclose(np.asarray(variables.params["kernel"]), retrained(0, 1, 2, 3, 4), rtol=1e-10)
    with reopen(book, about) as again:
        assert again.state == book.state
        assert len(again.state.removed) == 4


def test_readers_need_no_lock_and_see_whole_records(book):
    done, said = threading.Event(), []

    def read():
        while not done.is_set():
            said.append(ledger.table(book.directory))

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for who in ("ada", "bob", "cyd", "dan"):
            book.submit([who])
        done.set()
        for reader in readers:
            reader.result(60)
    assert said
    assert "4 ids pending" in ledger.table(book.directory)


def test_a_clock_that_is_set_back_changes_nothing(book, about, monkeypatch):
    book.submit(["ada"])

    class Past(journal.datetime):
        @classmethod
        def now(cls, zone=None):
            return cls(1999, 1, 1, tzinfo=zone)

    monkeypatch.setattr(journal, "datetime", Past)
    book.submit(["bob"])
    records = journal.read(book.directory / "journal.jsonl").records
    assert records[-1].time < records[0].time
    with reopen(book, about) as again:
        assert len(again.state.pending) == 2


def test_a_record_of_another_ledger_does_not_follow(book, tmp_path, about):
    book.submit(["ada"])
    with ledger.Ledger.create(tmp_path / "other", crashes.IDS, salt=crashes.SALT, **about) as other:
        other.submit(["bob"])
        other.submit(["cyd"])
    foreign = (tmp_path / "other" / "journal.jsonl").read_bytes().splitlines(keepends=True)[2]
    path = book.directory / "journal.jsonl"
    path.write_bytes(path.read_bytes() + foreign)
    with pytest.raises(LedgerError, match=r"record 2 of .* does not follow the record before it: .*restore a backup"):
        reopen(book, about)
