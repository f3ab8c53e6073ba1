"""Eight faked devices, for the tests that need a mesh, and quick compilation: most programs here run once."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

flags = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):  # an unknown flag would end the process; later versions may not have them
    flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # no source lines inside compiled programs; errors keep theirs
gc.set_threshold(50_000)  # tracing makes many small objects that live long

# Workers, and the processes that tests start, share what they compile. It begins empty and is gone afterwards, so that no run
# sees a program of another one.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    shared = tempfile.mkdtemp(prefix="jaxunlearn-programs-")
    atexit.register(shutil.rmtree, shared, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": shared,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

SLOW = Path(__file__).with_name("slow.txt").read_text().splitlines()


def pytest_collection_modifyitems(session, config, items):
    """Tests that were measured as long are slow, see `tests/tiers.py`."""
    listed = set(SLOW)
    items.sort(key=lambda item: not item.nodeid.endswith("::test_readme_examples_run"))  # the longest, beside all others
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)
            listed.discard(item.nodeid)
    whole = [Path(arg).resolve() for arg in config.args] == [Path(__file__).parent]
    if whole and listed and not session.testsfailed:  # a file that could not be read is told as such
        raise pytest.UsageError(
            f"tests/slow.txt names tests that do not exist: {', '.join(sorted(listed)[:5])}; see tests/tiers.py"
        )
