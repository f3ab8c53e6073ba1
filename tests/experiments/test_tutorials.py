"""The tutorials run as they are and assert their own claims; here with less training."""

import runpy
from pathlib import Path

import jax
import pytest

import experiments

LONG = ("many_requests_and_a_sweep",)
TUTORIALS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in LONG))
    for path in sorted((Path(experiments.__file__).parent / "tutorials").glob("[a-z]*.py"))
]


@pytest.fixture
def quick_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize("path", TUTORIALS)
def test_a_tutorial_keeps_its_promises(path, monkeypatch, capsys, quick_compilation):
    monkeypatch.setenv("TUTORIAL_STEPS", "300")
    runpy.run_path(str(path), run_name="__main__")
    assert "retain" in capsys.readouterr().out
