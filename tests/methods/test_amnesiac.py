"""Recorded trainings, and what taking their steps back leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.problems import blobs, distance, lane, network

KEY = jax.random.key(3)
DATA, MODEL = blobs(), network()


@pytest.fixture(scope="module")
def training():
    """Data with a recorded training of twelve steps, the model, and which rows every step saw."""
    once = jax.jit(ju.record(MODEL, optax.sgd(0.1), num_steps=12, batch_size=4))
    done = once(MODEL.init(KEY), DATA, ju.empty_request(), KEY)
    assert "updates" not in done.stats
    return DATA._replace(extra=done.extra), done.variables, np.asarray(done.extra["updates"].value.rows)


undone = jax.jit(ju.amnesiac(MODEL))


def undo(data, variables, rows):
    return undone(variables, data, lane(ju.from_indices(DATA, [rows], capacity=60), 0), KEY)


@jax.jit
def train(active):
    once = ju.iterate(ju.retrain(MODEL, optax.sgd(0.1)), 12, batch_size=4, active_steps=active)
    return once(MODEL.init(KEY), DATA, ju.empty_request(), KEY).variables


def test_recorded_training_is_retraining(training):
    data, variables, rows = training
    assert distance(variables, train(12)) < 1e-6
    assert rows.shape == (12, 4)


def test_taking_back_the_last_step_is_exact(training):
    data, variables, rows = training
    new = [row for row in rows[-1].tolist() if row not in rows[:-1].ravel()]
    result = undo(data, variables, new[:1])
    assert int(result.stats["undone"]) == 1
    assert int(result.status) == ju.Status.OK
    assert distance(result.variables, train(11)) < 1e-6


def test_taking_back_everything_leaves_the_start(training):
    data, variables, rows = training
    result = undo(data, variables, sorted(set(rows.ravel().tolist())))
    assert int(result.stats["undone"]) == 12
    assert distance(result.variables, train(0)) < 1e-5


def test_a_stream_takes_back_what_the_merged_request_does_and_nothing_twice(training):
    data, variables, rows = training
    people = [[int(rows[2, 0])], [int(rows[2, 1]), int(rows[7, 0])], [int(rows[7, 1])]]
    requests = ju.from_indices(data, people)
    stream = jax.jit(ju.streamed(ju.amnesiac(MODEL)))(variables, data, requests, jax.random.split(KEY, 3))
    merged = undo(data, variables, sorted({row for rows in people for row in rows}))
    assert distance(stream.variables, merged.variables) < 1e-6
    assert int(stream.stats["undone"].sum()) == int(merged.stats["undone"])


def test_updates_of_another_model_are_stale_unless_steps_were_undone_before(training):
    data, variables, rows = training
    other = jax.tree.map(lambda x: x + 1, variables)
    assert int(undo(data, other, [int(rows[0, 0])]).status) == ju.Status.STALE
    first = lane(ju.from_indices(DATA, [[int(rows[0, 0])]]), 0)
    later = undo(ju.remove(data, first), other, [int(rows[7, 1])])  # whose parameters moved by design
    assert int(later.status) == ju.Status.OK
    early = undo(ju.remove(data, first), variables, [int(rows[7, 1])])  # but these did not: nothing was undone
    assert int(early.status) == ju.Status.STALE


def test_rows_that_were_never_drawn_change_nothing(training):
    data, variables, rows = training
    unseen = sorted(set(range(60)) - set(rows.ravel().tolist()))
    assert distance(undo(data, variables, unseen).variables, variables) == 0


def test_training_on_nothing_records_no_row():
    data = DATA._replace(present=jnp.zeros(60))
    once = ju.record(MODEL, optax.sgd(0.1), num_steps=2, batch_size=4)
    result = jax.jit(once)(MODEL.init(KEY), data, ju.empty_request(), KEY)
    assert result.extra["updates"].value.rows.tolist() == [[-1] * 4] * 2


def test_training_that_was_not_recorded_is_refused(training):
    data, variables, _ = training
    with pytest.raises(ValueError, match=r"'updates'\] is missing.*fill it with jaxunlearn\.record"):
        undo(DATA, variables, [1])
    wide = jax.tree.map(lambda x: jnp.concatenate([x, x]), variables)
    with pytest.raises(ValueError, match="was recorded on parameters"):
        undo(data, wide, [1])


def test_fine_tuning_repairs(training):
    data, variables, _ = training
    request = lane(ju.from_indices(DATA, [[1, 2]], capacity=60), 0)
    repair = ju.iterate(ju.finetune(MODEL, optax.sgd(0.1)), num_steps=3, batch_size=4)
    both = jax.jit(ju.then(ju.amnesiac(MODEL), repair))(variables, data, request, KEY)
    first, second = jax.random.split(KEY)
    before = undone(variables, data, request, first).variables
    assert distance(both.variables, jax.jit(repair)(before, data, request, second).variables) < 1e-6
