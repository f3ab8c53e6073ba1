"""Retraining is training that never saw the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import DATA, KEY, MODEL, REQUEST, VARIABLES, answer
from tests.problems import distance, lane, linear_regression, network, regression_data


def test_it_starts_from_a_fresh_model_whatever_was_trained():
    one, two = answer("retrain"), answer("retrain", jax.tree.map(lambda x: x * jnp.nan, VARIABLES))
    assert distance(one.variables, two.variables) == 0


def test_it_equals_training_on_the_smaller_data_set():
    # The same key draws the same ranks, so removing rows from the data or by a request is one and the same.
    rows = [0, 17, 33, 59]
    kept = np.setdiff1d(np.arange(60), rows)
    smaller = ju.training_data(*(np.asarray(x)[kept] for x in DATA.train))
    removed = answer("retrain", request=lane(ju.from_indices(DATA, [rows]), 0))
    never_there = answer("retrain", data=smaller, request=ju.empty_request())
    assert distance(removed.variables, never_there.variables) < 1e-5
    assert int(never_there.status) == ju.Status.EMPTY_REQUEST


def test_it_reaches_the_least_squares_solution_of_the_retain_set():
    data = regression_data()
    request = lane(ju.from_indices(data, [list(range(20))]), 0)
    rate = optax.exponential_decay(0.1, 200, 0.5)
    retrain = ju.iterate(ju.retrain(linear_regression(), optax.sgd(rate)), num_steps=2000, batch_size=256)
    result = jax.jit(retrain)(linear_regression().init(KEY), data, request, KEY)
    inputs, targets = (np.asarray(x)[20:] for x in data.train)
    assert np.allclose(result.variables.params["w"], np.linalg.lstsq(inputs, targets, rcond=None)[0], atol=0.01)


def test_many_seeds_are_one_call():
    once = ju.iterate(ju.retrain(MODEL, optax.sgd(0.1)), num_steps=3, batch_size=4)
    train = jax.jit(ju.batched(once, in_axes=(None, None, None, 0)))
    kernels = train(VARIABLES, DATA, ju.empty_request(), jax.random.split(KEY, 4)).variables.params["body"]
    assert kernels.shape == (4, 4, 8)
    assert len(np.unique(np.asarray(kernels[:, 0, 0]))) == 4


def test_models_without_init_or_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"retrain starts from a fresh model: pass Model\(\.\.\., init="):
        ju.retrain(network()._replace(init=None), optax.sgd(0.1))
    retrain = ju.iterate(ju.retrain(MODEL, optax.sgd(0.1)), num_steps=1, batch_size=1)
    wider = ju.Variables({**VARIABLES.params, "head": jnp.zeros((9, 3))})
    with pytest.raises(ValueError, match=r"params/head: float32\[9,3\] became float32\[8,3\]"):
        jax.eval_shape(retrain, wider, DATA, REQUEST, KEY)
