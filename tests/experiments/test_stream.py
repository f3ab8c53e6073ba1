"""When to retrain, on tables whose best answer is known; and the stream at its smallest."""

import itertools
import json

import numpy as np
import pytest

from experiments import stream
from experiments.common import schedule
from experiments.common.scale import Scale
from experiments.common.schedule import Rule

ONE_DEVICE = Scale(mesh=False)
RNG = np.random.default_rng(0)


def growing(blocks=6):
    """Harm is the age of a model."""
    place = np.arange(blocks + 1)
    return np.where(place >= place[:, None], place - place[:, None], np.nan).astype(float)


def test_costs_are_harm_served_and_retrainings_paid():
    harm = growing()
    assert schedule.follow(harm, 10, 2, lambda since, t: False) == (2 * (1 + 2 + 3 + 4 + 5 + 6), ())
    assert schedule.follow(harm, 10, 2, schedule.every(1)) == (60, (1, 2, 3, 4, 5, 6))
    assert schedule.follow(harm, 10, 2, schedule.every(3)) == (2 * (1 + 2 + 1 + 2) + 20, (3, 6))


def test_the_best_schedule_is_the_best_of_all():
    harm = np.where(np.isnan(growing(5)), np.nan, RNG.random((6, 6)))
    every = []
    for length in range(6):
        for chosen in itertools.combinations(range(1, 6), length):
            every.append(schedule.follow(harm, 0.7, 3, lambda since, t, chosen=chosen: t in chosen).cost)
    found = schedule.best_schedule(harm, 0.7, 3)
    assert found.cost == pytest.approx(min(every))
    assert schedule.follow(harm, 0.7, 3, lambda since, t: t in found.retrained).cost == pytest.approx(found.cost)
    assert found.cost <= schedule.best_interval(harm, 0.7, 3)[1].cost


def test_prices_of_nothing_and_of_anything():
    assert schedule.best_interval(growing(), 0, 1)[0] == 1
    assert schedule.best_interval(growing(), 1e9, 1)[0] == 0
    assert schedule.best_schedule(growing(), 1e9, 1).retrained == ()


def test_a_rule_that_sees_the_harm_finds_the_best_interval():
    """Where harm is age, the observable that is harm says when the interval is over, and one that is noise does not."""
    harm = growing(12)
    interval, best = schedule.best_interval(harm, 6.5, 1)
    assert interval > 1
    observed = {"noise": RNG.random(harm.shape), "harm": harm}
    rule = schedule.chosen_rule([harm, harm], [observed, observed], 6.5, 1)
    assert rule.observable == "harm"
    assert schedule.by_rule(harm, 6.5, 1, rule, observed) == best


def test_a_threshold_that_nothing_reaches_never_retrains():
    assert schedule.by_rule(growing(), 1, 1, Rule("x", np.inf), {"x": growing()}).retrained == ()


def test_models_at_the_mean_of_the_others_do_no_harm():
    fields = {name: np.array([0.5, 0.7, 0.6]) for name in stream.Known._fields}
    fresh = stream.Known(**fields)
    np.testing.assert_allclose(stream.harm_of(fresh, fresh), [0.15, 0.15, 0], atol=1e-12)
    moved = fresh._replace(forgotten=np.array([0.5, 1.0, 0.6]))
    np.testing.assert_allclose(stream.harm_of(moved, fresh), [0.15, (0.15 + 0.45 + 0.15) / 3, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": 204}, "multiple of --blocks"),
        ({"checkpoints": (3,)}, "multiples of --call"),
        ({"checkpoints": (300,)}, "checkpoints lie between"),
        ({"rows": 150}, "leave nothing"),
        ({"methods": ("ssd",)}, "STALE"),
        ({"models": 1}, "at least 2"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(SystemExit, match=message):
        stream.check(stream.Config(**changes))
    assert stream.check(stream.Config()) == 25


@pytest.mark.slow
def test_a_smoke_run_writes_its_report(tmp_path):
    summary = stream.main(stream.Config(scale=ONE_DEVICE, smoke=True, out=tmp_path))
    assert [(row["requests"], row["method"]) for row in summary["drift"]] == [
        (count, name) for count in (2, 8) for name in ("do nothing", "gradient_difference", "retrained again")
    ]
    first, later = (next(x for x in summary["drift"] if x["requests"] == n and x["moved"] and x["moved"][0]) for n in (2, 8))
    assert first["moved"][0] < later["moved"][0]  # the stream goes on from its last weights
    assert len(summary["when_to_retrain"]) == len(stream.PRICES)
    for row in summary["when_to_retrain"]:
        assert row["best"] <= row["fixed"] + 1e-3
        assert row["fixed"] <= min(row["never"], row["always"]) + 1e-3
    assert json.loads((tmp_path / "stream.json").read_text())["config"]["models"] == 2
    assert "</html>" in (tmp_path / "report.html").read_text()
