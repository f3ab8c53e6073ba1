"""Camouflaged poison on a convex problem, where retraining is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import audit, convex
from tests.problems import blobs, lane, network

PROBLEM = convex.softmax(1e-2, 2)


def fit(data):
    return convex.fit(PROBLEM, data, row_norm=None)


def two_classes(seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.array([0, 1], np.int32), 30)
    centres = np.array([[0.3, 0.1, 0.0], [-0.3, 0.0, 0.1]])
    inputs = np.hstack([centres[labels] + 0.12 * rng.normal(size=(60, 3)), np.full((60, 1), 0.5)]).astype(np.float32)
    return ju.Examples(inputs, labels)


def test_deleting_the_camouflage_switches_the_poison_on():
    clean, model = two_classes(), PROBLEM.model
    trained = jax.tree.map(jnp.float32, fit(ju.training_data(*clean)))
    target = ju.Examples(np.array([[0.15, 0.5, -0.4, 0.5]], np.float32), np.array([0], np.int32))
    part = lambda label: ju.Examples(clean.inputs[clean.targets == label][:15], clean.targets[clean.targets == label][:15])
    made = audit.camouflaged_poison(model, trained, target, 1, part(1), part(0), radius=0.45, num_steps=40)
    assert np.all(np.asarray(made.matched) > 0.8)
    for crafted, base in ((made.poison, part(1)), (made.camouflage, part(0))):
        assert np.abs(crafted.inputs - base.inputs).max() <= 0.45 + 1e-6
        np.testing.assert_array_equal(crafted.targets, base.targets)  # labels stay those of the clean rows

    whole = [np.concatenate(x) for x in zip(clean, made.poison, made.camouflage, strict=True)]
    data = ju.training_data(*whole)
    camouflage = lane(ju.from_indices(data, [np.arange(75, 90)]), 0)

    def named(variables):
        return int(np.argmax(model.forward(jax.tree.map(jnp.float32, variables), target.inputs).logits[0]))

    before = fit(data)
    result = ju.check(jax.jit(convex.newton_removal(PROBLEM, steps=4))(before, data, camouflage, jax.random.key(0)))
    retrained = fit(ju.remove(data, camouflage))
    distance = np.abs(np.asarray(result.variables.params["kernel"]) - np.asarray(retrained.params["kernel"])).max()
    assert distance < 1e-6  # unlearning does as it should
    assert (named(trained), named(before)) == (0, 0)
    assert (named(result.variables), named(retrained)) == (1, 1)


def test_a_target_of_the_wrong_class_is_refused():
    data, model = blobs(), network()
    variables = model.init(jax.random.key(0))
    one = jax.tree.map(lambda x: x[:1], data.train)
    with pytest.raises(ValueError, match="already"):
        audit.camouflaged_poison(model, variables, one, int(one.targets[0]), data.train, data.train, radius=0.1)
    with pytest.raises(ValueError, match="one target"):
        audit.camouflaged_poison(model, variables, data.train, 1, data.train, data.train, radius=0.1)
    with pytest.raises(ValueError, match="radius"):
        audit.camouflaged_poison(model, variables, one, 9, data.train, data.train, radius=-1.0)
