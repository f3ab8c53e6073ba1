"""Kills: a window is finished as if nothing had happened, and thousands of requests are answered once each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(name, *arguments):
    command = [sys.executable, "-m", f"tests.answering.{name}", *map(str, arguments)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=3000)
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout)


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_point_a_window_is_finished_as_if_nothing_had_happened(tmp_path, every):
    found = run("crashes", tmp_path, every)
    assert [each[1:3] for each in found["expected"]["receipts"]] == [
        ["r-1", "forgotten"], ["r-2", "forgotten"], ["", "refused"], ["r-1", "repeated"]
    ]  # fmt: skip
    assert len(found["points"]) >= 60 / every
    assert all(point["killed"] and point["as_if_never_killed"] and point["kept"] for point in found["points"])


@pytest.mark.slow
def test_hundreds_of_requests_and_kills(tmp_path):
    found = run("endurance", tmp_path / "run", "--requests", 300, "--kills", 3, "--most", 20)
    assert found["killed"] == 3
    assert found["receipts"] == found["requests"] == 300
    assert found["wrong"] == found["lost"] == found["too_many"] == found["recompiled"] == 0
    assert found["numbered"]
    assert found["windows"] == found["applied"] == found["released"]
    assert found["refit_distance"] < 1e-5  # one Newton step for 20 of 700 rows; the certificates allow 1e-3
