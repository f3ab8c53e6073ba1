"""The command line, in this process."""

import builtins
import json
import runpy
import sys
from pathlib import Path

import pytest

import jaxunlearn as ju
from jaxunlearn import catalogue
from jaxunlearn.audit import saved
from jaxunlearn.commands import COMMANDS, main
from jaxunlearn.commands.doctor import faults, look, quota_of, slow
from jaxunlearn.service import journal

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def said(capsys, *arguments, code=0):
    assert main(arguments) == code
    return capsys.readouterr()


def first_column(text):
    return [line.split()[0].rpartition(".")[2] for line in text.splitlines()[1:]]


def test_methods_lists_all_and_filters_leave_what_the_cards_say(capsys):
    assert first_column(said(capsys, "methods").out) == sorted(ju.METHODS)
    found = first_column(said(capsys, "methods", "--reads", "forget", "--takes", "model").out)
    assert found == [name for name, card in sorted(ju.METHODS.items()) if card.takes == "model" and card.reads <= {"forget"}]
    assert "gradient_ascent" in found
    assert "npo" not in found
    assert first_column(said(capsys, "methods", "--about", "LEACE").out) == ["concept_erasure"]
    certified = first_column(said(capsys, "methods", "--guarantee", "certified", "exact").out)
    assert set(certified) == {name for name, card in ju.METHODS.items() if card.guarantee != "none"}
    assert "undial" not in first_column(said(capsys, "methods", "--task", "values").out)
    assert said(capsys, "methods", "--family", "guard", "--task", "classes", code=1).out == "no method fits\n"
    assert "no method reads nonsense; there are" in said(capsys, "methods", "--reads", "nonsense", code=1).err


@pytest.mark.parametrize("task", ["classes", "tokens", "labels", "values"])
def test_what_fits_a_task_follows_the_targets(task):
    wanted = {"classes": {"any", "classes", "tokens"}, "tokens": {"any", "tokens"}}.get(task, {"any"})
    for card in catalogue.chosen(task=task).values():
        assert card.takes == "model"
        assert card.targets in wanted
    left = set(ju.METHODS) - set(catalogue.chosen(task=task))
    assert not [x for x in left if ju.METHODS[x].takes == "model" and ju.METHODS[x].targets in wanted]


def test_cite_knows_every_name_and_says_what_is_near(capsys):
    assert said(capsys, "cite", "leace", "concept_erasure").out.count("@inproceedings{belrose2023leace,") == 1
    assert "did you mean scrub" in said(capsys, "cite", "scrab", code=1).err
    assert "name at least one method" in said(capsys, "cite", code=1).err


def test_a_command_line_that_cannot_be_read_ends_with_two():
    for wrong in (["forget"], ["methods", "--guarantee", "surely"], []):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)


def test_without_tyro_it_says_what_to_install(capsys, monkeypatch):
    original = builtins.__import__
    monkeypatch.delitem(sys.modules, "tyro", raising=False)

    def without(name, *rest, **options):
        if name == "tyro":
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["methods"]) == 1
    assert "pip install 'jaxunlearn[cli]'" in capsys.readouterr().err


def test_doctor_prints_what_is_here(capsys):
    text = said(capsys, "doctor").out
    for word in ("jaxunlearn", ju.__version__, "float64", "devices", "threads", "jaxlib"):
        assert word in text
    assert "wrong:" not in text


def test_doctor_names_faults_and_what_mends_them():
    machine = look()
    sound = machine._replace(
        platform="gpu", devices=("H100 0",), has_float64=True, cores=2, quota=None, load=0.0, has_gpu=True, environment={},
        versions={"jaxlib": "0.10.1"},
        settings={"jax_default_prng_impl": "threefry2x32", "jax_compilation_cache_dir": "here"},
    )  # fmt: skip
    assert faults(sound) == slow(sound) == []
    assert [x.mend for x in faults(sound._replace(versions={"jaxlib": "0.10.2"}))] == ["pip install 'jaxlib!=0.10.2'"]
    assert "JAX_PLATFORMS=cpu" in faults(sound._replace(has_float64=False))[0].mend
    assert "rbg" in faults(sound._replace(settings={"jax_default_prng_impl": "rbg"}))[0].what
    on_cpu = sound._replace(platform="cpu", devices=("cpu 0",), cores=8)
    mends = " ".join(x.mend for x in slow(on_cpu))
    for word in ("takes all 8", "jaxunlearn[cuda]", "convolution.py", "OPENBLAS_NUM_THREADS=1"):
        assert word in mends
    assert "takes all 2" in " ".join(x.mend for x in slow(on_cpu._replace(quota=2.5)))  # not eight: the quota counts
    assert "taskset -c 0-1" in " ".join(x.mend for x in slow(on_cpu._replace(quota=2.5)))
    assert "takes all" not in " ".join(x.mend for x in slow(on_cpu._replace(quota=0.5)))
    assert "JAX_COMPILATION_CACHE_DIR" in slow(sound._replace(settings={"jax_default_prng_impl": "threefry2x32"}))[0].mend
    assert "9.0 processes want 2 core(s)" in slow(sound._replace(load=9.0))[0].what


def test_quotas_of_containers(tmp_path):
    file = tmp_path / "cpu.max"
    assert quota_of(file) is None
    file.write_text("max 100000\n")
    assert quota_of(file) is None
    file.write_text("150000 100000\n")
    assert quota_of(file) == 1.5


def sound_journal(folder):
    first = journal.following(None, "created", {"model": "m" * 8, "data": "d" * 8, "original": "o", "salt": "s"})
    second = journal.following(first, "submitted", {"ids": ["a", "b"]})
    (folder / "journal.jsonl").write_bytes(b"".join(map(journal.line_of, (first, second))))
    return folder / "journal.jsonl", second


def test_ledgers_are_listed_verified_and_repaired(tmp_path, capsys):
    path, last = sound_journal(tmp_path)
    where = str(tmp_path)
    assert "2 ids pending" in said(capsys, "ledger", "list", where).out
    assert said(capsys, "ledger", "verify", where).out == f"2 records are sound; head {last.hash}\n"
    said(capsys, "ledger", "verify", where, "--head", last.hash)
    assert "were cut off" in said(capsys, "ledger", "verify", where, "--head", "f" * 64, code=1).err
    assert "belongs to `ledger verify`" in said(capsys, "ledger", "list", where, "--head", "f", code=1).err
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert "is torn" in said(capsys, "ledger", "verify", where, code=1).err
    assert "1 records kept as they were" in said(capsys, "ledger", "repair", where).out
    assert said(capsys, "ledger", "verify", where).out.startswith("2 records are sound")
    path.write_bytes(whole.replace(b'"a"', b'"c"'))
    assert "tampered" in said(capsys, "ledger", "verify", where, code=1).err
    for action in ("list", "verify", "repair"):
        assert "there is no journal at" in said(capsys, "ledger", action, str(tmp_path / "nowhere"), code=1).err


KEPT = [f for f in sorted(RESULTS.glob("*.json")) if {"judgements", "scenarios"} & set(json.loads(f.read_text()))]


@pytest.mark.parametrize("file", KEPT, ids=lambda x: x.stem)
def test_every_saved_audit_and_comparison_is_shown_whole(file, tmp_path, capsys):
    text = said(capsys, "report", str(file)).out
    found = json.loads(file.read_text())
    for scenario, one in found.get("scenarios", {}).items():
        part = text.split(f"## {scenario.capitalize()}\n")[1].split("\n## ")[0]
        assert [line.split(" | ")[0][2:] for line in part.splitlines() if line.startswith("| ")][2:] == list(one["methods"])
    for name, judged in found.get("judgements", {}).items():
        assert f"| {judged['verdict']} |" in next(
            x for x in text.splitlines() if x.startswith(f"| {ju.audit.METRICS[name].label} |")
        )
    page = tmp_path / "report.html"
    said(capsys, "report", str(file), "--out", str(page))
    shown = page.read_text()
    assert shown.count("<tr>") == sum(1 for x in text.splitlines() if x.startswith("| ") and "| ---" not in x)


def test_other_files_are_refused(tmp_path, capsys):
    other = tmp_path / "other.json"
    for text, message in (("{", "is no JSON"), ('{"rows": 1}', "got the keys rows"), ("[1]", "of no object")):
        other.write_text(text)
        assert message in said(capsys, "report", str(other), code=1).err
    assert "No such file" in said(capsys, "report", str(tmp_path / "nothing.json"), code=1).err


def test_missing_numbers_are_dashes():
    assert saved.interval(None) is saved.interval([None, None, None]) is None
    (section,) = saved.report_of({"scenarios": {"class": {"methods": {"ssd": {"means": {"auc": None}}}}}})[1]
    assert section.tables[0].rows == [["ssd", *["–"] * 3]]  # noqa: RUF001


def test_as_a_module(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jaxunlearn", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("jaxunlearn", run_name="__main__")
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert name in shown
