"""Which rows count and how they are drawn, against slow, obviously right twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxunlearn as ju
from jaxunlearn import class_order, sampling
from tests.problems import blobs, lane

ROWS, SLOTS = 12, 6


@jax.jit
def found(data, request):
    split = sampling.split(data, request, jax.random.key(0))
    drawn = jnp.arange(ROWS)
    rank = drawn + jnp.searchsorted(split.retained_before, drawn, side="right")
    batch = sampling.uniform(split, (), jnp.int32(3), jax.random.key(1), sampling.BatchSizes(5, 7))
    of_ranks = jnp.searchsorted(split.present_before, rank, side="right")
    requested = sampling.is_requested(data, request, jnp.arange(-1, ROWS + 2))
    return split, of_ranks, sampling.retain_weights(data, request), batch, requested


@settings(max_examples=60, deadline=None)
@given(
    present=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS),
    indices=st.lists(st.integers(-2, ROWS + 2), min_size=SLOTS, max_size=SLOTS),
    used=st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS),
)
def test_split_names_exactly_the_rows_of_both_sets(present, indices, used):
    data = ju.Data(ju.Examples(np.arange(ROWS) * 1.0, np.arange(ROWS)), np.array(present, np.float32))
    request = ju.ForgetRequest(np.array(indices), np.array(used, np.float32))
    forgotten = {i for i, u in zip(indices, used, strict=True) if u and 0 <= i < ROWS and present[i]}
    retained = [i for i in range(ROWS) if present[i] and i not in forgotten]
    split, of_ranks, weights, batch, requested = jax.tree.map(np.asarray, found(data, request))
    assert int(split.num_forget) == len(forgotten)
    assert int(split.num_retain) == len(retained)
    assert {indices[slot] for slot in split.slots[: len(forgotten)]} == forgotten
    assert of_ranks[: len(retained)].tolist() == retained  # every rank leads to its row
    assert np.flatnonzero(weights).tolist() == retained
    assert set(batch.retain.slots[batch.retain.weights > 0]) <= set(retained)
    assert np.all(batch.retain.weights == bool(retained))
    assert np.all(batch.forget.weights == bool(forgotten))
    assert not forgotten or {indices[i] for i in batch.forget.slots} <= forgotten
    assert {row for row, asked in zip(range(-1, ROWS + 2), requested, strict=True) if asked} == forgotten


@pytest.mark.parametrize("counted", [0, 10**6])
def test_the_retain_set_is_spread_and_searched_in_both_ways(monkeypatch, counted):
    monkeypatch.setattr(sampling, "COUNTED", counted)
    data = blobs(40)._replace(present=jnp.ones(40).at[jnp.arange(10, 20)].set(0))
    request = ju.ForgetRequest(jnp.array([0, 7, 39, 12]), jnp.array([1.0, 1, 1, 1]))
    retained = [row for row in range(40) if row not in {0, 7, 39, *range(10, 20)}]

    @jax.jit
    def rows(data, request):
        split = sampling.split(data, request, jax.random.key(0))
        return [sampling.spread_retain(split, size) for size in (27, 9, 54)], sampling.draw_retain(split, jax.random.key(1), 8)

    spread, drawn = rows(data, request)
    assert spread[0].slots.tolist() == retained
    assert spread[1].slots.tolist() == retained[1::3]
    assert spread[2].slots.tolist() == sorted(retained * 2)
    assert set(drawn.slots.tolist()) <= set(retained)
    np.testing.assert_array_equal(drawn.examples.inputs, data.train.inputs[drawn.slots])
    (nothing, *_), none = rows(data._replace(present=jnp.zeros(40)), request)
    assert not np.any(nothing.weights)
    assert not np.any(none.weights)
    assert not np.any(nothing.examples.inputs)


def test_draws_are_the_same_in_a_session_of_float64():
    def rows():
        split = sampling.split(blobs(40), ju.ForgetRequest(jnp.array([0, 7]), jnp.ones(2)), jax.random.key(0))
        return np.asarray(sampling.draw_retain(split, jax.random.key(1), 8).slots)

    with jax.enable_x64(True):
        wide = rows()
    assert wide.tolist() == rows().tolist()


def test_the_retain_set_is_drawn_uniformly():
    data = blobs(40)
    request = ju.ForgetRequest(jnp.array([0, 7, 39, 12]), jnp.ones(4))
    draws = 35 * 400

    @jax.jit
    def slots(data):
        split = sampling.split(data, request, jax.random.key(0))
        return sampling.draw_retain(split, jax.random.key(3), draws).slots

    counts = np.bincount(np.asarray(slots(data._replace(present=data.present.at[20].set(0)))), minlength=40)
    assert not counts[[0, 7, 39, 12, 20]].any()
    statistic = float(np.sum((counts[counts > 0] - 400) ** 2 / 400))
    assert statistic < 34 + 4 * np.sqrt(2 * 34)  # chi-square with 34 degrees of freedom


def test_the_forget_set_is_drawn_equally_often():
    request = ju.ForgetRequest(jnp.array([5, 0, 9, 0, 31]), jnp.array([1.0, 0, 1, 0, 1]))

    @jax.jit
    def slots():
        split = sampling.split(blobs(40), request, jax.random.key(0))
        return jnp.concatenate([sampling.draw_forget(split, step, 4).slots for step in range(3)])

    assert np.bincount(np.asarray(slots()), minlength=5).tolist() == [4, 0, 4, 0, 4]


def test_requested_rows_are_found_among_repetitions_strangers_and_gone_ones():
    data = blobs()._replace(present=jnp.ones(60).at[9].set(0))
    one = ju.ForgetRequest(jnp.array([5, 5, 9, 77, -2, 59, 12]), jnp.array([1.0, 1, 1, 1, 1, 1, 0]))
    asked = jax.jit(sampling.is_requested)
    assert asked(data, one, jnp.array([[5, 9, 59], [12, 60, 0]])).tolist() == [[True, False, True], [False, False, False]]
    assert not asked(data, ju.empty_request(7), jnp.array([[0, 1, 2], [3, 4, 5]])).any()


def test_masked_mean_ignores_whatever_stands_in_padding():
    values = jnp.array([1.0, jnp.nan, 5.0, jnp.inf])
    weights = jnp.array([1.0, 0.0, 3.0, 0.0])
    assert float(sampling.masked_mean(values, weights, empty=0)) == pytest.approx(4.0)
    assert float(sampling.masked_mean(values, jnp.array([0.25, 0.0, 0.5, 0.0]), empty=jnp.nan)) == pytest.approx(11 / 3)
    gradient = jax.grad(lambda x: sampling.masked_mean(x**2, weights, empty=0))(values)
    assert gradient[jnp.array([0, 2])].tolist() == pytest.approx([0.5, 7.5])


def test_requests_and_rows_of_numpy_are_taken():
    data = jax.tree.map(np.asarray, blobs(12))
    request = ju.ForgetRequest(np.array([3, 3, 99]), np.ones(3, np.float32))
    assert sampling.usable_slots(data, request).tolist() == [True, False, False]


def test_the_mean_of_no_row_is_what_the_caller_says():
    values = jnp.array([1.0, jnp.nan])
    assert float(sampling.masked_mean(values, jnp.zeros(2), empty=0)) == 0
    assert jnp.isnan(sampling.masked_mean(values, jnp.zeros(2), empty=jnp.nan))


def test_means_of_half_precision_losses_neither_round_nor_overflow():
    assert float(sampling.masked_mean(jnp.full(4096, 20.0, jnp.float16), jnp.ones(4096), empty=0)) == 20
    assert float(sampling.masked_mean(jnp.ones(257, jnp.bfloat16), jnp.ones(257), empty=jnp.nan)) == 1
    assert float(sampling.masked_mean(jnp.ones(3000, jnp.bfloat16), jnp.ones(3000), empty=jnp.nan)) == 1


def test_rows_that_do_not_count_repeat_one_that_does():
    """Not zeros: a model that divides by the norm of its input has no derivative there."""
    images = jnp.array([[jnp.nan, jnp.nan], [1.0, 2.0], [3.0, 4.0]])
    examples = ju.Examples({"image": images, "kind": jnp.array([4, 5, 6])}, jnp.arange(3.0))
    taken = sampling.take(examples, jnp.array([0, 2, 1]), jnp.array([0.0, 1.0, 0.0]))
    assert taken.inputs["image"].tolist() == [[3, 4]] * 3
    assert taken.inputs["kind"].tolist() == [6] * 3
    assert taken.targets.tolist() == [2] * 3
    nothing = sampling.take(examples, jnp.array([0, 2]), jnp.zeros(2))
    assert nothing.inputs["image"].tolist() == [[0, 0]] * 2


@pytest.mark.parametrize("gone", ["forget", "retain"])
def test_a_side_without_rows_reads_a_present_row(gone):
    data = ju.training_data(jnp.arange(1.0, 5), jnp.zeros(4, int))
    data = data._replace(present=jnp.array([0.0, 1, 1, 0]))
    request = lane(ju.from_indices(data, [[1, 2]]), 0) if gone == "retain" else ju.empty_request(2)
    split = sampling.split(data, request, jax.random.key(0))
    batch = sampling.uniform(split, (), jnp.int32(0), jax.random.key(1), sampling.BatchSizes(3, 3))
    part = getattr(batch, gone)
    assert part.weights.tolist() == [0, 0, 0]
    assert part.examples.inputs.tolist() == [2, 2, 2]


def test_a_target_makes_a_request_without_rows_non_empty():
    nothing = ju.empty_request(3)
    assert bool(sampling.is_empty(nothing))
    assert bool(sampling.is_empty(nothing._replace(target=jnp.zeros(5, bool))))
    assert not bool(sampling.is_empty(nothing._replace(target=jnp.zeros(5, bool).at[2].set(True))))


def test_narrow_integers_name_the_rows_they_say():
    data = ju.training_data(jnp.arange(300.0), jnp.zeros(300, int))
    request = ju.ForgetRequest(jnp.array([3, 44], jnp.uint8), jnp.array([1.0, 1.0]))

    @jax.jit
    def looked(request):
        split = sampling.split(data, request, jax.random.key(0))
        part = ju.forget_rows(data, request)
        return sampling.usable_slots(data, request), ju.remove(data, request).present, split, part.examples.inputs

    usable, present, _, inputs = looked(request)
    assert usable.tolist() == [True, True]
    assert jnp.flatnonzero(present == 0).tolist() == [3, 44]
    assert inputs.tolist() == [3, 44]
    split = looked(request._replace(weights=jnp.array([1.0, 0.0])))[2]
    assert (int(split.num_forget), int(split.num_retain)) == (1, 299)


@jax.jit
def by_class(data, request):
    retained = class_order.retained_by_class(data, request, 3)
    classes, places = jnp.meshgrid(jnp.arange(3), jnp.arange(ROWS), indexing="ij")
    return retained.size, class_order.row_of_class(retained, classes, places), retained.order


@settings(max_examples=60, deadline=None)
@given(
    present=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS),
    labels=st.lists(st.integers(-1, 3), min_size=ROWS, max_size=ROWS),
    indices=st.lists(st.integers(-2, ROWS + 2), min_size=SLOTS, max_size=SLOTS),
    used=st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS),
)
def test_retained_rows_are_found_by_class_and_place(present, labels, indices, used):
    data = ju.Data(ju.Examples(np.arange(ROWS) * 1.0, np.array(labels)), np.array(present, np.float32))
    request = ju.ForgetRequest(np.array(indices), np.array(used, np.float32))
    forgotten = {i for i, u in zip(indices, used, strict=True) if u and 0 <= i < ROWS and present[i]}
    sizes, rows, order = jax.tree.map(np.asarray, by_class(data, request))
    nothing = by_class(data, request._replace(weights=np.zeros(SLOTS, np.float32)))
    assert order.tolist() == nothing[2].tolist()  # requests share it
    for label in range(3):
        found = rows[label, : sizes[label]].tolist()
        wanted = [i for i in range(ROWS) if present[i] and i not in forgotten and labels[i] == label]
        assert sorted(found) == wanted
        assert found == [row for row in np.asarray(nothing[2]).tolist() if row in wanted]  # in the shared order


def test_one_request_is_told_from_many():
    with pytest.raises(ValueError, match=r"expected one request of shape \[k\].*use jax\.vmap"):
        ju.forget_rows(blobs(), ju.from_indices(blobs(), [[1], [2]]))
