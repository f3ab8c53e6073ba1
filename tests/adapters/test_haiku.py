"""Haiku functions as models."""

import haiku as hk
import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.adapters import from_haiku
from tests.adapters import promises
from tests.adapters.promises import DATA, KEY, KEYS, REQUESTS, ROWS, read, same, write
from tests.problems import lane


def net(x, is_training):
    hidden = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training))
    if is_training:
        hidden = hk.dropout(hk.next_rng_key(), 0.5, hidden)
    return hk.Linear(3)(hidden), {"hidden": hidden}


TRANSFORMED = hk.transform_with_state(net)


@pytest.fixture(scope="module")
def model():
    return from_haiku(TRANSFORMED, ju.losses.cross_entropy, ROWS[:2])


@pytest.fixture(scope="module")
def variables(model):
    start = model.init(KEY)
    return start._replace(state=model.forward(start, ROWS, train=True, key=KEY).state)


@pytest.fixture(scope="module")
def answers(model, variables):
    return promises.answered(model, variables)


def test_forward_equals_the_functions_own(model, variables):
    params, state = TRANSFORMED.init(KEY, ROWS[:2], is_training=True)
    assert same(model.init(KEY), ju.Variables(params, state))
    for train in (False, True):
        (logits, features), moved = TRANSFORMED.apply(params, variables.state, KEY, ROWS, is_training=train)
        outputs = model.forward(variables, ROWS, train=train, key=KEY)
        assert np.allclose(outputs.logits, logits, atol=1e-6)
        assert np.allclose(outputs.features["hidden"], features["hidden"], atol=1e-6)
        assert same(outputs.state, moved)
    counter = "batch_norm/~/mean_ema", "counter"
    assert int(moved[counter[0]][counter[1]]) == 2


@pytest.mark.parametrize("transform", [hk.transform, hk.transform_with_state])
def test_stateless_functions_have_no_state(transform):
    model = from_haiku(transform(lambda x, is_training: hk.Linear(3)(x)), ju.losses.cross_entropy, ROWS[:2])
    variables = model.init(KEY)
    assert variables.state == ()
    outputs = model.forward(variables, ROWS, train=True, key=KEY)
    assert np.allclose(outputs.logits, ROWS @ variables.params["linear"]["w"], atol=1e-6)
    assert outputs.state == ()


def test_a_function_that_was_not_transformed_is_refused():
    with pytest.raises(TypeError, match=r"expected what haiku\.transform_with_state returns, got function"):
        from_haiku(net, ju.losses.cross_entropy, ROWS[:2])


def test_statistics_follow_the_policy(model, variables, answers):
    promises.statistics_follow_the_policy(model, variables, answers)


def test_dropout_follows_the_key(model, variables):
    promises.dropout_follows_the_key(model, variables)
    promises.no_key_is_used_twice(model, variables)


def test_batched_equals_single(variables, answers):
    promises.batched_equals_single(answers, variables)


def test_orbax_checkpoint_in_and_out(model, variables, answers, tmp_path):
    write(tmp_path / "trained", {"params": variables.params, "state": variables.state})
    like = TRANSFORMED.init(KEYS[1], ROWS, is_training=True)
    found = read(tmp_path / "trained", {"params": like[0], "state": like[1]})
    result = ju.check(answers[0](ju.Variables(**found), DATA, lane(REQUESTS, 0), KEY))
    write(tmp_path / "unlearned", result.variables._asdict())
    assert same(ju.Variables(**read(tmp_path / "unlearned", found)), result.variables)
