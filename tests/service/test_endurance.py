"""Threads, forks, alarms and kills: whatever was acknowledged is there, and the journal opens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def endure(name, directory, count):
    command = [sys.executable, "-m", "tests.service.endurance", name, str(directory / "ledger"), str(count)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def test_threads_share_a_ledger(tmp_path):
    found = endure("threads", tmp_path, 24)
    assert found == {"errors": [], "acknowledged": 24 * 8, "lost": []}


def test_a_fork_may_not_write_and_a_dropped_ledger_gives_its_lock_back(tmp_path):
    found = endure("fork", tmp_path, 0)
    submitting, planning, purging = found["said"]
    assert "opened this ledger, and process" in submitting
    assert "is a fork of it: close it there and open it here" in purging
    assert planning == ""
    assert (found["lost"], found["dropped"]) == ([], True)


def test_an_interrupt_that_the_caller_survives_loses_nothing(tmp_path):
    found = endure("alarms", tmp_path, 300)
    assert found["interrupted"] > 30
    assert found["acknowledged"] > 30
    assert (found["lost"], found["stuck"]) == ([], False)


@pytest.mark.parametrize("count", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_what_was_acknowledged_before_a_kill_is_there(tmp_path, count):
    found = endure("kills", tmp_path, count)
    assert found["acknowledged"] >= count / 2
    assert found["lost"] == []
