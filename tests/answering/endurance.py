"""Thousands of requests for a certified head, in windows, in a process that is killed at random times and started again.

    python -m tests.answering.endurance DIRECTORY --requests 10000 --kills 20 --most 250

Prints one line of JSON. The processes are killed while they work, the last one is left alone for the second half of the
requests: its memory and its compilations are what is reported.
"""

import argparse
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

import jaxunlearn as ju
from jaxunlearn.answering import Service, convex_setup, verify
from jaxunlearn.service import journal
from tests.answering.toys import keys

FEATURES, CLASSES = 8, 3
PROMISED = {"epsilon": 1e-3, "delta": 1e-9, "extractor": "none", "adaptive": False, "sensitivity": 1e-3}


def setup(requests, capacity):
    """Twice as many people as requests and some to stay; every tenth has three rows."""
    people = 2 * requests + 50
    ids = [f"person {number}" for number in range(people) for _ in range(3 if number % 10 == 0 else 1)]
    rng = np.random.default_rng(0)
    rows = ju.convex.feature_rows(rng.normal(size=(len(ids), FEATURES)))
    targets = (rows[:, :CLASSES] + 0.3 * rng.normal(size=(len(ids), CLASSES))).argmax(axis=1).astype(np.int32)
    data, problem = ju.training_data(rows, targets), ju.convex.softmax(1e-2, CLASSES)
    groups = {"household": [int(name.split()[1]) // 2 for name in ids]}
    made = convex_setup(problem, ju.convex.fit(problem, data), data, ids, capacity=capacity, groups=groups, **PROMISED)
    return made, problem


def asked(requests):
    """Lines of the inbox, what each must be answered with, and who must be gone at the end."""
    draws, lines, expected, gone = random.Random(0), [], [], set()
    order = list(range(2 * requests))
    draws.shuffle(order)
    for number in range(requests):
        kind, name = draws.random(), order[number]
        if kind < 0.03:
            lines.append(f'{{"request": "r-{number}", "ids": [')
            expected.append(("", "refused"))
        elif kind < 0.06 and number > 10:
            lines.append(lines[draws.randrange(number)])
            earlier = json.loads(lines[-1])["request"] if lines[-1].endswith("}") else ""
            expected.append((earlier, "repeated" if earlier else "refused"))
        elif kind < 0.1:
            lines.append(json.dumps({"request": f"r-{number}", "group": {"column": "household", "value": name // 2}}))
            gone |= {f"person {name // 2 * 2}", f"person {name // 2 * 2 + 1}"}
            expected.append((f"r-{number}", "forgotten"))
        else:
            lines.append(json.dumps({"request": f"r-{number}", "ids": [f"person {name}"]}))
            gone.add(f"person {name}")
            expected.append((f"r-{number}", "forgotten"))
    return lines, expected, gone


def serve(directory, requests, most):
    """Answer all that waits; one line of JSON per window."""
    compiled = [0]
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.__setitem__(0, compiled[0] + (name == "/jax/core/compile/backend_compile_duration"))
    )
    made, _ = setup(requests, 4 * most)
    with Service.open(
        directory / "service", made, inbox=directory / "inbox.jsonl", signing_key=directory / "release.pem"
    ) as service:
        print(json.dumps({"ready": True}), flush=True)
        while found := service.answer(most=most):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            print(json.dumps({**found._asdict(), "mebibytes": memory, "compiled": compiled[0]}), flush=True)


def run(directory, requests, kills, most):
    """Start, kill, start again, and look at all that was answered."""
    directory.mkdir(parents=True, exist_ok=True)
    keys(directory)
    lines, expected, gone = asked(requests)
    (directory / "inbox.jsonl").write_text("".join(f"{line}\n" for line in lines))
    draws, begun, last, killed = random.Random(1), time.monotonic(), [], []
    command = [sys.executable, "-m", "tests.answering.endurance", str(directory), "--serve"]
    command += ["--requests", str(requests), "--most", str(most)]
    pace = 1.0
    for left in reversed(range(kills + 1)):
        windows = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first, until = draws.randrange(2), None  # killed in its first window or in its second one
            while left and (until is None or time.monotonic() < until):
                if not select.select([process.stdout], [], [], 0.02)[0]:
                    continue
                if not (line := process.stdout.readline()):
                    break
                windows.append(json.loads(line))
                pace = windows[-1].get("seconds", pace)
                if len(windows) > first and until is None:
                    until = time.monotonic() + draws.uniform(0, 1.5) * pace
            if left:
                process.send_signal(signal.SIGKILL)
            windows += [json.loads(line) for line in process.stdout]
        killed.append(process.returncode)
        last = [each for each in windows if "window" in each]
        print(f"process {kills - left} ended with {killed[-1]} after {len(last)} windows", file=sys.stderr, flush=True)
        if killed[-1] == 0:
            break
    return {**check(directory, requests, most, expected, gone), **figures(last), "killed": killed.count(-signal.SIGKILL),
            "minutes": round((time.monotonic() - begun) / 60, 1)}  # fmt: skip


def check(directory, requests, most, expected, gone):
    """Every line has one receipt that says what it must, and the weights are those of training without the rows."""
    base = directory / "service"
    paths = sorted((base / "receipts").glob("*.json"))
    found = [verify(path, directory / "release.pub") for path in paths]
    records = journal.read(base / "ledger" / "journal.jsonl").records
    made, problem = setup(requests, 4 * most)
    with Service.open(base, made, inbox=directory / "inbox.jsonl", signing_key=directory / "release.pem") as service:
        assert service.answer() is None
        state, kernel = service.book.state, np.asarray(service.book.load(*made[:2])[0].params["kernel"])
        hashed = {service.book.hashed(f'"{name}"') for name in gone}
    present = np.array([name not in gone for name in made.record_ids], np.float32)
    refit = np.asarray(ju.convex.fit(problem, made.data._replace(present=jax.numpy.asarray(present))).params["kernel"])
    kinds = [record.kind for record in records]
    return {
        "requests": requests,
        "receipts": len(found),
        "wrong": sum((x.request, x.outcome) != each for x, each in zip(found, expected, strict=True)),
        "numbered": [x.entry for x in found] == list(range(1, requests + 1)),
        "lost": len(hashed - state.removed),
        "too_many": len(state.removed - hashed) + len(state.pending),
        "windows": kinds.count("submitted"),
        "applied": kinds.count("applied"),
        "released": kinds.count("released"),
        "torn": kinds.count("repaired"),
        "refit_distance": float(np.linalg.norm(kernel - refit)),
    }


def figures(last):
    """Of the process that was left alone: memory after the third window and at the end, programs compiled after it."""
    warm, end = last[min(2, len(last) - 1)], last[-1]
    return {
        "undisturbed_windows": len(last),
        "undisturbed_requests": end["entries"][1] - warm["entries"][1],
        "mebibytes_warm": round(warm["mebibytes"], 1),
        "mebibytes_end": round(end["mebibytes"], 1),
        "mebibytes_peak": round(max(each["mebibytes"] for each in last), 1),
        "recompiled": end["compiled"] - warm["compiled"],
        "seconds_per_window": sorted(each["seconds"] for each in last)[len(last) // 2],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--most", type=int, default=250)
    parser.add_argument("--serve", action="store_true")
    given = parser.parse_args()
    if given.serve:
        serve(given.directory, given.requests, given.most)
    else:
        print(json.dumps(run(given.directory, given.requests, given.kills, given.most)))
