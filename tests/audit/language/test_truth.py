"""TOFU's measures against loops, SciPy and the two published definitions."""

import jax
import numpy as np
import pytest
from scipy import stats

import jaxunlearn as ju

language = ju.audit.language


QUALITY = jax.jit(language.forget_quality)


def answers(seed=0, questions=6, wrong=5):
    rng = np.random.default_rng(seed)
    return -rng.gamma(2, size=questions).astype(np.float32), -rng.gamma(3, size=(questions, wrong)).astype(np.float32)


@jax.jit
def measures(right, wrong):
    ratios = [language.truth_ratio(right, wrong, definition=name) for name in ("tofu", "paper", "open-unlearning")]
    scores = [language.truth_score(ratios[0], forget=forget) for forget in (True, False)]
    return ratios, language.choice_probability(right, wrong), scores


def test_truth_ratios_follow_their_three_definitions():
    right, wrong = answers()
    p, q = np.exp(right.astype(np.float64)), np.exp(wrong.astype(np.float64))
    geometric = np.exp(np.log(q).mean(1))
    ratios, choice, scores = measures(right, wrong)
    for found, expected in zip(ratios, (geometric / p, q.mean(1) / p, geometric / (p + 1e-10)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(choice, p / (p + q.sum(1)), rtol=1e-5)
    r = geometric / p
    np.testing.assert_allclose(scores, [np.minimum(r, 1 / r).mean(), np.maximum(0, 1 - r).mean()], rtol=1e-5)


def test_wrong_answers_and_rows_of_weight_0_may_hold_anything():
    right, wrong = answers()
    more, weights = np.pad(wrong, ((0, 0), (0, 2)), constant_values=np.nan), np.arange(7) < 5
    for definition in ("tofu", "paper", "open-unlearning"):
        np.testing.assert_allclose(
            language.truth_ratio(right, more, weights, definition=definition),
            language.truth_ratio(right, wrong, definition=definition), rtol=1e-6,
        )  # fmt: skip
    np.testing.assert_allclose(
        language.choice_probability(right, more, weights), language.choice_probability(right, wrong), rtol=1e-6
    )
    ratios = np.array([0.5, 0.8, np.nan], np.float32)
    assert float(language.truth_score(ratios, np.array([1, 1, 0]), forget=True)) == pytest.approx(0.65)


@pytest.mark.parametrize(("n", "m", "shift"), [(7, 11, 0.3), (40, 40, 3.0), (12, 5, 0.0)])
def test_forget_quality_is_the_exact_test_of_scipy_padded_or_not(n, m, shift):
    rng = np.random.default_rng(n)
    first, second = rng.normal(size=n).astype(np.float32), rng.normal(size=m).astype(np.float32) + np.float32(shift)
    first[0] = second[0]  # a tie
    expected = stats.ks_2samp(first, second, method="exact")
    pads = np.pad(first, (0, 3), constant_values=np.nan), np.pad(second, (0, 2), constant_values=np.nan)
    weights = np.arange(n + 3) < n, np.arange(m + 2) < m
    whole = np.ones(n, bool), np.ones(m, bool)
    for found in (QUALITY(first, second, *whole), QUALITY(*pads, *weights)):
        assert float(found.statistic) == pytest.approx(expected.statistic, rel=1e-6)
        assert float(found.p_value) == pytest.approx(expected.pvalue, rel=1e-5)


def test_forget_quality_of_many_models_and_of_broken_ones():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(3, 6)).astype(np.float32), rng.normal(size=(3, 6)).astype(np.float32)
    many = jax.jit(jax.vmap(language.forget_quality))(first, second)
    for place in range(3):
        assert float(many.p_value[place]) == pytest.approx(
            stats.ks_2samp(first[place], second[place], method="exact").pvalue, rel=1e-5
        )
    assert np.isnan(language.forget_quality(np.array([np.nan, 1.0]), np.ones(2)).p_value)
    assert float(language.forget_quality(np.ones(3), np.ones(3)).p_value) == 1
    with pytest.raises(ValueError, match="counts paths"):
        language.forget_quality(np.zeros(10_001), np.zeros(3))


def test_model_utility_is_a_harmonic_mean():
    values = np.random.default_rng(0).uniform(0.1, 1, (4, 9)).astype(np.float32)
    np.testing.assert_allclose(language.model_utility(values), stats.hmean(values, axis=1), rtol=1e-6)
    assert float(language.model_utility(np.array([0.0, 1.0]))) == 0
    assert np.isnan(language.model_utility(np.array([np.nan, 0.0])))


def test_other_definitions_and_shapes_are_refused():
    right, wrong = answers()
    with pytest.raises(ValueError, match="definition must be"):
        language.truth_ratio(right, wrong, definition="mine")
    with pytest.raises(ValueError, match="to the same questions"):
        language.truth_ratio(right, wrong[1:])
