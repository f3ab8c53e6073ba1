"""The script at its smallest: every row of it is certified, or it stops."""

import json

import pytest

from experiments import certified_deep
from experiments.common.scale import Scale


@pytest.mark.slow
def test_a_smoke_run_certifies_every_row_and_writes_its_report(tmp_path):
    config = certified_deep.Config(scale=Scale(mesh=False), smoke=True, out=tmp_path)
    summary = certified_deep.main(config)
    methods = {row["method"] for row in summary["mlp"]}
    wanted = {
        "output perturbation",
        "frozen features, certified head",
        "clipped gradients",
        "noise, then model clipped",
        "retrained",
    }
    assert wanted <= methods
    by_method = {(row["method"], row.get("epsilon")): row for row in summary["linear"]}
    exact, published = (by_method[f"langevin, {name} accountant", 1.0] for name in ("exact", "published"))
    assert exact["noise"] < published["noise"]
    assert by_method["hessian-free", 1.0]["noise"] > 0
    assert {row["method"] for row in summary["times"]["linear"]} > {"hessian-free", "delete, then noise", "retrained"}
    stable = [row for row in summary["stable"] if row["removals"] == 0]
    assert all(row["stable"] > 0.5 for row in stable)  # only rounding is in the way
    assert json.loads((tmp_path / "certified_deep.json").read_text())["config"]["requests"] == 2
    assert "</html>" in (tmp_path / "report.html").read_text()
