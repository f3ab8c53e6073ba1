"""All benchmarks of speed in one command and one table: ours, the peer, the ratio, the target, the machine.

    python experiments/benchmarks/run.py --stored                       # the table of experiments/results; runs nothing
    python experiments/benchmarks/run.py --data-dir DIR                 # runs all: some hours on two cores
    python experiments/benchmarks/run.py --only batched_mlp imports     # runs these
    python experiments/benchmarks/run.py --only funu --smoke            # whether it runs

Each benchmark is a process of its own, which compares results before it times them, and fails if they differ. Those that need
PyTorch or kronfluence (`pip install -e '.[benchmarks]'`) or prepared MNIST (`--data-dir`) are named as not run without them.
A stored figure is marked where the code that it measures was changed after it: by the history of the repository, so "unknown"
outside of one. Figures of a busy machine say so.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

from experiments.benchmarks import timing
from experiments.common import script
from experiments.common.report import Column, Section, Table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
CORE = ("jaxunlearn/loop", "jaxunlearn/batching.py", "jaxunlearn/sampling.py", "jaxunlearn/passes.py")
PEERS = {"torch": "PyTorch", "kronfluence": "kronfluence"}

COLUMNS = [
    Column("what", "what"),
    Column("ours", "ours, ms", ".3g"),
    Column("against", "against"),
    Column("peer", "theirs, ms", ".3g"),
    Column("ratio", "times faster", ".3g"),
    Column("target", "target", ".3g"),
    Column("reached", "reached"),
    Column("machine", "machine"),
    Column("load", "load per core before", ".2f"),
    Column("age", "code since"),
]


class Figure(NamedTuple):
    """One line of the table."""

    what: str
    ours: float  # seconds
    against: str
    peer: float  # seconds
    target: float | None = None  # how many times faster ours shall be


class Benchmark(NamedTuple):
    """A script, and how its figures are read."""

    script: str
    read: Callable[[dict[str, Any]], list[Figure]]
    measures: tuple[str, ...]  # paths whose code it times
    flags: tuple[str, ...] = ()
    smoke: tuple[str, ...] = ("--smoke",)
    data: tuple[str, ...] = ()  # flags in front of the folder of prepared data; empty if it needs none
    needs: tuple[str, ...] = ()  # packages of the extra `benchmarks`
    folder: bool = False  # whether --out is a folder that gets a JSON file of the script's name


def of_variants(
    found: dict[str, Any], *, title: str, ours: Sequence[str], targets: dict[str, float] | None = None
) -> list[Figure]:
    """`seconds` of each variant: the last of ours against all that are not ours."""
    best = ours[-1]
    others = {name: value for name, value in found.items() if name not in ours}
    return [Figure(title, found[best], name, value, (targets or {}).get(name)) for name, value in others.items()]


def of_batched(found: dict[str, Any], network: str) -> list[Figure]:
    """Requests on all cores or devices, and on one."""
    times, title = found["median_seconds"], f"{found['config']['requests']} requests, {network}"
    one, loop = "batched inside jit", "a loop over a jitted call"
    return [
        Figure(title, times["batched"], one, times[one], 1.7),
        Figure(f"{title}, 2 devices", times["batched on 2 devices"], one, times[one], 1.7),
        Figure(f"{title}, inside jit", times[one], loop, times["loop over a jitted call"], 1.0),
    ]


def of_pytorch(found: dict[str, Any]) -> list[Figure]:
    """A request of each update."""
    target = {"torch.compile of torch.func.vmap": 1.2}
    return [
        figure
        for method, part in found["methods"].items()
        for figure in of_variants(
            part["seconds_per_request"],
            title=f"{method}, a request",
            targets=target,
            ours=("batched inside jit", "batched", "batched on 2 devices"),
        )
    ]


def of_ensemble(found: dict[str, Any]) -> list[Figure]:
    """A retrained model."""
    target = {"torch.compile of torch.func.vmap": 1.2}
    return of_variants(
        found["seconds_per_model"],
        title="retraining, a model",
        targets=target,
        ours=("batched inside jit", "batched", "batched on 2 devices"),
    )


def of_certified(found: dict[str, Any]) -> list[Figure]:
    """A removal, of one request and of 64, against NumPy."""
    times = found["median_seconds"]
    many, dense = found["config"]["requests"], times["NumPy"]
    exact = f"{many} removals, two steps, exact residual"
    return [
        Figure("one removal, bound from the data", times["one removal, data bound"], "dense NumPy", dense),
        Figure("one removal, exact residual", times["one removal, two steps, exact residual"], "dense NumPy", dense),
        Figure(f"a removal of {many}, exact residual", times[exact] / many, "dense NumPy", dense, 200.0),
    ]


def of_curvature(found: dict[str, Any]) -> list[Figure]:
    """Fit and scores of EK-FAC."""
    targets = {"fit": 3.0, "scores": 1.0}
    return [
        Figure(f"EK-FAC {part}, {network}", times["jaxunlearn"], name, value, targets[part])
        for network, parts in found["networks"].items()
        for part in targets
        for times in [parts[part]["seconds"]]
        for name, value in times.items()
        if name in PEERS
    ]


def of_representation(found: dict[str, Any]) -> list[Figure]:
    """Steps of the bottleneck, with sampled and with exact noise."""
    times = found["seconds"]
    return [
        Figure("representation unlearning, 100 steps", times["steps"], "eager PyTorch", times["PyTorch"], 1.5),
        Figure("the same, exact noise", times["steps, exact noise"], "eager PyTorch", times["PyTorch"], 3.0),
    ]


def of_staleness(found: dict[str, Any]) -> list[Figure]:
    """Calls with digests against calls without: 1 is no cost."""
    return [
        Figure(f"{name}, with digests", part["seconds"]["as it is"], "without", part["seconds"]["without"], 0.95)
        for name, part in found["methods"].items()
    ]


def of_summation(found: dict[str, Any]) -> list[Figure]:
    """A removal against fitting anew."""
    return [
        Figure(f"{row['learner']}, a removal", row["fit_ms"] / row["ratio"] / 1e3, "a fit", row["fit_ms"] / 1e3, 1000.0)
        for row in found["rows"]
    ]


def of_audit(found: dict[str, Any]) -> list[Figure]:
    """Metrics of ensembles, against loops over examples and vectorised NumPy."""
    return [
        Figure(row["metric"], row["ours"] / 1e3, against, row[key] / 1e3)
        for row in found["milliseconds"]
        for key, against in {"loop": "a loop over examples", "vectorised": "vectorised NumPy"}.items()
    ]


def of_funu(found: dict[str, Any]) -> list[Figure]:
    """Filtering a request, against one retraining."""
    return [
        Figure(f"funu, {row['mode']}", row["filter_ms"] / 1e3, "one retraining", found["retraining_seconds"], 10.0)
        for row in found["rows"]
    ]


def of_imports(found: dict[str, Any]) -> list[Figure]:
    """What the import adds to that of JAX."""
    return [Figure("import jaxunlearn, on top of jax", found["on_top"], "import jax", found["import_jax"])]


TORCH, QUICK = ("torch", "threadpoolctl"), ("--requests", "4", "--steps", "2", "--rounds", "1")
BENCHMARKS = {  # name of the file in experiments/results -> benchmark
    "imports": Benchmark("imports.py", of_imports, ("jaxunlearn/__init__.py", "pyproject.toml"), smoke=("--pairs", "1")),
    "batched_mlp": Benchmark("batched.py", partial(of_batched, network="MLP"), CORE, smoke=QUICK),
    "batched_cnn": Benchmark(
        "batched.py", partial(of_batched, network="CNN"), CORE, ("--network", "cnn", "--steps", "20"),
        (*QUICK, "--network", "cnn"),
    ),
    "pytorch": Benchmark("pytorch.py", of_pytorch, CORE, smoke=QUICK, needs=TORCH),
    "ensemble": Benchmark(
        "ensemble.py", of_ensemble, CORE, needs=TORCH,
        smoke=("--models", "4", "--torch-models", "2", "--steps", "2", "--rounds", "1"),
    ),
    "representation_benchmark": Benchmark(
        "representation.py", of_representation, ("jaxunlearn/methods/representation_unlearning.py", *CORE), needs=TORCH,
        data=("--data-dir",),
    ),
    "curvature_mlp": Benchmark(
        "curvature.py", of_curvature, ("jaxunlearn/curvature",), ("--networks", "mlp"), ("--smoke", "--networks", "mlp"),
        data=("--data-dir",), needs=(*TORCH, "kronfluence"),
    ),
    "curvature_cnn": Benchmark(
        "curvature.py", of_curvature, ("jaxunlearn/curvature",), ("--networks", "cnn"), ("--smoke", "--networks", "cnn"),
        data=("--data-dir",), needs=(*TORCH, "kronfluence"),
    ),
    "certified": Benchmark(
        "certified.py", of_certified, ("jaxunlearn/convex",), smoke=("--max-rows", "200", "--rounds", "1", "--removals", "2"),
        data=("--data-dir",), needs=("threadpoolctl",),
    ),
    "summation": Benchmark("summation.py", of_summation, ("jaxunlearn/summation",), folder=True),
    "staleness": Benchmark(
        "staleness.py", of_staleness, ("jaxunlearn/slots.py", "jaxunlearn/tree.py"), smoke=("--rounds", "1")
    ),
    "audit_benchmark": Benchmark(
        "audit.py", of_audit, ("jaxunlearn/audit/ensembles",),
        smoke=("--examples", "200", "--models", "8", "--quality-examples", "4", "--quality-models", "8", "--rows", "50",
               "--looped", "2", "--rounds", "1"),
    ),
    "funu": Benchmark("funu.py", of_funu, ("jaxunlearn/filters",), ("--dataset", "mnist"), data=("--data-dir",), folder=True),
}  # fmt: skip


@dataclass
class Config(script.Base):
    """Command line."""

    only: Annotated[tuple[str, ...], script.unless_given("all")] = ()
    """Names of benchmarks."""
    stored: bool = False
    """Run nothing: show the figures of experiments/results."""
    data_dir: str | None = None
    """Where TFDS finds prepared MNIST."""
    minutes: float = 60.0
    """No benchmark runs for longer."""
    out: Path = Path("out/benchmarks")


def main(config: Config) -> dict[str, Any]:
    """Run, read, show; returns what is written."""
    unknown = sorted(set(config.only) - set(BENCHMARKS))
    if unknown:
        raise SystemExit(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    _, console = script.begin(config)
    rows, problems = [], []
    for name in config.only or BENCHMARKS:
        one, place = BENCHMARKS[name], RESULTS / f"{name}.json"
        if not config.stored:
            console.print(f"{name} ...")
            place, problem = run(name, one, config)
            if problem is not None:
                problems.append(f"{name}: {problem}")
                console.print(f"{name}: {problem}", soft_wrap=True)
                continue
        rows += lines(json.loads(place.read_text()), one, age_of(place, one) if config.stored else "now")
    reached = [row for row in rows if row["reached"] == "yes"]
    aimed = [row for row in rows if row["reached"]]
    notes = [f"targets reached: {len(reached)} of {len(aimed)}", *problems]
    table = Table(COLUMNS, rows, "All benchmarks of speed: medians")
    summary = script.summary_of(config, rows=rows, not_run=problems)
    script.finish(
        config, console, "benchmarks", summary, title="Benchmarks", intro=str(__doc__),
        sections=[Section("Speed", "\n".join(notes), [table], [])], tables=[table], notes=notes,
    )  # fmt: skip
    if problems and not config.stored:
        raise SystemExit(1)
    return summary


def run(name: str, one: Benchmark, config: Config) -> tuple[Path, str | None]:
    """Run one benchmark in a process of its own; where its JSON lies, and why there is none."""
    missing = [package for package in one.needs if find_spec(package) is None]
    if missing:
        return Path(), f"not run, {', '.join(missing)} is missing: pip install -e '.[benchmarks]'"
    smoke = config.smoke
    if one.data and config.data_dir is None and not (smoke and "--smoke" in one.smoke):
        return Path(), "not run, needs prepared MNIST: --data-dir DIR"
    place = config.out / name / (Path(one.script).with_suffix(".json") if one.folder else "found.json")
    needs_data = one.data and config.data_dir is not None and not (smoke and "--smoke" in one.smoke)
    flags = [*(one.smoke if smoke else one.flags), *((*one.data, str(config.data_dir)) if needs_data else ())]
    command = [sys.executable, str(Path(__file__).parent / one.script), *flags]
    command += ["--out", str(place.parent if one.folder else place)]
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # each chooses its own devices
    try:
        done = subprocess.run(command, timeout=60 * config.minutes, capture_output=True, text=True, cwd=ROOT, env=plain)
    except subprocess.TimeoutExpired:
        return place, f"stopped after {config.minutes:g} minutes"
    if done.returncode:
        return place, f"failed with status {done.returncode}: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
    return place, None


def lines(found: dict[str, Any], one: Benchmark, age: str) -> list[dict[str, Any]]:
    """Rows of the table."""
    machine = found.get("environment", {})
    load = found.get("load_per_core_before")
    if load is None and machine.get("load_average") is not None and machine.get("cpus"):
        load = machine["load_average"] / machine["cpus"]
    where = " ".join(str(machine[x]) for x in ("cpus", "device", "jax") if x in machine) or "not recorded"
    rows = []
    for what, ours, against, peer, target in one.read(found):
        ratio = peer / ours
        reached = "" if target is None else "yes" if ratio >= target else "no"
        rows.append({
            "what": what, "ours": 1e3 * ours, "against": against, "peer": 1e3 * peer, "ratio": ratio, "target": target,
            "reached": reached, "machine": where, "load": load, "age": age,
        })  # fmt: skip
        if load is not None and load > timing.BUSY:
            rows[-1]["age"] += ", busy machine"
    return rows


def age_of(place: Path, one: Benchmark) -> str:
    """Whether the code that a stored figure measures was changed after it."""
    figure = _changed(place)
    code = _changed(*(ROOT / x for x in (*one.measures, f"experiments/benchmarks/{one.script}")))
    if figure is None or code is None:
        return "unknown"
    return "changed" if figure < code else "same"


def _changed(*paths: Path) -> int | None:
    """Seconds of the last commit that changed one of the paths; None where that is not known."""
    try:
        command = ["git", "log", "-1", "--format=%ct", "--", *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except FileNotFoundError:  # no git on this machine
        return None
    text = done.stdout.strip()
    return int(text) if done.returncode == 0 and text else None


if __name__ == "__main__":
    script.run(main, Config, __doc__)
