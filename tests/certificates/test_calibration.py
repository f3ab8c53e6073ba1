"""The exact Gaussian mechanism, against an independent implementation, 50-digit arithmetic and simulation."""

import warnings

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxunlearn.certificates import delta_of, epsilon_of, gaussian_scale, textbook_scale

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from dp_accounting.pld import privacy_loss_mechanism

EPSILONS = st.floats(-6, 4).map(lambda x: 10.0**x)
DELTAS = st.floats(-250, -0.01).map(lambda x: 10.0**x)


def exact_delta(mu, epsilon):
    with mpmath.workdps(60):
        mu, epsilon = mpmath.mpf(float(mu)), mpmath.mpf(float(epsilon))
        x = epsilon / mu - mu / 2
        return (mpmath.erfc(x / mpmath.sqrt(2)) - mpmath.exp(epsilon) * mpmath.erfc((x + mu) / mpmath.sqrt(2))) / 2


@given(EPSILONS, DELTAS)
@example(10.0**2.15625, 1e-247)  # x + mu where erfc leaves the normal numbers
@settings(max_examples=25, deadline=None)
def test_scale_is_the_smallest_and_never_below(epsilon, delta):
    sigma = float(gaussian_scale(1.0, epsilon, delta))
    found = exact_delta(1 / mpmath.mpf(sigma), epsilon)
    assert found <= delta
    assert exact_delta(1 / mpmath.mpf(sigma * (1 - 1e-9)), epsilon) > delta
    back = float(epsilon_of(sigma, 1.0, delta))
    assert exact_delta(1 / mpmath.mpf(sigma), back) <= delta
    assert back <= epsilon * (1 + 1e-12)
    achieved = float(delta_of(sigma, 1.0, epsilon))
    assert found <= achieved <= delta * (1 + 1e-12)


@given(EPSILONS, DELTAS, st.floats(1.0001, 100), st.floats(1e-200, 1e6))
@settings(max_examples=20, deadline=None)
def test_scale_is_monotone_and_linear_in_the_sensitivity(epsilon, delta, factor, sensitivity):
    sigma = float(gaussian_scale(1.0, epsilon, delta))
    assert float(gaussian_scale(1.0, epsilon * factor, delta)) <= sigma
    assert float(gaussian_scale(1.0, epsilon, max(delta**factor, 1e-300))) >= sigma
    np.testing.assert_allclose(float(gaussian_scale(sensitivity, epsilon, delta)), sensitivity * sigma, rtol=1e-13)


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_equals_dp_accounting(epsilon, delta):
    sigma = float(gaussian_scale(1.0, epsilon, delta))
    oracle = privacy_loss_mechanism.GaussianPrivacyLoss(sigma)
    np.testing.assert_allclose(oracle.get_delta_for_epsilon(epsilon), delta, rtol=1e-6)
    np.testing.assert_allclose(float(epsilon_of(2 * sigma, 1.0, delta / 7)), _epsilon_by(2 * sigma, delta / 7), atol=1e-7)


def _epsilon_by(sigma, delta):
    oracle = privacy_loss_mechanism.GaussianPrivacyLoss(sigma)
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if oracle.get_delta_for_epsilon(middle) <= delta else (middle, high)
    return high


def test_rho_of_one():
    """One unit of zero-concentrated privacy is a ratio of sqrt 2."""
    np.testing.assert_allclose(float(epsilon_of(1.0, np.sqrt(2), 1e-5)), 6.57, atol=0.005)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.3, 0.05), (1.0, 1e-2), (3.0, 1e-2)])
def test_delta_is_the_mean_of_the_privacy_loss_beyond_epsilon(epsilon, delta):
    mu = 1 / float(gaussian_scale(1.0, epsilon, delta))
    with jax.enable_x64(True):
        loss = mu**2 / 2 + mu * jax.random.normal(jax.random.key(0), (1_000_000,), jnp.float64)
        values = np.asarray(jnp.maximum(-jnp.expm1(epsilon - loss), 0))
    assert abs(values.mean() - delta) < 4 * values.std() / 1000


def test_textbook_scale_is_too_small_for_large_epsilons_and_wasteful_for_small_ones():
    for delta in (1e-3, 1e-5, 1e-9):
        assert float(textbook_scale(1.0, 12.0, delta)) < float(gaussian_scale(1.0, 12.0, delta))
        assert exact_delta(1 / float(textbook_scale(1.0, 12.0, delta)), 12.0) > delta
        assert float(textbook_scale(1.0, 0.5, delta)) > 1.2 * float(gaussian_scale(1.0, 0.5, delta))
    np.testing.assert_allclose(float(textbook_scale(3.0, 2.0, 1.25 / np.e**2)), 3.0)


def test_no_sensitivity_needs_no_noise_and_delta_alone_can_cover():
    assert float(gaussian_scale(0.0, 1.0, 1e-5)) == 0
    assert float(epsilon_of(1.0, 0.0, 1e-5)) == 0
    assert float(delta_of(1.0, 0.0, 0.0)) == 0
    assert float(epsilon_of(1.0, 0.02, 0.01)) == 0  # total variation 0.008
    np.testing.assert_allclose(float(delta_of(1.0, 0.02, 0.0)), float(mpmath.erf(0.01 / 2**0.5)), rtol=1e-11)


def test_maps_and_compiles_in_a_float32_session():
    assert not jax.config.jax_enable_x64
    epsilons, deltas = np.array([0.1, 1.0, 10.0]), np.array([1e-3, 1e-5, 1e-8])
    mapped = jax.jit(jax.vmap(gaussian_scale, (None, 0, 0)))(1.0, epsilons.astype(np.float32), deltas.astype(np.float32))
    assert mapped.dtype == np.float64
    for i in range(3):
        alone = gaussian_scale(1.0, np.float32(epsilons[i]), np.float32(deltas[i]))
        np.testing.assert_allclose(np.asarray(mapped)[i], np.asarray(alone), rtol=1e-12)
    table = gaussian_scale(1.0, epsilons[:, None], deltas)
    assert table.shape == (3, 3)
    traced = jax.jit(gaussian_scale)(jnp.array([1.0, 1.0, -1.0, 1.0]), jnp.array([-1.0, 1.0, 1.0, jnp.inf]), 1e-5)
    np.testing.assert_array_equal(np.isnan(np.asarray(traced)), [True, False, True, True])
    assert np.isnan(np.asarray(jax.jit(epsilon_of)(0.0, 1.0, 1e-5)))
    assert np.isnan(np.asarray(jax.jit(delta_of)(1.0, 1.0, -1.0)))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, np.nan, np.inf])
def test_epsilons_out_of_range(epsilon):
    with pytest.raises(ValueError, match="epsilon must be positive and finite"):
        gaussian_scale(1.0, epsilon, 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, np.nan, 1e-310])
def test_deltas_out_of_range(delta):
    with pytest.raises(ValueError, match="delta must be between 0 and 1"):
        gaussian_scale(1.0, 1.0, delta)
    with pytest.raises(ValueError, match="delta must be between 0 and 1"):
        epsilon_of(1.0, 1.0, delta)


def test_other_numbers_out_of_range():
    with pytest.raises(ValueError, match="sensitivity must be at least 0"):
        gaussian_scale(-1.0, 1.0, 1e-5)
    with pytest.raises(ValueError, match="sigma must be positive"):
        epsilon_of(0.0, 1.0, 1e-5)
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        delta_of(1.0, 1.0, -1.0)
