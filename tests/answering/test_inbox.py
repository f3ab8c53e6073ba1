"""Inboxes: whole lines in their order, and what somebody did to a file behind our back."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest

from jaxunlearn.answering import inbox
from jaxunlearn.answering.asked import Asked, Lookup, parse
from jaxunlearn.answering.near import near_duplicates


def seal(text):
    return f"sealed {hash(text)}"


def read(path, place=None, most=1000):
    with closing(inbox.lines(path, place, seal)) as lines:
        return [line for _, line in zip(range(most), lines, strict=False)]


def base(path, *texts, table=inbox.TABLE):
    with closing(sqlite3.connect(path)) as opened, opened:
        opened.execute(table.replace("TABLE", "TABLE IF NOT EXISTS", 1))
        opened.executemany("INSERT INTO requests (request) VALUES (?)", [(text,) for text in texts])


def test_a_line_counts_once_its_break_is_there(tmp_path):
    path = tmp_path / "inbox.jsonl"
    path.write_bytes(b"one\r\n\ntwo")
    found = read(path)
    assert [(line.name, line.content) for line in found] == [("line 1", b"one"), ("line 2", b"")]
    with path.open("ab") as file:
        file.write(b" and a half\nthree\n")
    later = read(path, found[-1].after)
    assert [(line.name, line.content) for line in later] == [("line 3", b"two and a half"), ("line 4", b"three")]
    assert read(path, later[-1].after) == []
    assert [line.name for line in read(path, found[0].after, most=1)] == ["line 2"]


def test_a_line_that_is_too_long_is_no_line_until_it_ends_and_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(inbox, "LONGEST", 64)
    path = tmp_path / "inbox.jsonl"
    path.write_bytes(b"x" * 1000)
    assert read(path) == []
    with path.open("ab") as file:
        file.write(b"\nshort\n" + b"y" * 63 + b"\n" + b"z" * 64 + b"\n")
    found = read(path)
    assert [len(line.content) for line in found] == [0, 5, 63, 64]
    assert [bool(line.fault) for line in found] == [True, False, False, False]
    assert next(line.content for line in read(path, found[0].after)) == b"short"


@pytest.mark.parametrize("change", ["truncated", "rotated", "rewritten", "emptied"])
def test_a_file_that_is_another_one_is_found_out(tmp_path, change):
    path = tmp_path / "inbox.jsonl"
    path.write_bytes(b"first\nsecond\n")
    place = read(path)[-1].after
    new = {"truncated": b"first\n", "rotated": b"other\nlines!\nand more\n", "rewritten": b"first\nsecond!\n", "emptied": b""}
    path.write_bytes(new[change])
    with pytest.raises(inbox.InboxError, match="truncated, rotated or rewritten"):
        read(path, place)
    path.rename(tmp_path / "old")
    (tmp_path / "old").write_bytes(b"first\nsecond\nthird\n")  # the old file goes on under another name
    assert [line.content for line in read(tmp_path / "old", place)] == [b"third"]


def test_rows_of_a_table(tmp_path):
    path = tmp_path / "inbox.db"
    base(path, "one", "two")
    found = read(path)
    assert [(line.name, line.content) for line in found] == [("row 1", b"one"), ("row 2", b"two")]
    with closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("DELETE FROM requests")  # what was answered may go
    base(path, "three")
    assert [(line.name, line.content) for line in read(path, found[-1].after)] == [("row 3", b"three")]
    assert read(path)[0].name == "row 3"


def test_a_table_that_would_lose_requests_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inbox, "PATIENCE", 0.01)
    path = tmp_path / "inbox.db"
    base(path, "one", "two")
    place = read(path)[-1].after
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(inbox.InboxBusy, match="nothing was taken"):
            read(path)
    with closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("INSERT INTO requests (id, request) VALUES (-5, 'in front')")
    with pytest.raises(inbox.InboxError, match="in front of row 2"):
        read(path, place)
    base(tmp_path / "new.db", "one")
    with pytest.raises(inbox.InboxError, match="not the database"):
        read(tmp_path / "new.db", place)
    base(tmp_path / "plain.db", "one", table="CREATE TABLE requests (id INTEGER PRIMARY KEY, request TEXT)")
    with pytest.raises(inbox.InboxError, match="AUTOINCREMENT"):
        read(tmp_path / "plain.db")
    (tmp_path / "inbox.jsonl").write_text("one\n")
    with pytest.raises(inbox.InboxError, match="another kind"):
        read(tmp_path / "inbox.jsonl", place)
    with pytest.raises(FileNotFoundError, match="AUTOINCREMENT"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"{", "no JSON"),
        (b"[1]", "must be an object"),
        (b'{"request": "r", "ids": ["a"], "ids": ["b"]}', "more than once"),
        (b'{"request": "r", "ids": ["a"], "indices": [1]}', "one of"),
        (b'{"request": "r", "ids": ["a"], "also": 1}', "unknown \\['also'\\]"),
        (b'{"ids": ["a"]}', "missing \\['request'\\]"),
        (b'{"request": "", "ids": ["a"]}', "must be text"),
        (b'{"request": 7, "ids": ["a"]}', "must be text"),
        (b'{"request": "a\\nb", "ids": ["a"]}', "printable"),
        (b'{"request": "r", "ids": []}', "at least one"),
        (b'{"request": "r", "ids": "a"}', "must be a list"),
        (b'{"request": "r", "ids": [true]}', "texts or integers"),
        (b'{"request": "r", "ids": ["\\ud800"]}', "no JSON"),
        (b'{"request": "r", "indices": [1.0]}', "integers"),
        (b'{"request": "r", "indices": [NaN]}', "no number of JSON"),
        (b'{"request": "r", "group": {"column": "c"}}', "missing \\['value'\\]"),
        (b'{"request": "r", "group": {"column": "c", "value": true}}', "text or an integer"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "no JSON"),
    ],
)
def test_what_is_malformed_is_named(content, why):
    with pytest.raises(ValueError, match=why):
        parse(content, "line 3")


def test_rows_are_found_and_an_id_is_never_taken_in_part():
    found = Lookup(["ada", "bob", "ada", 7, "7"], {"city": ["Ulm", "Bonn", "Ulm", 1, "1"]})

    def names(kind, value):
        return found.names(Asked("r", kind, value), lambda name: name == '"gone"')

    assert names("ids", ["ada", "ada", "gone"]) == ['"ada"', '"gone"']
    assert (names("ids", [7]), names("ids", ["7"])) == (["7"], ['"7"'])
    assert names("indices", [2, 0, 2]) == ['"ada"']
    assert (names("group", ("city", "Ulm")), names("group", ("city", 1))) == (['"ada"'], ["7"])
    for kind, value, why in (
        ("ids", ["ada", "nobody"], "no row has 1 of the 2 record ids, such as number 2"),
        ("indices", [1, 5], "row 5 is not among"),
        ("indices", [-1], "row -1 is not among"),
        ("indices", [1, 2], "row 2 shares its record id with 1 rows"),
        ("group", ("country", 1), "no column 'country'"),
        ("group", ("city", "Rome"), "no row has this value"),
    ):
        with pytest.raises(ValueError, match=why):
            names(kind, value)
    with pytest.raises(ValueError, match="2 values for 1 rows"):
        Lookup(["ada"], {"city": [1, 2]})


def test_near_duplicates_equal_the_whole_table(monkeypatch):
    monkeypatch.setattr("jaxunlearn.answering.near.BLOCK", 7)  # divides nothing here
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 3)).astype(np.float32)
    features[10:20] = 1e30 * features[:10]  # the same direction, squares overflow
    features[20], features[21] = 0, np.nan
    stays = rng.random(50) < 0.8
    gone = [3, 5, 20, 21, 40, 41, 42, 43, 44]
    unit = features.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = np.nan_to_num(unit @ unit[gone].T, nan=-9)
    expected = {row for row in range(50) if stays[row] and row not in gone and cosines[row].max() >= 0.9}
    found = near_duplicates(features, gone, stays, least=0.9)
    assert {each.row for each in found} == expected
    assert all(each.like == gone[cosines[each.row].argmax()] for each in found)
    assert np.allclose([each.similarity for each in found], [cosines[each.row].max() for each in found])
    assert near_duplicates(features, [], stays) == []
    assert near_duplicates(features, range(50), stays) == []
