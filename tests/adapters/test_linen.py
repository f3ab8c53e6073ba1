"""flax.linen modules as models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.adapters import from_linen
from tests.problems import blobs, lane, method

DATA = blobs()
KEY = jax.random.key(0)


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


@pytest.mark.parametrize("name", [name for name in ju.METHODS if name != "amnesiac"])  # needs a recorded training
def test_every_method_works_on_modules_with_state_and_dropout(name):
    model = from_linen(Rich(), ju.losses.cross_entropy, DATA.train.inputs[:1])
    layers = {"layers": "Dense_1"} if name in ("cf_k", "eu_k") else {}
    unlearn = method(name, model, batch_size=8, **layers)
    variables = model.init(KEY)
    requests = ju.from_indices(DATA, [[1, 2, 3], [4]])
    result = ju.check(jax.jit(ju.batched(unlearn))(variables, DATA, requests, jax.random.split(KEY)))
    alone = jax.jit(unlearn)(variables, DATA, lane(requests, 1), jax.random.split(KEY)[1])
    assert np.allclose(
        lane(result.variables, 1).params["Dense_1"]["kernel"], alone.variables.params["Dense_1"]["kernel"], atol=1e-5
    )
    moved = not np.allclose(result.variables.state["batch_stats"]["BatchNorm_0"]["mean"], 0)
    assert moved == ("retain" in ju.METHODS[name].reads)
