"""From a checkpoint to a checkpoint, at a size that only shows that it runs."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from experiments import unlearn_checkpoint
from experiments.common.models import build
from experiments.common.scale import Scale
from experiments.unlearn_checkpoint import Config
from jaxunlearn.service.checkpoint import load_variables, save_variables
from tests.problems import distance

SMALL = Config(steps=2, training_steps=2, batch_size=8, settings={"alpha": "0.9"}, scale=Scale(mesh=False))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The results of a demo with a reference."""
    out = tmp_path_factory.mktemp("unlearn_checkpoint") / "demo"
    unlearn_checkpoint.main(replace(SMALL, demo=True, retrain=True, rows=(3, 14, 15), out=out))
    return out


@pytest.fixture(scope="module")
def model():
    return build("mlp", (8, 8, 1), 10)


@pytest.fixture(scope="module")
def trained(out, model):
    like = jax.eval_shape(model.init, jax.random.key(0))
    return load_variables(out / "trained", {"params": like.params})


def test_demo_writes_a_checkpoint_and_an_audit(out, trained):
    after = load_variables(out / "checkpoint", trained)
    assert 0 < distance(after, trained) < 0.1
    summary = json.loads((out / "unlearn_checkpoint.json").read_text())
    assert list(summary["models"]) == ["do nothing", "unlearned", "retrained"]
    assert summary["forgotten_rows"] == 3
    assert not {"rows", "rows_file", "checkpoint"} & set(summary["config"])
    assert summary["config"]["out"] is None
    for figures in summary["models"].values():
        for name in ("forget_accuracy", "auc", "tpr"):
            assert figures[name]["low"] <= figures[name]["estimate"] <= figures[name]["high"]
    assert "<title>Rows unlearned from a checkpoint</title>" in (out / "report.html").read_text()


def test_a_train_state_and_a_file_of_rows_are_read(trained, tmp_path, capsys):
    save_variables(tmp_path / "run", {**trained, "opt_state": [{"mu": jnp.ones(3)}], "step": jnp.int32(7)})
    (tmp_path / "ids.txt").write_text("3\n14 15\n")
    arguments = {"checkpoint": tmp_path / "run", "rows_file": tmp_path / "ids.txt", "out": tmp_path / "out"}
    sigma = {"method": "output_perturbation", "settings": {"sigma": "1e-5"}}
    unlearn_checkpoint.main(replace(SMALL, **arguments, **sigma))
    assert 0 < distance(load_variables(tmp_path / "out" / "checkpoint", trained), trained) < 1e-4
    assert "auditing" in capsys.readouterr().out


def test_the_cheapest_good_answer_is_chosen_and_told(trained, out, tmp_path):
    options = {"auto": True, "settings": {}, "checkpoint": out / "trained", "rows": (3, 14), "out": tmp_path / "auto"}
    unlearn_checkpoint.main(replace(SMALL, **options))
    summary = json.loads((tmp_path / "auto" / "unlearn_checkpoint.json").read_text())
    assert summary["verdict"].startswith("Retrained: that costs 1 retrainings")
    assert summary["guarantee"] == "exact"
    assert "Retrained: that costs" in (tmp_path / "auto" / "report.html").read_text()
    assert distance(load_variables(tmp_path / "auto" / "checkpoint", trained), trained) > 0


def test_nothing_is_overwritten(out):
    with pytest.raises(SystemExit, match=r"holds trained, checkpoint, report.html, unlearn_checkpoint.json already"):
        unlearn_checkpoint.main(replace(SMALL, checkpoint=out / "trained", rows=(1,), out=out))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"checkpoint": None}, SystemExit, "either --checkpoint DIR, or --demo"),
        ({"rows": ()}, SystemExit, "nothing to forget"),
        ({"rows_file": "nowhere.txt"}, SystemExit, "either --rows or --rows-file"),
        ({"method": "scrab"}, SystemExit, "scrab"),
        ({"settings": {"beta": "1"}}, SystemExit, "gradient_difference has no setting beta; it has alpha, bn"),
        ({"method": "cf_k", "settings": {}}, SystemExit, "cf_k needs layers"),
        ({"rows": (5, 1437)}, ValueError, "rows 1437 are outside the 1437 rows"),
        (
            {"network": "cnn"},
            ValueError,
            r"another model: params/Dense_0/kernel is float32\[64,128\], not float32\[256,128\]; params/Conv_0/",
        ),
        ({"auto": True}, SystemExit, "--auto chooses method and settings"),
        ({"budget": 3.0}, SystemExit, "belong to --auto"),
        ({"checkpoint": "nowhere"}, FileNotFoundError, "there is no checkpoint at"),
    ],
)
def test_wrong_flags_get_a_clear_error(out, tmp_path, monkeypatch, wrong, error, message):
    monkeypatch.chdir(tmp_path)
    config = replace(SMALL, checkpoint=out / "trained", rows=(1,), out=tmp_path / "out")
    with pytest.raises(error, match=message):
        unlearn_checkpoint.main(replace(config, **wrong))
    assert not (tmp_path / "out").exists()


def test_files_of_rows_that_hold_something_else_are_refused(out, tmp_path):
    (tmp_path / "ids.txt").write_text("3, 14\n")
    config = replace(SMALL, checkpoint=out / "trained", rows_file=tmp_path / "ids.txt", out=tmp_path / "out")
    with pytest.raises(SystemExit, match=r"must hold row numbers, separated by white space, got \['3,'\]"):
        unlearn_checkpoint.main(config)
    with pytest.raises(SystemExit, match=r"there is no file"):
        unlearn_checkpoint.main(replace(config, rows_file=tmp_path / "nowhere.txt"))
