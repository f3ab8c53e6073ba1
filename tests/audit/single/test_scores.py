"""Scores and distances of predictions, and the summaries that papers print, against hand-worked values."""

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from tests.problems import network

RNG = np.random.default_rng(0)
LOGITS, TARGETS = RNG.normal(size=(12, 4)).astype(np.float32) * 3, RNG.integers(0, 4, 12)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
Q = RNG.dirichlet(np.ones(4), 12)

confidence, entropy, modified_entropy = map(jax.jit, (ju.audit.confidence, ju.audit.entropy, ju.audit.modified_entropy))
zrf = jax.jit(ju.audit.zero_retrain_forgetting, static_argnames="reference")
margins = jax.jit(ju.audit.margins)


def test_scores_are_their_formulas():
    own = P[np.arange(12), TARGETS]
    np.testing.assert_allclose(confidence(LOGITS, TARGETS), own, rtol=1e-5)
    np.testing.assert_allclose(entropy(LOGITS), -(P * np.log(P)).sum(axis=1), rtol=1e-4, atol=1e-6)
    others = [sum(P[i, k] * np.log(1 - P[i, k]) for k in range(4) if k != TARGETS[i]) for i in range(12)]
    np.testing.assert_allclose(modified_entropy(LOGITS, TARGETS), -(1 - own) * np.log(own) - others, rtol=1e-4, atol=1e-6)


def test_scores_of_sure_predictions_are_finite():
    sure = np.float32([[1000, 0, 0, 0], [0, -1000, -1000, -1000]] * 6)
    assert np.all(np.isfinite(entropy(sure)))
    np.testing.assert_allclose(modified_entropy(sure, np.zeros(12, int)), 0, atol=1e-6)
    assert float(modified_entropy(sure, np.ones(12, int))[0]) > 900


def test_scores_keep_leading_axes():
    stacked = np.stack([LOGITS, LOGITS[::-1]])
    for score in (confidence, modified_entropy):
        np.testing.assert_allclose(score(stacked, TARGETS)[0], score(LOGITS, TARGETS), rtol=1e-6)


def test_activation_distance_and_completeness_by_hand():
    assert float(ju.audit.activation_distance(P, Q)) == pytest.approx(np.linalg.norm(P - Q, axis=1).mean(), rel=1e-5)
    assert float(ju.audit.activation_distance(P, P)) == 0
    assert float(ju.audit.completeness(P, Q)) == pytest.approx(np.mean(P.argmax(1) == Q.argmax(1)))
    assert float(ju.audit.completeness(LOGITS, P)) == 1


def test_zrf_and_what_popular_code_takes_for_it():
    m = (P + Q) / 2
    right = (P * np.log(P / m) + Q * np.log(Q / m)).sum(axis=1).mean() / 2
    popular = (m * np.log(m / P) + m * np.log(m / Q)).mean() / 2
    assert float(zrf(P, Q)) == pytest.approx(1 - right, rel=1e-5)
    assert float(zrf(P, Q, reference=True)) == pytest.approx(1 - popular, rel=1e-5)
    assert float(zrf(np.eye(4)[TARGETS], np.eye(4)[TARGETS - 1])) == pytest.approx(1 - np.log(2))


def test_layer_distances_are_those_of_the_leaves():
    first, second = network().init(jax.random.key(0)).params, network().init(jax.random.key(1)).params
    found = ju.audit.layer_distances(first, second)
    assert float(found["body"]) == pytest.approx(float(np.linalg.norm(np.asarray(first["body"] - second["body"]))), rel=1e-5)
    assert float(found["bias"]) == 0


@pytest.mark.parametrize("metric", [ju.audit.activation_distance, ju.audit.zero_retrain_forgetting, ju.audit.completeness])
def test_distances_vmap_and_refuse_by_name(metric):
    stacked = np.stack([P, Q])
    np.testing.assert_allclose(jax.vmap(metric, in_axes=(0, None))(stacked, P)[1], metric(Q, P), rtol=1e-6)
    with pytest.raises(ValueError, match=f"{metric.__name__}: expected two arrays"):
        metric(P, Q[:, :3])
    with pytest.raises(ValueError, match=f"{metric.__name__}: candidate hold NaN"):
        metric(P * np.nan, Q)
    if metric is not ju.audit.completeness:
        with pytest.raises(ValueError, match=r"sum to 1 over the last axis"):
            metric(LOGITS, P)


def test_summaries_by_hand():
    found = ju.audit.average_gap({"UA": 0.3, "RA": 0.9, "TA": 0.8}, {"UA": 0.1, "RA": 1.0, "TA": 0.8})
    assert float(found.value) == pytest.approx(0.1)
    assert {name: round(float(x), 6) for name, x in found.gaps.items()} == {"UA": 0.2, "RA": -0.1, "TA": 0.0}
    assert float(ju.audit.retention(0.3, 0.6)) == pytest.approx(0.5)
    assert float(ju.audit.symmetric_percentage_error(0.0, 0.0)) == 0
    assert float(ju.audit.symmetric_percentage_error(2.0, 6.0)) == pytest.approx(50)
    assert [float(ju.audit.indiscernibility(x)) for x in (0.5, 1.0, 0.0)] == [1, 0, 0]
    assert float(ju.audit.tug_of_war(-0.1, 0.2, 0.0)) == pytest.approx(0.9 * 0.8)
    assert float(ju.audit.adaptive_unlearning_score(0.9, 0.8, 0.6)) == pytest.approx(0.9 / 1.2)
    assert float(ju.audit.nomus(0.8, 0.75, weight=0.25)) == pytest.approx(0.25 * 0.8 + 0.75 * 0.5)
    assert float(ju.audit.privacy_leak(0.4, 0.5)) == pytest.approx(20)
    assert float(ju.audit.anamnesis_index(0.0, 0.99)) == pytest.approx(0.01)


def test_summaries_take_arrays_and_an_average_needs_equal_names():
    np.testing.assert_allclose(ju.audit.tug_of_war(np.array([0.0, 1.0]), np.zeros(2), np.zeros(2)), [1, 0])
    with pytest.raises(ValueError, match="average_gap: candidate names"):
        ju.audit.average_gap({"UA": 0.1}, {"RA": 0.1})


def test_margins_are_the_log_odds_of_the_true_class():
    logits = RNG.normal(size=(3, 4, 5))
    targets = np.array([0, 4, 2, 2])
    p = np.take_along_axis(
        np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), np.broadcast_to(targets, (3, 4))[..., None], -1
    )
    np.testing.assert_allclose(margins(logits, targets), np.log(p / (1 - p))[..., 0], rtol=1e-5)


def test_margins_do_not_saturate():
    np.testing.assert_allclose(margins(np.float32([[200, 0], [300, 0]]), np.array([0, 0])), [200, 300])


def test_bad_margins_are_refused():
    with pytest.raises(ValueError, match="at least two classes"):
        ju.audit.margins(np.ones((3, 1)), np.zeros(3, int))
    with pytest.raises(ValueError, match="integer classes"):
        ju.audit.margins(np.ones((3, 2)), np.zeros(3))
    with pytest.raises(ValueError, match="do not fit logits"):
        ju.audit.margins(np.ones((3, 2)), np.zeros(2, int))
