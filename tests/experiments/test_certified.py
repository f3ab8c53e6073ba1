"""The script about certified streams, nearly in its smoke size, with all heads."""

import json

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from experiments import certified_stream
from experiments.common import certified
from experiments.common.scale import Scale


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("certified")
    small = {"problem": "binary", "removals": 12, "requests": 4, "draws": 10, "extractor_steps": 20, "window": 5}
    return certified_stream.main(certified_stream.Config(**small, scale=Scale(mesh=False), out=out)), out


def test_a_head_is_certified_unless_its_features_saw_the_rows(run):
    heads = run[0]["heads"]
    assert [head["stream"]["verdict"] for head in heads.values()] == ["valid", "valid", "refused"]
    (reason,) = heads["own features"]["assumptions_that_failed"]
    assert reason.startswith("extractor: ")
    assert heads["own features"]["stream"]["accuracy"] is None  # what is refused is not released


def test_every_window_has_a_certificate_of_its_own_and_a_rest_is_left_out(run):
    for head in run[0]["heads"].values():
        assert head["stream"]["removals"] == 10
        assert head["stream"]["certificates"] == (2 if head["stream"]["verdict"] == "valid" else 0)
        assert head["largest_certified_distance"] <= head["sensitivity"]


def test_a_stream_in_windows_is_the_stream_and_looks_at_what_is_left():
    rng = np.random.default_rng(0)
    data = ju.training_data(ju.convex.feature_rows(rng.normal(size=(30, 3))), rng.integers(0, 2, 30).astype(np.int32))
    problem, rows = ju.convex.logistic(0.1), np.array([4, 7, 1, 20, 9, 11])
    options = {"steps": 1, "capacity": 2, "key": jax.random.key(0)}
    head = ju.convex.fit(problem, data)
    whole = certified.stream(problem, data, head, rows, **options)

    def look(result, left, request):
        return int(left.present.sum()), np.asarray(request.indices).tolist(), int(result.stats["num_retain"])

    parts = certified.stream(problem, data, head, rows, **options, window=2, look=look)
    assert parts.looked == [(28, [4, 7], 28), (26, [1, 20], 26), (24, [9, 11], 24)]
    np.testing.assert_allclose(certified.kernel_of(parts.last), certified.kernel_of(whole.last), rtol=0, atol=1e-13)
    np.testing.assert_allclose(parts.stats["residual"], whole.stats["residual"], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="does not divide"):
        certified.stream(problem, data, head, rows, **options, window=4)


def test_distances_are_within_their_bounds(run):
    for head in run[0]["heads"].values():
        for answers in (head["stream"], head["simultaneous"]):
            assert answers["distance"] <= answers["distance_bound"] + 1e-12


@pytest.mark.parametrize(("lower", "upper"), [("residual", "quartic_bound"), ("quartic_bound", "data_bound")])
def test_a_stream_whose_bounds_are_out_of_order_is_refused(lower, upper):
    stats = {"residual": np.array([1.0, 1]), "quartic_bound": np.array([2.0, 2]), "data_bound": np.array([3.0, 3])}
    certified.require_order(stats)
    stats[lower][1] = stats[upper][1] + 1e-6
    with pytest.raises(AssertionError, match=f"{lower} exceeds {upper} at removal 1"):
        certified.require_order(stats)


def test_less_noise_for_a_larger_epsilon(run):
    noise = [row["noise"] for row in run[0]["accuracy_against_epsilon"]]
    assert noise == sorted(noise, reverse=True)


def test_files_are_written_and_name_no_folder(run):
    summary, out = run
    text = (out / "certified_stream.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(summary))
    assert str(out) not in text
    assert (out / "certified_stream.png").read_bytes().startswith(b"\x89PNG")
    assert "refused: extractor" in (out / "report.html").read_text()


def test_deletions_leave_rows_of_every_class():
    labels = np.array([0] * 20 + [1] * 4 + [2] * 2)
    rows = certified.deletions(labels, 100, seed=0, keep=0.25)
    assert np.bincount(np.delete(labels, rows)).tolist() == [5, 2, 2]
    assert rows[:3].tolist() == certified.deletions(labels, 3, seed=0, keep=0.25).tolist()


def test_accuracy_is_that_of_the_released_weights():
    kernel = np.array([[1.0], [0.0]])
    examples = ju.Examples(np.array([[1.0, 0], [-1, 0], [2, 0], [-2, 0]]), np.array([1, 0, 1, 0]))
    assert certified.accuracy(kernel, examples) == 1
    assert certified.accuracy_of_releases(kernel, 0.0, examples, draws=3, seed=0).estimate == 1
    assert certified.accuracy_of_releases(kernel, 100.0, examples, draws=200, seed=0).estimate < 0.8
