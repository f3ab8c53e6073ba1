"""Receipts: what is signed is checked by anybody, and what is changed is found out."""

import hashlib
import json
import subprocess

import pytest

from jaxunlearn.answering import ReceiptError, receipts, verify
from jaxunlearn.certificates import signing
from jaxunlearn.service.errors import ReleaseError
from tests.answering.toys import KEY, keys

SALT = "ab" * 32
RECEIPT = receipts.Receipt(
    entry=17,
    place="line 17",
    request="r-17",
    outcome="forgotten",
    reason="",
    records=(receipts.record_of(SALT, '"ada"'), receipts.record_of(SALT, "7")),
    salt=SALT,
    window=3,
    guarantee="certified",
    release=2,
    weights=hashlib.sha256(b"weights").hexdigest(),
    manifest=hashlib.sha256(b"manifest").hexdigest(),
    certificate="cd" * 32,
    journal="ef" * 32,
    time="2026-11-28T12:00:00+00:00",
    signer=signing.name_of(KEY.public_key()),
)


@pytest.fixture
def folder(tmp_path):
    keys(tmp_path)
    receipts.write(RECEIPT, tmp_path, KEY)
    (tmp_path / "release-000002.npz").write_bytes(b"weights")
    (tmp_path / "release-000002.json").write_bytes(b"manifest")
    return tmp_path


def test_whoever_has_the_public_key_can_check_a_receipt(folder):
    path, public = folder / "receipt-00000017.json", folder / "release.pub"
    assert verify(path, public, record_ids=[7, "ada"], weights=folder / "release-000002.npz") == RECEIPT
    assert path.stat().st_mode & 0o777 == 0o600
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-in", path, "-sigfile", path.with_suffix(".sig"), "-pubin"]
    subprocess.run([*command, "-inkey", public], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"outcome": "refused"}, ReceiptError, "does not fit its signature"),
        ({"records": []}, ReceiptError, "does not fit its signature"),
        ({"outcome": "paid"}, ReceiptError, "outcome of .* must be one of"),
        ({"release": 0}, ReceiptError, "must be an integer of at least 1"),
        ({"release": ""}, ReceiptError, "must be an integer of at least 1"),
        ({"also": 1}, ReceiptError, "unknown \\['also'\\]"),
    ],
)
def test_a_receipt_that_was_edited_is_refused(folder, change, error, why):
    path = folder / "receipt-00000017.json"
    path.write_bytes(receipts.journal.canonical({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=why):
        verify(path, folder / "release.pub")


def test_other_forms_names_keys_ids_and_weights_are_refused(folder):
    path, public = folder / "receipt-00000017.json", folder / "release.pub"
    with pytest.raises(ReceiptError, match="2 record ids, and not of exactly these 1"):
        verify(path, public, record_ids=["ada"])
    with pytest.raises(ReceiptError, match="not of exactly"):
        verify(path, public, record_ids=["ada", "7"])
    (folder / "release-000002.json").write_bytes(b"another manifest")
    with pytest.raises(ReceiptError, match="other manifest"):
        verify(path, public, weights=folder / "release-000002.npz")
    with pytest.raises(ReceiptError, match="not the receipt that was written"):
        receipts.write(RECEIPT._replace(reason="another"), folder, KEY)
    receipts.write(RECEIPT, folder, KEY)  # the same again
    path.rename(folder / "receipt-00000018.json")
    path.with_suffix(".sig").rename(folder / "receipt-00000018.sig")
    with pytest.raises(ReceiptError, match="another signer or entry"):
        verify(folder / "receipt-00000018.json", public)
    with pytest.raises(ReleaseError, match="missing"):
        verify(path, public)
    with pytest.raises(ValueError, match="private key"):
        verify(folder / "receipt-00000018.json", folder / "release.pem")
    with pytest.raises(ValueError, match="path of a receipt"):
        verify(folder / "release.pub", public)
    (folder / "receipt-00000018.sig").write_bytes(b"x" * 65)
    with pytest.raises(ReleaseError, match="more than 64 bytes"):
        verify(folder / "receipt-00000018.json", public)
