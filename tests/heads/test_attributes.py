"""How often values of attributes occur, and their entropy."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from jaxunlearn.heads import attributes
from tests.problems import blobs

VALUES = np.random.default_rng(0).integers(-1, 3, (60, 2))


def test_frequencies_leave_out_what_is_unknown_removed_or_named():
    data = blobs()._replace(present=jnp.ones(60).at[jnp.array([0, 7])].set(0))
    request = ju.ForgetRequest(jnp.array([3, 8, 0]), jnp.array([1.0, 1, 0]), jnp.array([True, False]))
    counts = jax.jit(lambda request: attributes.frequencies(data, request, jnp.asarray(VALUES), 3))(request)
    used = np.setdiff1d(np.arange(60), [0, 7, 3, 8])
    expected = np.array([[np.sum(VALUES[used, column] == value) for value in range(3)] for column in range(2)])
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_allclose(
        attributes.entropy_of(counts), [-np.sum(p * np.log(p)) for p in expected / expected.sum(1, keepdims=True)], rtol=1e-5
    )
    assert attributes.entropy_of(jnp.array([[4.0, 0.0], [0.0, 0.0]])).tolist() == [0, 0]


def test_narrow_row_numbers_name_the_rows_they_say():
    data = ju.training_data(jnp.ones((300, 2)), jnp.zeros(300, int))
    values = jnp.arange(300)[:, None] // 256  # 1 from row 256 on
    request = ju.ForgetRequest(jnp.array([200], jnp.uint8), jnp.ones(1), jnp.array([True]))
    assert attributes.frequencies(data, request, values, 2).tolist() == [[255, 44]]
