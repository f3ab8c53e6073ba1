"""What every method of the catalogue promises."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from tests.problems import asked, distance, lane, method, model_of, recorded, trained, unpadded

ROWS = [[3, 4, 5], [0, 10, 20, 30, 40, 50, 59], [7]]
NAN_ROW = 33  # in no request
WITHOUT_KEY = {
    *("amnesiac", "descent_to_delete", "influence_removal", "newton_removal", "refit", "woodbury_removal"),
    *("influence", "newton", "woodfisher", "projective_residual", "ntk_forgetting", "ssd", "lfssd", "assd"),
    *("affine_representation_unlearning", "concept_erasure", "nullspace_projection", "prototype_erasure"),
}


def make(name, model=None):
    """A short run of a method on the toy classifier, with plain SGD."""
    return method(name, model or model_of(name))


@pytest.fixture(scope="module", params=list(ju.METHODS))
def case(request):
    """One method: name, function, its jitted batched form, and inputs."""
    unlearn = make(request.param)
    data, _ = recorded()
    variables = trained(request.param)
    requests = asked(request.param, ju.from_indices(data, ROWS))
    keys = jax.random.split(jax.random.key(2), len(ROWS))
    batched = jax.jit(ju.batched(unlearn, chunk=len(ROWS)))  # one vmap
    return request.param, unlearn, batched, variables, data, requests, keys, batched(variables, data, requests, keys)


@pytest.fixture(scope="module")
def single(case):
    return jax.jit(case[1])


def test_arguments_have_the_contract_order(case):
    assert list(inspect.signature(case[1]).parameters) == ["variables", "data", "request", "key"]


def test_tree_shapes_and_dtypes_are_kept(case):
    def init(key, dtype):
        return jax.tree.map(lambda x: x.astype(dtype), model_of(name).init(key))

    name, _, _, _, data, requests, keys, _ = case
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        start = partial(init, dtype=dtype)
        variables = trained(name, dtype)
        rows = data._replace(train=data.train._replace(inputs=data.train.inputs.astype(dtype)))
        result = jax.eval_shape(make(name, model_of(name)._replace(init=start)), variables, rows, lane(requests, 0), keys[0])
        form = [jax.tree.map(lambda x: (x.shape, x.dtype), x) for x in (result.variables, variables)]
        assert form[0] == form[1]


def test_single_precision_models_stay_so_where_x64_is_on(case):
    def init(key):
        return jax.tree.map(lambda x: x.astype(jnp.float32), model_of(name).init(key))

    name, _, _, variables, data, requests, keys, _ = case
    with jax.enable_x64(True):
        unlearn = make(name, model_of(name)._replace(init=init))
        result = jax.eval_shape(unlearn, variables, data, lane(requests, 0), keys[0])
    assert {x.dtype for x in jax.tree.leaves(result.variables)} == {jnp.dtype(jnp.float32)}


def test_jit_equals_no_jit(case, single):
    _, unlearn, _, variables, data, requests, keys, _ = case
    plain = unlearn(variables, data, lane(requests, 0), keys[0])
    assert distance(plain.variables, single(variables, data, lane(requests, 0), keys[0]).variables) < 1e-6


def test_batched_equals_one_call_per_request_padded_or_not(case, single):
    _, _, _, variables, data, requests, keys, results = case
    for position, take in ((0, lane), (1, unpadded), (2, lane)):
        alone = single(variables, data, take(requests, position), keys[position])
        assert distance(alone.variables, lane(results.variables, position)) < 1e-6
        assert int(alone.status) == int(results.status[position]) == ju.Status.OK


def test_order_of_requests_and_content_of_padding_do_not_matter(case):
    _, _, batched, variables, data, requests, keys, results = case
    order = jnp.array([2, 0, 1])
    shuffled = jax.tree.map(lambda x: x[order], requests)
    garbage = shuffled._replace(indices=jnp.where(shuffled.weights > 0, shuffled.indices, 10**6))
    again = batched(variables, data, garbage, keys[order])
    assert distance(again.variables, jax.tree.map(lambda x: x[order], results.variables)) < 1e-6
    assert not jnp.any(again.status)


def test_one_trace_for_requests_of_equal_capacity(case):
    name, unlearn, _, variables, data, requests, keys, _ = case
    traces = []

    def counted(*arguments):
        traces.append(1)
        return unlearn(*arguments)

    answer = jax.jit(ju.batched(counted))
    for rows in ([[1], [2]], [[5, 6, 7], [50]], [[9, 8], list(range(16))]):
        answer(variables, data, asked(name, ju.from_indices(data, rows)), keys[:2])
    assert len(traces) == 1


def test_empty_request(case, single):
    name, _, _, variables, data, requests, keys, _ = case
    capacity = requests.indices.shape[1]
    nothing = jax.tree.map(jnp.zeros_like, lane(requests, 0).target)
    result = single(variables, data, ju.empty_request(capacity)._replace(target=nothing), keys[0])
    assert int(result.status) == ju.Status.EMPTY_REQUEST
    same = distance(result.variables, variables) == 0
    assert same == (ju.METHODS[name].on_empty == "identity")


def test_nan_in_one_request_never_reaches_another(case):
    name, _, batched, variables, data, requests, keys, results = case
    inputs = data.train.inputs.at[jnp.array(ROWS[1])].set(jnp.nan)
    poisoned = data._replace(train=data.train._replace(inputs=inputs))
    # The other lanes retain the poisoned rows, so remove them there.
    present = jnp.broadcast_to(data.present, (3, 60)).at[jnp.array([0, 2])[:, None], jnp.array(ROWS[1])].set(0)
    tenants = ju.batched(make(name), in_axes=(None, ju.Data(None, 0, None), 0, 0), chunk=3)
    clean = jax.jit(tenants)(variables, data._replace(present=present), requests, keys)
    result = jax.jit(tenants)(variables, poisoned._replace(present=present), requests, keys)
    for position in (0, 2):
        assert distance(lane(clean.variables, position), lane(result.variables, position)) == 0
        assert int(result.status[position]) == ju.Status.OK
    reads_forget = "forget" in ju.METHODS[name].reads
    assert (int(result.status[1]) == ju.Status.NONFINITE) == reads_forget


def test_a_request_whose_rows_are_all_gone_is_an_empty_one(case, single):
    name, _, _, variables, data, requests, keys, _ = case
    one = lane(requests, 0)
    one = one._replace(target=jax.tree.map(jnp.zeros_like, one.target))
    result = single(variables, ju.remove(data, one), one, keys[0])
    assert int(result.status) == ju.Status.INVALID_ROWS
    assert (distance(result.variables, variables) == 0) == (ju.METHODS[name].on_empty == "identity")


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_rows_that_a_method_claims_not_to_read_are_not_read(case, single, side):
    name, _, _, variables, data, requests, keys, results = case
    rows = np.array(ROWS[0]) if side == "forget" else np.setdiff1d(np.arange(60), ROWS[0])
    inputs = data.train.inputs.at[rows].set(jnp.nan)
    poisoned = data._replace(train=data.train._replace(inputs=inputs))
    result = single(variables, poisoned, lane(requests, 0), keys[0])
    reads = side in ju.METHODS[name].reads
    assert (int(result.status) == ju.Status.NONFINITE) == reads
    if not reads:
        assert distance(result.variables, lane(results.variables, 0)) < 1e-6


def test_rows_that_were_removed_are_not_read(case, single):
    _, _, _, variables, data, requests, keys, _ = case
    removed = ju.remove(data, lane(ju.from_indices(data, [[NAN_ROW, 12]]), 0))
    poisoned = removed._replace(
        train=removed.train._replace(inputs=removed.train.inputs.at[jnp.array([NAN_ROW, 12])].set(jnp.nan))
    )
    clean = single(variables, removed, lane(requests, 0), keys[0])
    result = single(variables, poisoned, lane(requests, 0), keys[0])
    assert int(result.status) == ju.Status.OK
    assert distance(clean.variables, result.variables) == 0


def test_stream_keeps_removed_rows_removed(case, single):
    _, unlearn, _, variables, data, requests, keys, _ = case
    stream = jax.jit(ju.streamed(unlearn))
    result = stream(variables, data, requests, keys)
    current, weights = data, variables
    for position in range(len(ROWS)):
        one = lane(requests, position)
        step = single(weights, current, one, keys[position])
        current, weights = ju.remove(current, one), step.variables
        # What was removed is overwritten: nothing later may depend on it.
        inputs = current.train.inputs.at[jnp.array(ROWS[position])].set(jnp.nan)
        current = current._replace(train=current.train._replace(inputs=inputs))
    assert distance(result.variables, weights) < 1e-6
    assert jnp.array_equal(result.extra["present"], current.present)
    assert result.status.tolist() == [0, 0, 0]


def test_key_decides_everything_random(case):
    name, _, batched, variables, data, requests, keys, results = case
    again = batched(variables, data, requests, keys)
    other = batched(variables, data, requests, jax.random.split(jax.random.key(9), len(ROWS)))
    assert distance(again.variables, results.variables) == 0
    assert (distance(lane(other.variables, 1), lane(results.variables, 1)) == 0) == (name in WITHOUT_KEY)


def test_no_key_is_used_twice(case):
    _, unlearn, _, variables, data, requests, keys, _ = case
    with jax.debug_key_reuse(True):
        result = jax.jit(unlearn)(variables, data, lane(requests, 0), keys[0])
    assert int(result.status) == ju.Status.OK


def test_strangers_and_repetitions_are_left_out_and_reported(case, single):
    _, _, _, variables, data, requests, keys, results = case
    one = lane(requests, 0)
    spoiled = one._replace(indices=one.indices.at[3:7].set(jnp.array([3, -1, 60, 10**6])), weights=one.weights.at[3:7].set(1.0))
    result = single(variables, data, spoiled, keys[0])
    assert int(result.status) == ju.Status.INVALID_ROWS
    assert distance(result.variables, lane(results.variables, 0)) < 1e-6


def test_chunks_change_nothing(case):
    _, unlearn, _, variables, data, requests, keys, results = case
    result = jax.jit(ju.batched(unlearn, chunk=2))(variables, data, requests, keys)
    assert distance(result.variables, results.variables) < 1e-6
    assert result.status.shape == (3,)


def test_mesh_changes_nothing(case):
    _, unlearn, _, variables, data, requests, keys, results = case
    result = ju.batched(unlearn, mesh=ju.request_mesh())(variables, data, requests, keys)
    assert distance(result.variables, results.variables) < 1e-6


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda v, d, r, k: (v._replace(params={**v.params, "steps": jnp.int32(3)}), d, r, k), "floating-point leaves only"),
        (lambda v, d, r, k: (v._replace(params={"w": jnp.ones(2) * 1j}), d, r, k), "floating-point leaves only"),
        (lambda v, d, r, k: (v.params, d, r, k), "expected Variables"),
        (lambda v, d, r, k: (v, d._replace(present=jnp.ones(7)), r, k), "one entry a training row"),
        (lambda v, d, r, k: (v, d._replace(train=d.train._replace(targets=jnp.zeros(7, int))), r, k), "same leading axis"),
        (lambda v, d, r, k: (v, d, r._replace(indices=r.indices * 1.0), k), "must be integers"),
        (lambda v, d, r, k: (v, d, r._replace(weights=r.weights[:2]), k), "differ in shape"),
        (lambda v, d, r, k: (v, d, jax.tree.map(lambda x: x[None], r), k), "use batched"),
        (lambda v, d, r, k: (v, d, r, jax.random.split(k)), "expected one key"),
        (lambda v, d, r, k: (v, d, r, jnp.zeros(2, jnp.uint32)), "typed key"),
        (lambda v, d, r, k: (v, d, r, jax.random.key(0, impl="rbg")), "rbg"),
    ],
)
def test_bad_input_gets_a_clear_error(case, broken, message):
    _, unlearn, _, variables, data, requests, keys, _ = case
    with pytest.raises((ValueError, TypeError), match=message):
        jax.eval_shape(unlearn, *broken(variables, data, lane(requests, 0), keys[0]))
