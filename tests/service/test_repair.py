"""The repair of journals that earlier interrupts and threads left behind."""

import json
import subprocess
import sys

import pytest

from jaxunlearn.service import journal, repair
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.fingerprints import keyed, names_of
from tests.crashes import SALT, unlearn
from tests.service.books import KEY, contents, reopen


def lines(book):
    return (book.directory / "journal.jsonl").read_bytes().splitlines(keepends=True)


def leave(book, *parts):
    book.close()
    (book.directory / "journal.jsonl").write_bytes(b"".join(parts))


def name(who):
    return keyed(SALT, names_of([who])[0])


def record(previous, kind, **body):
    return journal.line_of(journal.following(journal.parse(previous.rstrip(b"\n"), "it", None), kind, body))


def test_a_sound_journal_stays_as_it_is(book, about, capsys):
    book.submit(["ada"])
    book.close()
    before = contents(book.directory)
    assert repair.main([str(book.directory)]) == 0
    assert capsys.readouterr().out == "2 records, nothing to mend\n"
    assert contents(book.directory) == before
    assert repair.main([str(book.directory / "nowhere")]) == 1
    assert "there is no journal at" in capsys.readouterr().err


def test_a_torn_record_and_the_one_behind_it_share_a_line(book, about, capsys):
    book.submit(["ada"])
    book.submit(["bob"])
    first, second, third = lines(book)
    torn = third[: len(third) // 2]
    leave(book, first, second, torn, torn[:20], third, torn[:30])
    with pytest.raises(
        LedgerError, match=r"record 2 .* it is no JSON; .*python -m jaxunlearn\.service\.repair keeps every whole"
    ):
        reopen(book, about, recover=True)
    assert repair.main([str(book.directory)]) == 0
    said = capsys.readouterr().out
    assert "3 records kept as they were, 0 from beside the chain" in said
    assert f"set aside: {len(torn) + 20} bytes of a torn record" in said
    aside = next((book.directory / "set-aside").iterdir())
    assert str(aside) in said
    assert set(aside.read_bytes().split(b"\n")) == {torn + torn[:20], torn[:30]}
    with reopen(book, about) as again:
        assert len(again.state.pending) == 2
        assert again.submit(["cyd"]) == 1
    assert [each[:9] for each in lines(book)[:3]] == [each[:9] for each in (first, second, third)]


def test_records_of_two_threads_after_the_same_one_are_both_kept(book, toy, about, capsys):
    book.submit(["ada"])
    book.submit(["bob"])
    first, second, third = lines(book)
    beside = record(second, "submitted", ids=[name("bob"), name("cyd")])
    twin = record(second, "submitted", ids=[name("bob")])
    applied = record(second, "applied", ids=[name("ada")], spent=0.0, data="x", digests={}, stats={}, carried={}, releases=0)
    behind = record(third, "submitted", ids=[name("dan")])
    leave(book, first, second, beside, third, twin, applied, behind, behind)
    with pytest.raises(LedgerError, match=r"record 3 .* does not follow the record before it: .*jaxunlearn\.service\.repair"):
        reopen(book, about, recover=True)
    assert repair.main([str(book.directory)]) == 0
    said = capsys.readouterr().out
    assert "4 records kept as they were, 1 from beside the chain written after them" in said
    assert "set aside: a record 2 (applied): this step has to be repeated" in said
    with reopen(book, about) as again:
        assert set(again.state.pending) == {name(who) for who in ("ada", "bob", "cyd", "dan")}
        again.apply(unlearn, *toy, KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[2]], "record 2 of .* follows one that is not there: .* restore a backup"),
        (lambda lines: [lines[0], lines[1].replace(b"submitted", b"submittal"), lines[2]], "line 1 of .* was tampered with"),
        (lambda lines: [lines[0], b"nonsense\n", lines[2]], "line 1 of .* it is no JSON"),
        (lambda lines: [b"nonsense"], "the journal is empty"),
    ],
)
def test_what_no_interrupt_does_is_not_mended(book, change, message):
    book.submit(["ada"])
    book.submit(["bob"])
    leave(book, *change(lines(book)))
    before = contents(book.directory)
    with pytest.raises(LedgerError, match=message):
        repair.repair(book.directory)
    assert contents(book.directory) == before


def test_an_open_ledger_is_not_mended(book):
    with pytest.raises(LedgerError, match="takes one writer at a time"):
        repair.repair(book.directory)


def test_the_command_runs(book):
    book.close()
    command = [sys.executable, "-m", "jaxunlearn.service.repair", str(book.directory)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "1 records, nothing to mend\n", "")
    assert json.loads(lines(book)[0])["kind"] == "created"
