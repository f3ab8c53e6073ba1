"""Training originals, taking times, and saying on what they were taken."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

import jaxunlearn
from experiments.common.scale import gathered
from jaxunlearn import Data, Model, Status, Variables
from jaxunlearn.driver import Loop
from jaxunlearn.risk import BatchNormPolicy


def train(
    model: Model,
    data: Data,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    seeds: Sequence[int],
    key: PRNGKeyArray,
    bn: BatchNormPolicy = "retain",
    chunk: int | None = None,
    mesh: Mesh | None = None,
    **loop: Unpack[Loop],
) -> Variables:
    """Train one model a seed on all present rows, in one compiled call.

    Training is retraining with an empty request, so originals and their retrained references come from one procedure.

    Args:
        model: needs `init`.
        data: the training data, shared by all seeds.
        optimizer: any optax transformation.
        num_steps, batch_size, bn, loop: see `jaxunlearn.retrain`.
        seeds: seed `s` trains under `fold_in(key, s)`, whatever other seeds there are.
        key: one typed key.
        chunk, mesh: see `jaxunlearn.batched`.

    Returns:
        `Variables` with a leading axis `len(seeds)` on every leaf; every process of several gets all of them.

    Raises:
        ValueError: no seed, or a model without `init`.
        UnlearningError: the weights of some seed hold NaN or inf.
    """
    if model.init is None:
        raise ValueError("train starts from fresh weights: pass Model(..., init=key -> Variables)")
    if len(seeds) == 0:
        raise ValueError("no seeds: expected at least one, e.g. seeds=range(3)")
    once = jaxunlearn.retrain(model, optimizer, num_steps=num_steps, batch_size=batch_size, bn=bn, **loop)
    run = jaxunlearn.batched(once, in_axes=(None, None, None, 0), chunk=chunk, mesh=mesh)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(seeds, jnp.uint32))
    # Retraining takes no more than tree, shapes and dtypes from the variables that go in.
    like = jax.jit(model.init)(key)
    result = (jax.jit(run) if mesh is None else run)(like, data, jaxunlearn.empty_request(), keys)
    return jaxunlearn.check(gathered(result), allow=[Status.EMPTY_REQUEST]).variables


class Timed(NamedTuple):
    """What a function returned and how long it took."""

    result: Any
    compile_seconds: float
    run_seconds: float


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
    runs = []
    result = None
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        runs.append(time.perf_counter() - start)
    return Timed(result, compile_seconds, statistics.median(runs))


def environment() -> dict[str, Any]:
    """Versions and hardware, fit for JSON; `load_average` is the one of the last minute, None where it is not known."""
    devices = jax.devices()
    return {
        "jaxunlearn": jaxunlearn.__version__,
        **{package: version(package) for package in ("jax", "jaxlib", "optax", "flax", "numpy")},
        "python": platform.python_version(),
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "devices": len(devices),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
