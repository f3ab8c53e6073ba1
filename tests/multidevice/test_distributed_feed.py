"""`feed` from rows that 1, 2 and 4 processes read together, over loopback."""

import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxunlearn import sources
from tests.multidevice import peer_feed as peer
from tests.multidevice.test_distributed import free_port, run_together

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every process of 1, 2 and 4 found, each of which goes on from the checkpoint of those before."""
    folder = tmp_path_factory.mktemp("feed")
    alone = peer.run(jax.devices()[:1]), peer.resumed(jax.devices()[:1], 1, folder / "run")
    results = {1: [alone[0] | {f"again/{name}": x for name, x in alone[1].items()}]}
    for processes in (2, 4):
        start = [sys.executable, str(Path(peer.__file__)), f"localhost:{free_port()}", str(processes)]
        commands = [[*start, str(process), str(folder)] for process in range(processes)]
        run_together(commands, folder, devices=1, seconds=600)
        results[processes] = [dict(np.load(folder / f"{processes}-{process}.npz")) for process in range(processes)]
    return results


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_row_of_a_batch_is_read_by_one_process(found, processes):
    inputs = peer.Disk().train.inputs
    plan = sources.draw(peer.METHOD, *peer.asked(), num_steps=peer.STEPS, batch_size=peer.SIZE)
    for step in range(peer.STEPS):
        for side in ("forget", "retain"):
            numbers = getattr(plan, side).rows[step]
            parts = [{k: x for k, x in each.items() if k.startswith(f"{step}/{side}/")} for each in found[processes]]
            assert len(set().union(*parts)) == sum(map(len, parts)) == processes  # places are nobody else's
            for part in parts:
                for name, rows in part.items():
                    place = int(name.rpartition("/")[2])
                    np.testing.assert_array_equal(rows, inputs[numbers[place : place + len(rows)]])
        size = peer.SIZE // processes
        for process, each in enumerate(found[processes]):
            own = [side.rows[step][process * size : (process + 1) * size] for side in (plan.forget, plan.retain)]
            assert sorted(each[f"{step}/read"]) == sorted(np.concatenate([np.unique(rows) for rows in own]))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_pass_over_the_forget_set_has_every_row_once(found, processes):
    for first in range(0, peer.STEPS, 2):
        read = [each[f"{step}/read"] for each in found[processes] for step in (first, first + 1)]
        visits = Counter(np.concatenate(read).tolist())
        assert [visits[row] for row in peer.FORGET] == [1] * len(peer.FORGET)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_end_where_one_does(found, processes):
    for each in found[processes]:
        for name, x in found[1][0].items():
            if name.startswith("result"):
                np.testing.assert_allclose(each[name], x, rtol=0, atol=1e-5, err_msg=name)


def test_a_run_goes_on_with_another_number_of_processes(found):
    whole = peer.run(jax.devices()[:1], num_steps=max(peer.STAGES.values()))
    for each in found[4]:
        assert "again/5/read" in each
        assert "again/2/read" not in each  # made by two processes before
        for name, x in whole.items():
            if name.startswith("result"):
                np.testing.assert_allclose(each[f"again/{name}"], x, rtol=0, atol=1e-5, err_msg=name)
