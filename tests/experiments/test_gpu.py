"""The script for an accelerator, in its smallest size on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from experiments.benchmarks import gpu
from experiments.benchmarks.accelerator import ceilings, contract, harness, networks, pytorch, resnet
from experiments.common.models import build
from jaxunlearn.loop.preparation import prepared_by

ROOT = Path(__file__).parents[2]

# In a process where everything is missing that an accelerator machine may lack, rich and with it flax included:
# import all parts, then hang in the first one, longer than the time that the run is given.
BARE = """
import sys
for name in ("tyro", "rich", "orbax", "tensorflow_datasets", "jinja2", "haiku", "dp_accounting"):
    sys.modules[name] = None
import time
from importlib import import_module
from experiments.benchmarks import gpu
parts = {name: import_module(f"experiments.benchmarks.accelerator.{name}") for name in gpu.PARTS}
def hang(part, size):
    part.row(what="before it hangs", ms=1.0)
    time.sleep(60)
parts["ceilings"].run = hang
gpu.main(["--smoke", "--seconds", "4", "--out", sys.argv[1]], end_process=True)
"""


def found_in(folder):
    return json.loads((folder / "gpu.json").read_text())


@pytest.mark.slow
def test_every_part_runs_in_the_smallest_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pytorch.importlib.util, "find_spec", lambda name: None)  # PyTorch has its own test below
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.main(["--smoke"]) == 0
    found = found_in(tmp_path)
    assert found["environment"]["platform"] == "cpu"
    parts = found["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert all(part["status"] == "done" and part["seconds"] >= 0 and not part["failures"] for part in parts.values())
    assert all(part["rows"] and not part["left_out"] for name, part in parts.items() if name != "pytorch")
    assert parts["pytorch"]["left_out"] == [{"what": "PyTorch", "why": "it is not installed"}]
    lines = {row["variant"]: row for row in parts["side_by_side"]["rows"]}
    assert lines.keys() == {"loop of jitted calls", "batched", "lax.map"}
    for name in ("batched", "lax.map"):
        assert lines[name]["largest_difference_from_loop"] < 1e-6
        assert lines[name]["share_of_ceiling"] > 0
        assert lines[name]["compile_s"] > 0
    assert all(row["holds"] for row in parts["contract"]["rows"])
    table = (tmp_path / "gpu.md").read_text()
    assert table in capsys.readouterr().out
    assert all(f"## {plan.title}: done" in table for plan in gpu.PARTS.values())
    assert "left out: PyTorch (it is not installed)" in table


def test_it_needs_no_optional_package_and_ends_itself_in_time(tmp_path):
    done = subprocess.run([sys.executable, "-c", BARE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    parts = found_in(tmp_path)["parts"]
    assert parts["ceilings"]["status"] == "cut off"
    assert parts["ceilings"]["rows"] == [{"what": "before it hangs", "ms": 1.0}]
    assert parts["resnet"]["status"] == "did not fit the time"
    assert "cut off" in (tmp_path / "gpu.md").read_text()


def test_a_part_that_fails_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def fails(part, size):
        part.row(what="measured before", ms=2.0)
        with part.attempt("one measurement"):
            raise MemoryError("too large for this card")
        part.row(what="measured after", ms=3.0)
        raise ValueError("no such device")

    monkeypatch.setattr(ceilings, "run", fails)
    monkeypatch.setattr(resnet, "run", lambda part, size: part.row(steps_per_s=1.0))
    assert gpu.main(["--smoke", "--parts", "ceilings", "resnet", "--out", str(tmp_path)]) == 1
    parts = found_in(tmp_path)["parts"]
    assert [row["what"] for row in parts["ceilings"]["rows"]] == ["measured before", "measured after"]
    errors = [failure["error"] for failure in parts["ceilings"]["failures"]]
    assert errors == ["MemoryError: too large for this card", "ValueError: no such device"]
    assert (parts["ceilings"]["status"], parts["resnet"]["status"]) == ("failed", "done")
    assert "FAILED: one measurement: MemoryError: too large for this card" in capsys.readouterr().out


def test_what_does_not_fit_the_time_is_named(tmp_path):
    assert gpu.main(["--smoke", "--seconds", "0", "--parts", "ceilings", "--out", str(tmp_path)]) == 0
    assert found_in(tmp_path)["parts"]["ceilings"]["status"] == "did not fit the time"
    part = harness.Part({}, 5.0, {}, lambda: None)
    assert part.fits("a short one", 1.0)
    assert not part.fits("a long one", 10.0)
    made = harness.compiled_together(part, {"first": lambda: harness.compiled(jnp.sin, 1.0), "fails": lambda: 1 / 0}, 60.0)
    assert list(made) == ["first"]
    assert [x["what"] for x in part.record["left_out"]] == ["a long one"]
    assert part.record["failures"] == [{"what": "fails", "error": "ZeroDivisionError: division by zero"}]


def test_a_method_that_breaks_its_promises_is_caught(monkeypatch):
    def reads_padding(variables, data, request, key):
        inputs = data.train.inputs[request.indices]
        shift = jnp.sum(inputs) + jnp.sum(data.train.inputs[:3])  # whatever lies in the slots, and rows of others
        return ju.Result(jax.tree.map(lambda w: w + shift, variables), jnp.where(jnp.isfinite(shift), 0, ju.Status.NONFINITE))

    monkeypatch.setitem(contract.METHODS, "ssd", lambda model: prepared_by(reads_padding, None))
    part = harness.Part({}, 60.0, {}, lambda: None)
    with pytest.raises(AssertionError, match="does not hold: ssd: what lies in padding slots is irrelevant"):
        contract.run(part, harness.SMOKE)
    broken = {row["check"] for row in part.record["rows"] if not row["holds"]}
    assert broken == {
        "what lies in padding slots is irrelevant",
        "NaN in one request reaches no other",
        "side by side and padded, as alone and unpadded",
    }


def test_work_is_counted_by_layers():
    def shapes(name):
        return jax.eval_shape(build(name, (8, 8, 1), 10).init, jax.random.key(0)).params

    assert networks.multiplications(shapes("mlp"), 8) == [64 * 128, 128 * 128, 128 * 10]
    convolutions = [64 * 9 * 16, 16 * 9 * 16 * 32, 4 * 9 * 32 * 64]
    assert networks.multiplications(shapes("cnn"), 8) == [*convolutions, 4 * 64 * 128, 128 * 10]
    counted = networks.Work(operations=1e6, moved=2e3)
    assert counted.floor({"flops": {"float32 as jax comes": 1e9}, "bandwidth": 1e9}) == 1e-3
    assert counted.floor({}) is None


def test_pytorch_returns_the_weights_of_the_library(tmp_path):
    pytest.importorskip("torch")
    from experiments.benchmarks.accelerator import torch_process

    size = harness.SMOKE._replace(methods=("gradient_difference", "scrub"), steps=4)
    np.savez(tmp_path / "start.npz", **pytorch.start(size))
    settings = {"requests": size.requests, "batch": size.batch, "steps": size.steps, "methods": size.methods, "repeats": 1,
                "longest": 1.0, "device": "cpu", "seconds": 60.0}  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    run = torch_process.Run(tmp_path)
    torch_process.check(run)
    assert max(run.found["apart"].values()) < 1e-5
    run.given["mlp/weights/0"] += 1e-2
    with pytest.raises(AssertionError, match="logits of the mlp differ"):
        torch_process.check(run)
