"""What every part is given: its sizes, the time that is left, a stopwatch, and rows to fill that are saved at once."""

import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.curvature.logit_gradients import Kind

COMPILERS = max(1, min(8, (os.cpu_count() or 1) // 2))  # programs that are compiled at once


class Size(NamedTuple):
    """Sizes of all parts."""

    products: int = 8192  # side of the matrices of the ceilings
    copied: int = 2**28  # floats that are read and written to measure bandwidth, at least two such matrices
    rows: int = 1440  # 8x8 images of the networks
    requests: tuple[int, ...] = (1, 8, 64, 512)
    networks: tuple[str, ...] = ("mlp", "cnn, native", "cnn, matmul")
    methods: tuple[str, ...] = ("gradient_difference", "scrub")
    steps: int = 20
    batch: int = 64  # rows per step, of each side
    looped: int = 16  # requests that loops are timed on; their times grow with the number of requests
    mapped: int = 6  # pairs of a network and a method that `lax.map` is timed on
    curvature_rows: int = 10_000
    curvature_side: int = 28  # of the images
    kinds: tuple[Kind, ...] = ("sampled", "ggn")  # of EK-FAC
    solves: int = 64
    klom: tuple[int, int] = (100, 50_000)  # models of each kind, examples
    quality: tuple[int, int] = (512, 128)
    attacked: int = 20_000  # rows of RMIA, and of its population
    convex: tuple[int, int] = (11_982, 784)
    removals: int = 64
    removal: tuple[str, ...] = ("one step, bound from the data", "two steps, exact residual")
    checked: tuple[str, ...] = ("gradient_difference", "scrub", "ssd", "influence", "gradient_difference on a cnn")
    shared_batch: int = 64  # rows per step that several devices share
    decoder: tuple[int, int, int, int] = (128, 4, 128, 64)  # width, layers, rows, tokens of a row
    resnet: tuple[int, ...] = (64, 2, 2, 2, 2)  # width, and blocks of each stage
    resnet_rows: int = 1024
    resnet_requests: tuple[int, ...] = (1, 8)
    resnet_steps: int = 5
    repeats: int = 7  # timed calls
    longest: float = 1.0  # seconds of all timed calls of one program together, unless the first two take more


SMOKE = Size(
    products=64, copied=2**13, rows=48, requests=(2,), networks=("mlp",), methods=("gradient_difference",), steps=2, batch=4,
    looped=2, mapped=1, curvature_rows=40, curvature_side=4, kinds=("sampled",), solves=2, klom=(8, 20), quality=(16, 3),
    attacked=40, convex=(40, 6), removals=2, removal=("one step, bound from the data",),
    checked=("ssd",), shared_batch=8, decoder=(8, 2, 6, 5),
    resnet=(4, 1), resnet_rows=16, resnet_requests=(2,), resnet_steps=1, repeats=2,
)  # fmt: skip


class Timed(NamedTuple):
    """Seconds of a warm program, and what it returned."""

    median: float
    best: float
    runs: int
    result: Any


class Compiled(NamedTuple):
    """A program for one set of shapes."""

    call: Callable[..., Any]
    seconds: float  # of tracing and compiling
    temporaries: int | None  # bytes, as the compiler plans them


class Part:
    """One part's record and clock. `row` and the others save at once, so that a killed run loses nothing."""

    def __init__(self, record: dict[str, Any], seconds: float, shared: dict[str, Any], save: Callable[[], None]) -> None:
        record.update(rows=[], left_out=[], failures=[])
        self.record, self.shared, self._save = record, shared, save
        self._end = time.perf_counter() + seconds

    def left(self) -> float:
        """Seconds that this part may still take."""
        return self._end - time.perf_counter()

    def row(self, **values: Any) -> None:
        """A line of this part's table."""
        self.record["rows"].append(values)
        self._save()

    def fits(self, what: str, seconds: float = 0.0) -> bool:
        """Whether there is time for it; if not, the table says so."""
        if self.left() > seconds:
            return True
        self.leave_out(what, f"did not fit the time: {seconds:.0f} s expected, {max(self.left(), 0):.0f} s left")
        return False

    def leave_out(self, what: str, why: str) -> None:
        """Say what is missing."""
        self.record["left_out"].append({"what": what, "why": why})
        self._save()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A fault inside is written down, and the part goes on; the run as a whole counts as failed."""
        try:
            yield
        except Exception as error:
            self.failed(what, error)

    def failed(self, what: str, error: Exception) -> None:
        """Write a fault down."""
        print(traceback.format_exc(limit=-4), flush=True)
        self.record["failures"].append({"what": what, "error": f"{type(error).__name__}: {error}"[:2000]})
        self._save()


def compiled(function: Callable[..., Any], *arguments: Any, precision: str | None = None) -> Compiled:
    """Trace and compile for these arguments; `precision` of matrix products, by default as JAX comes."""
    start = time.perf_counter()
    with jax.default_matmul_precision(precision):
        program = jax.jit(function).lower(*arguments).compile()
    seconds, analysis = time.perf_counter() - start, program.memory_analysis()
    return Compiled(program, seconds, None if analysis is None else int(analysis.temp_size_in_bytes))


def compiled_together(part: Part, jobs: Mapping[str, Callable[[], Compiled]], seconds: float) -> dict[str, Compiled]:
    """Run jobs that call `compiled`, several at once and the first ones first; those not begun after `seconds` are left out.

    XLA holds a lock for each device while it tries kernels on it, so that this does not spoil its choices. Nothing may be
    timed meanwhile.
    """
    found: dict[str, Compiled] = {}
    with ThreadPoolExecutor(COMPILERS) as pool:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        wait(futures.values(), timeout=seconds)
        for name, future in futures.items():
            if future.cancel():
                part.leave_out(name, "its compilation did not fit the time")
    for name, future in futures.items():
        if not future.cancelled():
            with part.attempt(name):
                found[name] = future.result()
    return found


def timed(call: Callable[[], Any], size: Size) -> Timed:
    """Call once to warm up, then `size.repeats` times, or for `size.longest` seconds."""
    result = jax.block_until_ready(call())
    runs: list[float] = []
    while len(runs) < size.repeats and (len(runs) < 2 or sum(runs) < size.longest):
        start = time.perf_counter()
        jax.block_until_ready(call())
        runs.append(time.perf_counter() - start)
    return Timed(statistics.median(runs), min(runs), len(runs), result)


def furthest(first: Any, second: Any) -> float:
    """Largest absolute difference of any two entries; NaN where exactly one of them is NaN."""
    worst = [0.0]
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        worst.append(float(np.max(np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y)))) if x.size else 0.0)
    return float(np.max(worst))


def mib(count: int | None) -> float | None:
    """Bytes in MiB."""
    return None if count is None else count / 2**20
