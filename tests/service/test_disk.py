"""Disks that are full, read-only or damaged: our words, nothing half done, and the next call works."""

import errno
import os
import subprocess
import traceback

import numpy as np
import pytest

from jaxunlearn import modes
from jaxunlearn.certificates.publish import publish
from jaxunlearn.service import ledger
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.ledger import Ledger
from tests.crashes import IDS, SALT, certify, retrained, unlearn
from tests.service.books import KEY, contents, kernel, reopen

pytestmark = [  # orbax leaves coroutines behind when it fails
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"),
    pytest.mark.usefixtures("leftovers"),
]


def failing(code):
    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("operation", ["write", "fsync", "open"])
@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "no space left on device.: free some space, then repeat the call"),
        (errno.EROFS, "read-only file system.: mount it for writing"),
        (errno.EACCES, "permission denied.: give this user the right to write there"),
        (errno.EIO, "input/output error.: the device fails: copy the folder to another one"),
        (errno.ENOLINK, "link has been severed.: repeat the call once that is mended"),
    ],
)
def test_a_disk_that_refuses_is_told_with_what_to_do(book, about, monkeypatch, operation, code, advice):
    before = contents(book.directory)
    with monkeypatch.context() as patch:
        patch.setattr(os, operation, failing(code))
        with pytest.raises(LedgerError, match=rf"journal\.jsonl could not be written \({advice}"):
            book.submit(["ada"])
    assert contents(book.directory) == before
    assert book.submit(["ada"]) == 1
    reopen(book, about).close()


def test_a_release_on_a_full_disk_is_made_later_with_the_promised_bits(book, toy, monkeypatch):
    book.submit(["ada"])
    book.apply(unlearn, *toy, KEY)
    certificate = book.certify(certify, *toy)
    write = os.write

    def full(handle, content):
        if content.startswith(b"PK"):
            write(handle, content[:10])
            failing(errno.ENOSPC)()
        return write(handle, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(LedgerError, match=r"release-000001\.npz could not be written \(no space left"):
            book.publish(publish, certificate, toy[0])
    assert not list((book.directory / "releases" / "public").iterdir())
    assert book.publish(publish, certificate, toy[0]).total_epsilon == 1.0


@pytest.fixture
def mount(tmp_path):
    """Mounts a small file system, where that is allowed."""
    place = tmp_path / "small"
    place.mkdir()

    def call(*options):
        return subprocess.run(["mount", *options, str(place)], capture_output=True, check=False).returncode == 0

    if os.geteuid() or not call("-t", "tmpfs", "-o", "size=200k", "tmpfs"):
        pytest.skip("mounting is not allowed here")
    yield place, lambda options: call("-o", f"remount,{options}")
    subprocess.run(["umount", "-l", str(place)], check=True)


def until_it_fails(path, size):
    with open(path, "ab", buffering=0) as file:
        while True:
            file.write(b"x" * size)


def shrink(book):
    for number in range(200):
        book.declare_budget(1.0 - number / 1000, 0)


def test_a_small_disk_that_fills_up(mount, toy, about):
    place, remount = mount
    with Ledger.create(place / "ledger", IDS, salt=SALT, **about) as book:
        book.submit(["ada"])
        with pytest.raises(OSError, match="No space left"):
            until_it_fails(place / "filler", 4096)
        with pytest.raises(OSError, match="No space left"):
            until_it_fails(place / "filler", 1)
        before = contents(book.directory)
        with pytest.raises(LedgerError, match=r"could not be written \(no space left on device\): free some space") as told:
            book.apply(unlearn, *toy, KEY)
        traceback.clear_frames(told.value.__traceback__)
        assert contents(book.directory) == before
        assert not list((book.directory / "checkpoints").iterdir())
        with pytest.raises(LedgerError, match=r"journal\.jsonl could not be written \(no space left on device\)"):
            shrink(book)  # the journal has room in its last page
        declared = book.state.privacy_budget
        assert remount("size=4m")
        book.submit(["eve"])
        np.testing.assert_allclose(kernel(book.apply(unlearn, *toy, KEY)), retrained(0, 2, 5), rtol=1e-12)
        assert book.state.privacy_budget == declared
    with reopen(book, about) as again:
        assert again.state == book.state


def test_a_read_only_folder(mount, toy, about):
    place, remount = mount
    with Ledger.create(place / "ledger", IDS, salt=SALT, **about) as book:
        book.submit(["ada"])
    assert remount("ro")
    with pytest.raises(LedgerError, match=r"lock could not be written \(read-only file system\): mount it for writing"):
        reopen(book, about)
    with pytest.raises(LedgerError, match=r"other could not be written \(read-only file system\): mount it for writing"):
        Ledger.create(place / "other", IDS, salt=SALT, **about)
    assert "1 ids pending" in ledger.table(place / "ledger")
    assert remount("rw,size=4m")
    with reopen(book, about) as again:
        np.testing.assert_allclose(kernel(again.apply(unlearn, *toy, KEY)), retrained(0, 2), rtol=1e-12)


@pytest.mark.parametrize(
    "damage", ["_METADATA", "_sharding", "manifest.ocdbt", "array_metadatas/process_0", "the arrays", "all"]
)
def test_a_damaged_checkpoint_of_a_ledger_is_told(book, toy, damage):
    book.submit(["ada"])
    book.apply(unlearn, *toy, KEY)
    weights = book.directory / "checkpoints" / "000002" / "weights"
    kept = contents(weights)
    for path in kept:
        if damage == "all":
            path.unlink()
        elif (damage == "the arrays" and path.parent.name == "d") or path == weights / damage:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    head = book.head
    with pytest.raises(LedgerError, match=r"checkpoint of record 2 \(weights\) cannot be read, so put it back from a backup: "):
        book.load(*toy)
    assert book.head == head
    for path, content in kept.items():
        path.write_bytes(content)
    modes.make_private(weights)
    np.testing.assert_allclose(kernel(book.result(*toy)), retrained(0, 2), rtol=1e-12)
