"""What every method of the catalogue promises; new ones join by themselves."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from tests.contract.harness import (
    REMOVED,
    ROWS,
    SLOTS,
    TOGETHER,
    Case,
    make,
    model_of,
    spoilt,
    stamped,
    without_rows,
)
from tests.problems import NUM_CLASSES, NUM_ROWS, UNLEARNING, distance, lane, method, takes_optimizer, trained

WITHOUT_KEY = {
    *("amnesiac", "descent_to_delete", "influence_removal", "newton_removal", "refit", "woodbury_removal"),
    *(
        "influence",
        "newton",
        "lightweight",
        "woodfisher",
        "projective_residual",
        "ntk_forgetting",
        "rewind_to_delete",
        "hessian_free",
        "ssd",
        "lfssd",
        "assd",
    ),
    *("affine_representation_unlearning", "concept_erasure", "nullspace_projection", "prototype_erasure"),
}
# notices that what was prepared belongs to other weights or rows, and computes afresh what is wrong about it
RECOVERS = {"woodbury_removal"}
# hands on what it needs, or undoes what it did itself: a stream does not make it stale
STREAMS = RECOVERS | {"amnesiac", "hessian_free"}
# has no steps, and is judged by the loss of retained rows all the same: what it samples may be any network
JUDGED = {"hyperforget"}


@pytest.fixture(scope="module", params=UNLEARNING)
def case(request):
    return Case(request.param)


def is_close(first, second):
    return distance(first.variables, second.variables) < 1e-6 and first.status == second.status


def same(first, second):
    return distance(first.variables, second.variables) == 0


def test_arguments_have_the_contract_order(case):
    assert list(inspect.signature(case.unlearn).parameters) == ["variables", "data", "request", "key"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_tree_shapes_and_dtypes_are_kept(case, dtype):
    def init(key):
        return jax.tree.map(lambda x: x.astype(dtype), model_of(case.name).init(key))

    variables, data, request, key = case.ask(0, variables=trained(case.name, dtype))
    data = data._replace(train=data.train._replace(inputs=data.train.inputs.astype(dtype)))
    result = jax.eval_shape(make(case.name, model_of(case.name)._replace(init=init)), variables, data, request, key)
    form = [jax.tree.map(lambda x: (x.shape, x.dtype), x) for x in (result.variables, variables)]
    assert form[0] == form[1]


def test_single_precision_models_stay_so_where_x64_is_on(case):
    def init(key):
        return jax.tree.map(lambda x: x.astype(jnp.float32), model_of(case.name).init(key))

    variables, data, request, key = case.ask(0)
    with jax.enable_x64(True):
        data = data._replace(present=jnp.asarray(data.present, jnp.float64))  # as `training_data` makes it there
        result = jax.eval_shape(make(case.name, model_of(case.name)._replace(init=init)), variables, data, request, key)
    assert {x.dtype for x in jax.tree.leaves(result.variables)} == {jnp.dtype(jnp.float32)}


def test_a_run_of_no_steps_is_a_run(case):
    if takes_optimizer(case.name):
        jax.eval_shape(method(case.name, model_of(case.name), num_steps=0), *case.ask(0))


def test_no_key_is_used_twice(case):
    with jax.debug_key_reuse(True):
        jax.eval_shape(case.unlearn, *case.ask(0))


def test_keys_of_data_that_are_no_slot_are_refused(case):
    variables, data, request, key = case.ask(0)
    with pytest.raises(ValueError, match="did you mean 'importances'"):
        jax.eval_shape(case.unlearn, variables, data._replace(extra={**data.extra, "importance": 1}), request, key)


def test_side_by_side_equals_one_call_per_request_padded_or_not(case):
    results = case.answers(*map(case.ask, range(3)))
    for position, together in enumerate(results):
        form = [jax.tree.map(lambda x: (x.shape, x.dtype), x) for x in (together.variables, case.variables)]
        assert form[0] == form[1]
        variables, status = case.alone(position)
        assert distance(variables, together.variables) < 1e-6
        assert status == together.status == ju.Status.OK


def test_what_happened_is_in_the_statistics(case):
    (result,) = case.answers(case.ask(0))
    assert 0 < result.stats["moved"] <= 1
    if takes_optimizer(case.name):
        assert result.stats["visited"] == 1
    judged = takes_optimizer(case.name) or case.name in JUDGED
    assert ("retain_loss_after" in result.stats) == (judged and "retain" in case.card.reads)


def test_labels_that_are_no_class_are_noticed(case):
    targets = np.array(case.ready.train.targets)
    targets[50] = NUM_CLASSES
    strange = case.ready._replace(train=case.ready.train._replace(targets=targets))
    (result,) = case.answers(case.ask(0, data=strange))
    noticed = result.status in (ju.Status.INVALID_LABELS, ju.Status.NONFINITE)
    assert noticed == (case.name not in {"amnesiac", "hessian_free", "output_perturbation"})  # which read no label


def test_order_of_requests_and_content_of_padding_do_not_matter(case):
    def garbage(position):
        request = lane(case.requests, position)
        return request._replace(indices=np.where(request.weights > 0, request.indices, 10**6))

    results = case.answers(*map(case.ask, range(3)))
    again = case.answers(*[case.ask(position, request=garbage(position)) for position in (2, 0, 1)])
    for position, result in zip((2, 0, 1), again, strict=True):
        assert is_close(result, results[position])


def test_one_program_serves_all_requests_of_equal_capacity(case):
    for position in range(3):
        case.answers(case.ask(position), case.ask(0, data=without_rows(case.ready, REMOVED)))
    assert case.traces == 1


def nothing(case):
    """A request for no row and no target."""
    return ju.empty_request(SLOTS)._replace(target=jax.tree.map(jnp.zeros_like, lane(case.requests, 0).target))


def test_empty_request(case):
    (result,) = case.answers(case.ask(0, request=nothing(case)))
    assert result.status == ju.Status.EMPTY_REQUEST
    assert (distance(result.variables, case.variables) == 0) == (case.card.on_empty == "identity")


def test_a_request_whose_rows_are_all_gone_is_an_empty_one(case):
    one = lane(case.requests, 0)._replace(target=nothing(case).target)
    begun = case.begun(ju.remove(case.fresh, one))
    (result,) = case.answers(case.ask(0, request=one, **begun))
    assert result.status == ju.Status.INVALID_ROWS
    assert (distance(result.variables, begun["variables"]) == 0) == (case.card.on_empty == "identity")


def test_nan_in_one_request_never_reaches_another(case):
    calls = [case.ask(position % 3) for position in range(TOGETHER)]
    clean = case.answers(*calls)
    calls[4] = case.ask(1, data=spoilt(case.ready, ROWS[1]))
    results = case.answers(*calls)
    for position in set(range(TOGETHER)) - {4}:
        assert same(results[position], clean[position])
        assert results[position].status == ju.Status.OK


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_rows_that_a_method_claims_not_to_read_are_not_read(case, side):
    rows = ROWS[0] if side == "forget" else np.setdiff1d(np.arange(NUM_ROWS), ROWS[0])
    clean, result = case.answers(case.ask(0), case.ask(0, data=spoilt(case.ready, rows)))
    reads = side in case.card.reads
    assert (result.status == ju.Status.NONFINITE) == reads
    assert reads or is_close(clean, result)


def test_rows_that_were_removed_are_not_read(case):
    removed = without_rows(case.fresh, REMOVED)
    begun = case.begun(removed)
    clean, prepared_before, prepared_after = case.answers(
        case.ask(0, **begun),
        case.ask(0, variables=begun["variables"], data=spoilt(begun["data"], REMOVED)),
        case.ask(0, **case.begun(spoilt(removed, REMOVED))),
    )
    assert clean.status == prepared_before.status == prepared_after.status == ju.Status.OK
    assert same(clean, prepared_before)
    assert same(clean, prepared_after)


def test_stream_keeps_removed_rows_removed(case):
    order = (0, 2, 1)  # whoever starts afresh shows its last request only, which is the one without padding
    result = case.stream(order)
    current, weights = case.ready, case.variables
    for step, position in enumerate(order):
        (one,) = case.answers(case.ask(position, variables=weights, data=current))
        assert distance(lane(result.stats["variables"], step), one.variables) < 1e-6
        is_stale = step > 0 and case.name not in STREAMS and any(slot.of_rows for slot in stamped(case.name))
        assert result.status[step] == one.status == (ju.Status.STALE if is_stale else ju.Status.OK)
        current, weights = ju.remove(current, lane(case.requests, position)), one.variables
        # What was removed is overwritten: nothing later may depend on it.
        current = spoilt(current, ROWS[position])._replace(extra={**current.extra, **one.extra})
    assert distance(result.variables, weights) < 1e-6
    assert jnp.array_equal(result.extra["present"], current.present)


def test_key_decides_everything_random(case):
    first, again, other = case.answers(case.ask(1), case.ask(1), case.ask(1, key=jax.random.key(9)))
    assert same(first, again)
    assert same(first, other) == (case.name in WITHOUT_KEY)


def test_strangers_and_repetitions_are_left_out_and_reported(case):
    one = lane(case.requests, 0)
    indices, weights = np.array(one.indices), np.array(one.weights)
    indices[3:7], weights[3:7] = [3, -1, NUM_ROWS, 10**6], 1
    clean, result = case.answers(case.ask(0), case.ask(0, request=one._replace(indices=indices, weights=weights)))
    assert result.status == ju.Status.INVALID_ROWS
    assert distance(result.variables, clean.variables) < 1e-6


def test_prepare_alone_makes_data_ready(case):
    """Attributes and recorded updates are facts about the rows and about training, which no preparation can find."""
    made = set(case.ready.extra) - set(case.fresh.extra)
    needed = {word for word in case.card.reads if word in ju.slots.SLOTS}
    assert needed - {"attributes", "updates", "recollections"} <= made
    assert case.alone(0)[1] == case.answers(case.ask(0))[0].status == ju.Status.OK
    if needed & made:
        with pytest.raises(ValueError, match=r"fill it with jaxunlearn\.prepare"):
            jax.eval_shape(case.unlearn, *case.ask(0, data=case.fresh))


def elsewhere(case):
    """Other weights than the ones that things were prepared for, in every layer."""
    return jax.tree.map(lambda x: (np.asarray(x) * 1.25 + 0.01).astype(x.dtype), case.variables)


def test_what_was_prepared_for_other_weights_is_stale(case):
    other = elsewhere(case)
    before, stale = case.answers(case.ask(0), case.ask(0, variables=other))
    assert before.status == ju.Status.OK
    needed = bool(stamped(case.name)) and case.name not in RECOVERS
    assert stale.status == (ju.Status.STALE if needed else ju.Status.OK)
    # features lie ready here, and are left to the method above
    _, alone = case.alone(0, variables=other)
    assert alone == (ju.Status.STALE if needed or "features" in case.ready.extra else ju.Status.OK)
    if case.card.reads & {"updates", "recollections"}:
        return
    (renewed,) = case.answers(case.ask(0, variables=other, data=case.prepared(case.fresh, other)))
    assert renewed.status == ju.Status.OK
    if case.name in RECOVERS:
        assert_both_near_the_optimum(renewed, stale)


def assert_both_near_the_optimum(first, second):
    """Whoever goes on with what is stale says how far from the optimum it may have ended."""
    allowed = first.stats["distance_bound"] + second.stats["distance_bound"]
    assert distance(first.variables, second.variables) < allowed < np.inf


def test_what_was_prepared_with_other_rows_is_stale(case):
    of_rows = any(slot.of_rows for slot in stamped(case.name)) or "updates" in case.card.reads
    fewer = case.begun(without_rows(case.fresh, REMOVED))
    removed_since, prepared_with_fewer, right = case.answers(
        case.ask(0, data=case.ready._replace(present=fewer["data"].present)),
        case.ask(0, data=fewer["data"]._replace(present=case.ready.present)),
        case.ask(0, **fewer),
    )
    assert right.status == ju.Status.OK
    expected = ju.Status.STALE if of_rows and case.name not in RECOVERS else ju.Status.OK
    assert removed_since.status == prepared_with_fewer.status == expected
    if case.name in RECOVERS:
        assert_both_near_the_optimum(removed_since, right)
