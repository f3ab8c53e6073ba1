"""flax.linen modules as models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.adapters import from_linen
from tests.adapters.promises import quick, read, same, write
from tests.problems import blobs, lane, method

DATA = blobs()
KEY = jax.random.key(0)
REQUEST = lane(ju.from_indices(DATA, [[1, 2, 3]]), 0)


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
    model = from_linen(Plain(), ju.losses.cross_entropy, DATA.train.inputs[:1])
    variables = model.init(KEY)
    assert variables.state == ()
    outputs = model.forward(variables, DATA.train.inputs)
    kernel, bias = variables.params["Dense_0"]["kernel"], variables.params["Dense_0"]["bias"]
    assert np.allclose(outputs.logits, DATA.train.inputs @ kernel + bias, atol=1e-6)
    assert outputs.state == ()


def test_batch_statistics_move_in_training_and_features_come_out():
    model = from_linen(Rich(), ju.losses.cross_entropy, DATA.train.inputs[:1])
    variables = model.init(KEY)
    assert set(variables.state) == {"batch_stats"}
    still = model.forward(variables, DATA.train.inputs)
    moved = model.forward(variables, DATA.train.inputs, train=True, key=KEY)
    mean = variables.params["Dense_0"]["bias"] + (DATA.train.inputs @ variables.params["Dense_0"]["kernel"]).mean(0)
    assert np.allclose(moved.state["batch_stats"]["BatchNorm_0"]["mean"], 0.1 * mean, atol=1e-5)
    assert jax.tree.map(jnp.shape, still.state) == jax.tree.map(jnp.shape, moved.state)
    assert still.features["hidden"].shape == (60, 8)
    other = model.forward(variables, DATA.train.inputs, train=True, key=jax.random.key(1))
    assert not np.allclose(other.logits, moved.logits)  # dropout follows the key


# One that only climbs, one with fresh weights, one with two teachers, one that alternates; contract tests have the others.
@pytest.mark.parametrize("name", ["gradient_ascent", "retrain", "bad_teacher", "scrub"])
def test_methods_work_on_modules_with_state_and_dropout(name):
    model = from_linen(Rich(), ju.losses.cross_entropy, DATA.train.inputs[:1])
    unlearn = method(name, model, batch_size=8)
    variables = model.init(KEY)
    requests = ju.from_indices(DATA, [[1, 2, 3], [4]])
    result = ju.check(quick(ju.batched(unlearn))(variables, DATA, requests, jax.random.split(KEY)))
    alone = quick(unlearn)(variables, DATA, lane(requests, 1), jax.random.split(KEY)[1])
    assert np.allclose(
        lane(result.variables, 1).params["Dense_1"]["kernel"], alone.variables.params["Dense_1"]["kernel"], atol=1e-5
    )
    moved = not np.allclose(result.variables.state["batch_stats"]["BatchNorm_0"]["mean"], 0)
    assert moved == ("retain" in ju.METHODS[name].reads)


def test_frozen_statistics_stay():
    model = from_linen(Rich(), ju.losses.cross_entropy, DATA.train.inputs[:1])
    variables = model.init(KEY)
    unlearn = ju.finetune(model, optax.sgd(0.1), num_steps=2, batch_size=8, bn="frozen")
    result = ju.check(quick(unlearn)(variables, DATA, REQUEST, KEY))
    assert same(result.variables.state, variables.state)
    assert not same(result.variables.params, variables.params)


def test_orbax_checkpoint_in_and_out(tmp_path):
    module = Rich()
    model = from_linen(module, ju.losses.cross_entropy, DATA.train.inputs[:1])
    write(tmp_path / "trained", module.init(KEY, DATA.train.inputs[:1], train=False))
    like = jax.eval_shape(lambda: module.init(KEY, DATA.train.inputs[:1], train=False))
    collections = read(tmp_path / "trained", like)
    variables = ju.Variables(collections.pop("params"), collections)
    unlearn = ju.gradient_difference(model, optax.sgd(0.1), num_steps=2, batch_size=8)
    result = ju.check(quick(unlearn)(variables, DATA, REQUEST, KEY))
    write(tmp_path / "unlearned", {"params": result.variables.params, **result.variables.state})
    again = read(tmp_path / "unlearned", like)
    assert same(ju.Variables(again.pop("params"), again), result.variables)
    assert not same(result.variables.params, variables.params)
