"""The scripts, at sizes that only show that they run."""

import contextlib
import importlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from rich.console import Console

import experiments
import jaxunlearn as ju
from experiments import audit, curvature, dampening, quickstart, representation, tune_quickstart
from experiments.benchmarks import audit as audit_benchmark
from experiments.benchmarks import batched, timing
from experiments.common import outcome, script, study
from experiments.common.scale import Scale

ONE_DEVICE = Scale(mesh=False)  # a program of eight faked devices takes eight times as long; `test_scale.py` has a mesh


@pytest.mark.slow
def test_the_benchmark_compares_before_it_times(tmp_path, capsys):
    batched.main(batched.Config(requests=8, steps=1, rounds=1, out=tmp_path / "batched.json"))
    summary = json.loads((tmp_path / "batched.json").read_text())
    ratios = summary["ratio_to_best_one_device_loop"]
    assert min(ratios["loop over a jitted call"], ratios["lax.map"], ratios["vmap"]) == 1
    assert summary["valid"] == (summary["load_per_core_before"] <= timing.BUSY)
    assert "load average before" in capsys.readouterr().out


def test_timing_takes_medians_in_turn():
    calls = []
    times = timing.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert times.best["a"] <= times.median["a"]


def test_settings_and_grids_speak_of_the_same_methods_and_numbers():
    for scenario, settings in quickstart.SETTINGS.items():
        assert set(settings) == {*tune_quickstart.GRIDS[scenario], "unseen_matching"} < set(ju.METHODS) - {"retrain"}
        for method, grid in tune_quickstart.GRIDS[scenario].items():
            options = settings[method]
            assert all(value in grid[name] for name, value in options.items())


@pytest.mark.parametrize(
    ("scaled", "words"),
    [
        ((1.9, -1.9, 0, 0), "like retrained models"),
        ((0, 0, 0, 2.1), "still knows the forget set"),
        ((-3, -3, 0, 0), "drives it out too far, damages the rest"),
        ((0, 3, 2.5, -3), "still knows the forget set, drives it out too far, knows the rest better"),
    ],
)
def test_gaps_are_put_into_words(scaled, words):
    assert outcome.in_words(dict(zip(outcome.MEASURES, scaled, strict=True))) == words


def test_gaps_are_counted_in_standard_deviations_over_seeds():
    values = np.zeros((2, 3), np.float32)
    spread = np.array([[1.0, 2, 3], [3, 4, 5]], np.float32)  # over seeds: sqrt(2) for every request
    fields = dict.fromkeys(outcome.Outcome._fields, values)
    retrained = outcome.Outcome(**{**fields, "forget": spread})
    other = outcome.Outcome(**{**fields, "forget": spread + 1, "auc": values - 1})
    assert outcome.spreads(retrained)["forget"] == pytest.approx(2**0.5)
    scaled = outcome.in_spreads(other, retrained)
    assert scaled["forget"] == pytest.approx(2**-0.5)
    assert scaled["retain"] == 0
    assert scaled["auc"] == -np.inf
    assert outcome.in_spreads(other, retrained, least=0.5)["auc"] == -2


def test_the_quickstart_answers_and_audits_every_seed_and_request(tmp_path, capsys):
    config = quickstart.Config(
        scale=ONE_DEVICE, seeds=2, random_requests=2, rows=120, training_steps=3, unlearning_steps=2, out=tmp_path
    )
    summary = quickstart.main(config)
    assert summary["scenarios"].keys() == {quickstart.RANDOM, quickstart.CLASSES}
    for kind, count in ((quickstart.RANDOM, 2), (quickstart.CLASSES, 10)):
        found = summary["scenarios"][kind]
        assert found["requests"] == count
        assert set(found["methods"]) == set(quickstart.ORDER)
        assert all(x["estimate"] is not None for x in found["methods"]["scrub"]["means"].values())
        assert (
            found["methods"][outcome.RETRAINED]["means"]["divergence"]["estimate"]
            < 1e-6
            < (found["methods"]["scrub"]["means"]["divergence"]["estimate"])
        )
    assert json.loads((tmp_path / "quickstart.json").read_text())["config"]["rows"] == 120
    assert {"report.html", "quickstart.png"} <= {path.name for path in tmp_path.iterdir()}
    text = capsys.readouterr().out
    assert text.count("do nothing") >= 4  # two tables per kind of requests, and again where a narrow one folds


def test_a_study_refuses_more_rows_than_there_are_and_draws_requests_of_the_sizes_asked_for():
    setting = study.overfitted(num_rows=120, num_steps=3)
    requests = study.random_requests(setting.data, [4, 9], seed=0)
    assert requests.weights.sum(axis=1).tolist() == [4, 9]
    with pytest.raises(ValueError, match="fewer than num_rows"):
        study.overfitted(num_rows=10_000)


@pytest.mark.slow
def test_an_audit_of_the_smallest_size_writes_its_report(tmp_path, capsys):
    summary = audit.main(audit.Config(scale=ONE_DEVICE, smoke=True, metrics=("forget_accuracy", "u_lira"), out=tmp_path))
    assert set(summary["judgements"]) == set(summary["controls"]) == {"forget_accuracy", "u_lira"}
    assert json.loads((tmp_path / "audit.json").read_text())["settings"]["num_models"] == 39
    assert (tmp_path / "audit.md").read_text().startswith("Question: is the influence")
    assert "</html>" in (tmp_path / "report.html").read_text()
    assert "U-LiRA" in capsys.readouterr().out


@pytest.mark.slow
def test_representations_are_compared_with_the_dense_matrix(tmp_path):
    small = {"rows": 60, "training_steps": 30, "polish_steps": 5, "requests": 2, "request_size": 4, "seeds": 1, "rank": 8}
    summary = curvature.main(curvature.Config(**small, damping=(1e-2,), repeats=1, scale=ONE_DEVICE, out=tmp_path))
    rows = {row["representation"]: row for row in summary["rows"]}
    assert rows["dense GGN"]["error"] == 0
    assert all(np.isfinite(row["error"]) for row in rows.values())
    stands_still = max(summary["gradient_norm_after_training"]) <= curvature.STATIONARY
    assert all((row["left"] is not None) == stands_still for row in rows.values())
    assert rows["diagonal"]["memory_mib"] < rows["EK-FAC"]["memory_mib"] < rows["dense GGN"]["memory_mib"]
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_dampening_is_swept_over_thresholds_and_batch_sizes(tmp_path):
    summary = dampening.main(dampening.Config(scale=ONE_DEVICE, smoke=True, out=tmp_path))
    assert {(row["request"], row["batch_size"], row["alpha"]) for row in summary["rows"]} == {
        (kind, size, alpha) for kind in ("a class", "random rows") for size in (1, 16) for alpha in (1.0, 5.0)
    }
    selected = {row["alpha"]: row["selected"] for row in summary["rows"] if row["batch_size"] == 16}
    assert selected[1.0] > selected[5.0] > 0  # the higher the threshold, the fewer
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_features_are_judged_beside_retrained_models(tmp_path):
    small = {"rows": 200, "training_steps": 20, "unlearning_steps": 3, "seeds": 8, "classes": 2, "betas": (1e-3, 1e-1)}
    fewer = {"peers": ("ssd",), "autoencoder_steps": 5, "deep_steps": 5, "random_rows": 10}
    summary = representation.main(representation.Config(**small, **fewer, scale=ONE_DEVICE, out=tmp_path))
    words = summary["words"]
    assert {"affine map, standard", "affine map, zero-shot", "deep map", "ssd", "retrained again"} <= set(words)
    assert "deleted" not in " ".join(words.values())
    assert json.loads((tmp_path / "representation.json").read_text())["chosen_beta"].keys() == {"standard", "zero_shot"}
    assert "</html>" in (tmp_path / "report.html").read_text()


def scripts():
    """Names of scripts whose flags tyro reads."""
    folder = Path(experiments.__file__).parent
    paths = sorted([*folder.glob("[a-z]*.py"), *folder.glob("benchmarks/[a-z]*.py")])
    found = [path for path in paths if "tyro.cli(" in path.read_text() or "script.run(" in path.read_text()]
    return [".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in found]


@pytest.mark.parametrize("name", scripts())
def test_help_has_no_empty_default(name, capsys):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "kronfluence", "threadpoolctl", "peft", "transformers"):  # of the extra `benchmarks`
            raise
        pytest.skip(f"needs {error.name}")
    with pytest.raises(SystemExit, match="0"):
        tyro.cli(module.Config, description=module.__doc__, args=["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: " in text
    assert not re.findall(r"--[\w-]+ [^()]*\(default: ?\)", text)


def test_a_bar_ends_at_its_end_whatever_was_counted():
    for counted, ends in ((3.0, True), (10, True), (12, True), (3, False)):
        file = io.StringIO()
        with contextlib.suppress(ZeroDivisionError), script.progress(Console(file=file, width=120), "x", 10) as advance:
            advance("half way", done=counted)
            if not ends:
                raise ZeroDivisionError
        assert ("100%" in file.getvalue().splitlines()[-1]) == ends


def test_all_bars_are_the_one_that_ends():
    """But for reading files, by `rich.progress.track`, which ends with what it walks over."""
    folder = Path(experiments.__file__).parent
    made = [path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if "Progress(" in path.read_text()]
    assert made == ["common/script.py"]
    used = [path.stem for path in folder.glob("[a-z]*.py") if "script.progress(" in path.read_text()]
    assert {"audit", "compare", "curvature", "dampening", "quickstart", "tune_quickstart"} <= set(used)


def test_only_a_smoke_run_is_compiled_in_a_hurry(monkeypatch):
    @dataclass
    class Flags(script.Base):
        pass

    seen = []
    set_to = []
    monkeypatch.setattr(jax.config, "update", lambda *values: set_to.append(values))
    for arguments, expected in ((["--smoke"], [("jax_disable_most_optimizations", True)]), ([], [])):
        set_to.clear()
        monkeypatch.setattr(sys, "argv", ["script", *arguments])
        script.run(seen.append, Flags, "A script.")
        assert set_to == expected
    assert [flags.smoke for flags in seen] == [True, False]


def test_metrics_equal_their_twins_before_they_are_timed(tmp_path):
    sizes = {"examples": 40, "models": 8, "quality_examples": 3, "quality_models": 16, "rows": 60, "looped": 2, "rounds": 1}
    audit_benchmark.main(audit_benchmark.Config(**sizes, out=tmp_path / "audit.json"))
    assert {row["metric"] for row in json.loads((tmp_path / "audit.json").read_text())["milliseconds"]} == {
        "KLoM", "forgetting quality", "RMIA",
    }  # fmt: skip
