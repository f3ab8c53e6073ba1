"""Benchmarks of answers and methods, at sizes that only show that they run and count right."""

import numpy as np
import pytest

from experiments.benchmarks import answers, batch_norm, colour_collapse, funu, minnorm, new_model, sisa, summation, tuning
from experiments.common.scale import Scale

pytestmark = pytest.mark.slow
ONE_DEVICE = Scale(mesh=False)


def test_every_cell_has_its_largest_gap(tmp_path):
    found = new_model.main(new_model.Config(smoke=True, scale=ONE_DEVICE, out=tmp_path))
    assert {(row["method"], row["kind"]) for row in found["cells"]} == {
        (name, kind) for name in ("do nothing", "unseen_matching") for kind in ("1 row", "20 rows", "5 %", "class")
    }
    for row in found["cells"]:
        assert row["worst"] == max(map(abs, row["in_spreads"].values()))
    shares = [row["worst"] <= 2 for row in found["cells"] if row["method"] == "unseen_matching"]
    assert found["within_two_spreads"]["unseen_matching"] == np.mean(shares)
    assert (tmp_path / "report.html").exists()


def test_chosen_points_are_compared_with_the_best_of_the_grid(tmp_path):
    found = tuning.main(tuning.Config(smoke=True, scale=ONE_DEVICE, out=tmp_path))
    assert {pair["kind"] for pair in found["pairs"]} == {"random", "class"}
    for pair in found["pairs"]:
        assert pair["ratio"] == pair["values"][pair["chosen"]] / min(pair["values"]) >= 1


def test_verdicts_are_held_against_retrained_models(tmp_path):
    (found,) = answers.main(answers.Config(smoke=True, scale=ONE_DEVICE, out=tmp_path))["data"]
    assert (found["how"], found["passed"]) == ("retrained", True)
    assert (found["right"], found["rejected"]) == (None, None)  # nothing was unlearned that could be checked
    assert found["true"] > 0


def test_every_policy_is_tried(tmp_path):
    found = batch_norm.main(batch_norm.Config(smoke=True, scale=ONE_DEVICE, out=tmp_path))
    assert [row["bn"] for row in found["table"][2:]] == ["frozen", "retain", "all", "evaluate"]
    assert found["table"][2]["first"] is not None


def test_poisoned_rows_are_forgotten_beside_published_figures(tmp_path):
    found = minnorm.main(minnorm.Config(smoke=True, scale=ONE_DEVICE, out=tmp_path))
    assert [row["method"] for row in found["table"]] == ["do nothing", "finetune", "retrain", "minnorm_og"]
    for row in found["table"]:
        assert row["low"] <= row["median"] <= row["high"]
        assert row["median"] == pytest.approx(np.median(row["largest_errors"]), abs=1e-3)


def test_rows_that_a_filter_keeps_are_held_against_random_ones(tmp_path):
    found = funu.main(funu.Config(smoke=True, scale=ONE_DEVICE, out=tmp_path))
    for row in found["rows"]:
        assert 0 < row["kept"] < 1
        assert row["kept_gap"] > 0
        assert row["speedup"] > 0


def test_removal_from_sums_is_compared_with_fitting_anew(tmp_path):
    found = summation.main(summation.Config(smoke=True, scale=ONE_DEVICE, out=tmp_path))
    assert len(found["rows"]) == 7
    for row in found["rows"]:
        assert row["apart"] < 1e-9
        assert row["ratio"] > 0


def test_shards_are_compared_with_runs_in_a_loop(tmp_path):
    found = sisa.main(sisa.Config(smoke=True, scale=ONE_DEVICE, out=tmp_path))
    assert found["removals"]["equal"] == 1
    assert found["removals"]["as_told"] == 3
    assert [row["requests"] for row in found["attacks"]] == [1, 2]
    for row in found["attacks"]:
        assert row["expected"] <= row["attack"] < row["bound"]
    assert found["times"][0]["share"] == 1
    assert [row["what"] for row in found["accuracies"]] == ["votes of shards", "mean of their probabilities", "one model"]
    assert (tmp_path / "report.html").exists()


def test_collapse_onto_colours_is_measured_for_every_method(tmp_path):
    found = colour_collapse.main(colour_collapse.Config(smoke=True, scale=ONE_DEVICE, out=tmp_path))
    assert [row["method"] for row in found["table"]] == ["do nothing", *colour_collapse.PUBLISHED]
    for row in found["table"]:
        assert 0 <= row["low"] <= row["collapse"] <= row["high"] <= 1
