"""All benchmarks in one table."""

import json

import pytest

from experiments.benchmarks import run


def test_stored_figures_are_shown_with_their_age(tmp_path, capsys):
    found = run.main(run.Config(stored=True, out=tmp_path))
    assert {row["age"].split(",")[0] for row in found["rows"]} <= {"same", "changed", "unknown"}
    assert len({row["what"] for row in found["rows"]}) > len(run.BENCHMARKS)
    for row in found["rows"]:
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
        assert row["reached"] == ("" if row["target"] is None else "yes" if row["ratio"] >= row["target"] else "no")
    assert json.loads((tmp_path / "benchmarks.json").read_text())["rows"] == found["rows"]
    assert "targets reached" in capsys.readouterr().out


def test_what_was_not_run_is_named_and_not_left_out_in_silence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda package: None)
    with pytest.raises(SystemExit) as end:
        run.main(run.Config(only=("pytorch", "certified"), out=tmp_path))
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert "pytorch: not run, torch, threadpoolctl is missing" in said
    monkeypatch.setattr(run, "find_spec", lambda package: package)
    assert run.run("certified", run.BENCHMARKS["certified"], run.Config(out=tmp_path))[1] == (
        "not run, needs prepared MNIST: --data-dir DIR"
    )
    with pytest.raises(SystemExit, match="no benchmark is called x"):
        run.main(run.Config(only=("x",), out=tmp_path))


def test_a_benchmark_that_fails_or_hangs_says_so(tmp_path):
    broken = run.BENCHMARKS["imports"]._replace(flags=("--no-such-flag",))
    assert run.run("imports", broken, run.Config(out=tmp_path))[1].startswith("failed with status 2")
    assert run.run("imports", run.BENCHMARKS["imports"], run.Config(out=tmp_path, minutes=1e-3))[1] == (
        "stopped after 0.001 minutes"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imports", "batched_mlp", "summation", "funu", "audit_benchmark"])
def test_every_benchmark_without_a_peer_runs(tmp_path, name):
    config = run.Config(smoke=True, out=tmp_path)
    one = run.BENCHMARKS[name]
    place, problem = run.run(name, one, config)
    assert problem is None
    assert run.lines(json.loads(place.read_text()), one, "now")
