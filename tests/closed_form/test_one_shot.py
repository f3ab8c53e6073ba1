"""Identities and limits of the methods without a loop that need no curvature."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import risk
from jaxunlearn.closed_form import amnesiac
from tests.problems import blobs, distance, lane, network, recorded

KEY = jax.random.key(3)


def request(rows):
    return lane(ju.from_indices(blobs(), [rows]), 0)


def undo(data, variables, rows):
    return jax.jit(ju.amnesiac(network()))(variables, data, request(rows), KEY)


def train(num_steps, optimizer=None):
    start = network().init(KEY)
    once = amnesiac.record(network(), optimizer or optax.sgd(0.1), num_steps=num_steps, batch_size=4)
    return jax.jit(once)(start, blobs(), ju.empty_request(), KEY)


def test_recorded_training_is_retraining():
    result = train(12, optax.adam(0.01))
    plain = ju.retrain(network(), optax.adam(0.01), num_steps=12, batch_size=4)
    expected = jax.jit(plain)(network().init(KEY), blobs(), ju.empty_request(), KEY)
    assert distance(result.variables, expected.variables) < 1e-6
    assert result.extra["updates"].rows.shape == (12, 4)
    assert "updates" not in result.stats


def test_taking_back_the_last_step_is_exact():
    data, variables = recorded()
    rows = data.extra["updates"].rows
    new = [row for row in rows[-1].tolist() if row not in rows[:-1].ravel()]
    result = undo(data, variables, new[:1])
    assert int(result.stats["undone"]) == 1
    assert distance(result.variables, train(11).variables) < 1e-6


def test_taking_back_everything_leaves_the_start():
    data, variables = recorded()
    result = undo(data, variables, sorted(set(data.extra["updates"].rows.ravel().tolist())))
    start = train(0).variables
    assert int(result.stats["undone"]) == 12
    assert distance(result.variables, start) < 1e-5


def test_a_stream_takes_back_what_the_merged_request_does_and_nothing_twice():
    data, variables = recorded()
    rows = data.extra["updates"].rows
    people = [[int(rows[2, 0])], [int(rows[2, 1]), int(rows[7, 0])], [int(rows[7, 1])]]
    requests = ju.from_indices(data, people)
    stream = jax.jit(ju.streamed(ju.amnesiac(network())))(variables, data, requests, jax.random.split(KEY, 3))
    merged = jax.jit(ju.amnesiac(network()))(variables, data, ju.merge(requests), KEY)
    assert distance(stream.variables, merged.variables) < 1e-6
    assert int(stream.stats["undone"].sum()) == int(merged.stats["undone"])


def test_rows_that_were_never_drawn_change_nothing():
    data, variables = recorded()
    unseen = sorted(set(range(60)) - set(data.extra["updates"].rows.ravel().tolist()))
    assert distance(undo(data, variables, unseen).variables, variables) == 0


def test_training_on_nothing_records_no_row():
    data = blobs()._replace(present=jnp.zeros(60))
    once = amnesiac.record(network(), optax.sgd(0.1), num_steps=2, batch_size=4)
    result = jax.jit(once)(network().init(KEY), data, ju.empty_request(), KEY)
    assert result.extra["updates"].rows.tolist() == [[-1] * 4] * 2


def test_training_that_was_not_recorded_is_refused():
    data, variables = recorded()
    with pytest.raises(ValueError, match="train with jaxunlearn"):
        undo(blobs(), variables, [1])
    wide = jax.tree.map(lambda x: jnp.concatenate([x, x]), variables)
    with pytest.raises(ValueError, match="was recorded on weights"):
        undo(data, wide, [1])


def test_amnesiac_then_finetuning_repairs():
    data, variables = recorded()
    repair = ju.finetune(network(), optax.sgd(0.1), num_steps=3, batch_size=4)
    both = jax.jit(ju.then(ju.amnesiac(network()), repair))(variables, data, request([1, 2]), KEY)
    first, second = jax.random.split(KEY)
    undone = ju.amnesiac(network())(variables, data, request([1, 2]), first).variables
    expected = jax.jit(repair)(undone, data, request([1, 2]), second)
    assert distance(both.variables, expected.variables) < 1e-6


def test_perturbation_is_standard_normal_times_sigma():
    data, variables = recorded()
    unlearn = ju.output_perturbation(network(), sigma=0.3)
    keys = jax.random.split(KEY, 4000)
    results = jax.jit(jax.vmap(unlearn, (None, None, None, 0)))(variables, data, request([1]), keys)
    for before, after in zip(jax.tree.leaves(variables), jax.tree.leaves(results.variables), strict=True):
        noise = (after - before) / 0.3
        count = noise.size
        assert abs(float(noise.mean())) < 4 / count**0.5
        assert abs(float(noise.var()) - 1) < 4 * (2 / count) ** 0.5
    leaves = [jnp.ravel(x[0] - y) for x, y in zip(*map(jax.tree.leaves, (results.variables, variables)), strict=True)]
    assert float(results.stats["noise_norm"][0]) == pytest.approx(float(jnp.linalg.norm(jnp.concatenate(leaves))), rel=1e-5)
    still = ju.output_perturbation(network(), sigma=0.0)(variables, data, request([1]), KEY)
    assert distance(still.variables, variables) == 0


def test_requested_rows_are_found_among_repetitions_strangers_and_gone_ones():
    data = blobs()._replace(present=jnp.ones(60).at[9].set(0))
    one = ju.ForgetRequest(jnp.array([5, 5, 9, 77, -2, 59, 12]), jnp.array([1.0, 1, 1, 1, 1, 1, 0]))
    found = risk.is_requested(data, one, jnp.array([[5, 9, 59], [12, 60, 0]]))
    assert found.tolist() == [[True, False, True], [False, False, False]]
    assert not risk.is_requested(data, ju.empty_request(), jnp.arange(60)).any()
