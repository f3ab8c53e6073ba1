"""`feed` on several faked devices, and from a checkpoint on fewer than it was saved on."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxunlearn as ju
from jaxunlearn import sampling
from jaxunlearn.loop.iterate import step_keys
from jaxunlearn.service.checkpoint import Directory
from tests.multidevice.networks import NORMALISED, deep
from tests.problems import blobs, distance, lane

DATA, KEY = blobs(), jax.random.key(7)
REQUEST = lane(ju.from_indices(DATA, [[3, 4, 5, 30]], capacity=8), 0)
MODEL = deep(width=16, layers=2)
SCRUB = ju.scrub(MODEL, optax.sgd(0.01, momentum=0.9), forget_epochs=2)
STEPS = 5


@jax.jit
def drawn(step):
    """The batch that `iterate` draws at a step."""
    _, split_key, loop_key = jax.random.split(KEY, 3)
    split = sampling.split(DATA, REQUEST, split_key)
    return sampling.uniform(split, (), step, step_keys(loop_key, step)[0], sampling.BatchSizes(8, 8))


BATCHES = [jax.device_get(drawn(step)) for step in range(STEPS)]  # as from a disk


def run(method, devices=None, model=MODEL, num_steps=STEPS, checkpoint=None, **axes):
    mesh = nullcontext() if devices is None else jax.set_mesh(ju.request_mesh(jax.devices()[:devices], **axes))
    variables = model.init(jax.random.key(1))
    with mesh:
        return ju.feed(method, variables, BATCHES.__getitem__, REQUEST, KEY, num_steps=num_steps, checkpoint=checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"data": 4}, {"fsdp": 4}, {"data": 2, "fsdp": 2}], ids=str)
def test_feed_over_several_devices_equals_one(axes):
    whole, parts = run(SCRUB), run(SCRUB, 4, **axes)
    assert distance(whole.variables, parts.variables) < 1e-5
    assert distance(whole.stats, parts.stats) < 1e-5
    assert parts.variables.params["layers"]["w"].sharding.spec == (P(None, "fsdp") if "fsdp" in axes else P())


@pytest.mark.slow
def test_statistics_of_a_batch_are_those_of_all_of_its_rows():
    method = ju.gradient_difference(NORMALISED, optax.sgd(0.1))
    assert distance(run(method, model=NORMALISED).variables, run(method, 4, model=NORMALISED, data=4).variables) < 1e-5


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    places = [({"devices": 8, "fsdp": 8}, 2), ({"devices": 4, "data": 2, "fsdp": 2}, 4), ({}, STEPS)]
    for place, num_steps in places:
        result = run(SCRUB, num_steps=num_steps, checkpoint=Directory(tmp_path, every=1), **place)
        assert max(int(saved.name) for saved in tmp_path.iterdir() if saved.name.isdigit()) == num_steps
    for _, num_steps in places:  # the length of a run is told to the method, so the one on one device is stopped alike
        whole = run(SCRUB, num_steps=num_steps, checkpoint=Directory(tmp_path / "whole", every=1))
    assert distance(result.variables, whole.variables) < 1e-5
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(result.variables))
    assert int(result.stats["steps"]) == STEPS


@pytest.mark.slow
def test_rows_that_do_not_divide_lie_on_every_device():
    odd = [jax.tree.map(lambda x: x[:5] if jnp.ndim(x) else x, batch) for batch in BATCHES]
    variables = MODEL.init(jax.random.key(1))
    method = ju.gradient_difference(MODEL, optax.sgd(0.01))
    whole = ju.feed(method, variables, odd.__getitem__, REQUEST, KEY, num_steps=2)
    with jax.set_mesh(ju.request_mesh(jax.devices()[:4], data=2, fsdp=2)):
        parts = ju.feed(method, variables, odd.__getitem__, REQUEST, KEY, num_steps=2)
    assert distance(whole.variables, parts.variables) < 1e-5
