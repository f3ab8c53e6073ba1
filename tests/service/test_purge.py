"""After a purge every byte of the folder is searched for what a removed person left."""

import base64
import hashlib
import os

import numpy as np
import pytest

from jaxunlearn import tree
from jaxunlearn.certificates.publish import publish
from jaxunlearn.service import journal
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.fingerprints import names_of, row_digests
from tests.crashes import IDS, ROWS, TARGETS, certify, unlearn
from tests.service.books import KEY, everything_on_disk, kernel_of, reopen


def forms(array):
    """An array, and each of its rows, as bytes of either width and order, as digits and in base 64."""
    found = set()
    for part in (array, *array) if array.ndim > 1 else (array,):
        for dtype in ("<f4", "<f8", ">f4", ">f8"):
            content = np.ascontiguousarray(part, dtype).tobytes()
            found |= {content, content.hex().encode(), base64.b64encode(content), hashlib.sha256(content).hexdigest().encode()}
        found |= {repr(float(x)).encode() for x in np.ravel(part)} | {str(np.float32(x)).encode() for x in np.ravel(part)}
    return found


def present(secrets, directory):
    found = everything_on_disk(directory)
    return sorted(name for name, array in secrets.items() if any(form in found for form in forms(array)))


@pytest.mark.parametrize("interrupted", [False, True])
def test_nothing_of_a_removed_person_is_left(book, toy, about, interrupted, monkeypatch):
    secrets = {"row 0": ROWS[0], "row 2": ROWS[2], "row 1": ROWS[1], "original weights": kernel_of(toy[0])}
    secrets |= {f"original {name}": np.asarray(x) for name, x in toy[1].extra["moments"].items()}
    releases = []
    for who in ("ada", "bob"):
        book.submit([who])
        if interrupted:
            with monkeypatch.context() as patch:
                patch.setattr(journal, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    book.apply(unlearn, *toy, KEY)
        result = book.apply(unlearn, *toy, KEY)
        secrets[f"weights without {who}"] = kernel_of(result.variables)
        secrets |= {f"{name} without {who}": np.asarray(x) for name, x in result.extra["moments"].items()}
        releases.append(book.publish(publish, book.certify(certify, *toy), toy[0]))
        secrets[f"release without {who}"] = kernel_of(releases[-1].variables)
    before = present(secrets, book.directory)
    assert {"row 0", "row 1", "weights without ada", "gram without bob", "release without ada"} <= set(before)
    book.purge()
    assert present(secrets, book.directory) == ["release without ada", "release without bob", "weights without bob"]
    assert book.state.superseded == (1,)
    book.retract(1, "Bob was removed")
    with reopen(book, about) as again:  # the newest weights stay, since the next request starts from them
        assert present(secrets, again.directory) == ["release without bob", "weights without bob"]
    found = everything_on_disk(book.directory)
    rows = row_digests(toy[1], names_of(IDS))
    confirming = [rows[row].hex().encode() for row in (0, 1, 2)] + [rows[row] for row in (0, 1, 2)]
    confirming += [about["data_fingerprint"].encode(), about["model_fingerprint"].encode()]
    confirming += [tree.content_digest(toy[0].params).encode(), b'"ada"', b'"bob"', hashlib.sha256(b"ada").hexdigest().encode()]
    assert not [each for each in confirming if each in found]
    assert not [path for path in book.directory.rglob("*") if path.suffix == ".new" or "tmp" in path.name]
    assert all(path.stat().st_mode & 0o77 == 0 for path in book.directory.iterdir())
    for target in TARGETS[:3]:
        assert np.float64(target).tobytes() not in found
    assert os.listdir(book.directory / "checkpoints")


def test_an_exact_answer_needs_no_release_before_a_purge(book, toy):
    weights = {}
    for who in ("ada", "bob"):
        book.submit([who])
        weights[f"without {who}"] = kernel_of(book.apply(unlearn, *toy, KEY).variables)
    with pytest.raises(LedgerError, match="exact=True"):
        book.purge()
    assert present(weights, book.directory) == ["without ada", "without bob"]
    book.purge(exact=True)
    assert present(weights, book.directory) == ["without bob"]
