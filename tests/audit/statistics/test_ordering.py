import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.audit.statistics.ordering import ascending


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_numbers_are_sorted_by_integers_of_their_order(dtype):
    with jax.enable_x64(True):
        values = jnp.asarray([3.5, -0.0, jnp.inf, -2.25, 0.0, 1e-30, -jnp.inf, 7.0, -1e30], dtype)
        found = ascending(values)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.sort(np.asarray(values)))
        assert np.isnan(ascending(values.at[0].set(jnp.nan))[-1])
