"""How does memory grow with the number of requests? Read from compiled programs; nothing runs.

    python experiments/benchmarks/memory.py

Network 784-512-256-10, batches of 8 + 8 rows, so that activations are small beside parameters. What a program holds is its
results and its temporaries, in units of the parameters of one request. Side by side, as on accelerators, a request needs its
parameters, its gradient and its optimizer's slots at least; one after the other, as on CPUs, its result.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console

import jaxunlearn as ju
from experiments.benchmarks import timing
from experiments.common import training
from experiments.common.models import build
from experiments.common.report import Column, Table, print_table

COUNTS = (4, 8, 16)  # requests
OPTIMIZERS: dict[str, tuple[Callable[[], optax.GradientTransformation], int]] = {
    "sgd": (lambda: optax.sgd(0.1), 0),
    "adam": (lambda: optax.adam(1e-3), 2),
}
METHODS: dict[str, Callable[..., ju.Unlearner]] = {"gradient_difference": ju.gradient_difference, "scrub": ju.scrub}


@dataclass
class Config:
    """Command line of the benchmark."""

    out: Path | None = None
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Compile, read, print; returns what is written."""
    console = Console(width=128)
    model = build("mlp", (28, 28, 1), 10, widths=(512, 256))
    assert model.init is not None  # models of this repository have one
    variables = jax.eval_shape(model.init, jax.random.key(0))
    parameters = 4 * sum(x.size for x in jax.tree.leaves(variables.params))
    data = ju.training_data(jnp.zeros((1000, 28, 28, 1)), jnp.arange(1000) % 10)

    def held(unlearn: ju.UnlearnFn, count: int, chunk: int | None) -> float:
        requests = ju.from_indices(data, [range(8 * i, 8 * i + 8) for i in range(count)])
        keys = jax.random.split(jax.random.key(0), count)
        program = jax.jit(ju.batched(unlearn, chunk=chunk)).lower(variables, data, requests, keys).compile()
        memory = program.memory_analysis()
        assert memory is not None  # every backend in use has one
        return (memory.temp_size_in_bytes + memory.output_size_in_bytes) / parameters

    rows = []
    for name, method in METHODS.items():
        for kind, (optimizer, slots) in OPTIMIZERS.items():
            unlearn = ju.iterate(method(model, optimizer()), num_steps=100, batch_size=8)
            for way in ("side by side", "one after the other"):
                found = [held(unlearn, count, count if way == "side by side" else 1) for count in COUNTS]
                slopes = [(b - a) / (m - n) for a, b, n, m in zip(found, found[1:], COUNTS, COUNTS[1:], strict=False)]
                rows.append({"method": name, "optimizer": kind, "way": way, "slope": slopes[-1], "bend": slopes[1] - slopes[0]})
                rows[-1] |= {"constant": found[-1] - COUNTS[-1] * slopes[-1], "target": 2.0 + slots}
    columns = [
        Column("method", "method"), Column("optimizer", "optimizer"), Column("way", "requests"),
        Column("slope", "parameters\na request", ".2f"), Column("target", "target", ".0f"), Column("bend", "bend", ".3f"),
        Column("constant", "constant", ".2f"),
    ]  # fmt: skip
    print_table(
        Table(columns, rows, f"Memory of 4, 8 and 16 requests, in parameters of one ({parameters / 1e6:.1f} MB)"), console
    )
    summary = {"environment": training.environment(), "load_per_core": timing.load_per_core(), "rows": rows}
    if config.out is not None:
        config.out.write_text(json.dumps(summary, indent=2) + "\n")
    return summary


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
