"""The script at its smallest."""

import json

from experiments import output_guard
from experiments.common.scale import Scale


def test_a_smoke_run_writes_its_report(tmp_path):
    summary = output_guard.main(output_guard.Config(scale=Scale(mesh=False), smoke=True, out=tmp_path))
    assert [(row["world"], row["variant"]) for row in summary["means"]] == [
        (world, variant) for world in ("tokens", "digits") for variant in output_guard.VARIANTS
    ]
    for row in summary["means"]:
        assert row["unguarded"][0] > 0.3 > row["violations"][0]
        assert row["shifted"][0] < row["coverage"][0]
    assert json.loads((tmp_path / "output_guard.json").read_text())["config"]["requests"] == 2
    assert "removes nothing" in (tmp_path / "report.html").read_text()
