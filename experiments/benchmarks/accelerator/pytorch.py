"""(b) The same updates in PyTorch on the same card, by a process of its own: see `torch_process`.

It gets the library's weights and, once, its batches, with which it must return the library's weights.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxunlearn as ju
from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.harness import Part, Size, compiled
from experiments.benchmarks.accelerator.side_by_side import side_by_side
from experiments.benchmarks.draws import library_draws

CHECKED = 8  # requests whose weights are compared


def run(part: Part, size: Size) -> None:
    """Write what PyTorch starts from, let it run, and put its times beside those of `batched`."""
    if importlib.util.find_spec("torch") is None:
        part.leave_out("PyTorch", "it is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "start.npz", allow_pickle=False, **start(size))
        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        settings = {"requests": size.requests, "batch": size.batch, "steps": size.steps, "methods": size.methods,
                    "repeats": size.repeats, "longest": size.longest, "device": device, "seconds": part.left() - 2}  # fmt: skip
        (Path(folder) / "settings.json").write_text(json.dumps(settings))
        script = Path(__file__).with_name("torch_process.py")
        try:
            subprocess.run([sys.executable, str(script), folder], timeout=max(part.left(), 1), check=True)
        except subprocess.TimeoutExpired:
            part.leave_out("what PyTorch had not finished", "did not fit the time")
        except subprocess.CalledProcessError as error:
            part.failed("PyTorch's process", error)
        written = Path(folder) / "found.json"
        found = json.loads(written.read_text()) if written.exists() else {"rows": [], "left_out": [], "failures": []}
    part.record.update({key: found.get(key) for key in ("versions", "apart")})
    part.record["left_out"] += found["left_out"]
    part.record["failures"] += found["failures"]
    for row in found["rows"]:
        ours = part.shared.get("batched", {}).get((NETWORK[row["network"]], row["method"], row["requests"]))
        part.row(**row, times_of_batched=None if ours is None else row["ms"] / (1e3 * ours))


NETWORK = {"mlp": "mlp", "cnn": "cnn, native"}  # what a network is compared with


def start(size: Size) -> dict[str, np.ndarray]:
    """Weights, rows, requests and logits of both networks; for the MLP a run of the library, batches and weights at the end."""
    found: dict[str, Any] = {}
    for name, network in NETWORK.items():
        model, variables, data = networks.setting(network, size)
        inputs = np.asarray(data.train.inputs)
        flat = inputs.reshape(len(inputs), -1) if name == "mlp" else inputs.transpose(0, 3, 1, 2)
        found |= {f"{name}/inputs": flat, f"{name}/targets": np.asarray(data.train.targets)}
        found |= {f"{name}/weights/{i}": x for i, x in enumerate(in_torch_layout(variables.params))}
        found[f"{name}/requests"] = np.asarray(networks.asked(data, max(size.requests))[0].indices)
        with jax.default_matmul_precision("highest"):
            found[f"{name}/logits"] = np.asarray(model.forward(variables, data.train.inputs, train=False).logits)
        if name != "mlp":
            continue
        requests, keys = networks.asked(data, min(CHECKED, max(size.requests)))
        for method in size.methods:
            step = networks.unlearner(method, model)
            unlearn = side_by_side(ju.iterate(step, num_steps=size.steps, batch_size=size.batch))
            arguments = variables, data, requests, keys
            result = compiled(unlearn, *arguments, precision="highest").call(*arguments)
            drawn = library_draws(step, variables, data, requests, keys, size.steps, size.batch)
            found |= {f"{name}/{method}/{key}": np.asarray(value) for key, value in drawn._asdict().items()}
            after = in_torch_layout(ju.check(result).variables.params)
            found |= {f"{name}/{method}/after/{i}": x for i, x in enumerate(after)}
    return found


def in_torch_layout(params: Any) -> list[np.ndarray]:
    """Weight and bias of every layer, convolutions first, the head last; leading axes stay."""
    arrays = []
    for name in networks.layers_in_order(params):
        kernel, bias = np.asarray(params[name]["kernel"]), np.asarray(params[name]["bias"])
        swapped = np.moveaxis(kernel, (-1, -2), (-4, -3)) if name.startswith("Conv") else np.swapaxes(kernel, -1, -2)
        arrays += [np.ascontiguousarray(swapped), bias]
    return arrays
