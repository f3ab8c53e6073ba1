"""How fast is an ensemble of retrained models beside the same trainings in PyTorch, on the same cores?

    pip install -e '.[benchmarks]'
    python experiments/benchmarks/ensemble.py                      # 256 models, some minutes on two cores

256 models retrained without the same 64 rows of digits, each from fresh weights of its own: network 64-128-128-10, SGD, 300
steps of 100 retained rows.

- *eager*: a module and `torch.optim.SGD(fused=True)`, one model after the other. The targets are about this one.
- *torch.compile*: a whole step, gather, gradient and update, as one compiled function; one model after the other.
- *torch.func.vmap*: models side by side, eager and compiled.
- *batched*: `batched(retrain)` of this library as it comes, which takes all cores; inside `jit`, on one core; and on two faked
  devices.

First every PyTorch variant gets initial weights and batches that the library draws, and must return the library's weights:
eager PyTorch in float64 to 1e-9 for every model, then all variants in float32. There the median model must agree to 1e-5.
Single models may differ by more, because rounding now and then decides whether a ReLU near zero is on (with tanh none does);
none by more than 5e-2. In timed calls PyTorch draws weights and batches itself. `batched` makes all models in a timed call,
PyTorch some of them (`--torch-models`), and times are given per model. Too few of them make PyTorch look slow: in one run
each, eager steps took 0.71 ms (median; best 0.49) with 16 models and 0.48 ms (both) with 64. Side by side, a model's time also
depends on their number; `--torch-models 256` gives those variants as many lanes as there are models.

All in one process, interleaved, medians; the first call of each apart. For rests after calls and threads see `pytorch.py`.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # so that a first call is one
sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra
import tyro
from rich.console import Console
from torch.nn.functional import cross_entropy  # pyright: ignore[reportMissingImports]

import jaxunlearn as ju
from experiments.benchmarks import timing
from experiments.benchmarks.pytorch import as_torch, network
from experiments.benchmarks.torch_updates import Parameters, forward
from experiments.common import study, training
from experiments.common.data import load
from experiments.common.models import build
from experiments.common.report import Column, Table, print_table
from jaxunlearn import sampling
from jaxunlearn.loop.iterate import step_keys
from jaxunlearn.types import BatchSizes

LEARNING_RATE = 0.1
IN_AXES = (None, None, None, 0)  # one request, a key a model
WIDTHS = (64, 128, 128, 10)
TARGETS = {"batched inside jit": 2.5, "batched": 4.0, "batched on 2 devices": 4.0}  # times faster than eager PyTorch
EAGER = "eager"
IN_DOUBLE, MEDIAN, LARGEST = 1e-9, 1e-5, 5e-2  # what weights may differ by, see above


@dataclass
class Config:
    """Command line of the benchmark."""

    models: int = 256
    """Retrained models."""
    torch_models: int = 64
    """Models in each timed call of PyTorch."""
    steps: int = 300
    """Steps of each."""
    batch_size: int = 100
    """Rows a step."""
    forget: int = 64
    """Rows that none of them sees."""
    rounds: int = 5
    """Timed rounds."""
    threads: int = 2
    """Threads of PyTorch."""
    pause: float = 0.2
    """Seconds of rest after every call."""
    out: Path | None = None
    """JSON file."""


class Problem(NamedTuple):
    """What every PyTorch variant reads."""

    inputs: torch.Tensor  # [n, 64]
    targets: torch.Tensor  # [n]
    retained: torch.Tensor  # row numbers


class Start(NamedTuple):
    """What makes one model another one."""

    weights: list[Parameters]  # of each model, before the first step
    rows: torch.Tensor  # [models, steps, b]


Variant: TypeAlias = Callable[[Start], list[Parameters]]  # trained weights of each model
Step: TypeAlias = Callable[[Parameters, torch.Tensor], Parameters]


def drawn(problem: Problem, models: int, steps: int, batch_size: int) -> Start:
    """Fresh weights as He's, and rows for all steps, uniformly with replacement."""

    def fresh() -> Parameters:
        layers = pairwise(WIDTHS)
        return tuple(
            x for fan_in, fan_out in layers for x in (torch.randn(fan_out, fan_in) * (2 / fan_in) ** 0.5, torch.zeros(fan_out))
        )

    rows = problem.retained[torch.randint(len(problem.retained), (models, steps, batch_size))]
    return Start([fresh() for _ in range(models)], rows)


def eager(problem: Problem, start: Start) -> list[Parameters]:
    """A plain PyTorch loop."""
    results = []
    for weights, steps in zip(*start, strict=True):
        model = network(tuple(x.clone() for x in weights))
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, fused=True)
        for rows in steps:
            loss = cross_entropy(model(problem.inputs[rows]), problem.targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        results.append(tuple(parameter.detach() for parameter in model.parameters()))
    return results


def functional_step(problem: Problem) -> Step:
    """One whole step as a pure function."""

    def loss(weights, rows):
        return cross_entropy(forward(weights, problem.inputs[rows]), problem.targets[rows])

    def step(weights, rows):
        gradient = torch.func.grad(loss)(weights, rows)
        return tuple(w - LEARNING_RATE * g for w, g in zip(weights, gradient, strict=True))

    return step


def looped(step: Step, start: Start) -> list[Parameters]:
    """One model after the other."""
    results = []
    for weights, steps in zip(*start, strict=True):
        for rows in steps:
            weights = step(weights, rows)
        results.append(weights)
    return results


def side_by_side(step: Step, start: Start) -> list[Parameters]:
    """All models in every step."""
    weights = tuple(map(torch.stack, zip(*start.weights, strict=True)))
    for rows in start.rows.unbind(1):
        weights = step(weights, rows)
    return list(zip(*weights, strict=True))


def torch_variants(problem: Problem, console: Console) -> dict[str, Variant]:
    """All ways in which PyTorch does it."""
    step = functional_step(problem)
    vmapped = torch.func.vmap(step)
    variants: dict[str, Variant] = {EAGER: partial(eager, problem), "torch.func.vmap": partial(side_by_side, vmapped)}
    if shutil.which("g++") is None:
        console.print("torch.compile: left out, because it needs the compiler g++, which is not on the PATH")
        return variants
    variants["torch.compile"] = partial(looped, torch.compile(step, fullgraph=True, dynamic=False))
    compiled = torch.compile(vmapped, fullgraph=True, dynamic=False)
    variants["torch.compile of torch.func.vmap"] = partial(side_by_side, compiled)
    return variants


def library_start(
    stepwise: ju.Unlearner, variables: Any, data: ju.Data, request: ju.ForgetRequest, keys: Any, steps: int, batch_size: int
) -> Start:
    """Initial weights and rows that the library itself draws for these keys."""

    def one(key):
        init_key, split_key, loop_key = jax.random.split(key, 3)  # as `iterate` does
        context, state = stepwise.init(variables, data, request, init_key)
        split = sampling.split(data, request, split_key)

        def rows(step):
            key = step_keys(loop_key, step)[0]
            return stepwise.sample(split, context, step, key, BatchSizes(batch_size, batch_size)).retain.slots

        return state.variables, jax.vmap(rows)(jnp.arange(steps, dtype=jnp.int32))

    weights, rows = jax.jit(jax.vmap(one))(keys)
    return Start(list(zip(*as_torch(weights), strict=True)), torch.from_numpy(np.array(rows)).long())


def difference_in_double(
    model: ju.Model, data: ju.Data, problem: Problem, request: ju.ForgetRequest, keys: Any, config: Config
) -> float:
    """Largest difference of the library's weights to those of eager PyTorch after all steps, both in float64."""
    init = model.init
    assert init is not None  # models of this repository have one

    def double(values):
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), values)

    with jax.enable_x64(True):
        wide = model._replace(init=lambda key: double(init(key)))
        rows = data._replace(train=data.train._replace(inputs=double(data.train.inputs)))
        variables = double(init(jax.random.key(0)))
        stepwise = ju.retrain(wide, optax.sgd(LEARNING_RATE))
        start = library_start(stepwise, variables, rows, request, keys, config.steps, config.batch_size)
        train = ju.iterate(stepwise, config.steps, batch_size=config.batch_size)
        ours = as_torch(ju.check(jax.jit(ju.batched(train, in_axes=IN_AXES))(variables, rows, request, keys)).variables)
    theirs = tuple(map(torch.stack, zip(*eager(problem._replace(inputs=problem.inputs.double()), start), strict=True)))
    if {x.dtype for x in (*ours, *theirs)} != {torch.float64}:
        raise AssertionError("expected weights in float64 on both sides")
    return float(by_model(ours, theirs).max())


def by_model(one: Parameters, other: Parameters) -> torch.Tensor:
    """Largest difference of weights of each model; stacked weights."""
    return torch.stack([(x - y).abs().flatten(1).amax(1) for x, y in zip(one, other, strict=True)]).amax(0)


def main(config: Config) -> None:
    """Check the variants against each other, time them, and print ratios."""
    load_before = timing.load_per_core()
    console = Console(width=128)
    if not 1 <= config.torch_models <= config.models:
        raise ValueError(f"torch_models must lie between 1 and models={config.models}, got {config.torch_models}")
    timing.set_torch_threads(config.threads)
    torch.manual_seed(0)
    console.print(
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, jax {jax.__version__}, {os.cpu_count()} cores"
    )
    dataset = load("digits")
    model = build("mlp", (8, 8, 1), 10)
    assert model.init is not None  # models of this repository have one
    data = ju.training_data(*dataset.train)
    variables = jax.jit(model.init)(jax.random.key(0))  # only its form is read
    request = jax.tree.map(lambda x: x[0], study.random_requests(data, [config.forget], 0))
    keys = jax.random.split(jax.random.key(1), config.models)

    stepwise = ju.retrain(model, optax.sgd(LEARNING_RATE))
    train = ju.iterate(ju.retrain(model, optax.sgd(LEARNING_RATE)), num_steps=config.steps, batch_size=config.batch_size)
    as_it_comes, mesh = ju.batched(train, in_axes=IN_AXES), ju.request_mesh()
    inside = jax.jit(ju.batched(train, in_axes=IN_AXES))
    meshed, everywhere = ju.batched(train, in_axes=IN_AXES, mesh=mesh), ju.replicate((variables, data, request), mesh)
    ours: dict[str, Callable[[], ju.Result]] = {
        "batched": lambda: as_it_comes(variables, data, request, keys),
        "batched inside jit": lambda: inside(variables, data, request, keys),
        f"batched on {mesh.size} devices": lambda: meshed(everywhere[0], everywhere[1], everywhere[2], keys),
    }
    inputs = torch.from_numpy(dataset.train.inputs.reshape(len(dataset.train.inputs), -1))
    retained = torch.from_numpy(np.flatnonzero(np.asarray(sampling.retain_weights(data, request)))).long()
    problem = Problem(inputs, torch.from_numpy(dataset.train.targets).long(), retained)
    theirs = torch_variants(problem, console)

    few = config.torch_models
    in_double = difference_in_double(model, data, problem, request, keys[:few], config)
    if not in_double <= IN_DOUBLE:
        raise AssertionError(f"in float64 the weights of eager PyTorch differ by {in_double} from those of batched")
    given = library_start(stepwise, variables, data, request, keys[:few], config.steps, config.batch_size)
    first, differences, medians = {}, {}, {}
    expected: Parameters | None = None
    accuracy = 0.0
    for name, call in {**ours, **{name: partial(variant, given) for name, variant in theirs.items()}}.items():
        start = time.perf_counter()
        found: Any = jax.block_until_ready(call())
        first[name] = time.perf_counter() - start
        if name in ours:
            weights = tuple(x[:few] for x in as_torch(ju.check(found).variables))
        else:
            weights = tuple(map(torch.stack, zip(*found, strict=True)))
        if expected is None:
            expected = weights
            accuracy = float(np.mean(jax.vmap(partial(_test_accuracy, model, dataset.test))(found.variables)))
        difference = by_model(weights, expected)
        differences[name], medians[name] = float(difference.max()), float(difference.median())
        if not (differences[name] <= LARGEST and medians[name] <= MEDIAN):
            found = f"{medians[name]} (median model), {differences[name]} (all)"
            raise AssertionError(f"the weights of '{name}' differ from those of batched by {found}")
        time.sleep(config.pause)
    initial = tuple(map(torch.stack, zip(*given.weights, strict=True)))
    moved = float(by_model(expected or (), initial).max())
    console.print(
        f"same weights of {few} models: within {in_double:.0e} in float64; in float32 within {max(medians.values()):.0e} "
        f"(median model) and {max(differences.values()):.0e} (all), after moving by up to {moved:.1e}; "
        f"test accuracy {accuracy:.1%}"
    )

    def draw_and_train(variant: Variant) -> list[Parameters]:
        return variant(drawn(problem, few, config.steps, config.batch_size))

    timed = {name: partial(draw_and_train, variant) for name, variant in theirs.items()}
    times = timing.interleaved({**timed, **ours}, rounds=config.rounds, pause=config.pause, load=load_before)
    counts = {name: config.models if name in ours else few for name in times.median}
    per_model = {name: seconds / counts[name] for name, seconds in times.median.items()}
    best = {name: seconds / counts[name] for name, seconds in times.best.items()}
    ratios = {name: {other: per_model[other] / per_model[name] for other in theirs} for name in ours}
    table = [
        {"name": name, "step": 1e3 * t / config.steps, "all": config.models * t, "first": first[name]}
        | {"spin": times.spinning[name]}
        | {other: t / per_model[other] for other in ours}
        for name, t in per_model.items()
    ]
    columns = [
        Column("name", "variant"),
        Column("step", "ms a step", ".3f"),
        Column("all", f"{config.models} models, s", ".1f"),
        *(Column(name, f"time /\n{name}", ".2f") for name in ours),
        Column("first", "first\ncall, s", ".1f"),
        Column("spin", "cores busy\nafterwards", ".2f"),
    ]
    caption = f"{config.steps} steps of {config.batch_size} rows; PyTorch's seconds are those of {few} models, scaled"
    print_table(Table(columns, table, caption), console)
    for name, target in TARGETS.items():
        if name in ratios:
            ratio = ratios[name][EAGER]
            verdict = ("reached" if ratio >= target else "missed") if times.valid else "INVALID, machine busy"
            console.print(f"{name}: {ratio:.2f} times faster than eager PyTorch, target {target:g}: {verdict}")
    note = "" if times.valid else "; INVALID, machine busy"
    console.print(f"load average before: {load_before:.2f} per core{note}")
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        summary = {
            "config": {**vars(config), "out": None},
            "environment": {**training.environment(), "torch": torch.__version__, "torch_threads": torch.get_num_threads()},
            "load_per_core_before": load_before,
            "valid": times.valid,
            "models_a_timed_call": counts,
            "seconds_per_model": per_model,
            "best_seconds_per_model": best,
            "first_call_seconds": first,
            "time_relative_to": ratios,
            "largest_difference_in_float64": in_double,
            "largest_difference_of_weights": differences,
            "median_difference_of_weights": medians,
            "largest_move_of_weights": moved,
            "test_accuracy": accuracy,
            "cores_busy_after": times.spinning,
        }
        config.out.write_text(json.dumps(summary, indent=2) + "\n")


def _test_accuracy(model: ju.Model, test: Any, variables: ju.Variables) -> jax.Array:
    logits = model.forward(variables, jnp.asarray(test.inputs), train=False).logits
    return jnp.mean(jnp.argmax(logits, axis=1) == jnp.asarray(test.targets))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
