"""What a run of `feed` comes to when it is killed, again and again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("kind", "kills"),
    [("toy", 1), *(pytest.param(kind, 6, marks=pytest.mark.slow) for kind in ("function", "iterator", "grain"))],
)
def test_a_run_that_is_killed_ends_in_the_same_bits(tmp_path, kind, kills):
    if kind == "grain":
        pytest.importorskip("grain")
    command = [sys.executable, "-m", "tests.loop.kills", str(tmp_path), kind, str(kills)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (whole, count), *told, (found, left) = [line.split() for line in done.stdout.splitlines()]
    assert told == [["killed"]] * kills
    assert int(left) > 10  # the last kill met a run that was not over
    assert kills > 1 or int(left) < int(count)  # a part of it was made before
    assert found == whole
