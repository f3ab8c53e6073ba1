"""One window of a tiny service, killed at every durable operation and finished by another process.

`python -m tests.answering.crashes DIRECTORY EVERY` prints one line of JSON, one entry per kill. Uses the ledger, the method and
the forks of `tests.crashes`.
"""

import json
import sys
from pathlib import Path

import jax

from jaxunlearn.answering import Service, Setup, verify
from jaxunlearn.service import journal
from tests import crashes
from tests.answering.toys import ask, ids, keys


def prepare(variables, data, key):
    """The moments of the rows that are left; the method carries them on, and a purge deletes them."""
    with jax.enable_x64(True):
        counts = data.present.astype("float64")[:, None]
        rows, targets = data.train.inputs.astype("float64") * counts, data.train.targets.astype("float64")
        notes = (0 * counts * data.train.inputs).astype("float32")
        return data._replace(extra={"moments": {"gram": rows.T @ rows, "cross": rows.T @ targets}, "notes": notes})


def setup():
    variables, data = crashes.problem()
    about = {"prepare": prepare, "certify": crashes.certify, "capacity": 4, "retract": True}
    return Setup(variables, data, crashes.IDS, crashes.unlearn, jax.random.key(0), **about)


def before(root):
    """An inbox of four lines."""
    keys(root)
    ask(root / "inbox.jsonl", ids("r-1", "eve"), ids("r-2", "ada", "bob"), "nonsense\n", ids("r-1", "eve"))


def opened(directory):
    private = directory / "release.pem"
    return Service.open(directory / "service", setup(), inbox=directory / "inbox.jsonl", signing_key=private)


def first_window(directory, _):
    with opened(directory) as service:
        service.answer(most=1)


def all_windows(directory, _):
    with opened(directory) as service:
        while service.answer(most=3):
            pass


def outcome(directory):
    """What must be the same after any crash."""
    base = directory / "service"
    found = [verify(path, directory / "release.pub") for path in sorted(base.glob("receipts/*.json"))]
    records = journal.read(base / "ledger" / "journal.jsonl").records
    files = sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())
    return {
        "receipts": [(x.entry, x.request, x.outcome, len(x.records), x.window, x.release) for x in found],
        "journal": [each.kind for each in records if each.kind not in ("repaired",)],
        "files": [name for name in files if "checkpoints" not in name and "set-aside" not in name],
        "checkpoints": len(list(base.glob("ledger/checkpoints/*"))),
    }


def sweep(root, every):
    crashes.OURS += tuple(f"jaxunlearn.answering.{name}" for name in ("plan", "service", "release"))
    start = root / "start"
    start.mkdir()
    before(start)
    crashes.fork(first_window, start, None)
    after = crashes.copy(start, root / "after")
    operations = crashes.fork(all_windows, after, None)
    expected = outcome(after)
    points = []
    for at, kind in enumerate(operations, 1):
        synced = at > 1 and "fsync" in operations[at - 2]  # a kill before that fsync leaves the same files
        points += [(at, False)] * (not synced) + [(at, True)] * (kind == "write")
    report = []
    for at, tear in points[::every]:
        crashed = crashes.copy(start, root / "crashed")
        killed = crashes.fork(all_windows, crashed, None, kill_at=at, tear=tear) is None
        promised = {path.name: path.read_bytes() for path in crashed.glob("service/receipts/*.json")}
        crashes.fork(all_windows, crashed, None)
        kept = all((crashed / "service" / "receipts" / name).read_bytes() == held for name, held in promised.items())
        entry = {"operation": operations[at - 1], "torn": tear, "killed": killed, "kept": kept}
        report.append({**entry, "as_if_never_killed": outcome(crashed) == expected})
    return {"expected": expected, "operations": len(operations), "points": report}


if __name__ == "__main__":
    print(json.dumps(sweep(Path(sys.argv[1]), int(sys.argv[2]))))
