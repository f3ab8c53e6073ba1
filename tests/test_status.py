"""Outcome codes and the checks on trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import checks, status, tree


def test_the_gravest_outcome_is_reported():
    code = status.combine(EMPTY_REQUEST=jnp.array(True), NONFINITE=jnp.array(True), INVALID_ROWS=jnp.array(False))
    assert int(code) == ju.Status.NONFINITE
    assert int(status.combine(EMPTY_REQUEST=jnp.array(False))) == ju.Status.OK
    assert set(status.MESSAGES) == set(ju.Status)


def test_check_names_requests_of_any_shape():
    codes = jnp.zeros((2, 12), jnp.int32).at[1].set(int(ju.Status.NONFINITE)).at[0, 3].set(int(ju.Status.EMPTY_REQUEST))
    result = ju.Result(ju.Variables({"w": jnp.ones(1)}), codes, {})
    with pytest.raises(ju.UnlearningError, match=r"request \(0, 3\): EMPTY_REQUEST") as raised:
        ju.check(result)
    assert "request (1, 0), (1, 1)" in str(raised.value)
    assert "and 4 more: NONFINITE" in str(raised.value)
    assert ju.check(result._replace(status=jnp.int32(0))).status == 0


def test_trees_of_any_dtype_are_selected_and_judged():
    first = {"w": jnp.ones(2), "count": jnp.int32(1), "key": jax.random.key(0)}
    second = {"w": jnp.zeros(2), "count": jnp.int32(2), "key": jax.random.key(1)}
    chosen = tree.select(jnp.array(False), first, second)
    assert int(chosen["count"]) == 2
    assert jnp.array_equal(jax.random.key_data(chosen["key"]), jax.random.key_data(second["key"]))
    assert bool(tree.all_finite({"w": jnp.ones(2), "count": jnp.int32(1)}))
    assert not bool(tree.all_finite({"w": jnp.array([1.0, jnp.nan])}))
    assert bool(tree.all_finite({"count": jnp.int32(1)}))


def test_ranges_are_checked_on_known_values_only():
    checks.check_range("alpha", np.array([0.0, 1.0]), low=0, high=1)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 2"):
        checks.check_range("alpha", 2, low=0, high=1)
    with pytest.raises(ValueError, match="alpha"):
        checks.check_range("alpha", float("nan"), low=0, high=1)
    assert float(jax.jit(lambda x: checks.check_range("alpha", x, low=0, high=1) or x)(2.0)) == 2
