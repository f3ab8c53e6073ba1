"""When rows are learned, against a training whose checkpoints are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.audit.toys import classifier, loss_reader, losses_as_data, scaled, shifted
from tests.problems import blobs, network

KEY = jax.random.key(0)


def test_a_row_counts_from_its_last_mistake_on():
    inputs = jnp.array([[1.0, 0.0], [0.0, 1.0], [jnp.nan, 1.0]])
    rows = ju.Examples(inputs, jnp.array([0, 0, 0]))
    scales = [-1.0, 1.0, -1.0, 1.0, 1.0]  # row 0 is right at 1, 3 and 4; row 1 at 0 and 2; row 2 never
    found = ju.audit.difficulty(classifier(), scaled(jnp.array(scales)), rows)
    assert found.learned.tolist() == [3, 5, 5]
    losses = [np.log1p(np.exp(-s)) for s in scales]
    np.testing.assert_allclose(found.mean_loss[0], np.mean(losses), rtol=1e-6)
    assert ju.audit.from_easiest(found).tolist() == [0, 1, 2]


def test_without_classes_the_mean_loss_alone_says_it():
    data = losses_as_data([3.0, 1.0, 2.0])
    rows = data.train._replace(targets=data.train.targets.astype(jnp.float32))
    found = ju.audit.difficulty(loss_reader(), shifted([0.0, 2.0]), rows)
    assert found.learned is None
    np.testing.assert_allclose(found.mean_loss, [4.0, 2.0, 3.0])
    assert ju.audit.from_easiest(found).tolist() == [1, 2, 0]


def test_one_training_stopped_at_any_step_gives_its_checkpoints():
    """The hint in the docstring: the checkpoints are those of one and the same run, and the last one is its result."""
    data, model = blobs(), network()
    training = ju.iterate(ju.retrain(model, optax.sgd(0.1)), 6, batch_size=8, active_steps=lambda data, _: data.extra["user"])

    @jax.jit
    def run(variables):
        def stopped(steps):
            return training(variables, ju.slots.USER.put(data, steps), ju.empty_request(), KEY).variables

        checkpoints = jax.lax.map(stopped, jnp.array([2, 4, 6]))
        seen = jax.lax.map(lambda one: ju.audit.predict(model, one, data.train), checkpoints)
        return checkpoints, seen, ju.audit.difficulty(model, checkpoints, data.train, chunk=16)

    start = jax.tree.map(np.asarray, jax.jit(model.init)(KEY))
    checkpoints, seen, found = run(start)
    assert all(not np.array_equal(x[0], x[1]) for x in jax.tree.leaves(checkpoints))
    right = np.argmax(seen, axis=-1) == np.asarray(data.train.targets)
    assert np.asarray(found.learned).tolist() == [3 - int(np.cumprod(row[::-1]).sum()) for row in right.T]


def test_checkpoints_of_other_lengths_are_refused():
    checkpoints = ju.Variables({"scale": jnp.ones(3), "more": jnp.ones(2)})
    with pytest.raises(ValueError, match="checkpoints needs the same leading axis"):
        ju.audit.difficulty(classifier(), checkpoints, blobs().train)
