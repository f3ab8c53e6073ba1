"""The study of medical images: its data, its requests, the rules that decide its findings, and the script at its smallest."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from experiments import study as script
from experiments.common import findings, grouped, protocol, study
from experiments.common.augmentation import trivial
from experiments.common.data import Dataset
from experiments.common.findings import NOT, REPRODUCED, UNTESTABLE
from experiments.common.scale import Scale

ONE_DEVICE = Scale(mesh=False)
RNG = np.random.default_rng(0)


# Data


def medmnist(path, rows=24, tests=9, **changes):
    """A small file in the format of MedMNIST."""
    arrays = {}
    for split, count in (("train", rows), ("val", 3), ("test", tests)):
        arrays[f"{split}_images"] = RNG.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 3)[:, None]
    np.savez(path, **{name: x for name, x in {**arrays, **changes}.items() if x is not None})
    return arrays


def test_a_medmnist_file_is_read_with_its_groups_or_grouped_by_brightness(tmp_path):
    path = tmp_path / "tiny.npz"
    arrays = medmnist(path)
    found = grouped.load_grouped(str(path), strength=0.0, share=0.5, seed=0)
    assert found.dataset.train.inputs.shape == (24, 8, 8, 1)
    np.testing.assert_allclose(found.dataset.test.inputs[..., 0] * 255, arrays["test_images"], rtol=1e-6)
    assert found.dataset.test.targets.tolist() == [0, 1, 2] * 3
    assert found.dataset.num_classes == 3
    brightness = arrays["train_images"].reshape(24, -1).mean(axis=1)
    np.testing.assert_array_equal(found.groups, brightness > np.median(brightness))
    medmnist(path, train_groups=np.arange(24) % 3, test_groups=np.zeros((9, 1), np.int64))
    given = grouped.read_medmnist(path)
    assert given.names == ("group 0", "group 1", "group 2")
    np.testing.assert_array_equal(given.groups, np.arange(24) % 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "has no test_labels"),
        ({"train_labels": np.zeros((24, 14), np.uint8)}, "one finding of a set with several"),
        ({"train_images": np.zeros((24, 8, 8, 8), np.uint8)}, "volumes are not read"),
        ({"train_images": np.zeros((24, 8, 8), np.float32)}, "must be uint8"),
        ({"train_images": np.zeros((23, 8, 8), np.uint8)}, "23 images and 24 labels"),
        ({"test_images": np.zeros((9, 9, 9), np.uint8)}, "images of train and test differ"),
        ({"train_groups": np.zeros(24, int)}, "add the groups of both splits"),
        ({"train_groups": np.zeros(24, int), "test_groups": np.zeros(8, int)}, "for each of 9 rows"),
        ({"train_groups": np.full(24, -1), "test_groups": np.zeros(9, int)}, "an integer from 0 on"),
    ],
)
def test_another_file_is_refused(tmp_path, changes, message):
    medmnist(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=message):
        grouped.read_medmnist(tmp_path / "bad.npz")


def test_the_synthetic_table_has_the_effect_that_it_says():
    from sklearn.linear_model import LogisticRegression

    effect = 1.3
    found = grouped.adult_like(40_000, 10, effect=effect, seed=0)
    inputs = np.concatenate([found.dataset.train.inputs, found.dataset.train.inputs[:, :1] ** 2], axis=1)
    fitted = LogisticRegression(C=1e6, max_iter=200).fit(inputs, found.dataset.train.targets)
    np.testing.assert_allclose(fitted.coef_[0], [0.6, 0.9, 0.6, 0.8, effect, -0.3], atol=0.12)  # four standard errors
    np.testing.assert_array_equal(found.dataset.train.inputs[:, 4], found.groups)
    np.testing.assert_allclose(found.dataset.train.inputs[:, 3].std(), 1, atol=0.05)


def test_a_pattern_is_added_to_the_second_group_and_to_nobody_else():
    rows = ju.Examples(RNG.random((30, 2, 2, 1), np.float32), np.zeros(30, np.int32))
    before = Dataset(rows, rows, 1, "x")
    found = grouped.with_pattern(before, strength=0.5, share=0.3, seed=0)
    apart = found.dataset.train.inputs - rows.inputs
    assert found.groups.sum() == found.test_groups.sum() == 9
    assert not apart[found.groups == 0].any()
    np.testing.assert_allclose(apart[found.groups == 1], np.broadcast_to(apart[found.groups == 1][:1], (9, 2, 2, 1)), atol=1e-6)
    np.testing.assert_array_equal(grouped.with_pattern(before, strength=0, share=0.3, seed=0).dataset.train.inputs, rows.inputs)
    with pytest.raises(ValueError, match="between 0 and 1"):
        grouped.with_pattern(before, strength=0.5, share=1.0, seed=0)


def test_augmentation_changes_images_one_by_one_and_refuses_tables():
    images = jnp.asarray(RNG.random((64, 8, 8, 1), np.float32))
    labels = jnp.arange(64)
    found = jax.jit(trivial)(ju.Examples(images, labels), jax.random.key(0))
    np.testing.assert_array_equal(found.targets, labels)
    same = np.asarray(jnp.all(found.inputs == images, axis=(1, 2, 3)))
    assert 4 < same.sum() < 32  # a quarter is left, and some shifts are by no pixel
    with pytest.raises(ValueError, match="trivial changes images"):
        trivial(ju.Examples(jnp.ones((3, 4)), labels[:3]), jax.random.key(0))


# Requests


def test_requests_have_the_sizes_groups_and_difficulty_that_were_asked_for():
    data = ju.training_data(np.arange(200, dtype=np.float32)[:, None], np.zeros(200, np.int32))
    groups, order = (np.arange(200) < 30).astype(int), RNG.permutation(200)
    asked = protocol.draw_requests(data, groups, ("a", "b"), order, shares=(0.01, 0.5), each=2, seed=0)
    sizes = dict(zip(asked.kinds, asked.sizes, strict=True))
    assert sizes == {"1 %": 2, "50 %": 100, "only a": 20, "only b": 20, "easiest": 10, "hardest": 10}

    def rows(kind):
        return [np.asarray(asked.requests.indices)[x][: asked.sizes[x]] for x in asked.of(kind)]

    assert all(np.all(x < 30) for x in rows("only b"))
    assert all(np.all(x >= 30) for x in rows("only a"))
    assert all(np.isin(x, order[:20]).all() for x in rows("easiest"))
    assert all(np.isin(x, order[-20:]).all() for x in rows("hardest"))
    assert all(len(np.unique(x)) == len(x) for kind in sizes for x in rows(kind))
    few = protocol.draw_requests(data, (np.arange(200) < 3).astype(int), ("a", "b"), None, shares=(), each=1, seed=0)
    assert few.sizes == (3, 3)  # as many of each group
    with pytest.raises(ValueError, match="no row of b"):
        protocol.draw_requests(data, np.zeros(200, int), ("a", "b"), None, shares=(0.1,), each=1, seed=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        protocol.draw_requests(data, groups, (), None, shares=(1.0,), each=1, seed=0)


def test_every_request_gets_the_settings_of_the_nearest_share():
    asked = protocol.Asked(ju.empty_request(), ("x",) * 4, (1, 9, 40, 90))
    found = protocol.settings_for(asked, {0.01: {"rate": 1.0}, 0.1: {"rate": 2.0}, 0.5: {"rate": 3.0}}, 100)
    assert found["rate"].tolist() == [1, 2, 3, 3]


def test_a_study_knows_which_rows_it_drew():
    setting = study.overfitted(num_rows=50, label_noise=0.0, num_steps=1)
    from experiments.common.data import load

    every = load("digits", seed=0).train
    np.testing.assert_array_equal(setting.data.train.inputs, every.inputs[setting.rows])


# Findings


def seeds(mean, spread=0.002, count=8):
    """Gaps of eight seeds with that mean exactly."""
    return mean + spread * np.linspace(-1, 1, count)


def test_gaps_are_close_far_or_undecided():
    assert findings.is_close(seeds(0.01), 0.02) is True
    assert findings.is_close(seeds(0.05), 0.02) is False
    assert findings.is_close(seeds(0.019, 0.02), 0.02) is None
    assert findings.is_close(seeds(0.05, 0.5), 0.02) is None
    assert findings.is_close(seeds(0.01, count=1), 0.02) is None  # one seed has no interval
    assert findings.is_below(seeds(-0.01), 0.005) is True
    assert findings.is_below(seeds(0.0), 0.005) is False
    assert findings.is_below(seeds(-0.004, 0.02), 0.005) is None
    assert findings.every([True, None, False]) is False
    assert findings.either([None, False, True]) is True
    assert findings.every([]) is findings.either([]) is None


def test_intervals_of_several_gaps_are_wider():
    alone, together = (findings.interval(seeds(0.0), n) for n in (1, 12))
    assert float(together.high) > 1.3 * float(alone.high)
    assert findings.is_close(seeds(0.018, 0.003), 0.02) is True
    assert findings.is_close(seeds(0.018, 0.003), 0.02, comparisons=1000) is None


def test_the_first_finding_needs_every_gap_of_every_method():
    good = {"forget": {0.05: seeds(0.0), 0.5: seeds(0.005)}, "retain": {0.05: seeds(-0.01), 0.5: seeds(0.0)}}
    bad = {**good, "forget": {0.05: seeds(0.1), 0.5: seeds(-0.1)}}  # their mean is none
    noisy = {**good, "forget": {0.05: seeds(0.0, 0.2), 0.5: seeds(0.005)}}
    assert findings.performs_well({"a": noisy}, 0.02).verdict == UNTESTABLE
    assert findings.performs_well({"a": good, "b": good}, 0.02).verdict == REPRODUCED
    found = findings.performs_well({"a": good, "b": bad}, 0.02)
    assert found.verdict == NOT
    assert found.by_method == {"a": REPRODUCED, "b": NOT}
    assert "largest, forget at 5 %, +10.0 [" in found.figure


def test_the_second_finding_needs_damage_that_grows():
    grows = {0.1: seeds(0.0), 0.3: seeds(-0.01), 0.5: seeds(-0.03)}
    found = findings.hurts_generalisation({"a": grows}, 0.005)
    assert found.verdict == REPRODUCED
    assert "-3.0 [" in found.figure
    assert findings.hurts_generalisation({"a": dict.fromkeys(grows, seeds(-0.03))}, 0.005).verdict == NOT  # it does not grow
    assert findings.hurts_generalisation({"a": dict.fromkeys(grows, seeds(0.0))}, 0.005).verdict == NOT
    assert findings.hurts_generalisation({"a": {0.1: seeds(-0.03)}}, 0.005).verdict == UNTESTABLE


def test_the_third_and_the_fourth_finding_look_at_differences():
    assert findings.treats_groups_alike({"a": {"x": seeds(0.001)}}, 0.02).verdict == REPRODUCED
    assert findings.treats_groups_alike({"a": {"x": seeds(0.001), "y": seeds(0.06)}}, 0.02).verdict == NOT
    assert findings.treats_groups_alike({"a": {}}, 0.02).verdict == UNTESTABLE
    both_off, apart = (seeds(0.1), seeds(0.1)), (seeds(-0.2), seeds(0.0))
    assert findings.differs_by_difficulty({"a": both_off}, 0.02).verdict == NOT  # off alike is no bias
    assert findings.differs_by_difficulty({"a": both_off, "b": apart}, 0.02).verdict == REPRODUCED


def test_the_fifth_finding_counts_what_tuning_took():
    cost = findings.Cost(unlearn=1.0, tuning=9.0, search=20.0, retrain=5.0, points=9)
    assert (cost.advantage, cost.tuned_advantage, cost.pays_after) == (5, 0.5, 5)
    assert findings.costs_more_than_it_looks({"a": cost}).verdict == REPRODUCED
    assert findings.costs_more_than_it_looks({"a": cost._replace(tuning=3.5)}).verdict == NOT
    slow = cost._replace(unlearn=6.0)
    assert findings.costs_more_than_it_looks({"a": slow}).verdict == UNTESTABLE
    assert math.isinf(slow.pays_after)


def test_for_a_concept_nothing_is_judged_by_retraining():
    found = findings.of_a_concept()
    assert len(found) == 5
    assert {one.verdict for one in found} == {UNTESTABLE}


# The script


@pytest.mark.slow
def test_a_smoke_run_on_a_file_writes_its_report(tmp_path):
    medmnist(tmp_path / "tiny.npz", rows=140, tests=40)
    config = script.Config(scale=ONE_DEVICE, smoke=True, dataset=str(tmp_path / "tiny.npz"), out=tmp_path / "out")
    summary = script.main(config)
    assert [one["claim"][0] for one in summary["findings"]] == list("12345")
    assert len(summary["tables"]) == 6
    assert summary["requests"] == {"5 %": 6, "30 %": 36, "only low brightness": 12, "only high brightness": 12, "easiest": 6,
                                   "hardest": 6}  # fmt: skip
    assert json.loads((tmp_path / "out" / "study.json").read_text())["groups"].startswith("Groups: brightness")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("What is being asked for") < page.index("The five findings") < page.index("Does it do what")
    assert page.count("<img") == 6


@pytest.mark.slow
def test_a_concept_is_looked_at_on_rows_that_nobody_listed(tmp_path):
    summary = script.main(script.Config(scale=ONE_DEVICE, smoke=True, aim="concept", out=tmp_path))
    (rows,) = summary["tables"].values()
    assert [row["method"] for row in rows] == ["do nothing", "random_label", "retrained"]
    assert all(row["covered"][0] == pytest.approx(1 - row["unseen"][0], abs=1e-3) for row in rows)
    assert {one["verdict"] for one in summary["findings"]} == {UNTESTABLE}
    assert "judge nothing" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "diabetes"}, "compares classes"),
        ({"positive": 10}, "classes 0 to 9"),
        ({"seeds": 1}, "at least 2"),
        ({"methods": ("attribute_unlearning",)}, "forgets attributes"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(SystemExit, match=message):
        script.main(script.Config(scale=ONE_DEVICE, out=tmp_path, rows=60, **changes))


def test_costs_come_from_a_file(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text("[[0, 1], [7, 0]]")
    assert script.costs_of(script.Config(costs=path), 2).tolist() == [[0, 1], [7, 0]]
    with pytest.raises(ValueError, match="3 lists of 3 numbers"):
        script.costs_of(script.Config(costs=path), 3)
