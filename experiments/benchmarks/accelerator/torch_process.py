"""The process that times PyTorch: `python torch_process.py FOLDER`, see `pytorch.py`; it never imports JAX.

Every call draws its batches and makes all steps of all requests, as `batched` does. *vmap*: `torch.func.vmap` of a whole step,
gather, gradient and update. *compiled vmap*: the same through `torch.compile`, one function for each phase. *compiled vmap,
CUDA graph*: all steps of that recorded once and replayed. Before anything is timed, the eager form must return the library's
weights when it gets the library's batches, in full float32; timed calls may use TF32, as the library's do.
"""

import json
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from experiments.benchmarks import torch_updates as updates

TOLERANCE = 1e-4  # float32 rounding of two libraries over all steps
FILLED = 64  # requests from which on a card is full; those cells come first, should the time not do
FORWARDS = {"mlp": updates.forward, "cnn": updates.convolutional}


class Run:
    """What was given, what was found, and the clock."""

    def __init__(self, folder: Path) -> None:
        self.end = time.perf_counter()
        self.settings = json.loads((folder / "settings.json").read_text())
        self.end += self.settings["seconds"]
        self.given = dict(np.load(folder / "start.npz"))
        self.device, self._file = torch.device(self.settings["device"]), folder / "found.json"
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
        self.records_graphs = self.device.type == "cuda"
        self.found: dict[str, Any] = {"rows": [], "left_out": [], "failures": [], "versions": versions, "apart": {}}

    def save(self, kind: str, **values: Any) -> None:
        """Write down at once: the process may be ended at any time."""
        self.found[kind].append(values)
        self._file.write_text(json.dumps(self.found))

    def on_device(self, name: str) -> torch.Tensor:
        """One of the given arrays; whole numbers as indices."""
        value = torch.from_numpy(self.given[name]).to(self.device)
        return value if value.is_floating_point() else value.long()

    def weights(self, prefix: str) -> updates.Parameters:
        """All arrays whose names continue the prefix with a number."""
        count = sum(name.startswith(f"{prefix}/") for name in self.given)
        return tuple(self.on_device(f"{prefix}/{i}") for i in range(count))

    def problem(self, network: str, method: str) -> updates.Problem:
        """A network, its rows and its requests."""
        steps = self.settings["steps"]
        phases = self.given[f"mlp/{method}/phases"].tolist() if f"mlp/{method}/phases" in self.given else [0] * steps
        rows = list(self.on_device(f"{network}/requests"))
        inputs, targets = self.on_device(f"{network}/inputs"), self.on_device(f"{network}/targets")
        return updates.Problem(inputs, targets, self.weights(f"{network}/weights"), rows, phases)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, call: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of the first call, and the median of the next ones."""
        seconds: list[float] = []
        while len(seconds) < self.settings["repeats"] + 1 and (len(seconds) < 3 or sum(seconds[1:]) < self.settings["longest"]):
            start = time.perf_counter()
            call()
            self.synchronise()
            seconds.append(time.perf_counter() - start)
        return seconds[0], statistics.median(seconds[1:])


def check(run: Run) -> None:
    """Equal logits, and equal weights after all steps on the library's batches."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for network, forward in FORWARDS.items():
        found = forward(run.weights(f"{network}/weights"), run.on_device(f"{network}/inputs"))
        require(f"logits of the {network}", float((found - run.on_device(f"{network}/logits")).abs().max()), run)
    for method in run.settings["methods"]:
        problem = run.problem("mlp", method)
        draws = updates.Draws(run.on_device(f"mlp/{method}/forget"), run.on_device(f"mlp/{method}/retain"))
        steps = updates.functional_steps(problem, method, run.settings["batch"])
        after = updates.side_by_side(problem, draws, steps=vmapped(steps))
        expected = run.weights(f"mlp/{method}/after")
        apart = max(float((x - y).abs().max()) for x, y in zip(after, expected, strict=True))
        require(f"weights after {method}", apart, run)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


def require(what: str, apart: float, run: Run) -> None:
    """Stop before anything is timed that is not the same on both sides."""
    run.found["apart"][what] = apart
    if not apart <= TOLERANCE:
        raise AssertionError(f"{what} differ by {apart} from the library's")


def vmapped(steps: dict[int, updates.Step]) -> dict[int, updates.Step]:
    """A step for all requests side by side, of each phase."""
    return {phase: torch.func.vmap(step, randomness="error") for phase, step in steps.items()}


def compiled(steps: dict[int, updates.Step]) -> dict[int, updates.Step]:
    """The same as one compiled function a phase."""
    return {phase: torch.compile(step, fullgraph=True, dynamic=False) for phase, step in steps.items()}


def cell(run: Run, network: str, method: updates.Method, requests: int) -> None:
    """All forms of one network, method and number of requests."""
    problem, size, count = run.problem(network, method), run.settings["batch"], len(run.given[f"{network}/targets"])
    rows = torch.stack(problem.requests[:requests])  # [R, k]
    is_retained = torch.ones(requests, count, dtype=torch.bool, device=run.device).scatter_(1, rows, False)
    retained = is_retained.nonzero()[:, 1].reshape(requests, -1)
    shape = (requests, len(problem.phases), size)

    def drawn(candidates: torch.Tensor) -> torch.Tensor:
        places = torch.randint(candidates.shape[1], (requests, shape[1] * size), device=run.device)
        return candidates.gather(1, places).reshape(shape)

    def answer(steps: dict[int, updates.Step]) -> updates.Parameters:
        return updates.side_by_side(problem, updates.Draws(drawn(rows), drawn(retained)), steps=steps)

    def report(variant: str, call: Callable[[], Any]) -> None:
        first, median = run.timed(call)
        run.save("rows", network=network, method=method, requests=requests, variant=variant, ms=1e3 * median,
                 ms_per_request=1e3 * median / requests, first_call_s=first)  # fmt: skip

    torch._dynamo.reset()  # otherwise programs of other shapes count towards the limit of recompilations
    steps = vmapped(updates.functional_steps(problem, method, size, FORWARDS[network]))
    fast = compiled(steps)
    forms: dict[str, Callable[[], Callable[[], Any]]] = {
        "vmap": lambda: partial(answer, steps),
        "compiled vmap": lambda: partial(answer, fast),
    }
    if run.records_graphs:
        forms["compiled vmap, CUDA graph"] = lambda: recorded(partial(answer, fast))
    for variant, make in forms.items():
        what = f"{variant}, {network}, {method}, requests: {requests}"
        if time.perf_counter() > run.end:
            run.save("left_out", what=what, why="did not fit the time")
        elif variant != "vmap" and run.device.type == "cpu" and shutil.which("g++") is None:
            run.save("left_out", what=what, why="torch.compile needs the compiler g++")
        else:
            try:
                report(variant, make())
            except Exception as error:  # one form that fails leaves the others to be timed
                traceback.print_exc()
                run.save("failures", what=what, error=f"{type(error).__name__}: {error}"[:2000])
                run.records_graphs &= "graph" not in variant  # a second failure could take the process along


def recorded(call: Callable[[], Any]) -> Callable[[], None]:
    """All kernels of a call as one CUDA graph, which is what its replay launches."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def main(folder: Path) -> None:
    """Check, then time cells in the order of their worth."""
    run = Run(folder)
    if run.device.type == "cuda" and not torch.cuda.is_available():
        run.save("left_out", what="PyTorch", why="this PyTorch sees no CUDA device")
        return
    torch.manual_seed(0)
    try:
        check(run)
    except Exception as error:
        traceback.print_exc()
        run.save("failures", what="the library's weights from PyTorch", error=f"{type(error).__name__}: {error}"[:2000])
        return
    cases: list[tuple[str, updates.Method]] = [
        ("mlp", "gradient_difference"), ("mlp", "scrub"), ("cnn", "gradient_difference"), ("cnn", "scrub"),
    ]  # fmt: skip
    cells = [(*case, requests) for case in cases if case[1] in run.settings["methods"] for requests in run.settings["requests"]]
    for each in sorted(cells, key=lambda cell: (cell[2] < FILLED, cell[0] != "mlp")):
        if time.perf_counter() > run.end:
            run.save("left_out", what="{}, {}, requests: {}".format(*each), why="did not fit the time")
        else:
            cell(run, *each)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
