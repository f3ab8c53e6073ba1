"""The float64 scope: kept by transformations inside of it, refused where it would be left."""

import jax
import jax.numpy as jnp
import pytest

import jaxunlearn as ju
from jaxunlearn.precision import in_float64
from tests.problems import method, model_of, recorded, trained

ROWS = jnp.array([0.5, 2.0, 3.0])
THIRD = 1 / 3


@in_float64
def product(x):
    return x.astype(jnp.float64) * THIRD


def scaled(factor, x):
    return in_float64(lambda x: x.astype(jnp.float64) * factor)(x)


def exactly(found, factor=THIRD):
    return found.dtype == jnp.float64 and found.tolist() == [x * factor for x in ROWS.tolist()]


def test_results_are_those_of_float64():
    assert exactly(product(ROWS))
    assert exactly(jax.jit(product)(ROWS))
    assert exactly(jax.jit(jax.vmap(product))(ROWS))
    assert exactly(jax.jit(lambda x: jax.lax.map(product, x))(ROWS))
    slope = jax.grad(lambda x: jnp.sum(product(x).astype(jnp.float32)))(ROWS)
    assert slope.tolist() == pytest.approx([THIRD] * 3)


@pytest.mark.parametrize(
    "leaving",
    [
        lambda: jax.vmap(lambda x: jax.lax.map(product, x))(ROWS[None]),
        lambda: jax.vmap(jax.jit(product))(ROWS),
        lambda: jax.jit(jax.vmap(lambda factor: jax.lax.map(lambda x: scaled(factor, x), ROWS)))(ROWS),
    ],
)
def test_a_vmap_that_would_leave_float64_is_refused(leaving):
    with pytest.raises(TypeError, match="compute in float32"):
        leaving()
    with jax.enable_x64(True):
        leaving()


@pytest.mark.parametrize("name", ["woodbury_removal", "affine_representation_unlearning", "concept_erasure"])
def test_a_sweep_around_a_loop_over_requests_is_refused(name):
    data, _ = recorded()
    variables, requests = trained(name), ju.from_indices(data, [[3, 4], [7]])
    starts = jax.tree.map(lambda x: jnp.stack([x, x]), variables)
    keys = jax.random.split(jax.random.key(0), 2)

    def swept(chunk):
        batched = ju.batched(method(name, model_of(name)), chunk=chunk)
        return jax.jit(jax.vmap(lambda start: batched(start, data, requests, keys)))(starts)

    assert not jnp.any(swept(2).status)
    with pytest.raises(TypeError, match="chunk=number of requests"):
        swept(1)
