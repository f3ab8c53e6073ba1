"""Two processes that share the rows and parameters of single requests, over loopback, against one device."""

import sys
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from tests.multidevice import peer_axes as peer
from tests.multidevice.test_distributed import free_port, run_together
from tests.problems import lane

pytestmark = pytest.mark.slow


@cache
def expected():
    """By name, on one device of this process."""
    runs = {}
    for name, axes in peer.MESHES.items():
        model = peer.SCANNED if "fsdp" in axes else peer.NORMALISED
        runs[name] = jax.jit(ju.batched(peer.many(model)))(*peer.arguments(model))
    runs["one"] = lane(runs["parameters"], 1)
    return runs | {"fed": peer.fed()}


def test_processes_find_each_other_by_what_slurm_tells(tmp_path):
    told = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    told["SLURM_JOB_ID"] = str(free_port() % 2**12)  # the port of the coordinator follows from it
    code = f"""import os, sys
os.environ |= {told}
os.environ |= dict.fromkeys(["SLURM_PROCID", "SLURM_LOCALID"], sys.argv[1])
import jax
from experiments.common.scale import Scale, leads, start
mesh = start(Scale(distributed=True))
assert jax.process_count() == 2 and leads() == (sys.argv[1] == "0") and mesh.size == jax.device_count() == 4, mesh
"""
    run_together([[sys.executable, "-c", code, str(process)] for process in range(2)], tmp_path)


@pytest.mark.parametrize("processes", [2])
def test_processes_that_share_a_request_equal_one_device(processes, tmp_path):
    start = [sys.executable, str(Path(peer.__file__)), f"localhost:{free_port()}", str(processes)]
    commands = [[*start, str(process), str(tmp_path)] for process in range(processes)]
    run_together(commands, tmp_path, devices=1, seconds=600)
    for process in range(processes):
        with np.load(tmp_path / f"{process}.npz") as stored:
            for name, result in expected().items():
                for path, x in jax.tree.leaves_with_path(result.variables):
                    found = stored[f"{name}{jax.tree_util.keystr(path)}"]
                    np.testing.assert_allclose(found, x, rtol=0, atol=1e-5, err_msg=f"{name} {path}")
                np.testing.assert_array_equal(stored[f"{name}/status"], result.status)
