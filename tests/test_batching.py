"""Batched and streamed answers; what is equal for every method stands in the contract tests."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import cores
from tests.problems import NUM_FEATURES, blobs, distance, lane, network, nudge

DATA, NUDGE = blobs(), nudge()
KEYS = jax.random.split(jax.random.key(0), 3)
REQUEST = lane(ju.from_indices(DATA, [[1, 2]]), 0)
REQUESTS = ju.from_indices(DATA, [[1], [2], [3]])
ORIGINALS = jax.vmap(network().init)(KEYS)
VARIABLES = lane(ORIGINALS, 0)


def trainer(**options):
    return ju.iterate(ju.gradient_difference(network(), optax.sgd(0.1)), num_steps=3, batch_size=4, **options)


@pytest.fixture(scope="module")
def single():
    return jax.jit(NUDGE)


@pytest.mark.parametrize("chunk", [None, 2, 3])
def test_other_axes_serve_several_originals_and_tenants(single, chunk):
    many = jax.jit(ju.batched(NUDGE, in_axes=(0, None, None, 0), chunk=chunk))(ORIGINALS, DATA, REQUEST, KEYS)
    for position in range(3):
        alone = single(lane(ORIGINALS, position), DATA, REQUEST, KEYS[position])
        assert distance(alone.variables, lane(many.variables, position)) < 1e-6
    present = jnp.ones((3, 60)).at[0, 30:].set(0)
    tenants = jax.jit(ju.batched(NUDGE, in_axes=(0, ju.Data(None, 0, None), None, 0), chunk=chunk))
    apart = tenants(ORIGINALS, DATA._replace(present=present), REQUEST, KEYS)
    assert distance(lane(apart.variables, 1), lane(many.variables, 1)) < 1e-6
    alone = single(VARIABLES, DATA._replace(present=present[0]), REQUEST, KEYS[0])
    assert distance(lane(apart.variables, 0), alone.variables) < 1e-6
    assert distance(lane(apart.variables, 0), lane(many.variables, 0)) > 1e-4


@pytest.mark.parametrize("able", [1, 2, 3, 8])
@pytest.mark.parametrize("chunk", [None, 2])
def test_cores_share_requests_and_change_no_bit(able, chunk, monkeypatch):
    monkeypatch.setattr(cores, "available", lambda: able)
    requests, keys = ju.from_indices(DATA, [[1], [2], [3], [4, 5], [6]]), jax.random.split(jax.random.key(1), 5)
    traces = []

    def counted(variables, data, request, key):
        traces.append(key)
        return NUDGE(variables, data, request, key)

    batched = ju.batched(counted, chunk=chunk)
    found = batched(VARIABLES, DATA, requests, keys)
    once = len(traces)
    again = batched(VARIABLES, DATA, requests, keys)
    assert len(traces) == once
    expected = jax.jit(ju.batched(NUDGE, chunk=chunk))(VARIABLES, DATA, requests, keys)
    for tree in (found, again):
        assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), tree, expected))


def test_cores_follow_the_settings_of_the_calling_thread(monkeypatch):
    monkeypatch.setattr(cores, "available", lambda: 2)
    batched = ju.batched(lambda variables, *_: ju.Result(variables, stats={"zero": jnp.zeros(())}))
    with jax.enable_x64(True):
        assert batched(VARIABLES, DATA, REQUESTS, KEYS).stats["zero"].dtype == jnp.float64
    with jax.debug_nans(True):  # seen by this thread only, so nothing runs in another one
        assert cores.parts_of(3, 1, [KEYS]) == 1
    with jax.set_mesh(ju.request_mesh(jax.devices()[:2])):
        assert cores.parts_of(3, 1, [KEYS]) == 1
    with jax.disable_jit():
        plain = batched(VARIABLES, DATA, REQUESTS, KEYS)
    assert distance(plain.variables, batched(VARIABLES, DATA, REQUESTS, KEYS).variables) < 1e-6
    assert [cores.parts_of(3, chunk, [KEYS]) for chunk in (1, 2, 3)] == [2, 2, 1]


def test_cores_see_what_the_calling_thread_sees(monkeypatch):
    monkeypatch.setattr(cores, "available", lambda: 2)
    scaled = ju.batched(lambda v, *_: ju.Result({"w": v["w"] * v["by"], "by": v["by"]}))
    with jax.enable_x64(True):  # of this thread, where NumPy and Python mean float64
        found = scaled({"w": np.ones(2), "by": 2.0}, DATA, REQUESTS, KEYS).variables
    assert (found["w"].dtype, found["by"].dtype, found["w"].tolist()) == (jnp.float64, jnp.float64, [[2.0, 2.0]] * 3)
    placed = {"w": jnp.ones(2), "by": jnp.float32(2)}
    with jax.transfer_guard("disallow"):
        scaled(placed, DATA, REQUESTS, KEYS)


def test_cores_answer_while_the_main_thread_has_ended_and_pass_errors_on(monkeypatch):
    monkeypatch.setattr(cores, "available", lambda: 2)
    batched = ju.batched(lambda variables, *_: ju.Result(variables))
    expected = batched(VARIABLES, DATA, REQUESTS, KEYS)
    monkeypatch.setattr("concurrent.futures.thread._shutdown", True)  # from then on pools take nothing
    assert distance(batched(VARIABLES, DATA, REQUESTS, KEYS).variables, expected.variables) == 0

    def failing(place):
        raise MemoryError(f"part {place}")

    with pytest.raises(MemoryError, match="part 1"):
        cores._beside(failing, [1, 2])


def test_what_a_method_tells_the_host_is_told_once_and_in_order(monkeypatch):
    monkeypatch.setattr(cores, "available", lambda: 2)
    told = []

    def telling(variables, data, request, key):
        jax.debug.callback(lambda row: told.append(int(row)), request.indices[0], ordered=True)
        return ju.Result(variables)

    ju.batched(telling)(VARIABLES, DATA, REQUESTS, KEYS)
    jax.effects_barrier()
    assert told == [1, 2, 3]


def test_a_method_may_close_over_values_of_a_trace():
    requests = ju.from_indices(DATA, [[1, 2], [3]])

    def at(factor):
        def scaled(variables, data, request, key):
            return NUDGE(jax.tree.map(lambda w: factor * w, variables), data, request, key)

        return ju.batched(scaled)(VARIABLES, DATA, requests, KEYS[:2]).variables

    assert distance(lane(jax.vmap(at)(jnp.array([0.1, 0.2])), 1), at(0.2)) < 1e-6


def test_a_sweep_is_one_more_vmap():
    requests = ju.from_indices(DATA, [[1, 2], [3]])

    def at(learning_rate, alpha):
        method = ju.gradient_difference(network(), optax.sgd(learning_rate), alpha=alpha)
        return ju.batched(ju.iterate(method, num_steps=3, batch_size=4))(VARIABLES, DATA, requests, KEYS[:2])

    rates, alphas = jnp.array([0.01, 0.1, 0.5]), jnp.array([0.9, 0.95, 1.0])
    swept = jax.jit(jax.vmap(at))(rates, alphas)
    fixed = jax.jit(lambda: at(0.1, 0.95))()  # constants of the program
    assert distance(lane(swept.variables, 1), fixed.variables) < 1e-5
    traced = jax.jit(at)
    for position in (0, 2):
        assert distance(lane(swept.variables, position), traced(rates[position], alphas[position]).variables) < 1e-5


@cache
def temporary_bytes(rows, chunk):
    """What the compiled answer to 32 requests holds at once besides its arguments and results."""
    data = ju.Data(
        ju.Examples(jax.ShapeDtypeStruct((rows, NUM_FEATURES), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32)),
        jax.ShapeDtypeStruct((rows,), jnp.float32),
    )
    requests, keys = ju.from_indices(DATA, [[i] for i in range(32)]), jax.random.split(KEYS[0], 32)
    compiled = jax.jit(ju.batched(trainer(), chunk=chunk)).lower(VARIABLES, data, requests, keys).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_parameters_and_not_with_rows():
    assert temporary_bytes(100_060, 32) - temporary_bytes(60, 32) < 100_000 * 4 * 4  # a few vectors [n], not 32 of them


def test_chunks_bound_memory():
    assert temporary_bytes(60, 2) < temporary_bytes(60, 32) / 3


def test_streams_say_which_rows_came_twice(single):
    requests = ju.from_indices(DATA, [[1, 2], [2, 3], [1, 2]])
    result = jax.jit(ju.streamed(NUDGE))(VARIABLES, DATA, requests, KEYS)
    assert result.status.tolist() == [ju.Status.OK, ju.Status.INVALID_ROWS, ju.Status.INVALID_ROWS]
    assert jnp.flatnonzero(result.extra["present"] == 0).tolist() == [1, 2, 3]
    assert result.stats["shift"].shape == (3,)
    current, variables = DATA, VARIABLES
    for position in range(3):
        one = lane(requests, position)
        variables, current = single(variables, current, one, KEYS[position]).variables, ju.remove(current, one)
    assert distance(result.variables, variables) < 1e-6


def counting(variables, data, request, key):
    count = ju.slots.USER.get(data)
    return ju.Result(variables, jnp.int32(0), {"seen": count}, {"user": count + 1})


def test_streams_carry_what_a_method_hands_on():
    ready = ju.slots.USER.put(DATA, jnp.int32(5))
    result = ju.streamed(counting)(VARIABLES, ready, REQUESTS, KEYS)
    assert result.stats["seen"].tolist() == [5, 6, 7]
    assert int(result.extra["user"]) == 8
    with pytest.raises(ValueError, match=r"carries \['user'\].*put the first in data\.extra"):
        ju.streamed(lambda v, d, r, k: ju.Result(v, jnp.int32(0), {}, {"user": jnp.int32(0)}))(VARIABLES, DATA, REQUESTS, KEYS)


def test_the_end_of_a_stream_is_where_the_next_request_starts():
    ready = ju.slots.USER.put(DATA, jnp.int32(5))
    result, left = ju.end_of_stream(ju.streamed(counting)(VARIABLES, ready, REQUESTS, KEYS), ready)
    assert (int(result.stats["seen"]), int(result.extra["user"]), int(ju.slots.USER.get(left))) == (7, 8, 8)
    assert jnp.flatnonzero(left.present == 0).tolist() == [1, 2, 3]
    assert int(ju.check(result).status) == ju.Status.OK


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="same leading axis"):
        ju.batched(NUDGE)(VARIABLES, DATA, REQUESTS, KEYS[:2])
    with pytest.raises(ValueError, match="same leading axis"):
        ju.streamed(NUDGE)(VARIABLES, DATA, REQUESTS, KEYS[:2])
    with pytest.raises(ValueError, match="chunk must be an integer of at least 1"):
        ju.batched(NUDGE, chunk=0)
    for in_axes in ((None, None, 1, 0), (-1, None, None, 0), 0):
        with pytest.raises(ValueError, match="in_axes takes 0"):
            ju.batched(NUDGE, in_axes=in_axes)(VARIABLES, DATA, REQUESTS, KEYS)
    with pytest.raises(ValueError, match="in_axes maps nothing"):
        ju.batched(NUDGE, in_axes=(None, None, None, None))(VARIABLES, DATA, REQUESTS, KEYS)


@pytest.mark.parametrize("options", [{}, {"chunk": 2}, {"mesh": "all"}])
def test_an_unlearner_is_told_from_a_finished_method(options):
    options = {"mesh": ju.request_mesh()} if "mesh" in options else options
    stepwise = ju.finetune(network(), optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"this is an Unlearner.*write batched\(jaxunlearn\.iterate\(unlearner, num_steps=100"):
        ju.batched(stepwise, **options)
    with pytest.raises(TypeError, match=r"this is an Unlearner.*write streamed\(jaxunlearn\.iterate\(unlearner, num_steps=100"):
        ju.streamed(stepwise)
    for call in (ju.batched, ju.streamed):
        with pytest.raises(TypeError, match=r"takes a function .* got Model"):
            call(network())


@pytest.mark.parametrize("loop", ["iterate", "feed"])
def test_a_finished_method_is_told_from_an_unlearner(loop):
    def call(method):
        if loop == "iterate":
            return ju.iterate(method, 3, batch_size=4)
        return ju.feed(method, VARIABLES, None, REQUEST, KEYS[0], num_steps=1)

    with pytest.raises(TypeError, match=rf"{loop} takes an Unlearner.*a finished method needs no loop: call it"):
        call(trainer())
    with pytest.raises(TypeError, match=rf"{loop} takes an Unlearner.*see jaxunlearn\.descend"):
        call("scrub")


def test_arguments_may_hold_none(single):
    with_none = ju.slots.USER.put(DATA, {"nothing": None})
    result = jax.jit(ju.batched(NUDGE))(VARIABLES, with_none, REQUESTS, KEYS)
    assert distance(lane(result.variables, 2), single(VARIABLES, DATA, lane(REQUESTS, 2), KEYS[2]).variables) == 0
