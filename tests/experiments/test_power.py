"""What metrics of an audit see, at a size that only shows that it runs; and what the README says of it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from experiments.benchmarks import power
from jaxunlearn.audit.metrics import METRICS, gap_of

ROOT = Path(__file__).parents[2]


def test_every_metric_is_tried_on_every_case(tmp_path, capsys):
    power.main(power.Config(smoke=True, metrics=("margin_gap",), out=tmp_path / "power.json"))
    summary = json.loads((tmp_path / "power.json").read_text())
    told = {x["case"]: x["told"] for x in summary["told"]}
    assert list(told) == list(power.cases(6))
    assert all(low <= share <= high for share, low, high in told.values())
    assert told["all left by 1 sd"][0] > told["null"][0]  # of a mean over 6 rows and 8 models: 7 standard errors
    assert "not inside" in capsys.readouterr().out


def test_simulated_models_differ_as_the_case_says():
    case = power.Case(np.array([3, 0, 0, 0], np.float32), 0.5, 0.25)
    candidate, reference = power.draw(jax.random.key(0), case, 400, {"forget": 4, "retain": 5, "test": 6})
    unlearned, retrained = candidate["forget_margins"], reference["forget_margins"]
    error = 5 * (1.25 / 400) ** 0.5
    np.testing.assert_allclose(unlearned.mean(axis=0) - retrained.mean(axis=0), case.shift, atol=error)
    np.testing.assert_allclose(unlearned.std(axis=0) / retrained.std(axis=0), 0.5, atol=0.1)
    np.testing.assert_allclose(
        candidate["test_margins"].mean(axis=0) - reference["test_margins"].mean(axis=0), -0.25, atol=0.36
    )
    spread = float(jnp.std(retrained - retrained.mean(axis=0)))
    assert spread == pytest.approx(1, abs=0.1)


def test_a_verdict_is_what_the_p_value_says():
    """`judge` draws its labels with the first of three keys."""
    case, key = power.cases(6)["all left by 1 sd"], jax.random.key(3)
    candidate, reference = power.draw(key, case, 8, {"forget": 6, "retain": 5, "test": 5})
    metric, labels = METRICS["margin_gap"], {"num_permutations": 39}
    judged = ju.audit.judge(metric.statistic, candidate, reference, candidate, key, num_bootstraps=2, **labels)
    first = jax.random.split(key, 3)[0]
    p_value = ju.audit.permutation_p_value(gap_of("forget_margins"), candidate, reference, first, two_sided=True, **labels)
    assert float(judged.p_value) == float(p_value)
    assert (int(judged.verdict) != ju.audit.Verdict.INSIDE) == bool(p_value <= 0.05)


def test_the_readme_shows_what_was_measured():
    summary = json.loads((ROOT / "experiments/results/power.json").read_text())
    assert power.markdown(summary, summary["config"]["models"][0]) in (ROOT / "README.md").read_text()
    null = [x for x in summary["told"] if x["case"] == "null"]
    assert {x["metric"] for x in null} == {name for name, metric in METRICS.items() if metric.needs != "loss"}
    assert all(x["told"][1] <= 0.05 for x in null)  # no level is above 5 % beyond its interval
