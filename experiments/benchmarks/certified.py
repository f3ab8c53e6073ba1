"""How fast is certified removal beside rebuilding and solving the Hessian in NumPy?

    python experiments/benchmarks/certified.py --data-dir DIR       # MNIST 3 against 8 through TFDS, 11,982 rows of 784

Logistic regression, l2 1e-3, pixels minus 1/2, rows of norm 1, float64. NumPy builds the Hessian of the retained rows at the
weights and solves for one Newton step, on the same threads. Results are compared with it first, to 1e-10. All in one process,
interleaved, medians, compile time apart. Then a stream of single removals, with every bound checked at every step.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Kernels that are forced by the environment may be slower than those that NumPy would choose.
if "OPENBLAS_CORETYPE" in os.environ:
    del os.environ["OPENBLAS_CORETYPE"]
if "OPENBLAS_L2_SIZE" in os.environ:
    del os.environ["OPENBLAS_L2_SIZE"]
sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import numpy as np
import tyro
from rich.console import Console

import jaxunlearn as ju
from experiments.benchmarks import timing, twins
from experiments.common import certified, training
from experiments.common.data import load, subset
from experiments.common.report import Column, Table, print_table

L2 = 1e-3
EPSILON, DELTA = 1.0, 1e-5


@dataclass
class Config:
    """Command line of the benchmark."""

    data_dir: str
    """Where TFDS finds prepared MNIST."""
    requests: int = 64
    """Simultaneous requests, of one row each."""
    rounds: int = 9
    """Timed rounds."""
    removals: int = 1000
    """Sequential removals."""
    max_rows: int | None = None
    """Rows of each split, for a first look whether it runs."""
    out: Path | None = None
    """JSON file."""


def rows_of(examples: ju.Examples) -> tuple[np.ndarray, np.ndarray]:
    """Threes and eights as unit rows, and which of them are eights."""
    kept = subset(examples, np.isin(examples.targets, (3, 8)))
    return ju.convex.feature_rows(kept.inputs - 0.5, intercept=False), (kept.targets == 8).astype(np.int32)


def main(config: Config) -> None:
    """Compare, time, stream."""
    at_start = timing.load_per_core()
    console = Console()
    mnist = load("mnist", config.data_dir, max_rows=config.max_rows)
    (rows, labels), (test_rows, test_labels) = rows_of(mnist.train), rows_of(mnist.test)
    problem, data, key = ju.convex.logistic(L2), ju.training_data(rows, labels), jax.random.key(0)
    start = time.perf_counter()
    head = ju.convex.fit(problem, data)
    fit_seconds = time.perf_counter() - start
    prepare = jax.jit(ju.convex.prepare(problem))
    shared = prepare(head, data, key)
    wide, weights = rows.astype(np.float64), np.asarray(head.params["kernel"])[:, 0]

    one = jax.tree.map(lambda x: x[0], ju.from_indices(data, [[5]], capacity=1))
    many = ju.from_indices(data, [[row] for row in range(config.requests)], capacity=1)
    keys = jax.random.split(key, config.requests)
    bounded = ju.convex.woodbury_removal(problem, steps=1, measure=False)
    exact = ju.convex.woodbury_removal(problem, steps=2)
    side_by_side = partial(ju.batched, chunk=config.requests)
    programs = {
        "one removal, data bound": (jax.jit(bounded), one, key),
        "one removal, two steps, exact residual": (jax.jit(exact), one, key),
        "one removal, two dense steps": (jax.jit(ju.convex.newton_removal(problem, steps=2)), one, key),
        f"{config.requests} removals, data bound": (jax.jit(side_by_side(bounded)), many, keys),
        f"{config.requests} removals, two steps, exact residual": (jax.jit(side_by_side(exact)), many, keys),
    }
    results = {name: program(head, shared, requests, k) for name, (program, requests, k) in programs.items()}
    names = list(programs)
    dense = twins.newton_step(wide, labels, weights, [5], L2)
    error = float(np.max(np.abs(np.asarray(results[names[0]].variables.params["kernel"])[:, 0] - dense)))
    for lane in (0, config.requests - 1):
        found = np.asarray(results[names[3]].variables.params["kernel"])[lane, :, 0]
        error = max(error, float(np.max(np.abs(found - twins.newton_step(wide, labels, weights, [lane], L2)))))
    if not error <= 1e-10:
        raise AssertionError(f"removals differ from dense solves by {error}")
    program, requests, k = programs[names[4]]
    memory = program.lower(head, shared, requests, k).compile().memory_analysis()
    assert memory is not None  # every backend in use has one

    def run(name: str) -> Any:
        program, requests, k = programs[name]
        return program(head, shared, requests, k)

    variants = {"NumPy": lambda: twins.newton_step(wide, labels, weights, [5], L2)}
    variants |= {"shared factorisation": lambda: prepare(head, data, key)}
    variants |= {name: partial(run, name) for name in names}
    times = timing.interleaved(variants, rounds=config.rounds, pause=0.2, warm=True, load=at_start)
    median = times.median
    solves = {name: config.requests if name in names[3:] else 1 for name in variants}
    factorise = median["shared factorisation"]
    table = [
        {
            "name": name,
            "ms": 1e3 * seconds,
            "ratio": solves[name] * median["NumPy"] / seconds,
            "with": solves[name] * median["NumPy"] / (seconds + factorise) if name in names[3:] else None,
            "distance": float(np.max(np.asarray(results[name].stats["distance_bound"]))) if name in results else None,
        }
        for name, seconds in median.items()
    ]
    columns = [
        Column("name", "variant"), Column("ms", "median ms", ".2f"), Column("ratio", "times faster than NumPy", ".1f"),
        Column("with", "factorisation included", ".1f"), Column("distance", "distance bound", ".1e"),
    ]  # fmt: skip
    print_table(Table(columns, table, f"MNIST 3 against 8, {rows.shape[0]} x {rows.shape[1]}"), console)
    matrices = config.requests * rows.shape[1] ** 2 * 8
    console.print(
        f"largest difference from dense solves {error:.1e}; {config.requests} requests take "
        f"{memory.temp_size_in_bytes / 2**20:.0f} MiB of temporaries, as many Hessians would take {matrices / 2**20:.0f} MiB"
    )

    stream = streamed(problem, data, head, ju.Examples(test_rows, test_labels), config.removals, console)
    load_note = "" if times.valid else "; INVALID, machine busy"
    console.print(f"load average before: {times.load_per_core:.2f} per core{load_note}")
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        summary = {
            "config": {**vars(config), "out": None, "data_dir": None},
            "environment": training.environment(),
            "blas": blas(),
            "load_per_core_before": times.load_per_core,
            "valid": times.valid,
            "rows": rows.shape,
            "fit_seconds_with_compilation": fit_seconds,
            "median_seconds": times.median,
            "best_seconds": times.best,
            "first_seconds": times.first,
            "times_faster_than_numpy": {row["name"]: row["ratio"] for row in table},
            "times_faster_factorisation_included": {row["name"]: row["with"] for row in table if row["with"] is not None},
            "distance_bounds": {row["name"]: row["distance"] for row in table if row["distance"] is not None},
            "largest_difference_from_dense_solves": error,
            "temporary_bytes_of_simultaneous_requests": memory.temp_size_in_bytes,
            "bytes_of_as_many_hessians": matrices,
            "stream": stream,
        }
        config.out.write_text(json.dumps(summary, indent=2) + "\n")


def streamed(
    problem: ju.convex.Problem,
    data: ju.Data,
    head: ju.Variables,
    test: ju.Examples,
    removals: int,
    console: Console,
) -> dict[str, Any]:
    """Single removals one after another, bounds checked at every step; the end is certified and compared with retraining."""
    order = certified.deletions(data.train.targets, removals, seed=0)
    key, capacity = jax.random.key(1), data.train.inputs.shape[1] // 10
    done = certified.stream(problem, data, head, order, steps=1, capacity=capacity, key=key)
    last, left, stats = done.last, done.left, done.stats
    certificate = ju.certificates.certify(
        last, left, done.gone, problem=problem, epsilon=EPSILON, delta=DELTA, extractor="none", adaptive=False
    )
    retrained = jax.jit(ju.convex.refit(problem))(head, left, ju.empty_request(), key)
    kernels = [certified.kernel_of(x) for x in (last, retrained)]
    releases = certified.accuracy_of_releases(kernels[0], certificate.noise_scale, test, draws=200, seed=2)

    found = {
        "removals": removals,
        "seconds": done.seconds,
        "milliseconds_a_removal": 1e3 * done.seconds / removals,
        "certified": certificate.valid,
        "epsilon": EPSILON,
        "delta": DELTA,
        "noise_scale": certificate.noise_scale,
        "largest_residual": float(stats["residual"].max()),
        "largest_quartic_bound": float(stats["quartic_bound"].max()),
        "largest_data_bound": float(stats["data_bound"].max()),
        "largest_distance_bound": float(stats["distance_bound"].max()),
        "distance_to_retrained": float(np.linalg.norm(kernels[0] - kernels[1])),
        "accuracy_of_retrained": certified.accuracy(kernels[1], test),
        "accuracy_without_noise": certified.accuracy(kernels[0], test),
        "accuracy_of_releases": float(releases.estimate),
        "budget_of_objective_perturbation_at_sigma_1": ju.certificates.removal_budget(1.0, EPSILON, DELTA),
        "sum_of_quartic_bounds": float(stats["quartic_bound"].sum()),
    }
    console.print(
        f"{removals} removals one after another: {done.seconds:.1f} s; certified at ({EPSILON}, {DELTA}): {certificate.valid}; "
        f"distance to retrained {found['distance_to_retrained']:.1e}; test accuracy {found['accuracy_of_releases']:.2%} of "
        f"releases, {found['accuracy_of_retrained']:.2%} retrained; largest residual {found['largest_residual']:.1e}, quartic "
        f"bound {found['largest_quartic_bound']:.1e}, data bound {found['largest_data_bound']:.1e}, in order at every step"
    )
    return found


def blas() -> list[dict[str, Any]]:
    """Which kernels NumPy runs on, and on how many threads."""
    from threadpoolctl import threadpool_info

    return [
        {name: pool.get(name) for name in ("internal_api", "version", "num_threads", "architecture")}
        for pool in threadpool_info()
    ]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
