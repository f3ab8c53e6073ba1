"""What a run of `feed` comes to when it is killed, again and again."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def go(folder, kind, events):
    """Lines of `tests.loop.kills`: the last one has the digest of the result, and how many events there were."""
    command = [sys.executable, "-m", "tests.loop.kills", str(folder), kind, *map(str, events)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": ":".join([str(ROOT), *sys.path])}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["function", "iterator", "grain"])
@pytest.mark.slow
def test_a_run_that_is_killed_ends_in_the_same_bits(tmp_path, kind):
    if kind == "grain" and find_spec("grain") is None:
        pytest.skip("grain is not installed")
    ((expected, count),) = go(tmp_path / "whole", kind, [])
    assert int(count) > 40
    events = np.random.default_rng(0).integers(5, int(count) - 5, 6)
    *told, (found, _) = go(tmp_path / "killed", kind, events)
    assert ["killed"] in told
    assert found == expected
