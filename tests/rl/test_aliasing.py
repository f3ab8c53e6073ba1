"""Twins of revoked states."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import rl
from tests.problems import lane

INPUTS = {"a": jnp.array([0.0, 0, 0, 1, 1, 2]), "b": jnp.array([[1, 1], [1, 1], [1, 2], [3, 3], [3, 3], [0, 0]])}
DATA = ju.training_data(INPUTS, jnp.zeros(6))
SHARE = jax.jit(rl.aliased_share)
REQUESTS = ju.from_indices(DATA, [[0, 2], [0, 1], [3], [2, 5]], capacity=4)


def test_a_state_is_aliased_where_all_it_shows_is_seen_elsewhere():
    shares = [float(SHARE(DATA, lane(REQUESTS, place))) for place in range(4)]
    assert shares == [0.5, 0.0, 1.0, 0.0]  # the second one asks for both twins


def test_rows_that_are_gone_are_no_twins():
    gone = ju.remove(DATA, lane(ju.from_indices(DATA, [[4]]), 0))
    assert SHARE(gone, lane(REQUESTS, 2)) == 0
    assert jnp.isnan(SHARE(DATA, lane(REQUESTS, 0)._replace(weights=np.zeros(4, np.float32))))


def test_the_warning_names_requests():
    with pytest.warns(rl.AliasingWarning, match=r"requests \[0, 2\]: up to 100% of their states look like"):
        rl.check_aliasing(DATA, REQUESTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rl.check_aliasing(DATA, REQUESTS, limit=1.0)
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda data: rl.check_aliasing(data, REQUESTS))(DATA)


@pytest.mark.slow
def test_maps_are_told_apart_by_separable_observations_and_not_by_local_ones():
    maps = jax.jit(jax.vmap(rl.random_map))(jax.random.split(jax.random.key(0), 20))
    for kind, low, high in (("separable", 0, 0), ("local", 0.5, 1)):
        data = rl.states(rl.grid_world(kind), maps)
        rows = np.flatnonzero(np.asarray(data.present[:100]))
        share = rl.aliased_share(data, ju.merge(ju.from_indices(data, [rows])))
        assert low <= share <= high
