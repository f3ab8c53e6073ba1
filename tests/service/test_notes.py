"""Notes in a ledger's journal, and a ledger whose first data set is gone."""

import pytest

from jaxunlearn.service import journal, repair
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.ledger import Ledger
from jaxunlearn.service.show import table
from tests.crashes import IDS, SALT
from tests.service.books import reopen


def test_notes_are_found_again_and_go_with_a_submission_or_alone(book, about):
    assert book.submit(["ada"], note={"window": (1, 2)}) == 1
    assert book.submit(["ada"], note="again") == 0
    assert book.submit([], note="alone") == 0
    book.note(["later"])
    told = [note.value for note in book.state.notes]
    assert told == [{"window": [1, 2]}, "again", "alone", ["later"]]  # as JSON gives them back
    again = reopen(book, about)
    assert again.state.notes == book.state.notes
    assert again.state.submissions == ((again.hashed('"ada"'),),)
    assert again.rows_of(again.state.pending) == {0, 2}
    assert "a note" in table(again.directory)
    again.close()
    with pytest.raises(ValueError, match="at least one record id"):
        reopen(again, about).submit([])


def test_a_note_that_is_no_json_or_comes_with_strangers_leaves_nothing(book):
    for call in (lambda: book.note({1, 2}), lambda: book.note(float("nan")), lambda: book.submit(["nobody"], note="x")):
        with pytest.raises((TypeError, ValueError)):
            call()
    assert (book.state.notes, book.state.pending) == ((), ())


def test_a_ledger_opens_without_fingerprints_that_are_gone(book, about, toy):
    book.close()
    gone = dict.fromkeys(about)
    with Ledger.open(book.directory, IDS, salt=SALT, **gone) as opened:
        variables, data = toy
        opened.load(variables, data)
        with pytest.raises(LedgerError, match="another data set"):
            opened.load(variables, data._replace(present=data.present.at[0].set(0)))
    with pytest.raises(LedgerError, match="another model"):
        Ledger.open(book.directory, IDS, salt=SALT, model_fingerprint="other", data_fingerprint=None)


def test_a_repair_keeps_the_ids_of_a_submission_beside_the_chain_and_not_its_note(book):
    book.submit(["bob"])
    path = book.directory / "journal.jsonl"
    first, last = journal.read(path).records
    beside = journal.following(first, "submitted", {"ids": [book.hashed('"ada"')], "note": {"window": 7}})
    path.write_bytes(path.read_bytes() + journal.line_of(beside))
    book.close()
    repair.repair(book.directory)
    records = journal.read(path).records
    assert records[-1].body == {"ids": [book.hashed('"ada"')]}
    assert records[1] == last
