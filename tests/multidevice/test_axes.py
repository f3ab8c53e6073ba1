"""Meshes that divide one request: rows of its batches over `data`, its parameters too over `fsdp`; eight faked devices."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxunlearn as ju
from tests.multidevice.networks import NORMALISED, deep
from tests.problems import blobs, distance, headed, lane, method, network

DATA, LANES = blobs(), 3  # a number that no axis divides
REQUESTS = ju.from_indices(DATA, [[0], [1, 2, 3], [4, 9]], capacity=8)
KEYS = jax.random.split(jax.random.key(0), LANES)
REQUEST, KEY = lane(REQUESTS, 1), KEYS[1]
MESHES = {
    "requests and rows": ((2, 2), ("request", "data")),
    "rows in front": ((2, 4), ("data", "request")),
    "more rows than requests": ((2, 4), ("request", "data")),
    "requests and parameters": ((2, 2), ("request", "fsdp")),
    "all three": ((2, 2, 2), ("request", "data", "fsdp")),
    "an axis of the model's own": ((2, 2, 2), ("request", "data", "tensor")),
}
MODELS = {"plain": network(), "with a head": headed(), "with BatchNorm": NORMALISED, "scanned": deep(width=8, layers=2)}
METHODS = {
    "gradient_difference": lambda model: ju.iterate(ju.gradient_difference(model, optax.sgd(0.1)), 3, batch_size=8),
    "scrub": lambda model: ju.iterate(ju.scrub(model, optax.sgd(0.1, momentum=0.9)), 6, batch_size=8),
    "ssd": lambda model: ju.ssd(model),
    "representation_unlearning": lambda model: method("representation_unlearning", model, num_steps=3, batch_size=8),
}
SLOW_CASES = [
    ("gradient_difference", "plain", "rows in front"),
    ("gradient_difference", "scanned", "all three"),
    ("gradient_difference", "with BatchNorm", "requests and parameters"),
    ("gradient_difference", "plain", "an axis of the model's own"),
    ("scrub", "with BatchNorm", "more rows than requests"),
    ("scrub", "scanned", "all three"),
    ("ssd", "plain", "requests and rows"),
    ("ssd", "plain", "all three"),
    ("representation_unlearning", "with a head", "requests and rows"),
    ("representation_unlearning", "with a head", "all three"),
]


def mesh_of(shape, names, kind=AxisType.Auto):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names), devices=jax.devices()[: int(np.prod(shape))])


@cache
def setting(name, kind):
    model = MODELS[kind]
    unlearn, variables = METHODS[name](model), model.init(jax.random.key(1))
    data = jax.jit(ju.prepare(unlearn))(variables, DATA, KEY) if name == "ssd" else DATA
    return unlearn, variables, data


@cache
def expected(name, kind):
    unlearn, variables, data = setting(name, kind)
    return jax.jit(ju.batched(unlearn))(variables, data, REQUESTS, KEYS)


def require_equal(got, wanted, rounding=1e-5):
    assert distance(got.variables, wanted.variables) < rounding
    np.testing.assert_array_equal(got.status, wanted.status)
    for name, value in wanted.stats.items():
        np.testing.assert_allclose(got.stats[name], value, rtol=rounding, atol=rounding, err_msg=name)


@pytest.mark.parametrize(
    ("name", "kind", "mesh"),
    [
        ("gradient_difference", "with BatchNorm", "requests and rows"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES),
    ],
)
def test_several_axes_equal_one_device(name, kind, mesh):
    unlearn, variables, data = setting(name, kind)
    result = ju.batched(unlearn, mesh=mesh_of(*MESHES[mesh]))(variables, data, REQUESTS, KEYS)
    require_equal(result, expected(name, kind))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [2, LANES])
@pytest.mark.parametrize("name", ["gradient_difference", "scrub"])
def test_requests_side_by_side_equal_one_device(name, chunk):
    unlearn, variables, data = setting(name, "with BatchNorm")
    answer = ju.batched(unlearn, mesh=mesh_of(*MESHES["requests and rows"]), chunk=chunk)
    require_equal(answer(variables, data, REQUESTS, KEYS), expected(name, "with BatchNorm"))


def on(mesh, unlearn, variables, data=DATA, request=REQUEST, key=KEY):
    """One request, its parameters in parts: the compiled program and the arguments."""
    arguments = ju.shard(variables, mesh), *ju.replicate((data, request, key), mesh)
    with jax.set_mesh(mesh):
        return jax.jit(unlearn).lower(*arguments).compile(), arguments


def held(program, parameters):
    """Bytes on one device, in models."""
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes / parameters, memory.temp_size_in_bytes / parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gradient_difference", "scrub"])
def test_one_request_in_parts_needs_a_part_of_the_memory_and_is_equal(name):
    model, devices = deep(width=64, layers=6), 8
    optimizer = optax.sgd(0.01, momentum=0.9)
    unlearn = ju.iterate(getattr(ju, name)(model, optimizer), 3, batch_size=8)
    variables = model.init(jax.random.key(1))
    parameters = sum(x.nbytes for x in jax.tree.leaves(variables))
    whole = jax.jit(unlearn).lower(variables, DATA, REQUEST, KEY).compile()
    program, arguments = on(ju.request_mesh(fsdp=devices), unlearn, variables)
    result = program(*arguments)
    require_equal(result, whole(variables, DATA, REQUEST, KEY))
    assert result.variables.params["layers"]["w"].sharding.spec == P(None, "fsdp")
    (argument, temporary), (argument_of_one, temporary_of_one) = held(program, parameters), held(whole, parameters)
    assert argument < argument_of_one / devices + 0.02  # the rows
    assert argument + temporary < 1.6 / devices * (argument_of_one + temporary_of_one)


def test_rows_that_the_devices_cannot_share_are_refused():
    for sizes in ({"batch_size": 9}, {"batch_size": 8, "retain_batch_size": 3}):
        unlearn = ju.iterate(ju.gradient_difference(network(), optax.sgd(0.1)), 3, **sizes)
        with pytest.raises(ValueError, match=f"{list(sizes)[-1]}={list(sizes.values())[-1]} rows cannot be shared by the 2"):
            ju.batched(unlearn, mesh=mesh_of(*MESHES["requests and rows"]))(network().init(KEY), DATA, REQUESTS, KEYS)


def test_meshes_that_cannot_be_made_or_used_are_refused():
    with pytest.raises(ValueError, match="data=3 times fsdp=1 must divide the number of devices, which is 8"):
        ju.request_mesh(data=3)
    with pytest.raises(ValueError, match="fsdp must be an integer"):
        ju.request_mesh(fsdp=0)
    with pytest.raises(ValueError, match="expected a mesh with the axis 'fsdp'"):
        ju.shard({"w": jnp.ones(8)}, ju.request_mesh(data=2))
    with pytest.raises(ValueError, match="expected an Auto mesh"):
        ju.batched(setting("ssd", "plain")[0], mesh=mesh_of((2, 2), ("request", "data"), AxisType.Explicit))


def test_parts_are_along_the_longest_axis_that_the_devices_divide():
    mesh = ju.request_mesh(fsdp=4)
    values = {
        "both": jnp.ones((8, 16)), "first": jnp.ones((8, 15)), "equal": jnp.ones((8, 8)), "none": jnp.ones((7, 3)),
        "scalar": jnp.ones(()), "empty": jnp.ones((0, 4)), "int8": jnp.ones((3, 12), jnp.int8), "key": jax.random.split(KEY, 8),
        "numpy": np.ones(4, np.float32),
    }  # fmt: skip
    placed = ju.shard(values, mesh)
    assert {name: x.sharding.spec for name, x in placed.items()} == {
        "both": P(None, "fsdp"), "first": P("fsdp", None), "equal": P("fsdp", None), "none": P(), "scalar": P(),
        "empty": P(None, "fsdp"), "int8": P(None, "fsdp"), "key": P(None), "numpy": P("fsdp"),
    }  # fmt: skip
    assert jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), placed, values) == dict.fromkeys(values, True)


@pytest.mark.slow
def test_what_lies_on_the_mesh_already_stays_and_rows_may_lie_in_parts():
    mesh = mesh_of((2, 2), ("request", "fsdp"))
    unlearn, variables, _ = setting("gradient_difference", "plain")
    rows = jax.device_put(DATA, NamedSharding(mesh, P("fsdp")))  # 60 rows, 30 on each
    held = ju.shard(variables, mesh)
    result = ju.batched(unlearn, mesh=mesh)(held, rows, REQUESTS, KEYS)
    require_equal(result, expected("gradient_difference", "plain"))
    assert not rows.train.inputs.is_deleted()


@pytest.mark.slow
def test_a_loss_that_sorts_rows_and_a_model_with_constraints_of_its_own():
    mesh = mesh_of(*MESHES["an axis of the model's own"])

    def forward(constrained, variables, inputs, *, train=False, key=None):
        hidden = jnp.tanh(inputs @ variables.params["body"] + variables.params["bias"])
        hidden = jax.lax.with_sharding_constraint(hidden, P("data", "tensor")) if constrained else hidden
        return ju.Outputs(hidden @ variables.params["head"], {"penultimate": hidden})

    def unlearn(constrained):
        model = network()._replace(forward=partial(forward, constrained))

        def objective(variables, context, batch, key):
            outputs = model.forward(variables, batch.retain.examples.inputs)
            losses = model.loss(outputs, batch.retain.examples)
            return jnp.mean(jnp.sort(losses)[:5]) + jnp.quantile(losses, 0.3), (variables.state, {})

        return ju.iterate(ju.descend(model, optax.sgd(0.1), objective), 3, batch_size=8)

    variables = network().init(KEY)
    wanted = jax.jit(ju.batched(unlearn(False)))(variables, DATA, REQUESTS, KEYS)
    for chunk in (1, LANES):
        result = ju.batched(unlearn(True), mesh=mesh, chunk=chunk)(variables, DATA, REQUESTS, KEYS)
        require_equal(result, wanted)
