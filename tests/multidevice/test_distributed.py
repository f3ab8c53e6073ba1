"""Two processes with two faked devices each, over loopback, against one process with one device."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from tests.multidevice import peer

ROOT = Path(__file__).parents[2]
SECONDS = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run_together(commands, folder, devices=2, seconds=SECONDS):
    """Run all commands until the last one ended or the first one failed; say what they wrote if one did."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")  # those of conftest
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    logs = [folder / f"{position}.log" for position in range(len(commands))]
    processes = []
    for command, log in zip(commands, logs, strict=True):
        with log.open("w") as stream:
            processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=stream, stderr=stream))
    deadline = time.monotonic() + seconds
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                break
            time.sleep(0.05)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(code != 0 for code in codes):
        written = "\n".join(f"--- process {position}\n{log.read_text()}" for position, log in enumerate(logs))
        pytest.fail(f"exit codes {codes} (None: stopped, another failed or {seconds} s were over)\n{written}")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    start = [sys.executable, str(Path(peer.__file__)), f"localhost:{free_port()}", "2"]
    run_together([[*start, str(process), str(folder)] for process in range(2)], folder)
    results = []
    for process in range(2):
        with np.load(folder / f"{process}.npz") as stored:
            results.append(dict(stored))
    return results


@pytest.fixture(scope="module")
def expected():
    return jax.jit(ju.batched(peer.method()))(*peer.arguments(max(peer.LANES)))


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("lanes", peer.LANES)
def test_two_processes_equal_one(found, expected, process, lanes):
    for name, weights in expected.variables.params.items():
        assert found[process][f"{lanes}/{name}"].shape == (lanes, *weights.shape[1:])
        np.testing.assert_allclose(found[process][f"{lanes}/{name}"], weights[:lanes], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found[process][f"{lanes}/status"], expected.status[:lanes])


@pytest.mark.parametrize("process", [0, 1])
def test_rows_that_processes_share_equal_one(found, expected, process):
    for name, weights in expected.variables.params.items():
        np.testing.assert_allclose(found[process][f"shared/{name}"], weights[: peer.FEW], rtol=0, atol=1e-5)


def test_values_that_differ_between_processes_are_refused(found):
    assert all("different values" in str(results["refusal"]) for results in found)


def test_a_failing_process_stops_the_others_and_is_shown(tmp_path):
    fails = [sys.executable, "-c", "import sys; sys.exit('what went wrong')"]
    waits = [sys.executable, "-c", "import time; time.sleep(60)"]
    start = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match="what went wrong"):
        run_together([waits, fails], tmp_path)
    assert time.monotonic() - start < 30
