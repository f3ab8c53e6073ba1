"""Ids: which are told apart, and which are refused."""

import enum

import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.service.fingerprints import data_fingerprint, names_of
from jaxunlearn.service.ledger import Ledger
from tests.crashes import IDS, ROWS, SALT, TARGETS, retrained, unlearn
from tests.service.books import KEY, kernel

MODEL = "a model"


def opened(directory, ids):
    return Ledger.create(directory, ids, salt=SALT, model_fingerprint=MODEL, data_fingerprint="rows")


def test_an_integer_and_its_digits_are_two_people(tmp_path):
    with opened(tmp_path / "both", [1, "1", 2, "3"]) as book:
        assert book.submit(["1"]) == 1
        assert book.submit([1]) == 1
        assert len(book.state.pending) == 2
        for mistaken in (["2"], [3], 3):
            with pytest.raises(ValueError, match=r'no row has the record ids .*; 1 and "1" are two ids, pass them as given'):
                book.submit(mistaken)
        with pytest.raises(ValueError, match=r'no row has the record ids "zoe"; nothing was submitted$'):
            book.submit("zoe")
    data = ju.Data(ju.Examples(ROWS[:2], TARGETS[:2]), np.ones(2))
    assert data_fingerprint(data, [1, "1"]) != data_fingerprint(data, ["1", 1]) != data_fingerprint(data, [1, 1])


def test_other_spellings_of_an_id_are_the_same(tmp_path):
    class Customer(enum.StrEnum):
        ADA = "ada"

    assert names_of([np.int64(5), np.str_("ada"), np.array(["ada"])[0]]) == names_of([5, "ada", "ada"])
    assert names_of([Customer.ADA]) == names_of(["ada"])
    with opened(tmp_path / "book", ["ada", 5]) as book:
        assert book.submit(np.array(["ada"])) == 1
        assert book.submit(np.int64(5)) == 1


def test_letters_are_compared_one_by_one(tmp_path):
    composed, decomposed, joined = "Zo\u00eb", "Zoe\u0308", "a\u200db"
    strange = [composed, decomposed, joined, "ab", "\x00", "\n", '"', "\\", "\U0001f9d1", "\u0661", "1"]
    assert len(set(names_of(strange))) == len(strange)
    with opened(tmp_path / "book", strange) as book:
        for number, each in enumerate(strange, 1):
            assert book.submit([each]) == 1
            assert len(book.state.pending) == number
        assert book.submit(strange) == 0
        with pytest.raises(ValueError, match='no row has the record ids "zo\u00eb"'):
            book.submit([composed.lower()])


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (["\ud800"], ValueError, r"the record id '\\ud800' is no valid text: a lone surrogate .*; read the ids with their own"),
        (["ada", ""], ValueError, "a record id is empty: rows without an id would all count as one person"),
        ({"ada": 1}, TypeError, r"expected a list of record ids, got a dict; of a dict pass list\(keys\)"),
        (b"ada", TypeError, "expected a list of record ids, got a bytes"),
        (None, TypeError, "expected a list of record ids, got a NoneType"),
        ([["ada"]], TypeError, r"record ids are strings or integers, got \['ada'\]"),
        ([1.0], TypeError, r"record ids are strings or integers, got 1\.0"),
        ([np.nan], TypeError, "record ids are strings or integers, got nan"),
    ],
)
def test_what_is_no_id_is_refused_everywhere(tmp_path, ids, error, message):
    with opened(tmp_path / "book", IDS) as book:
        before = book.head
        with pytest.raises(error, match=message):
            book.submit(ids)
        assert book.head == before
        book.close()
        with pytest.raises(error, match=message):
            opened(tmp_path / "other", ids)
        with pytest.raises(error, match=message):
            Ledger.open(tmp_path / "book", ids, salt=SALT, model_fingerprint=MODEL, data_fingerprint="rows")
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("ids", ["ada", {"ada", "bob"}, frozenset({"ada"}), {"ada": 1}.keys()])
def test_ids_of_rows_have_an_order(tmp_path, ids):
    with pytest.raises(TypeError, match="expected a list with the id of every row, in their order, got a"):
        opened(tmp_path / "book", ids)


def test_repeated_and_empty_requests(book, toy):
    assert book.submit(iter(["ada", "ada", "ada"])) == 1
    assert book.submit({"ada", "bob"}) == 1
    for nobody in ([], (), set(), iter([]), np.array([], int)):
        with pytest.raises(ValueError, match="a request names at least one record id"):
            book.submit(nobody)
    np.testing.assert_allclose(kernel(book.apply(unlearn, *toy, KEY)), retrained(0, 1, 2), rtol=1e-12)
