"""Runs of `feed` that are killed by SIGKILL at a step or at an operation on files, and go on in a new process.

    python -m tests.loop.kills FOLDER KIND EVENT [EVENT ...]    # killed at those events, then finished; 0 is never

The process prints how many events every run had and, at last, a digest of what came out: weights, statistics and status. JAX
must not run before a fork, so nothing here touches a device outside of a child.
"""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn.tree import content_digest
from tests.crashes import in_child
from tests.problems import blobs, lane, network

STEPS, SIZE = 12, 4


class Positioned:
    """An iterator over a function of the step, with a position."""

    def __init__(self, source):
        self.source, self.position = source, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return self.source(self.position - 1)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def grain_iterator(method, rows, index, request, key, workers):
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain asks for its own where there are workers
    plan = ju.sources.draw(method, index, request, key, num_steps=STEPS, batch_size=SIZE)
    batches = grain.MapDataset.range(STEPS).map(ju.sources.Reader(plan, rows)).to_iter_dataset()
    return iter(batches.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers)) if workers else batches)


def run(folder, kind, tick):
    data, model, key = blobs(), network(), jax.random.key(3)
    request = lane(ju.from_indices(data, [[3, 4, 5, 30]]), 0)
    method = ju.scrub(model, optax.adam(0.01), forget_epochs=2)
    rows, index = jax.tree.map(np.asarray, data.train), ju.sources.index(60)
    arguments = method, rows, index, request, key
    if kind == "grain":
        source = grain_iterator(*arguments, workers=0)
    else:
        source = ju.sources.batches(*arguments, num_steps=STEPS, batch_size=SIZE)
        source = Positioned(source) if kind == "iterator" else source
    kept = ju.checkpoint.Directory(folder, every=2)
    result = ju.feed(
        method, model.init(jax.random.key(1)), source, request, key, num_steps=STEPS, checkpoint=kept,
        callback=lambda step, stats: tick(),
    )  # fmt: skip
    return content_digest(result)


def arm(at):
    """Count steps and operations on files, of all threads; die instead of number `at`."""
    lock, count = threading.Lock(), [0]

    def tick():
        with lock:
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)

    def wrap(module, name):
        original = getattr(module, name)

        def operation(*arguments, **options):
            tick()
            return original(*arguments, **options)

        setattr(module, name, operation)

    for name in ("rename", "replace", "mkdir", "unlink", "rmdir"):
        wrap(os, name)
    wrap(shutil, "rmtree")
    return tick, count


def fork(folder, kind, at):
    """One run in a process of its own: what came out and its events, or None if it was killed."""

    def step():
        tick, count = arm(at)
        return f"{run(folder, kind, tick)} {count[0]}"

    said = in_child(step, folder)
    return None if said is None else said.split()


if __name__ == "__main__":
    folder, kind, *events = sys.argv[1:]
    for number in map(int, events):
        found = fork(Path(folder), kind, number)
        print("killed" if found is None else " ".join(found), flush=True)
    print(" ".join(fork(Path(folder), kind, 0)))
