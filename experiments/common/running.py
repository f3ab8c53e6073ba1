"""Compiled programs that run for many models, with the times of compiling and of running apart."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

import jaxunlearn as ju
from experiments.common.scale import gathered
from jaxunlearn.tuning.clock import timed_call

PER_REQUEST = (None, None, 0, 0)  # variables and data are shared


class Timed(NamedTuple):
    """What a function returned and how long it took."""

    result: Any
    compile_seconds: float
    run_seconds: float
    cpu_seconds: float = 0.0  # of this process in a run, which other work on the machine does not change


def timed(function: Callable, *args: Any, repeats: int = 1) -> Timed:
    """Compile a function ahead of time, then run it, timing both apart by the wall clock.

    Args:
        function: anything that `jax.jit` takes; it is compiled afresh.
        args: its arguments, waited for before the clock starts.
        repeats: runs; `run_seconds` is their median. The first run of a program is often slower than the others.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    jax.block_until_ready(args)
    start = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    runs, cpu = [], []
    result = None
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(program(*args))
        runs.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    return Timed(result, compile_seconds, statistics.median(runs), statistics.median(cpu))


Call: TypeAlias = tuple[Any, Any, Any, PRNGKeyArray]  # variables, data, requests, keys
Tell: TypeAlias = Callable[[int], Any]  # is told how many entries are done
Run: TypeAlias = Callable[..., Timed]


def reusable(function: Any, *, in_axes: Any = PER_REQUEST, chunk: int | None = None, mesh: Mesh | None = None) -> Run:
    """A batched function that compiles once for each set of shapes, however often it is used.

    Args:
        function: `(variables, data, request, key)`, a method or anything else of four arguments.
        in_axes, chunk, mesh: see `jaxunlearn.batched`.

    Returns:
        `(calls, tell=None) -> Timed` for calls of equal shapes, with the results stacked on the host: [calls, R]. Compilation
        counts until the largest program of a call is compiled, running from there; nothing is raised for bad status codes.
        `tell` gets the number R after every call.
    """
    program: Any = ju.batched(function, in_axes=in_axes, chunk=chunk, mesh=mesh)

    def run(calls: Sequence[Call], tell: Tell | None = None) -> Timed:
        results, compile_seconds, run_seconds = [], 0.0, 0.0
        placed: dict[int, tuple[Any, Any]] = {}  # what calls share is copied to the devices once

        def place(leaf: Any) -> Any:
            if mesh is not None and id(leaf) not in placed:
                placed[id(leaf)] = leaf, ju.replicate(leaf, mesh)  # the leaf is kept, so that its id stays its own
            return placed[id(leaf)][1]

        for call in calls:
            if mesh is not None:
                call = tuple(jax.tree.map(place, x) if axis is None else x for x, axis in zip(call, in_axes, strict=True))
            result, compiling, running = timed_call(program, *call)
            compile_seconds, run_seconds = compile_seconds + compiling, run_seconds + running
            results.append(jax.device_get(gathered(result)))
            if tell is not None:
                tell(jax.tree.leaves(result)[0].shape[0])
        return Timed(stack(results), compile_seconds, run_seconds)

    return run


def in_blocks(entries: PyTree, size: int) -> list[PyTree]:
    """Entries of a leading axis in parts of one size; the last one is filled up with its last entry."""
    count = jax.tree.leaves(entries)[0].shape[0]
    places = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
    return [jax.tree.map(lambda x, part=part: x[part], entries) for part in places]


def stack(values: Sequence[PyTree]) -> PyTree:
    """Trees of one form on the host, as one with a leading axis."""
    return jax.tree.map(lambda *x: np.stack(x), *values)


def at(stacked: PyTree, *places: Any) -> PyTree:
    """One entry of every leaf, or a part of them."""
    return jax.tree.map(lambda x: x[places], stacked)
