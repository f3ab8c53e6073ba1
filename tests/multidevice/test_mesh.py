"""Requests over eight faked devices."""

from functools import cache

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType

import jaxunlearn as ju
from tests.problems import blobs, distance, network, nudge

DATA, NUDGE = blobs(), nudge()
REQUESTS = ju.from_indices(DATA, [list(range(start, start + 1 + start % 5)) for start in range(13)])
KEYS = jax.random.split(jax.random.key(0), 13)
VARIABLES = network().init(jax.random.key(1))
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def trainer():
    return ju.iterate(ju.gradient_difference(network(), optax.sgd(0.1)), num_steps=3, batch_size=4)


@pytest.fixture(scope="module")
def expected():
    return jax.jit(ju.batched(NUDGE))(VARIABLES, DATA, REQUESTS, KEYS)


@pytest.fixture(scope="module")
def trained():
    return jax.jit(ju.batched(trainer()))(VARIABLES, DATA, REQUESTS, KEYS)


@cache
def meshed(chunk=None):
    return ju.batched(NUDGE, mesh=ju.request_mesh(), chunk=chunk)


def first(tree, lanes):
    return jax.tree.map(lambda x: x[:lanes], tree)


@pytest.mark.parametrize("lanes", [1, 8, 13])
@pytest.mark.parametrize("chunk", [None, 2, 13])
def test_mesh_and_chunks_equal_one_device(expected, lanes, chunk):
    result = meshed(chunk)(VARIABLES, DATA, first(REQUESTS, lanes), KEYS[:lanes])
    assert distance(result.variables, first(expected.variables, lanes)) < 1e-6
    assert jnp.array_equal(result.status, expected.status[:lanes])


def test_gradients_are_not_summed_over_devices():
    # The trap of shard_map: with the default check_vma, lane gradients 0..7 of shared parameters all became 28.
    def gradient(variables, data, request, key):
        slope = jax.grad(lambda w: jnp.sum(w * request.indices))(variables.params["w"])
        return ju.Result(ju.Variables({"w": slope}), jnp.int32(0), {})

    shared = ju.Variables({"w": jnp.zeros(1)})
    requests = ju.ForgetRequest(jnp.arange(8)[:, None], jnp.ones((8, 1)))
    result = ju.batched(gradient, mesh=ju.request_mesh())(shared, DATA, requests, KEYS[:8])
    assert result.variables.params["w"].ravel().tolist() == list(range(8))


def test_results_stay_where_they_were_computed_and_data_is_held_once():
    mesh = ju.request_mesh()
    result = meshed()(VARIABLES, DATA, first(REQUESTS, 8), KEYS[:8])
    kernel = result.variables.params["body"]
    assert [shard.data.shape[0] for shard in kernel.addressable_shards] == [1] * 8
    placed = ju.replicate(DATA, mesh)
    for before, after in zip(jax.tree.leaves(placed), jax.tree.leaves(ju.replicate(placed, mesh)), strict=True):
        assert [s.data.unsafe_buffer_pointer() for s in before.addressable_shards] == [
            s.data.unsafe_buffer_pointer() for s in after.addressable_shards
        ]


@pytest.mark.parametrize("chunk", [None, 13])
def test_a_training_equals_one_device_and_has_no_collectives(trained, chunk, monkeypatch):
    programs = []
    jit = jax.jit

    def recording(function, **options):
        def call(shared, per_request, form):
            programs.append(jit(function, **options).lower(shared, per_request, form).compile())
            return programs[-1](shared, per_request)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("jaxunlearn.batching.jax.jit", recording)
        answer = ju.batched(trainer(), mesh=ju.request_mesh(), chunk=chunk)
    result = answer(VARIABLES, DATA, REQUESTS, KEYS)
    assert distance(result.variables, trained.variables) < 1e-6
    text = programs[0].as_text()
    assert "while" in text
    assert not [name for name in COLLECTIVES if name in text]
    rows = programs[0].memory_analysis()
    assert rows.argument_size_in_bytes < 2 * sum(x.nbytes for x in jax.tree.leaves((VARIABLES, DATA))) + 16 * 1024


def test_one_trace_for_equal_numbers_of_requests():
    traces = []

    def counted(*arguments):
        traces.append(1)
        return NUDGE(*arguments)

    answer = ju.batched(counted, mesh=ju.request_mesh())
    for start in (0, 5):
        answer(VARIABLES, DATA, jax.tree.map(lambda x, start=start: x[start : start + 8], REQUESTS), KEYS[:8])
    assert len(traces) == 1


def test_pmap_of_vmap_composes(trained):
    requests = jax.tree.map(lambda x: x[:8].reshape(4, 2, *x.shape[1:]), REQUESTS)
    composed = jax.pmap(jax.vmap(trainer(), (None, None, 0, 0)), in_axes=(None, None, 0, 0))
    result = composed(VARIABLES, DATA, requests, KEYS[:8].reshape(4, 2))
    flat = jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), result.variables)
    assert distance(flat, first(trained.variables, 8)) < 1e-6


def test_bad_meshes_are_refused():
    explicit = jax.make_mesh((8,), ("request",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match="expected an Auto mesh"):
        ju.batched(NUDGE, mesh=explicit)
    with pytest.raises(ValueError, match="with the axis 'request'"):
        ju.batched(NUDGE, mesh=jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)))
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(meshed())(VARIABLES, DATA, REQUESTS, KEYS)


def test_fewer_devices_can_be_named(expected):
    mesh = ju.request_mesh(jax.devices()[2:4])
    result = ju.batched(NUDGE, mesh=mesh)(VARIABLES, DATA, REQUESTS, KEYS)
    assert mesh.size == 2
    assert distance(result.variables, expected.variables) < 1e-6
