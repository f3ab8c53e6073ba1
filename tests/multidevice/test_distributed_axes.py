"""Two and four processes that share the rows and parameters of single requests, over loopback, against one device."""

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
    for name, (_, axes) in peer.MESHES.items():
        model = peer.SCANNED if "fsdp" in axes else peer.NORMALISED
        runs[name] = jax.jit(ju.batched(peer.many(model)))(*peer.arguments(model))
    runs["one"] = lane(runs["parameters"], 1)
    return runs | {"fed": peer.fed()}


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_share_a_request_equal_one_device(processes, tmp_path):
    start = [sys.executable, str(Path(peer.__file__)), f"localhost:{free_port()}", str(processes)]
    commands = [[*start, str(process), str(tmp_path)] for process in range(processes)]
    run_together(commands, tmp_path, devices=peer.DEVICES // processes, seconds=600)
    for process in range(processes):
        with np.load(tmp_path / f"{process}.npz") as stored:
            for name, result in expected().items():
                for path, x in jax.tree.leaves_with_path(result.variables):
                    found = stored[f"{name}{jax.tree_util.keystr(path)}"]
                    np.testing.assert_allclose(found, x, rtol=0, atol=1e-5, err_msg=f"{name} {path}")
                np.testing.assert_array_equal(stored[f"{name}/status"], result.status)
