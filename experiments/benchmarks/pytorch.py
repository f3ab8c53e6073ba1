"""How fast is `batched` beside the same updates in PyTorch, on the same cores?

    pip install -e '.[benchmarks]'
    python experiments/benchmarks/pytorch.py                       # both methods, 64 requests, some minutes on two cores

64 requests for 8 to 64 rows of digits, network 64-128-128-10, SGD, 100 steps of 64 forgotten and 64 retained rows.

- *eager*: a module and `torch.optim.SGD(fused=True)`, one forward pass for each side, the teacher under `no_grad`; one request
  after the other. The targets are about this one.
- *eager, one pass* (gradient_difference): both sides through the network together and one weighted sum of the losses, which
  is the same update for networks without BatchNorm only.
- *torch.compile*: a whole step, gather, gradient and update, as one compiled function; one request after the other.
- *torch.func.vmap*: all requests side by side, eager and compiled.
- *batched*: this library as it comes, which takes all cores; inside `jit`, on one core; and on two faked devices.

First every variant gets the batches that the library's own sampler draws, and must return the library's weights. In timed
calls PyTorch draws its batches itself, all row numbers of a request at once. All in one process, interleaved, medians; the
first call of each apart, with PyTorch's caches of compiled code switched off.

Two libraries in one process fight over cores when one keeps threads in a busy loop. OpenMP threads of PyTorch do so for some
milliseconds after each parallel region. Nothing is set against it, because it makes PyTorch itself faster; instead there is
a rest after every call, and the table says how many cores were still busy in its second half. `OMP_WAIT_POLICY`,
`GOMP_SPINCOUNT` and `KMP_BLOCKTIME` are refused, because they slow one side down. PyTorch gets two threads. XLA takes what
it wants: its pool has a thread a core.
"""

import copy
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # so that a first call is one
sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import numpy as np
import optax
import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra
import tyro
from rich.console import Console
from torch.nn.functional import cross_entropy  # pyright: ignore[reportMissingImports]

import jaxunlearn as ju
from experiments.benchmarks import timing
from experiments.benchmarks.draws import library_draws
from experiments.benchmarks.torch_updates import (
    ALPHA,
    FORGET,
    GAMMA,
    LEARNING_RATE,
    TEMPERATURE,
    Draws,
    Method,
    Parameters,
    Problem,
    Step,
    distance,
    functional_steps,
    side_by_side,
)
from experiments.common import study, training
from experiments.common.data import load
from experiments.common.models import build
from experiments.common.report import Column, Table, print_table

TARGETS = {"batched inside jit": 3.0, "batched": 5.0, "batched on 2 devices": 5.0}  # times faster than eager PyTorch
EAGER = "eager"
TOLERANCE = 1e-4  # float32 rounding of two libraries over all steps


@dataclass
class Config:
    """Command line of the benchmark."""

    methods: tuple[Method, ...] = ("gradient_difference", "scrub")
    """Which updates."""
    requests: int = 64
    """Forget requests."""
    steps: int = 100
    """Steps of each."""
    batch_size: int = 64
    """Rows per step, of each side."""
    rounds: int = 7
    """Timed rounds."""
    threads: int = 2
    """Threads of PyTorch."""
    pause: float = 0.2
    """Seconds of rest after every call."""
    out: Path | None = None
    """JSON file."""


Variant: TypeAlias = Callable[[Draws], list[Parameters]]  # one entry per request


def drawn(problem: Problem, batch_size: int) -> Draws:
    """Rows for all steps, uniformly with replacement from each side."""
    shape = (len(problem.phases), batch_size)
    forget, retain = [], []
    for rows in problem.requests:
        is_retained = torch.ones(len(problem.targets), dtype=torch.bool)
        is_retained[rows] = False
        retained = is_retained.nonzero().squeeze(1)
        forget.append(rows[torch.randint(len(rows), shape)])
        retain.append(retained[torch.randint(len(retained), shape)])
    return Draws(torch.stack(forget), torch.stack(retain))


def network(trained: Parameters) -> torch.nn.Sequential:
    """The module with given weights."""
    layers: list[torch.nn.Module] = []
    for weight, bias in zip(trained[::2], trained[1::2], strict=True):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight, layer.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def eager(problem: Problem, draws: Draws, *, method: Method, passes: int) -> list[Parameters]:
    """A plain PyTorch loop."""
    inputs, targets, alpha = problem.inputs, problem.targets, ALPHA[method]
    size = draws.forget.shape[-1]
    signs = torch.cat([torch.full((size,), -(1 - alpha) / size), torch.full((size,), alpha / size)])
    teacher = network(problem.trained)
    results = []
    for forget_rows, retain_rows in zip(*draws, strict=True):
        model = copy.deepcopy(teacher)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, fused=True)
        steps = torch.cat([forget_rows, retain_rows], 1) if passes == 1 else forget_rows
        for rows, retain, phase in zip(steps, retain_rows, problem.phases, strict=True):
            if method == "scrub":
                is_forget = phase == FORGET
                now = rows if is_forget else retain
                batch = inputs[now]
                with torch.no_grad():
                    expected = teacher(batch)
                logits = model(batch)
                kl = distance(expected, logits)
                loss = -kl if is_forget else alpha * kl + GAMMA * cross_entropy(logits, targets[now])
            elif passes == 1:
                loss = torch.dot(signs, cross_entropy(model(inputs[rows]), targets[rows], reduction="none"))
            else:
                kept = cross_entropy(model(inputs[retain]), targets[retain])
                loss = alpha * kept - (1 - alpha) * cross_entropy(model(inputs[rows]), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        results.append(tuple(parameter.detach() for parameter in model.parameters()))
    return results


def answers(problem: Problem, draws: Draws, *, steps: dict[int, Step]) -> list[Parameters]:
    """All requests in every step."""
    return list(zip(*side_by_side(problem, draws, steps=steps), strict=True))


def looped(problem: Problem, draws: Draws, *, steps: dict[int, Step]) -> list[Parameters]:
    """One request after the other."""
    results = []
    for forget_rows, retain_rows in zip(*draws, strict=True):
        parameters = problem.trained
        for forget, retain, phase in zip(forget_rows, retain_rows, problem.phases, strict=True):
            parameters = steps[phase](parameters, forget, retain)
        results.append(parameters)
    return results


def torch_variants(problem: Problem, method: Method, batch_size: int, console: Console) -> dict[str, Variant]:
    """All ways in which PyTorch does it."""
    steps = functional_steps(problem, method, batch_size)
    vmapped = {phase: torch.func.vmap(step) for phase, step in steps.items()}
    variants: dict[str, Variant] = {EAGER: partial(eager, problem, method=method, passes=2)}
    if method == "gradient_difference":
        variants["eager, one pass"] = partial(eager, problem, method=method, passes=1)
    variants["torch.func.vmap"] = partial(answers, problem, steps=vmapped)
    if shutil.which("g++") is None:
        console.print("torch.compile: left out, because it needs the compiler g++, which is not on the PATH")
        return variants
    compiled: dict[int, Step] = {phase: torch.compile(step, fullgraph=True, dynamic=False) for phase, step in steps.items()}
    both: dict[int, Step] = {phase: torch.compile(step, fullgraph=True, dynamic=False) for phase, step in vmapped.items()}
    variants["torch.compile"] = partial(looped, problem, steps=compiled)
    variants["torch.compile of torch.func.vmap"] = partial(answers, problem, steps=both)
    return variants


def as_torch(variables: ju.Variables) -> Parameters:
    """Weights of `experiments.common.models.MLP` in PyTorch's layout; a leading axis stays."""
    layers = [variables.params[name] for name in ("Dense_0", "Dense_1", "head")]
    arrays = [x for layer in layers for x in (np.swapaxes(layer["kernel"], -1, -2), layer["bias"])]
    return tuple(torch.from_numpy(np.array(x, order="C")) for x in arrays)


def compare(method: Method, config: Config, load_before: float, console: Console) -> dict[str, Any]:
    """Check one method's variants against each other, time them, and print ratios."""
    dataset = load("digits")
    model = build("mlp", (8, 8, 1), 10)
    data = ju.training_data(*dataset.train)
    adam = optax.adam(1e-3)
    trained = training.train(model, data, adam, num_steps=200, batch_size=64, seeds=[0], key=jax.random.key(0))
    variables = jax.tree.map(lambda x: x[0], trained)
    requests = study.random_requests(data, np.linspace(8, 64, config.requests).astype(int).tolist(), 0)
    keys = jax.random.split(jax.random.key(1), config.requests)

    optimizer, alpha = optax.sgd(LEARNING_RATE), ALPHA[method]
    if method == "scrub":
        stepwise = ju.scrub(model, optimizer, alpha=alpha, gamma=GAMMA, temperature=TEMPERATURE)
    else:
        stepwise = ju.gradient_difference(model, optimizer, alpha=alpha)
    unlearn = ju.iterate(stepwise, config.steps, batch_size=config.batch_size)
    drawn_here = library_draws(stepwise, variables, data, requests, keys, config.steps, config.batch_size)
    given = Draws(torch.from_numpy(drawn_here.forget.astype(np.int64)), torch.from_numpy(drawn_here.retain.astype(np.int64)))
    rows = [
        torch.from_numpy(np.asarray(i)[np.asarray(w) > 0]).long()
        for i, w in zip(requests.indices, requests.weights, strict=True)
    ]
    inputs = torch.from_numpy(dataset.train.inputs.reshape(len(dataset.train.inputs), -1))
    problem = Problem(inputs, torch.from_numpy(dataset.train.targets).long(), as_torch(variables), rows, drawn_here.phases)

    as_it_comes, mesh = ju.batched(unlearn), ju.request_mesh()
    inside = jax.jit(as_it_comes)
    meshed, everywhere = ju.batched(unlearn, mesh=mesh), ju.replicate((variables, data), mesh)
    ours: dict[str, Callable[[], ju.Result]] = {
        "batched": lambda: as_it_comes(variables, data, requests, keys),
        "batched inside jit": lambda: inside(variables, data, requests, keys),
        f"batched on {mesh.size} devices": lambda: meshed(everywhere[0], everywhere[1], requests, keys),
    }
    theirs = torch_variants(problem, method, config.batch_size, console)
    first, differences = {}, {}
    expected: Parameters | None = None
    for name, call in {**ours, **{name: partial(variant, given) for name, variant in theirs.items()}}.items():
        start = time.perf_counter()
        found = jax.block_until_ready(call())
        first[name] = time.perf_counter() - start
        weights = as_torch(ju.check(found).variables) if name in ours else tuple(map(torch.stack, zip(*found, strict=True)))
        expected = weights if expected is None else expected
        differences[name] = max(float((x - y).abs().max()) for x, y in zip(weights, expected, strict=True))
        if not differences[name] <= TOLERANCE:
            raise AssertionError(f"{method}: the weights of '{name}' differ by {differences[name]} from those of batched")
        time.sleep(config.pause)
    moved = max(float((x - y).abs().max()) for x, y in zip(expected or (), problem.trained, strict=True))
    console.print(f"{method}: same weights within {max(differences.values()):.1e}, after moving by up to {moved:.1e}")

    timed = {name: partial(_draw_and_run, variant, problem, config.batch_size) for name, variant in theirs.items()}
    times = timing.interleaved({**timed, **ours}, rounds=config.rounds, pause=config.pause, load=load_before)
    per_request = {name: seconds / config.requests for name, seconds in times.median.items()}
    ratios = {name: {other: t / per_request[name] for other, t in per_request.items() if other in theirs} for name in ours}
    table = [
        {"name": name, "step": 1e3 * t / config.steps, "first": first[name], "spin": times.spinning[name]}
        | {other: t / per_request[other] for other in ours}
        for name, t in per_request.items()
    ]
    columns = [
        Column("name", "variant"),
        Column("step", "ms a step", ".3f"),
        *(Column(name, f"time /\n{name}", ".2f") for name in ours),
        Column("first", "first\ncall, s", ".1f"),
        Column("spin", "cores busy\nafterwards", ".2f"),
    ]
    print_table(Table(columns, table, f"{method}, {config.requests} requests, {config.steps} steps"), Console(width=128))
    for name, target in TARGETS.items():
        if name in ratios:
            ratio = ratios[name][EAGER]
            verdict = ("reached" if ratio >= target else "missed") if times.valid else "INVALID, machine busy"
            console.print(f"{name}: {ratio:.2f} times faster than eager PyTorch, target {target:.0f}: {verdict}")
    return {
        "seconds_per_request": per_request,
        "best_seconds_per_request": {name: seconds / config.requests for name, seconds in times.best.items()},
        "first_call_seconds": first,
        "time_relative_to": ratios,
        "largest_difference_of_weights": differences,
        "largest_move_of_weights": moved,
        "cores_busy_after": times.spinning,
        "valid": times.valid,
    }


def _draw_and_run(variant: Variant, problem: Problem, batch_size: int) -> list[Parameters]:
    return variant(drawn(problem, batch_size))


def main(config: Config) -> None:
    """Compare all methods, and print whether the figures count."""
    load_before = timing.load_per_core()
    console = Console()
    timing.set_torch_threads(config.threads)
    torch.manual_seed(0)
    console.print(
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, jax {jax.__version__}, {os.cpu_count()} cores"
    )
    results = {method: compare(method, config, load_before, console) for method in config.methods}
    valid = all(result["valid"] for result in results.values())
    console.print(f"load average before: {load_before:.2f} per core" + ("" if valid else "; INVALID, machine busy"))
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        summary = {
            "config": {**vars(config), "out": None},
            "environment": {**training.environment(), "torch": torch.__version__, "torch_threads": torch.get_num_threads()},
            "load_per_core_before": load_before,
            "valid": valid,
            "methods": results,
        }
        config.out.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
