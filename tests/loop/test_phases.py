"""Methods whose steps are of two kinds read the whole forget set, whatever sizes share factors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.problems import blobs, lane, model_of, trained

ROWS, BATCH = np.arange(16), 4


@pytest.mark.parametrize(
    ("name", "length", "settings"),
    [
        ("scrub", 2, {"forget_epochs": 4}),
        ("scrub", 3, {"forget_epochs": 4, "retain_steps": 2}),
        ("scrub", 4, {"forget_epochs": 2, "forget_steps": 2, "retain_steps": 2}),
        ("dimensional_alignment", 2, {}),
        ("dimensional_alignment", 4, {"recover_steps": 3}),
    ],
)
def test_every_row_is_read_within_as_many_forget_steps_as_it_takes(name, length, settings):
    """A row that is NaN shows in the answer if it was read."""
    data = blobs()
    forget_steps = settings.get("forget_steps", 1)
    num_steps = length * len(ROWS) // (BATCH * forget_steps)
    method = ju.METHODS[name].factory(model_of(name), optax.sgd(0.01), **settings)
    unlearn = ju.iterate(method, num_steps=num_steps, batch_size=BATCH)
    request, variables = lane(ju.from_indices(data, [ROWS]), 0), trained(name)
    inputs = np.repeat(np.asarray(data.train.inputs)[None], len(ROWS), axis=0)
    inputs[ROWS, ROWS] = np.nan

    def answer(inputs):
        spoilt = data._replace(train=data.train._replace(inputs=inputs))
        return unlearn(variables, spoilt, request, jax.random.key(0)).status

    assert jax.jit(jax.vmap(answer))(jnp.asarray(inputs)).tolist() == [ju.Status.NONFINITE] * len(ROWS)
    assert int(answer(data.train.inputs)) == ju.Status.OK
