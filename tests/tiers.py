"""Which tests are slow, measured: run all of them with this plugin, and it writes `tests/slow.txt`.

    python -m pytest -n 2 -m "slow or not slow" -p tests.tiers    # all anew
    python -m pytest -n 2 -p tests.tiers                          # then: who pays now for what slow tests compiled before?

A test that takes more than LONG seconds of CPU time, its processes and its share of the fixtures that it has in common with
others counted, is slow. Of a test with several cases the cheapest one stays. So does the first test of each file about a
method and those about its equation (EQUATIONS), every contract of mechanics on one method, and what ALWAYS names: one of each
kind that every change must pass. Examples of docstrings are slow together.
"""

import json
import os
import re
import resource
from collections import defaultdict
from pathlib import Path

import pytest

LONG, CHEAPEST = 0.6, 1.0  # seconds of CPU time: of a test, and of the cheapest of several cases
LIST = Path(__file__).with_name("slow.txt")
MEASURED = Path(__file__).with_name(".tiers")
DOCSTRINGS = "tests/test_package.py::test_examples_in_docstrings_run"
SIDE_BY_SIDE = "tests/contract/test_methods.py::test_side_by_side_equals_one_call_per_request_padded_or_not"
KINDS = (
    "retrain", "finetune", "gradient_difference", "scrub", "ssd", "influence", "amnesiac", "representation_unlearning",
    "prototype_erasure", "woodbury_removal",
)  # fmt: skip
ALWAYS = (
    *(f"{SIDE_BY_SIDE}[{name}]" for name in KINDS),
    "tests/test_package.py::test_readme_examples_run",
    "tests/audit/test_run.py",
    "tests/certificates/test_certify.py",
    "tests/certificates/test_distances.py",
    "tests/contract/test_kinds.py::test_jit_equals_no_jit[scrub",
    "tests/experiments/test_compare.py::test_every_method_is_in_the_table_or_left_out_with_a_reason",
    "tests/loop/test_feed.py::test_feed_equals_iterate_on_the_same_batches[scrub",
    "tests/loop/test_kills.py",
    "tests/loop/test_outcome.py::test_a_destroyed_model_is_damaged",
    "tests/loop/test_phases.py::test_every_row_is_read_within_as_many_forget_steps_as_it_takes[scrub-2",
    "tests/multidevice/test_mesh.py",
    "tests/service/test_ledger.py",
    "tests/test_batching.py::test_a_method_may_close_over_values_of_a_trace",
    "tests/test_batching.py::test_cores_follow_the_settings_of_the_calling_thread",
    "tests/test_batching.py::test_memory_grows_with_parameters_and_not_with_rows",
    "tests/test_package.py::test_no_cycle",
    "tests/test_precision.py",
)
EQUATIONS = re.compile(r"tests/methods/\w+\.py::\w*(follow|descends|adds_the_sign|margins_end|dense_step)")
MECHANICS = re.compile(r"tests/contract/test_kinds\.py::\w+\[gradient_difference:")
_seconds: dict[str, float] = {}  # of a test, without the fixtures that it shares
_fixtures: dict[str, float] = {}  # seconds of a fixture that tests share
_users: dict[str, list[str]] = {}  # tests of a fixture
_making: list[float] = []  # seconds of the shared fixtures that the test at hand made


def choose(seconds, marked=()):
    """Node ids of slow tests, from CPU seconds by node id; those `marked` by hand are slow anyway and stand in no list."""
    tests, first = defaultdict(list), _first_of_methods()
    for name, spent in seconds.items():
        if name not in marked:
            tests[name.split("[")[0]].append((spent, name))
    found = []
    for test, cases in tests.items():
        for place, (spent, name) in enumerate(sorted(cases)):
            stays = name.startswith((*ALWAYS, *first)) or EQUATIONS.match(name) or MECHANICS.match(name)
            limit = LONG if place or len(cases) == 1 else CHEAPEST
            if test == DOCSTRINGS or (not stays and (test == SIDE_BY_SIDE or spent >= limit)):
                found.append(name)
    return sorted(found)


def _spent():
    """CPU seconds of this process and of those that it has waited for."""
    return sum(x.ru_utime + x.ru_stime for x in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def _first_of_methods():
    """The first test of each file about a method, which a wrong sign must not pass."""
    files = sorted(Path(__file__).parent.glob("methods/test_*.py"))
    found = ((path.name, re.search(r"^def (test_\w+)", path.read_text(), re.MULTILINE)) for path in files)
    return [f"tests/methods/{name}::{test[1]}" for name, test in found if test]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Measure one test, and note which fixtures it shares."""
    start = _spent()
    _making.clear()
    yield
    _seconds[item.nodeid] = _spent() - start - sum(_making)
    cases = item.callspec.indices if hasattr(item, "callspec") else {}
    for name, found in item._fixtureinfo.name2fixturedefs.items():
        if found[-1].scope != "function":
            _users.setdefault(_named(found[-1], cases.get(name, 0)), []).append(item.nodeid)


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Measure one fixture; those that it makes on its way count for themselves."""
    start, before = _spent(), sum(_making)
    yield
    if fixturedef.scope != "function":
        _making.append(_spent() - start - (sum(_making) - before))
        name = _named(fixturedef, request.param_index)
        _fixtures[name] = _fixtures.get(name, 0.0) + _making[-1]


def _named(fixture, case):
    return f"{fixture.baseid}::{fixture.argname}[{case}]"


def _with_shares(parts):
    """Seconds of every test and its share of its fixtures, from what all workers measured."""
    seconds, fixtures, users = defaultdict(float), defaultdict(float), defaultdict(list)
    for tests, made, used in parts:
        seconds.update(tests)
        for name, spent in made.items():
            fixtures[name] += spent
        for name, some in used.items():
            users[name] += some
    for name, some in users.items():
        for test in some:
            seconds[test] += fixtures[name] / len(some)
    return seconds


def pytest_sessionfinish(session):
    """Every worker says what it measured; the controller, or the only process, decides."""
    by_hand = [item.nodeid for item in getattr(session, "items", []) if item.get_closest_marker("slow")]
    found = [[_seconds, _fixtures, _users], by_hand]
    if "PYTEST_XDIST_WORKER" in os.environ:
        MEASURED.mkdir(exist_ok=True)
        (MEASURED / os.environ["PYTEST_XDIST_WORKER"]).write_text(json.dumps(found))
        return
    parts = [json.loads(path.read_text()) for path in MEASURED.iterdir()] if MEASURED.exists() else [found]
    seconds = _with_shares([measured for measured, _ in parts])
    listed = LIST.read_text().splitlines() if LIST.exists() else []
    by_hand = {name for _, names in parts for name in names} - set(listed)
    slow = sorted({*choose(seconds, by_hand), *(name for name in listed if name not in seconds)})
    LIST.write_text("\n".join(slow) + "\n")
    for path in MEASURED.iterdir() if MEASURED.exists() else []:
        path.unlink()
    spent = sum(seconds.get(name, 0) for name in slow)
    print(f"\n{len(slow)} tests are slow; of {sum(seconds.values()):.0f} CPU seconds measured they take {spent:.0f}")
