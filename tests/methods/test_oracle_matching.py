"""Outputs move to those of the oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import DATA, MODEL, VARIABLES, answer
from tests.problems import distance

OTHER = MODEL.init(jax.random.key(2))
STATIC = {"num_steps": 40, "batch_size": 8}


def identity(variables, data, request, key):
    return ju.Result(variables)


def another(variables, data, request, key):
    return ju.Result(OTHER)


def match(oracle, num_oracles, **settings):
    static = {**STATIC, "oracle": oracle, "num_oracles": num_oracles}
    return answer("oracle_matching", rate=0.02, steps=40, static=static, **settings)


def test_a_model_that_is_its_own_oracle_stays():
    result = match(identity, 2)
    assert distance(result.variables, VARIABLES) < 1e-6
    np.testing.assert_allclose(result.stats["loss"], 0, atol=1e-10)


def test_outputs_move_to_the_mean_of_the_oracles():
    def gap(one, two):
        logits = [ju.audit.predict(MODEL, x, DATA.train) for x in (one, two)]
        centred = [x - x.mean(axis=1, keepdims=True) for x in logits]
        return float(jnp.mean((centred[0] - centred[1]) ** 2))

    assert gap(match(another, 1).variables, OTHER) < 0.3 * gap(VARIABLES, OTHER)


def test_alpha_one_reads_the_distance_on_the_retain_set_only():
    result = match(ju.iterate(ju.retrain(MODEL, optax.sgd(0.1)), num_steps=3, batch_size=8), 2, alpha=1.0)
    np.testing.assert_allclose(result.stats["loss"], result.stats["retain_distance"], rtol=1e-6)
    assert float(result.stats["forget_distance"].min()) > 0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_oracles must be"):
        ju.oracle_matching(MODEL, optax.sgd(0.1), oracle=identity, num_oracles=0)
    with pytest.raises(ValueError, match="alpha must lie"):
        ju.oracle_matching(MODEL, optax.sgd(0.1), oracle=identity, alpha=2.0)
    with pytest.raises(TypeError, match=r"oracle= takes a finished method.*jaxunlearn\.iterate\(unlearner, num_steps"):
        ju.oracle_matching(MODEL, optax.sgd(0.1), oracle=ju.retrain(MODEL, optax.sgd(0.1)))
