"""Influence against a bank of retrained models."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments import attribution
from experiments.common import token_study
from experiments.common.scale import Scale


def test_scores_are_mean_rank_correlations_with_intervals():
    rng = np.random.default_rng(0)
    measured, noise = rng.normal(size=(60, 5)), rng.normal(size=(60, 5))
    found = attribution.correlated(measured + noise, measured, 0)
    expected = np.mean([spearmanr(measured[:, q] + noise[:, q], measured[:, q]).statistic for q in range(5)])
    assert found["score"] == pytest.approx(expected)
    assert found["low"] < found["score"] < found["high"]
    good, bad = (
        {"matrix": name, "predicted": x, **attribution.correlated(x, measured, 0)}
        for name, x in (("a", measured), ("b", noise))
    )
    assert attribution.compared(good, bad, measured, 0).startswith("a beats b")
    assert "not told apart" in attribution.compared(bad, {**bad, "matrix": "c"}, measured, 0)


@pytest.mark.slow
def test_the_script_runs_and_finds_its_bank_again(tmp_path):
    config = attribution.Config(smoke=True, scale=Scale(mesh=False), out=tmp_path)
    first = attribution.main(config)
    assert {row["matrix"] for row in first["rows"]} == {"EK-FAC", "EK-FAC and CG"}
    written = (tmp_path / "bank.npz").stat().st_mtime_ns
    again = attribution.main(config)
    assert (tmp_path / "bank.npz").stat().st_mtime_ns == written
    assert [row["score"] for row in again["rows"]] == [row["score"] for row in first["rows"]]
    for row in first["rows"]:
        assert -1.01 < row["low"] <= row["high"] < 1.01


@pytest.mark.slow
def test_a_decoder_is_explained_by_the_likelihood_of_its_queries(tmp_path):
    config = attribution.Config(
        smoke=True, network="decoder", width=8, layers=1, length=8, scale=Scale(mesh=False), out=tmp_path
    )
    found = attribution.main(config)
    assert {row["matrix"] for row in found["rows"]} == {"EK-FAC", "EK-FAC and CG"}
    assert all(np.isfinite(row["score"]) for row in found["rows"])


def test_rows_of_a_decoder_are_of_other_people_than_its_queries():
    study = token_study.learned(num_rows=30, held_out=5, num_steps=1, width=8, layers=1, length=40)
    train, test = (np.asarray(x.inputs) for x in (study.data.train, study.test))
    assert (train.shape, test.shape) == ((30, 40), (5, 40))
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in test}
    assert (np.asarray(study.data.train.targets) == -1).any()  # the last row of a text is padded
    with pytest.raises(ValueError, match="do not give"):
        token_study.learned(num_rows=30, held_out=10**6, num_steps=1)
