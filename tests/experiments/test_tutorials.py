"""The tutorials run as they are and assert their own claims."""

import os
import subprocess
import sys

import pytest

from docs.building import tutorials
from docs.building.copies import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("path", [pytest.param(path, id=name) for name, path in tutorials.scripts().items()])
def test_a_tutorial_keeps_its_promises(path, tmp_path):
    command = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not list(tmp_path.iterdir())
