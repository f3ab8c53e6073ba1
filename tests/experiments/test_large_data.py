"""The script on data that stay on disk, with a small data set that is prepared here."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from experiments import large_data
from experiments.large_data import Config

ROWS = {"train": 40, "test": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images whose brightness is their class, as TFDS keeps them."""
    import tensorflow_datasets as tfds

    class TinyDigits(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(4, 4, 1), encoding_format="png")
            features = {"image": image, "label": tfds.features.ClassLabel(num_classes=3)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in ROWS.items()}

        def _generate_examples(self, count=0):
            for row in range(count):
                file = io.BytesIO()
                Image.fromarray(np.full((4, 4), 80 * (row % 3) + row, np.uint8)).save(file, format="png")
                file.seek(0)
                yield row, {"image": file, "label": row % 3}

    place = tmp_path_factory.mktemp("tfds")
    TinyDigits(data_dir=place, file_format="array_record").download_and_prepare()
    return str(place)


@pytest.mark.slow
def test_it_trains_unlearns_and_audits_from_disk_and_goes_on(folder, tmp_path):
    config = Config(dataset="tiny_digits", data_dir=folder, smoke=True, in_memory=True, out=tmp_path / "out")
    summary = large_data.main(config)
    assert summary == json.loads(json.dumps(summary))
    for name in ("trained", "unlearned"):
        for figure, found in summary["models"].pop(f"{name} in memory").items():
            np.testing.assert_allclose(found, summary["models"][name][figure], atol=1e-5)
    for audit in summary["models"].values():
        value, low, high = audit["test"]
        assert 0 <= low <= value <= high <= 1
        assert round(value * ROWS["test"], 4) == pytest.approx(round(value * ROWS["test"]))
        assert round(audit["retain"][0] * 37, 4) == pytest.approx(round(audit["retain"][0] * 37))
    assert {"report.html", "large_data.json", "training", "unlearning"} <= {x.name for x in (tmp_path / "out").iterdir()}
    with pytest.raises(SystemExit, match="go on with it by --resume"):
        large_data.main(config)
    again = large_data.main(replace(config, resume=True, in_memory=False))  # both runs are over: nothing is trained anew
    assert again["models"] == summary["models"]
    assert [run["steps"] for run in again["pace"]] == [0, 0]
    assert again["unlearned_weights"] == summary["unlearned_weights"]


def test_methods_without_steps_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="ssd has no steps"):
        large_data.main(Config(method="ssd", out=tmp_path))
