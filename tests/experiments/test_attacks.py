"""The script of attacks on updates, at a size that only shows that it runs."""

import pytest

from experiments import attacks
from experiments.common.scale import Scale

pytestmark = pytest.mark.slow


def test_the_script_runs(tmp_path):
    found = attacks.main(attacks.Config(smoke=True, scale=Scale(mesh=False), out=tmp_path))
    assert [row["method"] for row in found["networks"]] == ["do nothing", "finetune", "retrained"]
    assert all(row["valid"] for row in found["releases"])
    assert found["reconstruction"][0]["error"] < 1e-6
    assert (tmp_path / "report.html").exists()
