import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from jaxunlearn import audit

t_interval = jax.jit(audit.t_interval, static_argnames=("axis", "level"))
clopper_pearson = jax.jit(audit.clopper_pearson, static_argnums=2)
auc_interval = jax.jit(audit.auc_interval, static_argnums=3)


@pytest.mark.parametrize(("axis", "level"), [(0, 0.95), (1, 0.5), (-1, 0.999)])
def test_student_interval_equals_scipy(axis, level):
    values = np.random.default_rng(0).normal(3, 2, (4, 6))
    low, high = stats.t.interval(level, values.shape[axis] - 1, values.mean(axis), stats.sem(values, axis))
    with jax.enable_x64(True):
        precise = t_interval(jnp.asarray(values), axis, level)
        np.testing.assert_allclose(np.stack(precise), np.stack([values.mean(axis), low, high]), rtol=1e-12)
    single = t_interval(np.float32(values), axis, level)
    np.testing.assert_allclose(np.stack(single), np.stack(precise), rtol=2e-5, atol=1e-5)


def test_student_interval_of_few_values():
    one = t_interval(jnp.array([[2.0, 3.0]]))
    np.testing.assert_array_equal(one.estimate, [2, 3])
    assert jnp.isnan(one.low).all()
    assert jnp.isnan(one.high).all()
    counts = t_interval(jnp.array([1, 2]))
    assert counts.estimate == 1.5
    with pytest.raises(ValueError, match="no value along axis 0"):
        t_interval(jnp.zeros((0, 3)))


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_clopper_pearson_equals_scipy_for_every_count(level):
    counts = [(k, n) for n in (1, 2, 7, 40) for k in range(n + 1)]
    exact = [stats.binomtest(k, n).proportion_ci(level) for k, n in counts]
    k, n = np.array(counts).T
    interval = clopper_pearson(k, n, level)
    np.testing.assert_allclose(interval.low, [ci.low for ci in exact], atol=1e-4)
    np.testing.assert_allclose(interval.high, [ci.high for ci in exact], atol=1e-4)
    np.testing.assert_allclose(interval.estimate, k / n, rtol=1e-6)
    assert (interval.low[k == 0] == 0).all()
    assert (interval.high[k == n] == 1).all()


@pytest.mark.parametrize("trials", [10**3, 10**5, 10**7])
def test_clopper_pearson_keeps_its_accuracy_for_many_trials(trials):
    k = np.array([1, 3, trials // 1000 + 1, trials // 100, trials // 3, trials // 2, trials - trials // 5, trials - 2])
    interval = clopper_pearson(k, trials)
    error = np.sqrt((k + 1.0) * (trials - k + 1.0) / trials**3)
    tolerance = np.maximum(1e-3 * error, 1e-7)
    assert (np.abs(interval.low - stats.beta.ppf(0.025, k, trials - k + 1)) < tolerance).all()
    assert (np.abs(interval.high - stats.beta.ppf(0.975, k + 1, trials - k)) < tolerance).all()


def test_clopper_pearson_covers():
    k = np.arange(21)
    interval = clopper_pearson(k, 20)
    for proportion in np.linspace(0.01, 0.99, 33):
        inside = (np.asarray(interval.low) <= proportion) & (proportion <= np.asarray(interval.high))
        assert stats.binom.pmf(k, 20, proportion)[inside].sum() >= 0.95


def test_clopper_pearson_maps_and_knows_nothing_without_trials():
    k, n = np.arange(5), np.array([4, 9, 2, 3, 100])
    mapped = np.stack(jax.vmap(clopper_pearson)(k, n))
    for position in range(5):
        alone = clopper_pearson(k[position], n[position])
        np.testing.assert_allclose(np.array(alone), mapped[:, position], rtol=1e-6)
    nothing = clopper_pearson(np.int64(0), np.int64(0))
    assert jnp.isnan(nothing.estimate)
    assert (nothing.low, nothing.high) == (0, 1)


def newcombe(auc, m, n, level):
    """Method 5 by root finding in float64."""
    z, larger = stats.norm.ppf((1 + level) / 2), (m + n) / 2 - 1

    def excess(area):
        variance = area * (1 - area) * (1 + larger * (1 - area) / (2 - area) + larger * area / (1 + area)) / (m * n)
        return (auc - area) ** 2 - z**2 * variance

    low = optimize.brentq(excess, 0, auc - 1e-9, xtol=1e-14) if auc > 0 else 0.0
    high = optimize.brentq(excess, auc + 1e-9, 1, xtol=1e-14) if auc < 1 else 1.0
    return low, high


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_auc_interval_solves_the_score_equation(level):
    cases = [
        (auc, m, n) for auc in (0.0, 0.02, 0.3, 0.5, 0.77, 0.999, 1.0) for m, n in ((1, 1), (5, 9), (16, 10000), (900, 40))
    ]
    auc, m, n = np.array(cases).T
    interval = auc_interval(auc, m, n, level)
    expected = np.array([newcombe(*case, level) for case in cases])
    np.testing.assert_allclose(interval.low, expected[:, 0], atol=2e-6)
    np.testing.assert_allclose(interval.high, expected[:, 1], atol=2e-6)
    mirrored = auc_interval(1 - auc, m, n, level)
    np.testing.assert_allclose(interval.low, 1 - mirrored.high, atol=2e-6)


def test_auc_interval_at_the_ends_and_without_rows():
    top, bottom = auc_interval(1.0, 8, 12), auc_interval(0.0, 8, 12)
    assert (top.high, bottom.low) == (1, 0)
    assert 0.7 < top.low < 0.95
    assert 0.05 < bottom.high < 0.3
    for interval in (auc_interval(jnp.nan, 0, 12), auc_interval(0.5, 8, 0), auc_interval(jnp.nan, 8, 12)):
        assert jnp.isnan(jnp.stack(interval)).all()


@jax.jit
@jax.vmap
def area_and_limits(members, member_weights, nonmembers, nonmember_weights):
    area = audit.auc(members, member_weights, nonmembers, nonmember_weights)
    return audit.auc_interval(area, jnp.sum(member_weights), jnp.sum(nonmember_weights))


@pytest.mark.parametrize(
    ("area", "members", "nonmembers", "most"), [(0.5, 30, 50, 0.95), (0.8, 40, 40, 0.95), (0.9, 15, 200, 0.98)]
)
def test_auc_interval_covers(area, members, nonmembers, most):
    draws, rng = 2000, np.random.default_rng(0)
    scores = rng.normal(np.sqrt(2) * stats.norm.ppf(area), 1, (draws, 40)), rng.normal(size=(draws, 200))
    weights = np.arange(40) < members, np.arange(200) < nonmembers
    weights = [np.broadcast_to(w, s.shape).astype(np.float32) for w, s in zip(weights, scores, strict=True)]
    interval = area_and_limits(scores[0], weights[0], scores[1], weights[1])
    standard_error = np.std(interval.estimate) / np.sqrt(draws)
    assert abs(np.mean(interval.estimate) - area) < 4 * standard_error
    covered = np.mean((interval.low <= area) & (area <= interval.high))
    tolerance = 4 * np.sqrt(0.95 * 0.05 / draws)
    assert 0.95 - tolerance < covered < most + tolerance


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_levels_are_fractions(level):
    for interval in (
        lambda: audit.t_interval(jnp.ones(3), level=level),
        lambda: audit.clopper_pearson(1, 3, level),
        lambda: audit.auc_interval(0.5, 3, 3, level),
    ):
        with pytest.raises(ValueError, match="level is a fraction"):
            interval()


def test_crossed_intervals_cover_the_mean_over_seeds_and_requests():
    rng = np.random.default_rng(3)
    trials, seeds, requests = 1500, 5, 12
    values = (
        rng.normal(size=(trials, seeds, 1))
        + rng.normal(size=(trials, 1, requests))
        + 0.5 * rng.normal(size=(trials, seeds, requests))
    )
    interval = jax.vmap(audit.crossed_interval)(jnp.asarray(values, jnp.float32))
    covered = np.mean((interval.low <= 0) & (interval.high >= 0))
    assert covered > 0.95 - 3 * np.sqrt(0.05 * 0.95 / trials)
    naive = jax.vmap(audit.t_interval)(jnp.asarray(values.reshape(trials, -1), jnp.float32))
    assert np.mean((naive.low <= 0) & (naive.high >= 0)) < 0.7  # why it is there


def test_crossed_intervals_of_one_seed_speak_of_requests():
    values = jnp.array([[1.0, 2.0, 4.0]])
    assert audit.crossed_interval(values) == audit.t_interval(values[0])
    assert audit.crossed_interval(values.T) == audit.t_interval(values[0])
    assert np.isnan(audit.crossed_interval(jnp.ones((1, 1))).low)
    with pytest.raises(ValueError, match=r"\[seeds, requests\]"):
        audit.crossed_interval(jnp.ones(3))


def test_limits_of_shares_stay_among_shares():
    shares = np.array([[0.99, 1.0, 1.0], [0.7, 1.0, 1.0]])
    wide, cut = audit.crossed_interval(shares), audit.crossed_interval(shares, within=(0, 1))
    assert wide.high > 1 == cut.high
    assert (cut.low, cut.estimate) == (wide.low, wide.estimate)
    assert audit.crossed_interval(shares[:1], within=(0.99, 1)).low >= np.float32(0.99)
