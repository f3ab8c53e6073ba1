"""Runs of `feed` that are killed by SIGKILL at a step or at an operation on files, and go on in a new process.

    python -m tests.loop.kills FOLDER KIND KILLS    # one run that nobody kills, then one that is killed so often

Every line says what a process came to: a digest of weights, statistics and status, with the number of its events, or "killed".
JAX must not run before a fork, so nothing here touches a device outside of a child.
"""

import os
import shutil
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
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


def from_disk(*arguments):
    return ju.sources.batches(*arguments, num_steps=STEPS, batch_size=SIZE)


def from_grain(method, rows, index, request, key):
    import grain

    plan = ju.sources.draw(method, index, request, key, num_steps=STEPS, batch_size=SIZE)
    return iter(grain.MapDataset.range(STEPS).map(ju.sources.Reader(plan, rows)).to_iter_dataset())


SOURCES = {
    "function": from_disk,
    "iterator": lambda *arguments: Positioned(from_disk(*arguments)),
    "grain": from_grain,
}


def toy():
    """A method that compiles in no time, whose end says which batches and keys it saw, in order."""

    def step(state, context, batch, key):
        seen = jnp.sum(batch.retain.examples.inputs) + jax.random.uniform(key)
        return jax.tree.map(lambda w: 0.5 * w + seen, state), {"seen": seen}

    return ju.Unlearner(lambda variables, data, request, key: ((), variables), step, lambda state, context: state, ju.uniform)


def some_rows(rows, step):
    part = ju.Weighted(jax.tree.map(lambda x: x[step : step + SIZE], rows), np.ones(SIZE), np.arange(SIZE))
    return ju.Batch(part, part)


def run(folder, kind, tick):
    data, key = blobs(), jax.random.key(3)
    request = lane(ju.from_indices(data, [[3, 4, 5, 30]]), 0)
    rows = jax.tree.map(np.asarray, data.train)
    if kind == "toy":
        method, variables = toy(), ju.Variables({"w": np.ones(100, np.float32)})
        source = partial(some_rows, rows)
    else:
        method, variables = ju.scrub(network(), optax.adam(0.01), forget_epochs=2), network().init(jax.random.key(1))
        source = SOURCES[kind](method, rows, ju.sources.index(60), request, key)
    kept = ju.checkpoint.Directory(folder, every=2)
    result = ju.feed(
        method, variables, source, request, key, num_steps=STEPS, checkpoint=kept, callback=lambda step, stats: tick()
    )
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
    folder, kind, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    whole = fork(folder / "whole", kind, 0)
    print(*whole, flush=True)
    for at in (*np.random.default_rng(0).integers(5, min(120, 180 // kills), kills), 0):  # in all, about a run
        print(*(fork(folder / "killed", kind, at) or ["killed"]), flush=True)
