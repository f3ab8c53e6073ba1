"""One of several processes that answer requests together; `test_distributed` starts them."""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common.scale import Scale, gathered, leads, start
from tests.problems import blobs, network

FEW = 3  # requests whose rows both processes share
LANES = (8, 5)  # a multiple of the devices, and not; padded, they share one program
REQUESTS = [list(range(row, row + 1 + row % 5)) for row in range(max(LANES))]


def arguments(lanes):
    requests = ju.from_indices(blobs(), REQUESTS)
    keys = jax.random.split(jax.random.key(0), max(LANES))
    first = jax.tree.map(lambda x: x[:lanes], (requests, keys))
    return network().init(jax.random.key(1)), blobs(), *first


def method():
    return ju.iterate(ju.gradient_difference(network(), optax.sgd(0.1)), num_steps=3, batch_size=4)


def main(coordinator, num_processes, process_id, out):
    mesh = start(Scale(distributed=True, coordinator=coordinator, num_processes=num_processes, process_id=process_id))
    assert jax.process_count() == num_processes
    assert leads() == (process_id == 0)
    assert mesh is not None
    assert len({device.process_index for device in mesh.devices.flat}) == num_processes
    answer = ju.batched(method(), mesh=mesh)
    found = {}
    for lanes in LANES:
        variables, data, requests, keys = arguments(lanes)
        # A committed array, as it comes from a checkpoint, and data that are on all devices already.
        variables = jax.device_put(variables, jax.local_devices()[-1])
        result = answer(variables, ju.replicate(data, mesh), requests, keys)
        assert not result.status.is_fully_addressable
        mine = gathered(result)
        found.update({f"{lanes}/{name}": np.asarray(x) for name, x in mine.variables.params.items()})
        found[f"{lanes}/status"] = np.asarray(mine.status)
    shared = jax.make_mesh((2, 2), ("data", "request"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    result = gathered(ju.batched(method(), mesh=shared)(*arguments(FEW)))
    found.update({f"shared/{name}": np.asarray(x) for name, x in result.variables.params.items()})
    keys = jax.random.split(jax.random.key(2), 3)
    assert np.array_equal(*map(jax.random.key_data, (gathered(ju.replicate(keys, mesh)), keys)))
    try:
        ju.replicate(np.full(3, process_id), mesh)
    except ValueError as error:
        found["refusal"] = np.asarray(str(error))
    np.savez(Path(out) / f"{process_id}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
