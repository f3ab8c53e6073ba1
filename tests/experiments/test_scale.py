import importlib
import shlex
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro

import jaxunlearn as ju
from experiments import quickstart
from experiments.common.models import build
from experiments.common.running import reusable
from experiments.common.scale import Scale, gathered, in_bfloat16, leads, start
from tests.problems import blobs, distance, network, normalized_network

DATA = blobs()
LANES = 5
REQUESTS = ju.from_indices(DATA, [list(range(row, row + 1 + row % 3)) for row in range(LANES)])


def gradient(model, variables, inputs):
    return jax.grad(lambda params: jnp.mean(model.forward(variables._replace(params=params), inputs).logits ** 2))(
        variables.params
    )


def dtypes(tree):
    return jax.tree.map(lambda x: x.dtype, tree)


@pytest.fixture(scope="module")
def originals():
    return jax.vmap(network().init)(jax.random.split(jax.random.key(1), 2))


def answers(unlearn, originals, **options):
    """Of every original to every request, [originals, requests]."""
    keys = jax.random.split(jax.random.key(0), (2, LANES))
    calls = [(jax.tree.map(lambda x, s=s: x[s], originals), DATA, REQUESTS, keys[s]) for s in range(2)]
    return reusable(unlearn, **options)(calls)


@pytest.fixture(scope="module")
def plain(originals):
    return answers(method(), originals).result


def method(model=None):
    return ju.iterate(ju.gradient_difference(model or network(), optax.sgd(0.1)), num_steps=3, batch_size=4)


@pytest.mark.parametrize("devices", [None, 2])
@pytest.mark.parametrize("chunk", [None, 2])
def test_mesh_and_chunk_change_no_answer(originals, plain, devices, chunk):
    mesh = devices and ju.request_mesh(jax.devices()[:devices])
    done = answers(method(), originals, chunk=chunk, mesh=mesh)
    assert done.result.status.shape == (2, LANES)
    assert distance(done.result.variables, plain.variables) < 1e-6
    assert done.compile_seconds > 0 < done.run_seconds


def test_bfloat16_answers_are_close_and_float32(originals, plain):
    result = answers(method(in_bfloat16(network())), originals).result
    moved = distance(plain.variables, jax.tree.map(lambda x: jnp.repeat(x[:, None], LANES, axis=1), originals))
    assert dtypes(result.variables) == dtypes(plain.variables)
    assert 0 < distance(result.variables, plain.variables) < 0.1 * moved


def test_bfloat16_is_in_the_products_only():
    model, inputs = network(), DATA.train.inputs
    variables = model.init(jax.random.key(0))
    narrow = in_bfloat16(model)
    text = str(jax.make_jaxpr(lambda v: narrow.forward(v, inputs))(variables))
    products = [line for line in text.splitlines() if "dot_general[" in line]
    assert products
    assert all(":bf16[" in line for line in products)
    wide, low = model.forward(variables, inputs), narrow.forward(variables, inputs)
    assert dtypes(low) == dtypes(wide)
    np.testing.assert_allclose(low.logits, wide.logits, atol=0.02 * float(jnp.abs(wide.logits).max()))
    slopes = gradient(narrow, variables, inputs)
    assert dtypes(slopes) == dtypes(variables.params)
    assert 0 < distance(slopes, gradient(model, variables, inputs)) < 0.05


def test_bfloat16_keeps_state_and_integers():
    model = in_bfloat16(normalized_network())
    variables = model.init(jax.random.key(0))
    state = model.forward(variables, DATA.train.inputs, train=True).state
    assert dtypes(state) == dtypes(variables.state)
    assert state["count"] == 1
    seen = []
    look = network()._replace(forward=lambda variables, inputs, **_: seen.append(inputs.dtype) or ju.Outputs(jnp.zeros(3)))
    in_bfloat16(look).forward(variables, jnp.arange(3))
    assert set(seen) == {jnp.dtype("int32")}


def test_a_bfloat16_head_continues_the_features():
    model = in_bfloat16(build("mlp", (4,), 3, widths=(5,)))
    variables = model.init(jax.random.key(0))
    outputs = model.forward(variables, DATA.train.inputs)
    logits = model.head.apply(variables, outputs.features["penultimate"])
    assert logits.dtype == outputs.logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, outputs.logits)


def test_what_is_asked_for_is_what_is_started():
    assert start(Scale(mesh=False)) is None
    assert start(Scale()).size == len(jax.devices())
    assert leads()
    values = {"x": jnp.arange(3), "y": 1}
    assert gathered(values)["x"] is values["x"]


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (Scale(chunk=0), "--chunk must be at least 1, got 0"),
        (Scale(mesh=True, num_processes=2), "--num-processes without --distributed"),
        (Scale(distributed=True, coordinator="localhost:1"), "got only --coordinator"),
        (Scale(distributed=True, coordinator="localhost:1", num_processes=2, process_id=2), r"must lie in 0 \.\. 1, got 2"),
    ],
)
def test_flags_that_make_no_sense_are_refused(scale, message):
    with pytest.raises(ValueError, match=message):
        start(scale)


def test_flags_of_a_script_have_no_prefix():
    config = tyro.cli(quickstart.Config, args=["--no-mesh", "--chunk", "4", "--bf16", "--distributed"])
    assert config.scale == Scale(mesh=False, chunk=4, bf16=True, distributed=True)
    assert tyro.cli(quickstart.Config, args=[]).scale == Scale()


@pytest.mark.parametrize("path", sorted(Path(quickstart.__file__).parent.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_flags_of_every_script_are_told_apart(path):
    script = importlib.import_module(f"experiments.{path.stem}")
    assert tyro.cli(script.Config, args=["--no-mesh", "--chunk", "3"]).scale == Scale(mesh=False, chunk=3)


def launch(folder, *arguments, **environment):
    path = {"PATH": f"{folder}:/usr/bin:/bin"}
    command = [str(Path(quickstart.__file__).parent / "launch" / "tpu_pod.sh"), *arguments]
    return subprocess.run(command, env={**path, **environment}, capture_output=True, text=True, check=False)


def test_the_launch_script_runs_the_same_command_on_all_workers(tmp_path):
    slice_of = {"TPU_NAME": "t", "ZONE": "z", "PROJECT": "p", "FOLDER": "code of ours"}
    fake = tmp_path / "gcloud"
    fake.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    fake.chmod(0o755)
    words = launch(tmp_path, "experiments/quickstart.py", "--out", "a b", **slice_of).stdout.splitlines()
    assert words[:5] == ["compute", "tpus", "tpu-vm", "ssh", "t"]
    assert "--worker=all" in words
    command = words[-1].removeprefix("--command=")
    expected = ["cd", "code of ours", "&&", "exec", "python3", "experiments/quickstart.py", "--distributed", "--mesh"]
    assert shlex.split(command) == [*expected, "--out", "a b"]
    for name in slice_of:
        refused = launch(tmp_path, "experiments/quickstart.py", **{k: v for k, v in slice_of.items() if k != name})
        assert (refused.returncode, name in refused.stderr) == (2, True)
    assert "expected a script" in launch(tmp_path, "--seeds", "8", **slice_of).stderr


def test_the_slurm_script_starts_a_process_for_each_task(tmp_path):
    script = Path(quickstart.__file__).parent / "launch" / "slurm.sh"
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": "py"}

    def launched(*arguments, **changed):
        return subprocess.run(
            [str(script), *arguments], env={**environment, **changed}, capture_output=True, text=True, check=False
        )

    words = launched("experiments/quickstart.py", "--out", "a b").stdout.splitlines()
    assert words == ["--kill-on-bad-exit=1", "py", "experiments/quickstart.py", "--distributed", "--mesh", "--out", "a b"]
    assert "expected a script" in launched("--seeds").stderr
    assert "srun was not found" in launched("a.py", PATH="/usr/bin:/bin").stderr
