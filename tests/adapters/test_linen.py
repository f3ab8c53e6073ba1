"""flax.linen modules as models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.adapters import from_linen
from tests.adapters import promises
from tests.adapters.promises import DATA, KEY, KEYS, REQUESTS, ROWS, quick, read, same, write
from tests.problems import lane, method

REQUEST = lane(REQUESTS, 0)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(x)


class Rich(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x))
        hidden = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(hidden), {"hidden": hidden}


def test_stateless_modules_have_no_state():
    model = from_linen(Plain(), ju.losses.cross_entropy, ROWS[:1])
    variables = model.init(KEY)
    assert variables.state == ()
    outputs = model.forward(variables, ROWS)
    kernel, bias = variables.params["Dense_0"]["kernel"], variables.params["Dense_0"]["bias"]
    assert np.allclose(outputs.logits, ROWS @ kernel + bias, atol=1e-6)
    assert outputs.state == ()


def test_batch_statistics_move_in_training_and_features_come_out(model, variables):
    assert set(variables.state) == {"batch_stats"}
    still = model.forward(variables, ROWS)
    moved = model.forward(variables, ROWS, train=True, key=KEY)
    mean = variables.params["Dense_0"]["bias"] + (ROWS @ variables.params["Dense_0"]["kernel"]).mean(0)
    assert np.allclose(moved.state["batch_stats"]["BatchNorm_0"]["mean"], 0.1 * mean, atol=1e-5)
    assert jax.tree.map(jnp.shape, still.state) == jax.tree.map(jnp.shape, moved.state)
    assert still.features["hidden"].shape == (60, 8)
    other = model.forward(variables, ROWS, train=True, key=jax.random.key(1))
    assert not np.allclose(other.logits, moved.logits)  # dropout follows the key


@pytest.fixture(scope="module")
def model():
    return from_linen(Rich(), ju.losses.cross_entropy, ROWS[:1])


@pytest.fixture(scope="module")
def variables(model):
    return model.init(KEY)


@pytest.fixture(scope="module")
def answers(model, variables):
    return promises.answered(model, variables)


def test_statistics_follow_the_policy(model, variables, answers):
    promises.statistics_follow_the_policy(model, variables, answers)


def test_dropout_follows_the_key(model, variables):
    promises.dropout_follows_the_key(model, variables)
    promises.no_key_is_used_twice(model, variables)


def test_batched_equals_single(variables, answers):
    promises.batched_equals_single(answers, variables)


# One that only climbs, one with fresh weights, one with two teachers, one that alternates; contract tests have the others.
@pytest.mark.parametrize("name", ["gradient_ascent", "retrain", "bad_teacher", "scrub"])
def test_methods_work_on_modules_with_state_and_dropout(name, model, variables):
    unlearn = quick(ju.batched(method(name, model, batch_size=8)))
    result = ju.check(unlearn(variables, DATA, REQUESTS, KEYS))
    assert promises.form(lane(result.variables, 0)) == promises.form(variables)
    assert not same(lane(result.variables.params, 1), variables.params)
    moved = not np.allclose(result.variables.state["batch_stats"]["BatchNorm_0"]["mean"], 0)
    assert moved == ("retain" in ju.METHODS[name].reads)
    turned = unlearn(variables, DATA, jax.tree.map(lambda x: x[::-1], REQUESTS), KEYS[::-1])
    assert promises.distance(lane(turned.variables.params, 0), lane(result.variables.params, 1)) < 1e-5


def test_frozen_statistics_stay(model, variables):
    unlearn = ju.iterate(ju.finetune(model, optax.sgd(0.1), bn="frozen"), num_steps=2, batch_size=8)
    result = ju.check(quick(unlearn)(variables, DATA, REQUEST, KEY))
    assert same(result.variables.state, variables.state)
    assert not same(result.variables.params, variables.params)


def test_orbax_checkpoint_in_and_out(answers, tmp_path):
    module = Rich()
    write(tmp_path / "trained", module.init(KEY, ROWS[:1], train=False))
    like = jax.eval_shape(lambda: module.init(KEY, ROWS[:1], train=False))
    collections = read(tmp_path / "trained", like)
    variables = ju.Variables(collections.pop("params"), collections)
    result = ju.check(answers[0](variables, DATA, REQUEST, KEY))
    write(tmp_path / "unlearned", {"params": result.variables.params, **result.variables.state})
    again = read(tmp_path / "unlearned", like)
    assert same(ju.Variables(again.pop("params"), again), result.variables)
    assert not same(result.variables.params, variables.params)
