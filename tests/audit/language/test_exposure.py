"""Exposure of canaries: ranks, shares, fitted tails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxunlearn as ju
from jaxunlearn.audit.language.exposure import _skew_normal_log_cdf

language = ju.audit.language


def test_alternatives_are_listed_or_drawn():
    canary, free = jnp.array([9, 0, 9, 1]), [False, True, False, True]
    every = language.alternatives(canary, free, jnp.arange(3))
    assert sorted(map(tuple, every.tolist())) == [(9, a, 9, b) for a in range(3) for b in range(3)]
    assert int(jnp.all(every == canary, axis=1).sum()) == 1
    some = language.alternatives(canary, free, jnp.array([5, 7]), jax.random.key(0), count=50)
    assert np.all(np.asarray(some)[:, [0, 2]] == 9)
    assert set(np.asarray(some)[:, [1, 3]].ravel().tolist()) == {5, 7}
    with pytest.raises(ValueError, match="too many to list"):
        language.alternatives(jnp.zeros(30, int), [True] * 30, jnp.arange(9))
    with pytest.raises(ValueError, match="neither to list all"):
        language.alternatives(canary, free, jnp.arange(3), jax.random.key(0))


def test_the_rank_among_all_texts_is_exact():
    losses = np.random.default_rng(0).permutation(64).astype(np.float32)
    rank = jax.jit(lambda canaries, losses: language.exposure(canaries, losses, method="enumeration"))
    found = rank(losses[:5], losses)
    np.testing.assert_allclose(found.estimate, np.log2(64) - np.log2(losses[:5] + 1), rtol=1e-6)
    np.testing.assert_array_equal(found.low, found.high)
    constant = rank(np.ones(5, np.float32), np.ones(64, np.float32))
    assert float(constant.estimate[0]) == pytest.approx(np.log2(64 / 32.5))


def test_drawn_texts_bound_what_a_rank_can_be():
    losses = np.random.default_rng(1).normal(size=500).astype(np.float32)
    canaries = np.float32([-9, -0.6745])
    found = jax.jit(lambda c, o: language.exposure(c, o, method="sampling", space=10**6))(canaries, losses)
    share = stats.binomtest(int((losses <= canaries[1]).sum()), 500).proportion_ci(method="exact")
    np.testing.assert_allclose([found.low[1], found.high[1]], [-np.log2(share.high), -np.log2(share.low)], rtol=1e-3)
    assert float(found.estimate[0]) == pytest.approx(np.log2(501))
    assert float(found.high[0]) == pytest.approx(np.log2(10**6))
    own = language.exposure(canaries, np.stack([losses, losses]), method="sampling", space=10**6)
    np.testing.assert_allclose(own.low, found.low, rtol=1e-5)


def test_skew_normal_tails_are_those_of_scipy():
    for z, shape in [(-6.0, 0.0), (-3.0, -4.0), (-2.0, 3.0), (0.5, 1.0), (4.0, -2.0)]:
        expected = np.log(stats.skewnorm.cdf(z, shape)) if shape else stats.norm.logcdf(z)
        assert float(_skew_normal_log_cdf(z, shape)) == pytest.approx(expected, abs=2e-3), (z, shape)


def test_a_canary_that_is_less_probable_than_all_others_has_no_exposure():
    """However far above it lies: a model that unlearned by ascent gives it a loss that is far out of range."""
    for z, shape in [(30.0, 0.0), (70.0, 6.0), (150.0, -4.0), (1e4, 2.0), (jnp.inf, 1.0)]:
        assert float(_skew_normal_log_cdf(z, shape)) == pytest.approx(0, abs=1e-6), (z, shape)
    others = np.random.default_rng(3).normal(10, 0.01, 100).astype(np.float32)
    found = language.exposure(jnp.array([11.5, 20.0]), others, jax.random.key(0), method="skew-normal", space=10**6)
    np.testing.assert_allclose([found.estimate, found.high], 0, atol=1e-6)


def test_fits_extrapolate_beyond_what_was_drawn():
    losses = np.random.default_rng(2).normal(50, 3, 400).astype(np.float32)
    canary = np.float32([50 - 3 * 7])
    key = jax.random.key(0)
    found = language.exposure(canary, losses, key, method="gaussian")
    expected = -stats.norm.logcdf(canary[0], losses.mean(), losses.std()) / np.log(2)
    assert float(found.estimate[0]) == pytest.approx(expected, rel=1e-4)
    assert found.low[0] < found.estimate[0] < found.high[0]
    true = -stats.norm.logcdf(-7) / np.log(2)
    assert found.low[0] < true < found.high[0]
    with pytest.raises(ValueError, match="takes a key"):
        language.exposure(canary, losses, method="gaussian")


def test_a_skew_law_is_fitted_by_its_moments():
    law = stats.skewnorm(4, 10, 2)
    losses = law.ppf((np.arange(4000) + 0.5) / 4000).astype(np.float32)
    canary = np.float32([law.ppf(1e-4)])
    found = language.exposure(canary, losses, jax.random.key(0), method="skew-normal")
    normal = -stats.norm.logcdf(canary[0], losses.mean(), losses.std()) / np.log(2)
    assert abs(float(found.estimate[0]) - np.log2(1e4)) < 1
    assert abs(normal - np.log2(1e4)) > 2


def test_a_constant_model_has_no_exposure_and_nan_stays_nan():
    for method in ("sampling", "gaussian", "skew-normal"):
        found = language.exposure(jnp.ones(1), jnp.ones(20), jax.random.key(0), method=method)
        assert float(found.estimate[0]) == 0
    assert np.isnan(language.exposure(jnp.array([jnp.nan]), jnp.ones(20)).estimate[0])


def test_an_unseen_canary_has_the_exposure_of_chance():
    losses = np.random.default_rng(3).normal(size=1024).astype(np.float32)
    found = language.exposure(losses, losses, method="enumeration").estimate  # every text once the canary
    assert float(found.mean()) == pytest.approx(1 / np.log(2), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gaussian", "skew-normal"])
def test_limits_of_a_fit_cover(method):
    def one(key):
        losses = jax.random.normal(key, (300,))
        found = language.exposure(jnp.array([-4.0]), losses, jax.random.fold_in(key, 1), method=method)
        return (found.low[0] <= true) & (true <= found.high[0])

    true = -stats.norm.logcdf(-4) / np.log(2)
    covered = float(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(0), 100)).mean())
    assert covered > 0.85
