"""Interleaved timing that says when the machine was too busy to believe it."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

BUSY = 0.5  # load average per core


class Times(NamedTuple):
    """Seconds of each variant."""

    first: dict[str, float]  # first call: trace, compile, run
    median: dict[str, float]
    best: dict[str, float]
    load_per_core: float  # one-minute average before the first call
    valid: bool
    spinning: dict[str, float]  # cores that its threads keep busy once the first half of the pause after it is over; 0 without


def load_per_core() -> float:
    """One-minute load average divided by the number of cores."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def interleaved(
    variants: Mapping[str, Callable[[], Any]], *, rounds: int, pause: float = 0.0, warm: bool = False, load: float | None = None
) -> Times:
    """Call every variant once to compile it, then in turn, `rounds` times.

    The order turns round every time, so that no variant always follows the same one.

    Args:
        variants: what is timed; JAX arrays in what they return are waited for.
        rounds: timed calls of each.
        pause: seconds of rest after every call. Threads of a library that wait in a busy loop have gone to sleep by then,
            and do not take a core from the next variant.
        warm: make an untimed call before each timed one, where memory that was idle for a moment is slow at first.
        load: load per core to judge by, where the program itself was busy before this call; by default that of now.
    """
    load = load_per_core() if load is None else load
    first, runs = {}, {name: [] for name in variants}
    spinning = dict.fromkeys(variants, 0.0)
    for name, call in variants.items():
        first[name] = _seconds(call)
        _rest(pause)
    for repetition in range(rounds):
        order = list(variants) if repetition % 2 == 0 else list(variants)[::-1]
        for name in order:
            if warm:
                jax.block_until_ready(variants[name]())
            runs[name].append(_seconds(variants[name]))
            spinning[name] = max(spinning[name], _rest(pause))
    median = {name: statistics.median(values) for name, values in runs.items()}
    best = {name: min(values) for name, values in runs.items()}
    return Times(first, median, best, load, load <= BUSY, spinning)


def set_torch_threads(threads: int) -> None:
    """Set PyTorch's threads; refuse settings that slow one side down."""
    import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra

    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if name in os.environ:
            raise ValueError(f"unset {name}: it changes how fast PyTorch's threads work together")
    torch.set_num_threads(threads)
    if torch.get_num_threads() != threads:
        raise ValueError(f"asked PyTorch for {threads} threads, it takes {torch.get_num_threads()}")


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _rest(pause: float) -> float:
    """Sleep; the cores that this process kept busy in the second half."""
    if pause == 0:
        return 0.0
    time.sleep(pause / 2)
    wall, busy = time.perf_counter(), time.process_time()
    time.sleep(pause / 2)
    return (time.process_time() - busy) / (time.perf_counter() - wall)
