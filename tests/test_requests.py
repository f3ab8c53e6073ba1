"""Requests: what is built, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.requests import bucket
from tests.problems import blobs, lane

DATA = blobs()
LABELS = np.asarray(DATA.train.targets)


def rows_of(requests, position):
    return np.asarray(requests.indices[position])[np.asarray(requests.weights[position]) > 0].tolist()


def test_rows_are_padded_to_a_bucket():
    requests = ju.from_indices(DATA, [[3, 1], np.array([5]), range(20)])
    assert requests.indices.shape == requests.weights.shape == (3, 64)
    assert [rows_of(requests, i) for i in range(3)] == [[3, 1], [5], list(range(20))]
    assert ju.from_indices(DATA, [[3]], capacity=5).indices.shape == (1, 5)
    assert [bucket(size) for size in (1, 16, 17, 256, 257)] == [16, 16, 64, 256, 1024]


def test_classes_and_groups_find_their_present_rows():
    gone = int(np.flatnonzero(LABELS == 1)[0])
    data = DATA._replace(present=DATA.present.at[gone].set(0))
    requests = ju.from_classes(data, [[0], [1, 2]], num_classes=5)
    assert rows_of(requests, 0) == np.flatnonzero(LABELS == 0).tolist()
    assert rows_of(requests, 1) == [row for row in np.flatnonzero(LABELS > 0).tolist() if row != gone]
    assert requests.target.tolist() == [[True, False, False, False, False], [False, True, True, False, False]]
    people = np.array([f"person {row % 7}" for row in range(60)])
    groups = ju.from_groups(DATA, people, [["person 3"], ["person 0", "person 6"]])
    assert rows_of(groups, 0) == list(range(3, 60, 7))
    assert rows_of(groups, 1) == [row for row in range(60) if row % 7 in (0, 6)]


def test_buckets_group_by_capacity_and_remember_positions():
    found = ju.buckets(DATA, [range(40), [1], range(5), range(30, 60)], capacities=(8, 32, 64))
    assert [(group.positions, group.requests.indices.shape) for group in found] == [
        ([1, 2], (2, 8)),
        ([3], (1, 32)),
        ([0], (1, 64)),
    ]
    assert rows_of(found[0].requests, 1) == [0, 1, 2, 3, 4]


def test_merge_takes_every_row_once():
    merged = ju.merge(ju.from_classes(DATA, [[0], [0, 2]]))
    assert np.asarray(merged.indices)[np.asarray(merged.weights) > 0].tolist() == np.flatnonzero(LABELS != 1).tolist()
    assert merged.target.tolist() == [True, False, True]
    nothing = ju.merge(jax.tree.map(lambda x: x[None], ju.empty_request(4)))
    assert not nothing.weights.any()


def test_remove_clears_present():
    requests = ju.from_indices(DATA, [[3, 1], [5]])
    left = ju.remove(ju.remove(DATA, lane(requests, 0)), lane(requests, 1))
    assert np.flatnonzero(left.present == 0).tolist() == [1, 3, 5]


def test_attributes_are_asked_for_without_rows():
    data = ju.slots.ATTRIBUTES.put(DATA, jnp.zeros((60, 2), int))
    requests = ju.from_attributes(data, [[0], [1], [0, 1]])
    assert requests.target.tolist() == [[True, False], [False, True], [True, True]]
    assert not jnp.any(requests.weights)
    for chosen, message in (
        ([[2]], "there are 0, 1"),
        ([[0, 0]], "more than once"),
        ([[]], "names no attributes"),
        ([], "at least"),
    ):
        with pytest.raises(ValueError, match=message):
            ju.from_attributes(data, chosen)
    with pytest.raises(ValueError, match=r"'attributes'\] is missing .* fill it with training_data"):
        ju.from_attributes(DATA, [[0]])
    with pytest.raises(ValueError, match=r"must be integers \[n, A\]"):
        ju.from_attributes(ju.slots.ATTRIBUTES.put(DATA, jnp.zeros(60, int)), [[0]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 60]], "request 0: rows 60 are outside the 60 rows"),
        ([[1], [-1]], "request 1: rows -1 are outside"),
        ([[4, 2, 4]], r"rows 4 appear more than once; pass np\.unique"),
        ([[1], []], "request 1 is empty"),
        ([], "at least one request"),
        ([3, 5], r"one request is written \[\[3, 5\]\]"),
        ([[[3, 5]]], "a list of such lists"),
        ([[1.0, 2.0]], "must be integers, got float64"),
        ([["a"]], "must be integers"),
        ([np.zeros(60, bool)], r"np\.flatnonzero"),
        ([[[1, 2], [3]]], "flat list"),
    ],
)
def test_bad_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        ju.from_indices(DATA, rows)


def test_other_bad_input_is_refused():
    absent = ju.remove(DATA, lane(ju.from_indices(DATA, [[8]]), 0))
    with pytest.raises(ValueError, match="rows 8 were already removed"):
        ju.from_indices(absent, [[7, 8]])
    with pytest.raises(ValueError, match="capacity 2 is too small for a request of 3 rows"):
        ju.from_indices(DATA, [[1, 2, 3]], capacity=2)
    with pytest.raises(ValueError, match="no capacity"):
        ju.buckets(DATA, [range(20)], capacities=(4, 16))
    with pytest.raises(ValueError, match=r"request 1: no present row has classes 9; there are 0, 1, 2"):
        ju.from_classes(DATA, [[0], [9]])
    with pytest.raises(ValueError, match="more than once"):
        ju.from_classes(DATA, [[1, 1]])
    with pytest.raises(ValueError, match="names no classes"):
        ju.from_classes(DATA, [[]])
    with pytest.raises(ValueError, match="do not fit num_classes=2"):
        ju.from_classes(DATA, [[0]], num_classes=2)
    with pytest.raises(ValueError, match="integer labels"):
        ju.from_classes(ju.training_data(jnp.ones((4, 2)), jnp.ones(4)), [[1]])
    with pytest.raises(ValueError, match="no present row has groups 7"):
        ju.from_groups(DATA, np.zeros(60, int), [[7]])
    with pytest.raises(ValueError, match="each of the 60 rows"):
        ju.from_groups(DATA, np.zeros(59, int), [[0]])
    with pytest.raises(ValueError, match="same leading axis"):
        ju.training_data(jnp.ones((4, 2)), jnp.ones(5))
    with pytest.raises(ValueError, match="no rows"):
        ju.training_data(jnp.ones((0, 2)), jnp.ones(0))
    with pytest.raises(ValueError, match="same leading axis"):
        ju.training_data(jnp.ones((4, 2)), jnp.float32(3))
    with pytest.raises(ValueError, match="stacked requests"):
        ju.merge(ju.empty_request())
    with pytest.raises(ValueError, match="remove takes one request"):
        ju.remove(DATA, ju.from_indices(DATA, [[1]]))
    with pytest.raises(ValueError, match="capacity must be an integer of at least 1"):
        ju.empty_request(0)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(ju.merge)(ju.from_indices(DATA, [[1]]))
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda data: ju.from_indices(data, [[1]]))(DATA)
