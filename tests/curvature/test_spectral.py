import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.curvature import spectral_norm_bound


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def rows_with(singular_values, num_rows, seed=0):
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(num_rows, len(singular_values))))
    right, _ = np.linalg.qr(rng.normal(size=(len(singular_values),) * 2))
    return left * singular_values @ right.T


@pytest.mark.parametrize("spread", [0.0, 1e-3, 5.0])
def test_bound_holds_and_is_tight(spread):
    values = np.linspace(3.0, 3.0 - spread if spread < 3 else 1e-8, 12)
    x = rows_with(values, 40)
    bound = spectral_norm_bound(jnp.asarray(x.T @ x))
    assert 3.0 <= bound <= 3.0 * (1 + 1e-7)
    few = spectral_norm_bound(jnp.asarray(x.T @ x), num_rows=40)
    assert 3.0 <= few <= 3.0 * (1 + 1e-11)


def test_power_iteration_is_from_below_where_the_bound_is_not():
    x = rows_with(np.array([1.0, 0.999, 0.998, 0.997]), 30)
    gram = x.T @ x
    _, vectors = np.linalg.eigh(gram)
    v = vectors @ np.array([1.0, 1.0, 1.0, 0.3])
    for _ in range(20):  # as the published code does
        v = gram @ v
        v = v / np.linalg.norm(v)
    assert np.linalg.norm(x @ v) < 1 - 1e-3
    assert spectral_norm_bound(jnp.asarray(gram)) >= 1


def test_bound_is_never_above_frobenius_by_more_than_rounding():
    x = np.random.default_rng(1).normal(size=(30, 1))
    bound = spectral_norm_bound(jnp.asarray(x.T @ x))
    np.testing.assert_allclose(bound, np.linalg.norm(x), rtol=1e-9)
    assert bound >= np.linalg.norm(x)


@pytest.mark.parametrize("num_rows", [50, 400])
def test_bound_holds_for_float32_sums(num_rows):
    x = rows_with(np.array([2.0, 2.0, 2.0, 1e-4]), num_rows).astype(np.float32)
    gram = x.T @ x
    bound = spectral_norm_bound(jnp.asarray(gram), num_rows=num_rows)
    assert bound.dtype == jnp.float32
    assert np.linalg.norm(x.astype(np.float64), 2) <= bound <= 2.0 * (1 + 1e-3)


def test_bound_maps_and_compiles():
    grams = jnp.stack([jnp.diag(jnp.array([1.0, 4.0])), jnp.diag(jnp.array([9.0, 1.0]))])
    np.testing.assert_allclose(jax.jit(jax.vmap(spectral_norm_bound))(grams), [2, 3], rtol=1e-8)
    assert jnp.isnan(spectral_norm_bound(grams[0] * jnp.nan))
    assert spectral_norm_bound(jnp.zeros((3, 3))) == 0


def test_what_is_no_gram_matrix_is_refused():
    with pytest.raises(ValueError, match="square matrix"):
        spectral_norm_bound(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="floating-point"):
        spectral_norm_bound(jnp.ones((2, 2), jnp.int32))
    with pytest.raises(ValueError, match="num_rows"):
        spectral_norm_bound(jnp.ones((2, 2)), num_rows=0)
