"""Receipts: what a service answered, to be checked by anybody who has its public key.

    receipt-00000017.json   one JSON object in one canonical form, as manifests of releases
    receipt-00000017.sig    Ed25519 signature over its bytes

    format          "jaxunlearn receipt"
    version         1
    entry           number of the request in all that the service was ever asked, from 1
    place           where it stood in the inbox, such as "line 17"
    request         its id; empty if it could not be read
    outcome         forgotten   no released weights after this one rest on the rows
                    withheld    the rows are gone from the un-noised weights; nothing was released, see `reason`
                    repeated    the request was answered before; see `reason`
                    refused     nothing was done, see `reason`
    reason          in words; empty if the request was answered as asked
    records         for each record id, SHA-256 of salt and id, so that who knows an id can find it here
    salt            of these hashes
    window          number of the window, from 1
    guarantee       "certified" if the release carries a certificate, else "none"
    release         number of the release; null without one
    weights         SHA-256 of the released file; of plain weights, `jaxunlearn.ledger.fingerprint`
    manifest        SHA-256 of the release's manifest; empty without one
    certificate     SHA-256 of the certificate as the ledger records it; empty without one
    journal         hash of the ledger's record of all this, so that records that are cut off later are missed
    time            of that record, UTC
    signer          public key in hexadecimal digits

A signature says that the holder of the key said so. Whether the promise is true is another question: see
`jaxunlearn.certificates.recheck`.

    openssl pkeyutl -verify -rawin -in receipt-00000017.json -sigfile receipt-00000017.sig -pubin -inkey release.pub
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxunlearn.certificates import signing, strict
from jaxunlearn.certificates.manifest import content_of, digest_of
from jaxunlearn.service import journal
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.fingerprints import RecordId, names_in

FORMAT, VERSION = "jaxunlearn receipt", 1
LARGEST = 2**26  # bytes of a receipt: a request may name many ids
OUTCOMES = ("forgotten", "withheld", "repeated", "refused")


class ReceiptError(LedgerError):
    """A receipt is missing, changed, signed by another key, or speaks of something else."""


class Receipt(NamedTuple):
    """One answer; the fields are explained in `jaxunlearn.answering.receipts`."""

    entry: int
    place: str
    request: str
    outcome: Literal["forgotten", "withheld", "repeated", "refused"]
    reason: str
    records: tuple[str, ...]
    salt: str
    window: int
    guarantee: Literal["certified", "none"]
    release: int  # 0 without one
    weights: str
    manifest: str
    certificate: str
    journal: str
    time: str
    signer: str


def name_of(entry: int, suffix: str = "json") -> str:
    """The name of a receipt's file."""
    return f"receipt-{entry:08d}.{suffix}"


def record_of(salt: str, name: str) -> str:
    """How a receipt writes a record id down; `name` as text in the form of `names_of`."""
    return hashlib.sha256(bytes.fromhex(salt) + name.encode()).hexdigest()


def write(receipt: Receipt, directory: Path, key: Any) -> None:
    """Write a receipt and its signature durably; those that are there must be the same."""
    content = _written(receipt)
    read(content, name_of(receipt.entry))  # nothing goes out that is not read again
    for suffix, expected in (("json", content), ("sig", key.sign(content))):
        path = directory / name_of(receipt.entry, suffix)
        if not os.path.lexists(path):
            journal.write(path, expected)
        elif content_of(path, LARGEST) != expected:
            raise ReceiptError(
                f"{path} is not the receipt that was written: put that one back, or delete this one; if the signing key was "
                "exchanged, finish this window with the old one"
            )


def read(content: bytes, name: str) -> Receipt:
    """A receipt from its canonical form; ValueError for anything else, saying what it is."""
    value = strict.versioned(strict.parse(content, name), FORMAT, VERSION, Receipt._fields, name)
    texts = {field: strict.text(value[field], f"{field} of {name}", empty=field in ("request", "reason")) for field in _TEXTS}
    hashes = {
        field: strict.digest(value[field], f"{field} of {name}", empty=field not in ("salt", "signer")) for field in _DIGESTS
    }
    receipt = Receipt(
        entry=strict.count(value["entry"], f"entry of {name}"),
        window=strict.count(value["window"], f"window of {name}"),
        release=0 if value["release"] is None else strict.count(value["release"], f"release of {name}"),
        outcome=strict.one_of(value["outcome"], OUTCOMES, f"outcome of {name}"),
        guarantee=strict.one_of(value["guarantee"], ("certified", "none"), f"guarantee of {name}"),
        records=tuple(strict.digest(x, f"records of {name}") for x in strict.items(value["records"], f"records of {name}")),
        **texts,
        **hashes,
    )
    if _written(receipt) != content:
        raise ValueError(f"{name} is not in its canonical form: spaces, line endings, order or digits differ")
    return receipt


_TEXTS = ("place", "request", "reason", "journal", "time")
_DIGESTS = ("salt", "weights", "manifest", "certificate", "signer")


def _written(receipt: Receipt) -> bytes:
    fields = {**receipt._asdict(), "release": receipt.release or None}
    return journal.canonical({"format": FORMAT, "version": VERSION, **fields})


def verify(
    path: str | Path,
    public_key: str | Path,
    *,
    record_ids: Iterable[RecordId] | None = None,
    weights: str | Path | None = None,
) -> Receipt:
    """Check a receipt: who wrote it, whom it speaks of, and of which release. Needs nothing but the files named here.

    Args:
        path: of the receipt, e.g. `receipt-00000017.json`; its signature lies beside it.
        public_key: PEM file with the Ed25519 key of the service, from a source that you trust.
        record_ids: ids that the receipt must name, all of them and no others.
        weights: a released file that the receipt must speak of, with its manifest beside it.

    Returns:
        The receipt, all of whose checks passed; `outcome` says what was done.

    Raises:
        ReceiptError: the receipt or its signature is missing, changed, of another request, signed by another key, or speaks of
            other ids or weights.
        ReleaseError: links and folders in place of files.
        ValueError: there is no Ed25519 public key in the file, or a path that names no receipt.
        ImportError: the extra `sign` is not installed.

    Example:
        >>> found = jaxunlearn.answering.verify("receipt-00000017.json", "release.pub")  # doctest: +SKIP
        >>> found.request, found.outcome  # doctest: +SKIP
        ('r-17', 'forgotten')
    """
    path = Path(path)
    matched = re.fullmatch(r"receipt-([0-9]{8,})\.json", path.name, re.ASCII)
    if not matched:
        raise ValueError(f"expected the path of a receipt, such as receipt-00000017.json, got {path}")
    key = signing.read_public_key(public_key)
    content = content_of(path, LARGEST)
    signature = content_of(path.with_suffix(".sig"), signing.LENGTH)
    try:
        receipt = read(content, str(path))
    except ValueError as error:
        raise ReceiptError(f"{error}; it was changed, or another version wrote it") from error
    if not signing.fits(key, signature, content):
        raise ReceiptError(f"{path} does not fit its signature and the key in {public_key}: one of the three was changed")
    if receipt.signer != signing.name_of(key) or receipt.entry != int(matched[1]):
        raise ReceiptError(f"{path} says another signer or entry than its key or its name")
    if record_ids is not None:
        expected = sorted(record_of(receipt.salt, name) for name in names_in(record_ids))
        if expected != sorted(receipt.records):
            raise ReceiptError(f"{path} speaks of {len(receipt.records)} record ids, and not of exactly these {len(expected)}")
    if weights is not None:
        files = {"weights": Path(weights), "manifest": Path(weights).with_suffix(".json")}
        for field, file in files.items():
            if digest_of(file) != getattr(receipt, field):
                raise ReceiptError(f"{path} speaks of other {field} than {file}")
    return receipt
