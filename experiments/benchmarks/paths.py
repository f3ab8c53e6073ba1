"""Where the time of the ten most used paths goes: tracing, compilation, and what runs.

    python experiments/benchmarks/paths.py

Digits, network 64-128-128-10, 64 requests of 20 rows where there are many. A path is traced, lowered and compiled by itself,
without a persistent cache, called once to warm it, and timed; one more call runs under JAX's profiler. Its operations are
told by the primitive that the compiled program names as their origin:

- *products*: dot products and convolutions, with what is fused to them;
- *random*: threefry and what makes numbers of its bits;
- *rows*: gathers, scatters, slices, copies and layout;
- *order*: sorts, cumulative sums and searches;
- *linear algebra*: eigenvectors, Cholesky factors, triangular solves;
- *elementwise*: the rest, reductions included.

A fusion counts for the primitive at its root. What the share of operations leaves out of the run is the runtime's own: loops,
thunks, threads.
"""

import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.profiler import ProfileData
from rich.console import Console

import jaxunlearn as ju
from experiments.benchmarks import timing
from experiments.benchmarks.lora import SMALL, method_of
from experiments.common import decoder, script, training
from experiments.common.data import load
from experiments.common.models import build
from experiments.common.report import Column, Table, print_table

RANDOM = r"threefry|random_|_uniform|_normal|randint|erf_inv"  # somewhere in an operation's origin
KINDS = {
    "products": r"dot_general|conv_general",
    "rows": r"gather|scatter|slice|transpose|concatenate|pad|copy|broadcast|reshape|squeeze|convert",
    "order": r"sort|cumsum|cumlogsumexp|cummax|searchsorted|argsort|top_k",
    "linear algebra": r"eigh|cholesky|triangular|lu_|qr|svd|custom_call",
}
OTHER = "elementwise"
KINDS_SHOWN = ("random", *KINDS, OTHER)


@dataclass
class Config:
    """Command line of the benchmark."""

    requests: int = 64
    """Requests of a call."""
    steps: int = 20
    """Steps of a run."""
    rounds: int = 3
    """Timed calls of each path."""
    only: Annotated[tuple[str, ...], script.unless_given("all")] = ()
    """Paths, by their names."""
    out: Path | None = None
    """JSON file."""


class World(NamedTuple):
    """What the paths share."""

    model: ju.Model
    variables: ju.Variables
    data: ju.Data
    requests: ju.ForgetRequest
    keys: jax.Array
    steps: int


class Path_(NamedTuple):
    """A path: a function to be jitted and its arguments."""

    function: Callable
    arguments: tuple
    batched: bool = True  # and so on all cores outside jit


def paths(world: World) -> dict[str, Callable[[], Path_]]:
    """What is timed, made when its turn comes."""
    model, variables, data, requests, keys, steps = world
    one, key, sgd = jax.tree.map(lambda x: x[0], requests), keys[0], optax.sgd(1e-2)
    run = partial(ju.iterate, num_steps=steps, batch_size=64)

    def many(unlearn: ju.UnlearnFn) -> Path_:
        return Path_(ju.batched(unlearn), (variables, data, requests, keys))

    def prepared(unlearn: ju.UnlearnFn) -> Path_:
        ready = jax.jit(ju.prepare(unlearn))(variables, data, key)
        return Path_(ju.batched(unlearn), (variables, ready, requests, keys))

    return {
        "gradient_difference, one request": lambda: Path_(
            run(ju.gradient_difference(model, sgd)), (variables, data, one, key), False
        ),
        "gradient_difference": lambda: many(run(ju.gradient_difference(model, sgd))),
        "scrub": lambda: many(run(ju.scrub(model, sgd))),
        "retrain": lambda: many(run(ju.retrain(model, optax.adam(2e-3)))),
        "ssd": lambda: prepared(ju.ssd(model)),
        "influence, EK-FAC": lambda: prepared(ju.influence(model, damping=1e-2)),
        "the fit of EK-FAC": lambda: Path_(
            ju.curvature.ekfac(model, kind="ggn"), (variables, data.train, data.present, key), False
        ),
        "representation_unlearning": lambda: prepared(run(ju.representation_unlearning(model, optax.adam(1e-3), beta=0.01))),
        "certified removals": lambda: removals(world),
        "npo in adapters of a decoder": lambda: adapters(world),
    }


def removals(world: World) -> Path_:
    """Woodbury removals with an exact residual from logistic regression."""
    problem = ju.convex.logistic(1e-2)
    rows = ju.convex.feature_rows(np.asarray(world.data.train.inputs), intercept=False)
    data = ju.training_data(rows, (np.asarray(world.data.train.targets) > 4).astype(np.int32))
    head = ju.convex.fit(problem, data)
    shared = jax.jit(ju.convex.prepare(problem))(head, data, world.keys[0])
    return Path_(ju.batched(ju.convex.woodbury_removal(problem)), (head, shared, world.requests, world.keys))


def adapters(world: World) -> Path_:
    """Eight requests of NPO, a quarter of the steps, in adapters over one small decoder."""
    parts, unlearn = method_of(SMALL, 4, max(world.steps // 4, 1))
    base, key = decoder.init(SMALL, world.keys[0]), world.keys[1]
    tokens = np.asarray(jax.random.randint(key, (256, 33), 0, SMALL.vocabulary))
    data = ju.slots.BASE.put(ju.training_data(tokens[:, :-1], tokens[:, 1:]), base)
    count = min(8, len(world.keys))
    asked = ju.from_indices(data, [range(8 * place, 8 * place + 8) for place in range(count)])
    return Path_(ju.batched(unlearn), (parts.start(base, key), data, asked, world.keys[:count]))


def main(config: Config) -> dict[str, Any]:
    """Time and profile every path; returns what is written."""
    console = Console(width=128)
    train = load("digits", None, seed=0).train
    data = ju.training_data(jnp.asarray(train.inputs), jnp.asarray(train.targets))
    model = build("mlp", data.train.inputs.shape[1:], 10)
    assert model.init is not None  # models of this repository have one
    variables = jax.jit(model.init)(jax.random.key(0))
    requests = ju.from_indices(data, [range(20 * i, 20 * i + 20) for i in range(config.requests)])
    world = World(model, variables, data, requests, jax.random.split(jax.random.key(1), config.requests), config.steps)
    every = paths(world)
    unknown = sorted(set(config.only) - set(every))
    if unknown:
        raise SystemExit(f"no path is called {', '.join(unknown)}; there are {', '.join(every)}")
    rows = []
    for name in config.only or every:
        rows.append({"path": name, **measured(every[name](), config.rounds)})
        console.print(f"{name}: {rows[-1]['run']:.1f} ms", highlight=False)
    columns = [
        Column("path", "path"),
        *(Column(name, f"{name},\nms", ".0f") for name in ("trace", "lower", "compile")),
        Column("run", "run,\nms", ".1f"),
        Column("all_cores", "on all\ncores, ms", ".1f"),
        Column("temporaries", "MB held", ".1f"),
        *(Column(name, name.replace(" ", "\n"), ".0%") for name in KINDS_SHOWN),
    ]
    print_table(Table(columns, rows, f"{config.requests} requests, {config.steps} steps, inside jit"), console)
    found = {
        "environment": training.environment(),
        "load_per_core": timing.load_per_core(),
        "config": {**vars(config), "out": None},
    }
    found["paths"] = rows
    if config.out is not None:
        config.out.write_text(json.dumps(found, indent=2) + "\n")
    return found


def measured(path: Path_, rounds: int) -> dict[str, Any]:
    """Milliseconds of every stage, memory, and shares of operations."""
    marks = [time.perf_counter()]
    traced = jax.jit(path.function).trace(*path.arguments)
    marks.append(time.perf_counter())
    lowered = traced.lower()
    marks.append(time.perf_counter())
    compiled = lowered.compile()
    marks.append(time.perf_counter())
    stages = dict(zip(("trace", "lower", "compile"), 1e3 * np.diff(marks), strict=True))
    calls = {"run": partial(compiled, *path.arguments)}
    if path.batched:
        calls["all_cores"] = partial(path.function, *path.arguments)
    times = timing.interleaved(calls, rounds=rounds)
    memory = compiled.memory_analysis()
    assert memory is not None  # every backend in use has one
    return {
        **stages, **{name: 1e3 * seconds for name, seconds in times.median.items()},
        "temporaries": memory.temp_size_in_bytes / 1e6, **shares(compiled, path.arguments),
    }  # fmt: skip


def shares(compiled: Any, arguments: tuple) -> dict[str, float]:
    """What part of the operations' time each kind takes."""
    origins = dict(re.findall(r"%?([\w.\-]+) = [^\n]*metadata=\{[^}]*op_name=\"([^\"]*)\"", compiled.as_text()))
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled(*arguments))
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in ProfileData.from_file(str(file)).planes:
            for event in (event for line in plane.lines for event in line.events):
                if event.name in origins and not event.name.startswith(("while", "call", "cond")):  # they hold others
                    spent[kind_of(event.name, origins[event.name])] += event.duration_ns
    total = sum(spent.values()) or 1
    return {kind: spent[kind] / total for kind in KINDS_SHOWN}


def kind_of(name: str, origin: str) -> str:
    """What an operation does, by its own name where that is one of a product, else by the primitive that it comes from."""
    if name.startswith(("dot", "ynn_fusion", "convolution")):
        return "products"
    if re.search(RANDOM, origin):
        return "random"
    primitive = origin.rsplit("/", 1)[-1]
    return next((kind for kind, names in KINDS.items() if re.match(names, primitive)), OTHER)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
