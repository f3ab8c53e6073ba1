"""Training originals, and saying on what figures were taken."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

import jaxunlearn
from jaxunlearn import Data, Model, Status, Variables


def train(
    model: Model,
    data: Data,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    seeds: Sequence[int],
    key: PRNGKeyArray,
) -> Variables:
    """Train one model per seed on all present rows, in one compiled call.

    Training is retraining with an empty request, so originals and their retrained references come from one procedure.

    Args:
        model: needs `init`.
        data: the training data, shared by all seeds.
        optimizer: any optax transformation.
        num_steps, batch_size: see `jaxunlearn.iterate`.
        seeds: seed `s` trains under `fold_in(key, s)`, whatever other seeds there are.
        key: one typed key.

    Returns:
        `Variables` with a leading axis `len(seeds)` on every leaf.

    Raises:
        ValueError: no seed, or a model without `init`.
        UnlearningError: the weights of some seed hold NaN or inf.
    """
    if model.init is None:
        raise ValueError("train starts from fresh weights: pass Model(..., init=key -> Variables)")
    if len(seeds) == 0:
        raise ValueError("no seeds: expected at least one, e.g. seeds=range(3)")
    once = jaxunlearn.iterate(jaxunlearn.retrain(model, optimizer), num_steps=num_steps, batch_size=batch_size)
    run = jaxunlearn.batched(once, in_axes=(None, None, None, 0))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(seeds, jnp.uint32))
    # Retraining takes no more than tree, shapes and dtypes from the variables that go in.
    result = run(form(model), data, jaxunlearn.empty_request(), keys)
    return jaxunlearn.check(result, allow=[Status.EMPTY_REQUEST]).variables


def form(model: Model) -> Variables:
    """Zeros of the form of a model's variables, for what takes no value from them."""
    assert model.init is not None  # models of the experiments have one
    like = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)


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
