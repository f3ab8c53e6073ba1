"""What the library does on an accelerator, in one run of five minutes: ceilings, speed, and whether its promises hold there.

    python experiments/benchmarks/gpu.py                       # writes gpu.json and gpu.md into $OUT, or into out/gpu
    python experiments/benchmarks/gpu.py --parts ceilings contract --seconds 60
    python experiments/benchmarks/gpu.py --smoke               # tiny sizes, on any device, in seconds

Needs jax, flax, optax, jaxtyping and scipy; with PyTorch the same updates are timed there too. Rows are noise, nothing is read.

Every part has a share of the time, and looks at the clock before each measurement: what does not fit is named in the table.
A part that fails is reported with its error, and the others go on. Results are compared before they count. Times are medians
of warm calls that wait for the device, compile time apart. The JSON is written after every line, and when the time is over, a
watchdog writes the table and ends the process, so that a hanging compiler loses only what it was compiling.

Exit status: 0, or 1 if something failed or was cut off.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.7")  # the rest is for PyTorch's process

from experiments.benchmarks.accelerator.harness import SMOKE, Part, Size
from experiments.common.training import environment


class Plan(NamedTuple):
    """A part of the run."""

    title: str
    seconds: float  # of `SECONDS`; the last part gets what is left


SECONDS = 290.0
PARTS = {  # name of the file in `accelerator` -> plan
    "ceilings": Plan("(a) ceilings of the device", 20),
    "side_by_side": Plan("(b) many requests at once", 85),
    "pytorch": Plan("(b) the same in PyTorch", 60),
    "curvature": Plan("(c) EK-FAC", 15),
    "ensembles": Plan("(d) metrics of ensembles", 15),
    "certified": Plan("(e) removals in float64", 20),
    "contract": Plan("(f) promises, checked on this device", 30),
    "meshes": Plan("(h) several devices", 10),
    "decoders": Plan("(i) a scanned decoder: EK-FAC and adapters", 20),
    "resnet": Plan("(g) ResNet-18, if time is left", 20),
}


class Report:
    """All that was found, written to two files whenever something is added."""

    def __init__(self, folder: Path, found: dict[str, Any]) -> None:
        self.folder, self.found = folder, found
        self._writing = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        """Write gpu.json whole, or leave the one before."""
        with self._writing:
            draft = self.folder / "gpu.json.part"
            draft.write_text(json.dumps(self.found, indent=1, default=float) + "\n")
            draft.replace(self.folder / "gpu.json")

    def end(self) -> int:
        """Write and print the table; the exit status."""
        self.save()
        table = markdown(self.found)
        (self.folder / "gpu.md").write_text(table)
        print(table, flush=True)
        return int(any(part["status"] in ("failed", "cut off") or part["failures"] for part in self.found["parts"].values()))


def run_part(name: str, report: Report, seconds: float, size: Size, shared: dict[str, Any]) -> None:
    """One part, whose faults are written down and end nothing else."""
    record = report.found["parts"][name]
    part = Part(record, seconds, shared, report.save)
    record["status"], start = "running", time.perf_counter()
    print(f"{PARTS[name].title}: at most {seconds:.0f} s", flush=True)
    try:
        import_module(f"experiments.benchmarks.accelerator.{name}").run(part, size)
    except Exception as error:
        part.failed(PARTS[name].title, error)
    record["status"] = "failed" if record["failures"] else "done"
    record["seconds"] = time.perf_counter() - start
    report.save()


def main(arguments: Sequence[str] | None = None, *, end_process: bool = False) -> int:
    """Run all parts; with `end_process` a watchdog ends the process when the time is over."""
    began = time.perf_counter()
    config = parsed(arguments)
    parts = {name: {"status": "not begun", "rows": [], "left_out": [], "failures": []} for name in config.parts}
    found = {"config": {"seconds": config.seconds, "smoke": config.smoke, "parts": config.parts}, "environment": environment(),
             "parts": parts}  # fmt: skip
    report, shared = Report(config.out, found), {}

    def cut_off() -> None:
        for part in parts.values():
            part["status"] = {"running": "cut off", "not begun": "did not fit the time"}.get(part["status"], part["status"])
        os._exit(report.end() or 1)

    watchdog = threading.Timer(config.seconds, cut_off)
    watchdog.daemon = True
    if end_process:
        watchdog.start()
    for place, name in enumerate(config.parts):
        left = config.seconds - (time.perf_counter() - began) - 2  # seconds for the table
        is_last = place == len(config.parts) - 1
        share = left if is_last else min(left, PARTS[name].seconds * config.seconds / SECONDS)
        if share > 0:
            run_part(name, report, share, SMOKE if config.smoke else Size(), shared)
        else:
            parts[name]["status"] = "did not fit the time"
    watchdog.cancel()
    found["seconds"] = time.perf_counter() - began
    return report.end()


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = os.environ.get("OUT")
    parser.add_argument("--out", type=Path, default=Path(out) if out else Path("out/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole run")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="in this order")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    return parser.parse_args(arguments)


def markdown(found: Mapping[str, Any]) -> str:
    """A table a part, and what is missing."""
    where = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    lines = ["# On an accelerator", "", f"{where}.", ""]
    if found["config"]["smoke"]:
        lines += ["Smoke sizes: the times mean nothing.", ""]
    for name, part in found["parts"].items():
        took = f", {part['seconds']:.0f} s" if "seconds" in part else ""
        lines += [f"## {PARTS[name].title}: {part['status']}{took}", ""]
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        if columns:
            lines += [f"| {' | '.join(x.replace('_', ' ') for x in columns)} |", "|" + "---|" * len(columns)]
            lines += [f"| {' | '.join(_shown(row.get(key)) for key in columns)} |" for row in part["rows"]] + [""]
        lines += [f"- {key}: {part[key]}" for key in ("versions", "apart") if part.get(key)]
        lines += [f"- left out: {x['what']} ({x['why']})" for x in part["left_out"]]
        lines += [f"- FAILED: {x['what']}: {' '.join(x['error'].split())}" for x in part["failures"]] + [""]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(end_process=True))
