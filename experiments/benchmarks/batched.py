"""How fast is `batched`, beside the loops one would write by hand?

    python experiments/benchmarks/batched.py                       # 64 requests on an MLP, about two minutes on two cores
    python experiments/benchmarks/batched.py --network cnn --steps 20
    python experiments/benchmarks/batched.py --network cnn --convolution native --requests 8 --steps 5

64 requests for 8 to 64 rows of digits; gradient_difference with SGD, 100 steps of 64 forgotten and 64 retained rows. On one
device: a loop over one compiled function, `lax.map`, `vmap`, and `batched` as it comes. On all (two faked) devices:
`batched(mesh=...)`. All in one process, interleaved, medians. Results are compared before anything is timed.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

import jaxunlearn as ju
from experiments.benchmarks.timing import interleaved
from experiments.common import study, training
from experiments.common.data import load
from experiments.common.models import build
from experiments.common.report import Column, Table, print_table


@dataclass
class Config:
    """Command line of the benchmark."""

    network: Literal["mlp", "cnn"] = "mlp"
    """64-128-128-10, or three convolutions on 8x8 images."""
    convolution: Literal["auto", "native"] = "auto"
    """auto is slices and a matrix product on CPUs."""
    requests: int = 64
    """Forget requests."""
    steps: int = 100
    """Steps of each."""
    rounds: int = 7
    """Timed rounds."""
    out: Path | None = None
    """JSON file."""


def main(config: Config) -> None:
    """Time the variants and print ratios to the best loop."""
    dataset = load("digits")
    options: dict[str, Any] = {"implementation": config.convolution} if config.network == "cnn" else {}
    model = build(config.network, (8, 8, 1), 10, **options)
    data = ju.training_data(*dataset.train)
    assert model.init is not None  # models of this repository have one
    variables = jax.jit(model.init)(jax.random.key(0))
    requests = study.random_requests(data, np.linspace(8, 64, config.requests).astype(int).tolist(), 0)
    keys = jax.random.split(jax.random.key(1), config.requests)
    unlearn = ju.iterate(ju.gradient_difference(model, optax.sgd(0.01)), num_steps=config.steps, batch_size=64)

    lanes = [(jax.tree.map(lambda x, i=i: x[i], requests), keys[i]) for i in range(config.requests)]
    single = jax.jit(unlearn)
    mapped = jax.jit(lambda v, d, r, k: jax.lax.map(lambda lane: unlearn(v, d, lane[0], lane[1]), (r, k)))
    vmapped = jax.jit(jax.vmap(unlearn, (None, None, 0, 0)))
    as_it_comes = ju.batched(unlearn)
    inside = jax.jit(as_it_comes)
    mesh = ju.request_mesh()
    meshed = ju.batched(unlearn, mesh=mesh)
    everywhere = ju.replicate((variables, data), mesh)
    variants: dict[str, Callable[[], Any]] = {
        "loop over a jitted call": lambda: [single(variables, data, request, key) for request, key in lanes],
        "lax.map": lambda: mapped(variables, data, requests, keys),
        "vmap": lambda: vmapped(variables, data, requests, keys),
        "batched": lambda: as_it_comes(variables, data, requests, keys),
        "batched inside jit": lambda: inside(variables, data, requests, keys),
        f"batched on {mesh.size} devices": lambda: meshed(everywhere[0], everywhere[1], requests, keys),
    }
    expected = variants["vmap"]().variables
    largest = 0.0
    for name, call in variants.items():
        found = call()
        found = jax.tree.map(lambda *x: jnp.stack(x), *found) if isinstance(found, list) else found
        error = jax.tree.map(lambda x, y: np.max(np.abs(np.asarray(x) - np.asarray(y))), found.variables, expected)
        largest = max(largest, float(max(jax.tree.leaves(error))))
        if largest > 1e-4:  # float32 rounding grows over the steps; the contract tests hold a few of them to 1e-6
            raise AssertionError(f"{name} differs from vmap by {largest}")
    compiled = vmapped.lower(variables, data, requests, keys).compile()
    parameters = sum(x.nbytes for x in jax.tree.leaves(variables))

    times = interleaved(variants, rounds=config.rounds)
    fastest = min(times.median[name] for name in ("loop over a jitted call", "lax.map", "vmap"))
    rows = [
        {"name": name, "ms": 1e3 * seconds, "best": 1e3 * times.best[name], "ratio": seconds / fastest}
        for name, seconds in times.median.items()
    ]
    columns = [
        Column("name", "variant"), Column("ms", "median ms", ".0f"), Column("best", "best ms", ".0f"),
        Column("ratio", "time / best one-device loop", ".2f"),
    ]  # fmt: skip
    console = Console()
    print_table(Table(columns, rows, f"{config.network}, {config.requests} requests, {config.steps} steps"), console)
    analysis = compiled.memory_analysis()
    assert analysis is not None  # every backend in use has one
    memory = analysis.temp_size_in_bytes
    console.print(
        f"vmap: {memory / 2**20:.1f} MiB of temporaries, "
        f"{memory / (config.requests * parameters):.1f} times the parameters of all requests"
    )
    console.print(
        f"load average before: {times.load_per_core:.2f} per core" + ("" if times.valid else "; INVALID, machine busy")
    )
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        summary = {
            "config": {**vars(config), "out": None},
            "environment": training.environment(),
            "load_per_core_before": times.load_per_core,
            "valid": times.valid,
            "median_seconds": times.median,
            "best_seconds": times.best,
            "ratio_to_best_one_device_loop": {row["name"]: row["ratio"] for row in rows},
            "largest_difference_between_variants": largest,
            "vmap_temporary_bytes": memory,
            "parameter_bytes": parameters,
        }
        config.out.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
