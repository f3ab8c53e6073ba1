"""One of several processes that read the rows of one request together; `test_distributed_feed` starts them."""

import sys
from functools import cache
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxunlearn as ju
from experiments.common.scale import Scale, gathered, start
from tests.multidevice.networks import NORMALISED
from tests.problems import blobs, lane

ROWS, SIZE, STEPS = 60, 8, 4
FORGET = list(range(3, 19))  # two batches
STAGES = {1: 2, 2: 4, 4: 6}  # so many processes go on to that step
METHOD = ju.gradient_difference(NORMALISED, optax.sgd(0.1, momentum=0.9))


@cache
def asked():
    """What `batches` takes behind the rows; nothing may be computed before processes have found each other."""
    index = ju.sources.index(ROWS)
    return index, lane(ju.from_indices(index, [FORGET]), 0), jax.random.key(7)


class Disk:
    """Rows with a note of which were read."""

    def __init__(self):
        self.train, self.read = jax.tree.map(np.asarray, blobs().train), []

    def __len__(self):
        return ROWS

    def __getitem__(self, number):
        self.read.append(number)
        return jax.tree.map(lambda x: x[number], self.train)


def run(devices, num_steps=STEPS, checkpoint=None):
    """What came out, and for every step what this process read and the parts of the batch that it holds."""
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    disk, found = Disk(), {}
    how = {"num_steps": num_steps, "batch_size": SIZE, "sharding": NamedSharding(mesh, P("data")), "ahead": 0}
    source = ju.sources.batches(METHOD, disk, *asked(), **how)

    def noted(step):
        before = len(disk.read)
        batch = source(step)
        shards = [(side, shard) for side in ("forget", "retain") for shard in getattr(batch, side).slots.addressable_shards]
        inputs = [shard.data for side in (batch.forget, batch.retain) for shard in side.examples.inputs.addressable_shards]
        found[f"{step}/read"] = np.asarray(disk.read[before:])
        for (side, shard), rows in zip(shards, inputs, strict=True):
            place = shard.index[0].indices(SIZE)[0]
            found[f"{step}/{side}/{place}"] = np.asarray(rows)
        return batch

    variables = NORMALISED.init(jax.random.key(1))
    with jax.set_mesh(mesh):
        result = ju.feed(METHOD, variables, noted, *asked()[1:], num_steps=num_steps, checkpoint=checkpoint)
    for path, x in jax.tree.leaves_with_path(gathered((result.variables, result.status, result.stats))):
        found[f"result{jax.tree_util.keystr(path)}"] = np.asarray(x)
    return found


def resumed(devices, processes, folder):
    return run(devices, STAGES[processes], ju.checkpoint.Directory(folder, every=1))


def main(coordinator, num_processes, process_id, out):
    start(Scale(distributed=True, coordinator=coordinator, num_processes=num_processes, process_id=process_id))
    assert jax.process_count() == jax.device_count() == num_processes
    found = run(jax.devices())
    again = resumed(jax.devices(), num_processes, Path(out) / "run")
    found |= {f"again/{name}": x for name, x in again.items()}
    np.savez(Path(out) / f"{num_processes}-{process_id}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
