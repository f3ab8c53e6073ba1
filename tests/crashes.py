"""A small ledger in steps, and a process that is killed at every durable operation of every step.

`python -m tests.crashes DIRECTORY` prints one line of JSON: for each step, what happened at each point where it was killed.
Each killed process is a real one, forked before JAX starts, so that imports are paid for once.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint  # noqa: F401  paid for before the forks

import jaxunlearn as ju
from jaxunlearn import tree
from jaxunlearn.certificates.certificate import Assumption, Certificate, Subject
from jaxunlearn.certificates.publish import publish
from jaxunlearn.service import journal
from jaxunlearn.service.ledger import Ledger, data_fingerprint, fingerprint

IDS = ["ada", "bob", "ada", "cyd", "dan", "eve"]  # two rows are Ada's
ROWS = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
TARGETS = np.array([0.5, -1.0, 2.0, 0.25, 1.5, -0.5], np.float32)
SALT = b"sixteen bytes and more"
OURS = tuple(
    f"jaxunlearn.service.{name}" for name in ("journal", "archive", "register", "ledger", "intents")
)  # what writes to disk


def moments(rows, targets):
    rows = rows.astype(np.float64)
    return {"gram": jnp.asarray(rows.T @ rows), "cross": jnp.asarray(rows.T @ targets)}


def problem():
    """Ridge on six rows: `(G + I) w = X'y`, from the moments that `extra` carries."""
    with jax.enable_x64(True):
        extra = {"moments": moments(ROWS, TARGETS), "notes": jnp.asarray(np.zeros((6, 2), np.float32))}
        data = ju.Data(ju.Examples(jnp.asarray(ROWS), jnp.asarray(TARGETS)), jnp.asarray(np.ones(6, np.float32)), extra)
        return solve(extra["moments"]), data


def solve(sums):
    kernel = np.linalg.solve(np.asarray(sums["gram"]) + np.eye(2), np.asarray(sums["cross"]))
    return ju.Variables({"kernel": jnp.asarray(kernel)})


def unlearn(variables, data, request, key):
    """Exact, by a down-date of the moments; remembers the removed rows, as a careless method would."""
    with jax.enable_x64(True):
        gone = np.asarray(request.indices)[np.asarray(request.weights) > 0]
        less = moments(np.asarray(data.train.inputs)[gone], np.asarray(data.train.targets)[gone])
        left = jax.tree.map(lambda x, y: jnp.asarray(np.asarray(x) - np.asarray(y)), data.extra["moments"], less)
        notes = np.array(data.extra["notes"])
        notes[gone] = np.asarray(data.train.inputs)[gone]
        stats = {"residual_bound": jnp.asarray(0.1 * len(gone))}
        return ju.Result(solve(left), jnp.asarray(np.int32(0)), stats, {"moments": left, "notes": jnp.asarray(notes)})


def retrained(*rows):
    """The closed form without some rows."""
    keep = [row for row in range(6) if row not in rows]
    with jax.enable_x64(True):
        return np.asarray(solve(moments(ROWS[keep], TARGETS[keep])).params["kernel"])


def certify(result, data, request, *, epsilon=1.0, delta=1e-5, holds=True):
    return Certificate(
        epsilon=epsilon,
        delta=delta,
        sensitivity=0.01,
        noise_scale=0.1,
        budget_left=np.inf,
        valid=holds,
        assumptions=(Assumption("float64", True, "float64 throughout"), Assumption("row norms", holds, "longest row 1.7")),
        mechanism="delete_then_noise",
        residual=0.0,
        distance=0.0,
        subject=Subject(tree.content_digest(result.variables.params), "", "", "least squares"),
    )


def identity():
    variables, data = problem()
    return {"model_fingerprint": fingerprint(variables), "data_fingerprint": data_fingerprint(data, IDS)}


def create(directory, about):
    if not (directory / "journal.jsonl").exists():
        Ledger.create(directory, IDS, salt=SALT, **about).close()


def step(work):
    def run(directory, about):
        with Ledger.open(directory, IDS, salt=SALT, recover=True, **about) as ledger:
            work(ledger)

    return run


@step
def submit(ledger):
    ledger.submit(["ada", "bob"])
    ledger.submit(["cyd"])


@step
def apply(ledger):
    ledger.apply(unlearn, *problem(), jax.random.key(0), mode="stream", spend="residual_bound")


@step
def release(ledger):
    variables, data = problem()
    certificate = ledger.certify(certify, variables, data, epsilon=0.5, delta=1e-6)
    ledger.publish(publish, certificate, variables)


@step
def purge(ledger):
    ledger.purge()


@step
def retract(ledger):
    ledger.declare_budget(0.75, 1e-5)
    ledger.retract(1, "asked for")


STEPS = {"create": create, "submit": submit, "apply": apply, "release": release, "purge": purge, "retract": retract}


def outcome(directory):
    """What must be the same after any crash, and the hash of the released file if there is one."""
    records = journal.read(directory / "journal.jsonl").records
    about = [
        (each.kind, each.body.get("ids"), each.body.get("spent"), each.body.get("number"))
        for each in records
        if each.kind != "repaired"
    ]
    checkpoints = sorted(str(path.relative_to(directory)) for path in directory.glob("checkpoints/*/*"))
    public = len(list(directory.glob("releases/public/*")))
    shape = {
        "public": public,
        "records": about,
        "checkpoints": len(checkpoints),
        "parts": [Path(path).name for path in checkpoints],
    }
    sealed = [each.body["sha256"] for each in records if each.kind == "released"]
    files = [journal.hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("releases/public/*.npz")]
    seeds = [json.loads(path.read_text())["seed"] for path in directory.glob("releases/private/*.json")]
    repaired = sum(each.kind == "repaired" for each in records)
    return shape, {"sealed": sealed, "files": files, "seeds": seeds, "repaired": repaired}


def arm(kill_at, tear):
    """Note durable operations; die instead of operation number `kill_at`, or in the middle of it if it writes."""
    operations = []

    def wrap(module, name):
        original = getattr(module, name)

        def operation(*arguments, **options):
            caller = sys._getframe(1)
            ours = caller.f_globals["__name__"] in OURS
            tree = "sync_tree" in (caller.f_code.co_name, getattr(caller.f_back, "f_code", caller.f_code).co_name)
            again = tree and operations[-1] == "fsync a tree"  # one file is like the other
            if (ours and not again) or name in ("rename", "replace"):  # and where orbax makes a checkpoint final
                operations.append("fsync a tree" if tree else name)
                if len(operations) == kill_at:
                    if tear:
                        original(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(module, name, operation)

    for name in ("write", "fsync", "replace", "rename", "mkdir", "unlink"):
        wrap(os, name)
    wrap(shutil, "rmtree")
    return operations


def fork(work, directory, about, *, kill_at=0, tear=False):
    """Run a step in a process of its own; its durable operations, or None if it was killed."""

    def step():
        operations = arm(kill_at, tear)
        work(directory, about)
        return json.dumps(operations)

    said = in_child(step, directory)
    return None if said is None else json.loads(said)


def in_child(step, directory):
    """What a step says that runs in a process of its own, or None if it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, step().encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, code = os.waitpid(child, 0)
    if os.WIFSIGNALED(code) and os.WTERMSIG(code) == signal.SIGKILL:
        return None
    if code:
        raise RuntimeError(f"a step failed in {directory}")
    return said


def copy(source, target):
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target)
    else:
        target.mkdir()
    return target


def sweep(root, about):
    """Kill every step at every operation, finish it in a new process, and compare with the run that nobody killed."""
    report = {}
    before = root / "start"
    for name, work in STEPS.items():
        after = copy(before, root / name)
        operations = fork(work, after, about)
        expected, _ = outcome(after)
        points = []
        for at, kind in enumerate(operations, 1):
            synced = at > 1 and "fsync" in operations[at - 2]  # a kill before that fsync leaves the same files
            points += [(at, False)] * (not synced) + [(at, True)] * (kind == "write")
        report[name] = []
        for at, tear in points:
            crashed = copy(before, root / "crashed")
            killed = fork(work, crashed, about, kill_at=at, tear=tear) is None
            intents = [json.loads(path.read_text()) for path in crashed.glob("releases/private/*.json")]
            open_promise = any(intent["seed"] for intent in intents)
            twin = copy(crashed, root / "twin") if open_promise else None
            fork(work, crashed, about)
            found, bits = outcome(crashed)
            entry = {"operation": operations[at - 1], "torn": tear, "killed": killed, "as_if_never_killed": found == expected}
            if twin:
                fork(work, twin, about)
                entry["same_bits"] = outcome(twin)[1]["files"] == bits["files"] == bits["sealed"]
            report[name].append({**entry, "repaired": bits["repaired"], "seeds_left": sum(map(bool, bits["seeds"]))})
        before = after
    return report


if __name__ == "__main__":
    root = Path(sys.argv[1])
    child_reader, child_writer = os.pipe()
    child = os.fork()  # fingerprints start JAX, which must not run before the forks
    if child == 0:
        os.write(child_writer, json.dumps(identity()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    print(json.dumps(sweep(root, json.loads(os.read(child_reader, 4096)))))
