"""How fast are the metrics of an audit beside NumPy?

    python experiments/benchmarks/audit.py

KLoM of 50,000 examples and 100 models of each kind, the 2023 competition's forgetting quality with 512 models of each kind,
RMIA of 20,000 rows against a population of 20,000; against twins that loop as the published evaluators do, and against
whole-array NumPy. Equal values are asserted first. All in one process, interleaved, medians of warm calls, compile time apart.
The loops are timed on a part of the examples and scaled; each example costs them the same.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import numpy as np
import tyro
from rich.console import Console

import jaxunlearn as ju
from experiments.benchmarks import timing, twins
from experiments.common import training
from experiments.common.report import Column, Table, print_table

COLUMNS = [
    Column("metric", "metric"),
    Column("ours", "ours [ms]", ".1f"),
    Column("loop", "loop [ms]", ",.0f"),
    Column("vectorised", "vectorised [ms]", ",.1f"),
    Column("over_loop", "loop / ours", ".0f"),
    Column("over_vectorised", "vectorised / ours", ".1f"),
]


@dataclass
class Config:
    """Command line of the benchmark."""

    examples: int = 50_000
    """Examples of KLoM."""
    models: int = 100
    """Models of each kind of KLoM."""
    quality_examples: int = 128
    """Examples of forgetting quality."""
    quality_models: int = 512
    """Models of each kind of forgetting quality."""
    rows: int = 20_000
    """Rows of RMIA, and of its population."""
    looped: int = 64
    """Examples that the loops are timed on; 16 times as many for KLoM and RMIA."""
    rounds: int = 5
    """Timed rounds."""
    out: Path | None = None
    """JSON file."""


def main(config: Config) -> None:
    """Compare, then time."""
    at_start = timing.load_per_core()
    rng, console = np.random.default_rng(0), Console()

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    margins = normal(config.models, config.examples) + 0.5, normal(config.models, config.examples)
    quality = (
        normal(config.quality_models, config.quality_examples) + 0.1,
        normal(config.quality_models, config.quality_examples),
    )
    uniform = rng.uniform(0.01, 1, size=(5, config.rows + config.rows)).astype(np.float32)
    seen, population = uniform[:, : config.rows], uniform[:, config.rows :]
    attack = seen[0], seen[1:], population[0], population[1:]

    klom = jax.jit(ju.audit.klom)
    forgetting = jax.jit(lambda a, b: ju.audit.forgetting_quality(a, b).epsilons)
    rmia = jax.jit(lambda *x: ju.audit.rmia(*x, a=0.3))
    many, few = min(16 * config.looped, config.examples), min(config.looped, config.quality_examples)
    rows = min(16 * config.looped, config.rows)
    part = [x[:, :many] for x in margins], [x[:, :few] for x in quality]
    loops = {
        "KLoM": (lambda: twins.klom_loop(*part[0]), config.examples / many),
        "forgetting quality": (lambda: twins.forgetting_quality_loop(*part[1])[1], config.quality_examples / few),
        "RMIA": (lambda: twins.rmia_loop(attack[0][:rows], attack[1][:, :rows], *attack[2:], 0.3), config.rows / rows),
    }
    vectorised = {
        "KLoM": lambda: twins.klom_vectorised(*margins),
        "forgetting quality": lambda: twins.forgetting_quality_vectorised(*quality)[1],
        "RMIA": lambda: twins.rmia_vectorised(*attack, 0.3),
    }
    on_device = jax.device_put((margins, quality, attack))
    ours = {
        "KLoM": lambda: klom(*on_device[0]),
        "forgetting quality": lambda: forgetting(*on_device[1]),
        "RMIA": lambda: rmia(*on_device[2]),
    }
    differences = {}
    for metric, call in ours.items():
        found, loop, whole = np.asarray(call()), loops[metric][0](), vectorised[metric]()
        differences[metric] = float(max(np.abs(found[: len(loop)] - loop).max(), np.abs(found - whole).max()))
        # One row more or less above a ratio that float32 rounds is what RMIA may differ by.
        if not differences[metric] <= (2 / config.rows if metric == "RMIA" else 1e-4):
            raise AssertionError(f"{metric} differs from its twins by {differences[metric]}")

    variants: dict[str, Any] = {}
    for metric in ours:
        variants |= {
            f"{metric}, ours": ours[metric],
            f"{metric}, loop": loops[metric][0],
            f"{metric}, vectorised": vectorised[metric],
        }
    times = timing.interleaved(variants, rounds=config.rounds, pause=0.2, warm=True, load=at_start)
    table = []
    for metric in ours:
        own, loop, whole = (1e3 * times.median[f"{metric}, {kind}"] for kind in ("ours", "loop", "vectorised"))
        loop *= loops[metric][1]
        row = {"metric": metric, "ours": own, "loop": loop, "vectorised": whole}
        table.append({**row, "over_loop": loop / own, "over_vectorised": whole / own})
    print_table(Table(COLUMNS, table, f"{config.examples} x {config.models}, {config.quality_models} models"), console)
    note = "" if times.valid else "; INVALID, machine busy"
    console.print(f"load average before: {times.load_per_core:.2f} per core{note}")
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        summary = {
            "config": {**vars(config), "out": None},
            "environment": training.environment(),
            "load_per_core_before": times.load_per_core,
            "valid": times.valid,
            "largest_differences": differences,
            "milliseconds": table,
            "first_seconds": times.first,
        }
        config.out.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
