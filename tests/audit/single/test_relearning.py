"""Relearn time: steps to a target, what it reads, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.problems import blobs, lane, network


@pytest.fixture(scope="module")
def relearn():
    data, model = blobs(), network()
    request = lane(ju.from_indices(data, [range(10)]), 0)

    def run(variables, target, data=data):
        return ju.audit.relearn_time(
            model, variables, data, request, optax.sgd(0.3), jax.random.key(1), target=target, num_steps=30, batch_size=10
        )

    return data, model.init(jax.random.key(0)), jax.jit(run)


def test_relearning_counts_steps_to_the_target(relearn):
    _, variables, run = relearn
    found = run(variables, 0.9)
    accuracies = np.asarray(found.accuracies)
    assert bool(found.reached)
    assert accuracies[int(found.steps)] >= 0.9
    assert np.all(accuracies[: int(found.steps)] < 0.9)
    assert float(run(variables, 0.0).steps) == 0


def test_a_target_that_is_not_reached_is_said_to_be(relearn):
    _, variables, run = relearn
    found = run(variables, 1.1)
    assert not bool(found.reached)
    assert float(found.steps) == 30


def test_relearning_reads_forgotten_rows_only(relearn):
    data, variables, run = relearn
    rows = jnp.arange(data.present.shape[0]) < 10
    broken = data._replace(train=data.train._replace(inputs=jnp.where(rows[:, None], data.train.inputs, jnp.nan)))
    np.testing.assert_allclose(run(variables, 0.9, broken).accuracies, run(variables, 0.9).accuracies)


def test_looks_may_be_steps_apart(relearn):
    data, variables, _ = relearn
    request = lane(ju.from_indices(data, [range(10)]), 0)
    options = {"target": 1.1, "num_steps": 6, "batch_size": 10}
    found = jax.jit(
        lambda v: ju.audit.relearn_time(network(), v, data, request, optax.sgd(0.3), jax.random.key(1), look_every=3, **options)
    )(variables)
    assert found.accuracies.shape == (3,)
    assert float(found.steps) == 6
    with pytest.raises(ValueError, match="must be a multiple of look_every=4"):
        ju.audit.relearn_time(network(), variables, data, request, optax.sgd(0.3), jax.random.key(1), look_every=4, **options)
