"""The script at its smallest, and what it measures with."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import image_to_image
from experiments.common import completion
from experiments.common.scale import Scale

ONE_DEVICE = Scale(mesh=False)


def run(tmp_path, **options):
    config = image_to_image.Config(scale=ONE_DEVICE, smoke=True, out=tmp_path, **options)
    return image_to_image.main(config)


def test_a_smoke_run_writes_its_report(tmp_path):
    summary = run(tmp_path)
    assert list(summary["figures"]) == [
        "do nothing", "image_to_image", "image_to_image, proxy", "retrained again", "retrained",
    ]  # fmt: skip
    assert summary["decoder_unchanged"]
    assert summary["figures"]["do nothing"]["forget_times"] == [1, 1, 1]
    assert json.loads((tmp_path / "image_to_image.json").read_text())["config"]["classes"] == 2
    page = (tmp_path / "report.html").read_text()
    assert page.count('alt="Images of') == 2
    assert "</html>" in page


@pytest.mark.slow
def test_baselines_are_run_when_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(image_to_image.SMOKE, "baselines", True)
    assert {"random embedding", "retain embedding", "noisy label", "largest loss"} <= set(run(tmp_path)["figures"])


def test_a_completion_is_the_image_outside_of_the_hole():
    made = completion.build((8, 8, 1), hole=3, width=4, code=2)
    images = jax.random.uniform(jax.random.key(0), (5, 8, 8, 1))
    variables = made.model.init(jax.random.key(1))
    outputs = made.model.forward(variables, images)
    assert int(made.hole.sum()) == 9
    np.testing.assert_array_equal(jnp.where(made.hole, 0, outputs.logits), made.corrupt(None, images))


def test_frechet_distance_of_shifted_and_scaled_samples():
    x = np.random.default_rng(0).normal(size=(200, 3))
    assert completion.frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert completion.frechet(x, x + np.array([1, 0, 2])) == pytest.approx(5)
    assert completion.frechet(x, 2 * x) == pytest.approx(np.trace(np.cov(x, rowvar=False)) + np.sum(x.mean(axis=0) ** 2))


def test_neighbours_vote():
    known = np.concatenate([np.zeros((6, 2)), np.ones((6, 2))])
    labels = np.repeat([3, 1], 6)
    assert completion.classes_of_neighbours(np.array([[0.1, 0.0], [0.9, 1.2]]), known, labels).tolist() == [3, 1]
