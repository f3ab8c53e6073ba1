"""One of several processes that share single requests; `test_distributed_axes` starts them."""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common.scale import Scale, gathered, start
from tests.multidevice.networks import NORMALISED, deep
from tests.problems import blobs, lane

LANES = 3  # no axis divides it
SCANNED = deep(width=16, layers=2)
MESHES = {"rows": ("request", "data"), "parameters": ("request", "fsdp")}  # one device of each process


def arguments(model):
    requests = ju.from_indices(blobs(), [[0], [1, 2, 3], [4, 9]], capacity=8)
    return model.init(jax.random.key(1)), blobs(), requests, jax.random.split(jax.random.key(0), LANES)


def descent(model):
    return ju.gradient_difference(model, optax.sgd(0.1, momentum=0.9))


def many(model):
    return ju.iterate(descent(model), num_steps=3, batch_size=8)


def batches(step):
    """From a file that all processes read."""
    rows = np.random.default_rng(step).integers(10, 60, 8)
    kept = jax.tree.map(lambda x: np.asarray(x)[rows], blobs().train)
    retain = ju.Weighted(kept, np.ones(8, np.float32), rows)
    return ju.Batch(ju.forget_rows(blobs(), lane(arguments(SCANNED)[2], 1)), retain)


def fed():
    variables, _, requests, keys = arguments(SCANNED)
    return ju.feed(descent(SCANNED), variables, batches, lane(requests, 1), keys[1], num_steps=3)


def main(coordinator, num_processes, process_id, out):
    start(Scale(distributed=True, coordinator=coordinator, num_processes=num_processes, process_id=process_id))
    assert jax.process_count() == num_processes
    assert jax.device_count() == num_processes
    found = {}

    def keep(name, result):
        mine = gathered(result)
        found.update({f"{name}{path}": np.asarray(x) for path, x in _named(mine.variables)})
        found[f"{name}/status"] = np.asarray(mine.status)

    for name, axes in MESHES.items():
        mesh = jax.make_mesh((1, num_processes), axes, axis_types=(jax.sharding.AxisType.Auto,) * len(axes))
        model = SCANNED if "fsdp" in axes else NORMALISED
        keep(name, ju.batched(many(model), mesh=mesh)(*arguments(model)))
    mesh = ju.request_mesh(fsdp=num_processes)
    variables, data, requests, keys = arguments(SCANNED)
    one = ju.shard(variables, mesh), *ju.replicate((data, lane(requests, 1), keys[1]), mesh)
    with jax.set_mesh(mesh):
        result = jax.jit(many(SCANNED))(*one)
        assert not result.variables.params["layers"]["w"].is_fully_replicated
        keep("one", result)
        keep("fed", fed())
    np.savez(Path(out) / f"{process_id}.npz", **found)


def _named(variables):
    return [(jax.tree_util.keystr(path), x) for path, x in jax.tree.leaves_with_path(variables)]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
