"""The command line, previews and near-duplicates."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.answering import Service
from jaxunlearn.answering.__main__ import main
from jaxunlearn.answering.preview import preview
from jaxunlearn.answering.setup import load
from tests.answering import crashes
from tests.answering.toys import ask, ids, keys, toy
from tests.problems import lane

SETUP = f"{crashes.__file__}:setup"


def where(place, setup=SETUP):
    return [
        "--directory", str(place / "service"), "--setup", setup, "--inbox", str(place / "inbox.jsonl"),
        "--signing-key", str(place / "release.pem"),
    ]  # fmt: skip


def test_commands_find_forget_and_verify(tmp_path, capsys):
    _, public = keys(tmp_path)
    ask(tmp_path / "inbox.jsonl", ids("r-1", "ada"), "nonsense\n")
    assert main(["find", *where(tmp_path), "--as-json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["entries"]
    assert (first["records"], second["outcome"]) == ([{"name": '"ada"', "rows": [0, 2], "effect": None}], "refused")
    assert main(["find", *where(tmp_path)]) == 0
    assert '| 1 | r-1 | "ada" | 2 |' in capsys.readouterr().out
    assert main(["forget", *where(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("window 1: entries 1 to 2, 1 requests for 1 ids forgotten, release 1,")
    receipt = str(tmp_path / "service" / "receipts" / "receipt-00000001.json")
    assert main(["verify", "--receipt", receipt, "--public-key", str(public)]) == 0
    assert capsys.readouterr().out.startswith("valid: request 'r-1' was forgotten in window 1")
    Path(receipt).write_text("{}")
    assert main(["verify", "--receipt", receipt, "--public-key", str(public)]) == 1
    assert "error: " in capsys.readouterr().err


def test_a_setup_is_a_function_in_a_file(tmp_path, capsys):
    keys(tmp_path)
    ask(tmp_path / "inbox.jsonl")
    (tmp_path / "mine.py").write_text("def nothing():\n    return None\n")
    for setup, why in (
        ("mine.py", "FILE.py:function"),
        (f"{tmp_path}/no.py:setup", "there is no setup"),
        (f"{tmp_path}/mine.py:other", "no function 'other'"),
        (f"{tmp_path}/mine.py:nothing", "expected a jaxunlearn.answering.Setup, got NoneType"),
    ):
        assert main(["forget", *where(tmp_path, setup)]) == 1
        assert why in capsys.readouterr().err
    assert isinstance(load(SETUP), ju.answering.Setup)


def test_near_duplicates_are_offered_with_the_entry_that_they_are_most_like(tmp_path):
    private, _ = keys(tmp_path)
    ask(tmp_path / "inbox.jsonl", ids("r-1", "ada"), ids("r-2", "bob"), ids("r-3", "ada"))
    features = np.array([[1, 0], [0, 1], [1, 1], [1, 0.01], [0.01, 1], [-1, 0]])  # rows 0 and 2 are Ada's, 1 is Bob's
    setup = crashes.setup()._replace(features=features, near=0.99)
    with Service.open(tmp_path / "s", setup, inbox=tmp_path / "inbox.jsonl", signing_key=private) as service:
        found = preview(service)
        assert [[(x.row, x.like) for x in entry.near] for entry in found] == [[(3, 0)], [(4, 1)], []]
        service.answer()
        assert preview(service) == []
    assert "near-duplicates that stay" in (tmp_path / "s" / "reports" / "window-000001.html").read_text()


@pytest.mark.slow
def test_a_dry_run_tells_what_answering_each_id_alone_would_do(tmp_path):
    private, _ = keys(tmp_path)
    setup = toy()
    ask(tmp_path / "inbox.jsonl", ids("r-1", *(f"person {row}" for row in (0, *range(8, 28)))))  # more than one call of 16
    with Service.open(tmp_path / "s", setup, inbox=tmp_path / "inbox.jsonl", signing_key=private) as service:
        (found,) = preview(service, expected=True)
        assert service.book.state.pending == ()
    assert [each.rows for each in found.records][:2] == [(0, 1), (8,)]
    for each in found.records[::7]:
        request = lane(ju.from_indices(setup.data, [each.rows]), 0)
        after = setup.unlearn(setup.variables, setup.data, request, jax.random.key(0))
        rows = jax.tree.map(lambda x, rows=each.rows: np.asarray(x)[list(rows)], setup.data.train)
        with jax.enable_x64(True):
            losses = [
                float(np.mean(setup.model.loss(setup.model.forward(x, rows.inputs), rows)))
                for x in (setup.variables, after.variables)
            ]
        assert np.allclose([each.effect.loss_before, each.effect.loss_after], losses, rtol=1e-6)
        assert np.isclose(each.effect.stats["worst_case_bound"], float(after.stats["worst_case_bound"]), rtol=1e-6)
