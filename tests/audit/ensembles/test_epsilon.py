from functools import partial

import jax
import numpy as np
import pytest
from scipy import optimize
from scipy.stats import norm

from jaxunlearn import audit

bound = jax.jit(audit.epsilon_lower_bound, static_argnames="level")
many = jax.jit(jax.vmap(partial(audit.epsilon_lower_bound, delta=1e-2, level=0.9999)))


def test_randomized_response_shows_its_epsilon():
    share = np.exp(1.5) / (1 + np.exp(1.5))
    rng = np.random.default_rng(0)
    told = [(rng.random(40_000) < p).astype(np.float32) for p in (share, 1 - share)]
    assert 1.4 < bound(*told, delta=0.0) < 1.5
    np.testing.assert_allclose(bound(*told[::-1], delta=0.0), bound(*told, delta=0.0), atol=0.05)
    assert bound(*told, delta=0.5) < 0.7


def test_equal_worlds_show_nothing_and_apart_they_show_what_counts_allow():
    shuffled = np.random.default_rng(0).permutation(np.linspace(0, 1, 40_000, dtype=np.float32))
    assert bound(shuffled, shuffled, delta=0.0) == 0
    apart = bound(shuffled + 2, shuffled, delta=0.0)
    trials = 20_000
    low = (0.025) ** (1 / trials)  # limits of Clopper and Pearson for all and for none of the trials
    np.testing.assert_allclose(apart, np.log(low / (1 - low)), rtol=1e-3)


def test_bound_holds_in_the_promised_share_of_repetitions():
    z = np.random.default_rng(1).normal(size=(2, 64, 400))
    first, second = (np.abs(z) < 0.5).astype(np.float32)  # one coin for both worlds: the true epsilon is 0
    exceeded = jax.jit(jax.vmap(lambda a, b: audit.epsilon_lower_bound(a, b, delta=0.0, level=0.8)))(first, second) > 0
    assert np.mean(exceeded) < 0.2 + 3 * np.sqrt(0.16 / 64)


@pytest.mark.parametrize("shift", [0.25, 0.5, 1.0])
def test_no_bound_exceeds_the_epsilon_of_gaussians_that_far_apart(shift):
    delta = 1e-2

    def excess(epsilon):  # Balle, Wang 2018: the exact trade-off of two Gaussians
        return norm.cdf(shift / 2 - epsilon / shift) - np.exp(epsilon) * norm.cdf(-shift / 2 - epsilon / shift) - delta

    true = optimize.brentq(excess, 0, 50)
    z = np.random.default_rng(3).normal(size=(2, 40, 2000)).astype(np.float32)
    bounds = np.asarray(many(z[0] + shift, z[1]))
    assert bounds.max() <= true
    assert shift < 1 or np.median(bounds) > true / 4


def test_samples_of_different_size_and_bad_input():
    rng = np.random.default_rng(2)
    first, second = rng.normal(3, 1, 9000).astype(np.float32), rng.normal(0, 1, 3000).astype(np.float32)
    assert 4 < bound(first, second, delta=1e-3) < 20
    assert 4 < bound(second, first, delta=1e-3) < 20
    assert np.isnan(bound(np.append(first[1:], np.float32(np.nan)), second, delta=1e-3))
    with pytest.raises(ValueError, match="two vectors"):
        audit.epsilon_lower_bound(first[:3], second, delta=0.0)
    with pytest.raises(ValueError, match="two vectors"):
        audit.epsilon_lower_bound(first[None], second, delta=0.0)
    with pytest.raises(ValueError, match="level is a fraction"):
        audit.epsilon_lower_bound(first, second, delta=0.0, level=95)
    with pytest.raises(ValueError, match="delta must lie in"):
        audit.epsilon_lower_bound(first, second, delta=-0.5)
    halves = bound(first.astype(np.float16), second.astype(np.float16), delta=1e-3)  # whose counts overflow in float16
    assert float(halves) == pytest.approx(float(bound(first, second, delta=1e-3)), rel=0.05)


@pytest.mark.parametrize("shift", [0.25, 1.0, 2.0])
def test_the_bound_for_gaussians_is_sharper_and_holds(shift):
    delta, level = 1e-5, 0.9999

    def excess(epsilon):
        return norm.cdf(shift / 2 - epsilon / shift) - np.exp(epsilon) * norm.cdf(-shift / 2 - epsilon / shift) - delta

    true = optimize.brentq(excess, 0, 50)
    sharper, plain = (
        jax.jit(jax.vmap(partial(bound, delta=delta, level=level)))
        for bound in (audit.gaussian_epsilon_lower_bound, audit.epsilon_lower_bound)
    )
    z = np.random.default_rng(3).normal(size=(2, 20, 10_000)).astype(np.float32)
    found = np.asarray(sharper(z[0] + shift, z[1]))
    assert found.max() <= true
    assert np.median(found) > (0.4 if shift < 1 else 0.75) * true
    assert np.median(plain(z[0] + shift, z[1])) < 0.75 * np.median(found)
    np.testing.assert_allclose(sharper(z[1], z[0] + shift), found, rtol=0.2)


def test_the_gaussian_bound_of_equal_worlds_is_nothing():
    same = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    find = jax.jit(partial(audit.gaussian_epsilon_lower_bound, delta=1e-5))
    assert find(same, same) == 0
    assert np.isnan(find(np.append(same, np.float32(np.nan)), same))
