import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn
from experiments.common.models import build
from experiments.common.running import timed
from experiments.common.training import environment, train

MODEL = build("mlp", (4,), 3, widths=())


def _data():
    inputs = jax.random.normal(jax.random.key(0), (30, 4))
    return jaxunlearn.training_data(inputs, jnp.argmax(inputs[:, :3], axis=1))


def test_every_seed_is_retraining_with_an_empty_request():
    data, key, optimizer, options = _data(), jax.random.key(1), optax.sgd(0.5), {"num_steps": 150, "batch_size": 16}
    both = train(MODEL, data, optimizer, seeds=[0, 7], key=key, **options)
    retrain = jax.jit(jaxunlearn.iterate(jaxunlearn.retrain(MODEL, optimizer), **options))
    like = MODEL.init(jax.random.key(5))
    alone = retrain(like, data, jaxunlearn.empty_request(), jax.random.fold_in(key, 7)).variables
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-4, atol=1e-5), both, alone)
    logits = jax.vmap(lambda variables: MODEL.forward(variables, data.train.inputs).logits)(both)
    assert not np.array_equal(logits[0], logits[1])
    assert jnp.all(jnp.mean(jnp.argmax(logits, axis=-1) == data.train.targets, axis=1) > 0.9)


def test_training_refuses_no_seed_and_names_a_diverged_one():
    options = {"key": jax.random.key(0), "num_steps": 2, "batch_size": 4}
    with pytest.raises(ValueError, match="no seeds"):
        train(MODEL, _data(), optax.sgd(0.1), seeds=[], **options)
    with pytest.raises(jaxunlearn.UnlearningError, match="request 0: NONFINITE"):
        train(MODEL, _data(), optax.sgd(float("inf")), seeds=[0], **options)


def test_timed_counts_compilation_apart():
    traced = []

    def double(x):
        traced.append(x)
        return 2 * x

    found = timed(double, jnp.arange(3), repeats=3)
    np.testing.assert_array_equal(found.result, [0, 2, 4])
    assert len(traced) == 1
    assert found.compile_seconds > found.run_seconds > 0
    assert found.cpu_seconds >= 0


def test_environment_is_json():
    found = json.loads(json.dumps(environment()))
    assert found["jax"] == jax.__version__
    assert found["devices"] == len(jax.devices())
