"""(d) Metrics of ensembles against whole-array NumPy on the same machine; values are compared first."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxunlearn as ju
from experiments.benchmarks import twins
from experiments.benchmarks.accelerator.harness import Part, Size, compiled, compiled_together, furthest, timed

COMPARED = 16  # examples of forgetting quality that NumPy computes; its time grows with them


class Metric(NamedTuple):
    """A metric here and in NumPy."""

    ours: Callable[..., Any]
    arguments: tuple[np.ndarray, ...]
    numpy: Callable[[], np.ndarray]
    part: float  # of the examples that NumPy computes
    tolerance: float


def run(part: Part, size: Size) -> None:
    """KLoM, forgetting quality and RMIA."""
    generator = np.random.default_rng(0)

    def normal(models: int, examples: int, shift: float = 0.0) -> np.ndarray:
        return generator.normal(size=(models, examples)).astype(np.float32) + np.float32(shift)

    margins = normal(*size.klom, 0.5), normal(*size.klom)
    quality = normal(*size.quality, 0.1), normal(*size.quality)
    few = min(COMPARED, size.quality[1])
    shares = generator.uniform(0.01, 1, size=(5, 2 * size.attacked)).astype(np.float32)
    seen, population = shares[:, : size.attacked], shares[:, size.attacked :]
    attack = seen[0], seen[1:], population[0], population[1:]
    metrics = {
        f"KLoM, {size.klom[0]} models, {size.klom[1]} examples": Metric(
            ju.audit.klom, margins, partial(twins.klom_vectorised, *margins), 1, 1e-4
        ),
        f"forgetting quality, {size.quality[0]} models, {size.quality[1]} examples": Metric(
            lambda a, b: ju.audit.forgetting_quality(a, b).epsilons, quality,
            lambda: twins.forgetting_quality_vectorised(*(x[:, :few] for x in quality))[1], few / size.quality[1], 1e-4,
        ),
        # One row more or less above a ratio that float32 rounds is what RMIA may differ by.
        f"RMIA, {size.attacked} rows, as large a population": Metric(
            partial(ju.audit.rmia, a=0.3), attack, partial(twins.rmia_vectorised, *attack, 0.3), 1, 2 / size.attacked
        ),
    }  # fmt: skip
    on_device = {name: jax.device_put(metric.arguments) for name, metric in metrics.items()}
    jobs = {name: partial(compiled, metric.ours, *on_device[name]) for name, metric in metrics.items()}
    for name, program in compiled_together(part, jobs, part.left()).items():
        if part.fits(name):
            with part.attempt(name):
                measure(part, size, name, metrics[name], partial(program.call, *on_device[name]), program.seconds)


def measure(part: Part, size: Size, name: str, metric: Metric, ours: Callable[[], Any], compile_seconds: float) -> None:
    """Compare, then time."""
    here, theirs = timed(ours, size), timed(metric.numpy, size)
    apart = furthest(np.asarray(here.result)[: len(theirs.result)], theirs.result)
    numpy_ms = 1e3 * theirs.median / metric.part
    part.row(what=name, ms=1e3 * here.median, numpy_ms=numpy_ms, times_faster_than_numpy=numpy_ms / (1e3 * here.median),
             compile_s=compile_seconds, largest_difference=apart)  # fmt: skip
    if not apart <= metric.tolerance:
        raise AssertionError(f"{name} differs from NumPy by {apart}")
