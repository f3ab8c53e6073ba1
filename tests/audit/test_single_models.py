"""Metrics of single models: hand-worked values, slow twins, limits, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.problems import blobs, lane, network

RNG = np.random.default_rng(0)
LOGITS, TARGETS = RNG.normal(size=(12, 4)).astype(np.float32) * 3, RNG.integers(0, 4, 12)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
Q = RNG.dirichlet(np.ones(4), 12)


# Scores


def test_scores_are_their_formulas():
    own = P[np.arange(12), TARGETS]
    np.testing.assert_allclose(ju.audit.confidence(LOGITS, TARGETS), own, rtol=1e-5)
    np.testing.assert_allclose(ju.audit.entropy(LOGITS), -(P * np.log(P)).sum(axis=1), rtol=1e-4, atol=1e-6)
    others = [sum(P[i, k] * np.log(1 - P[i, k]) for k in range(4) if k != TARGETS[i]) for i in range(12)]
    np.testing.assert_allclose(
        ju.audit.modified_entropy(LOGITS, TARGETS), -(1 - own) * np.log(own) - others, rtol=1e-4, atol=1e-6
    )


def test_scores_of_sure_predictions_are_finite():
    sure = jnp.array([[1000.0, 0, 0], [0, -1000.0, -1000.0]])
    assert np.all(np.isfinite(ju.audit.entropy(sure)))
    np.testing.assert_allclose(ju.audit.modified_entropy(sure, jnp.array([0, 0])), 0, atol=1e-6)
    assert float(ju.audit.modified_entropy(sure, jnp.array([1, 0]))[0]) > 900


def test_scores_keep_leading_axes():
    stacked = np.stack([LOGITS, LOGITS[::-1]])
    for score in (ju.audit.confidence, ju.audit.modified_entropy):
        np.testing.assert_allclose(score(stacked, TARGETS)[0], score(LOGITS, TARGETS), rtol=1e-6)


# Distances


def test_activation_distance_and_completeness_by_hand():
    assert float(ju.audit.activation_distance(P, Q)) == pytest.approx(np.linalg.norm(P - Q, axis=1).mean(), rel=1e-5)
    assert float(ju.audit.activation_distance(P, P)) == 0
    assert float(ju.audit.completeness(P, Q)) == pytest.approx(np.mean(P.argmax(1) == Q.argmax(1)))
    assert float(ju.audit.completeness(LOGITS, P)) == 1


def test_zrf_and_what_popular_code_takes_for_it():
    m = (P + Q) / 2
    right = (P * np.log(P / m) + Q * np.log(Q / m)).sum(axis=1).mean() / 2
    popular = (m * np.log(m / P) + m * np.log(m / Q)).mean() / 2
    assert float(ju.audit.zero_retrain_forgetting(P, Q)) == pytest.approx(1 - right, rel=1e-5)
    assert float(ju.audit.zero_retrain_forgetting(P, Q, reference=True)) == pytest.approx(1 - popular, rel=1e-5)
    assert float(ju.audit.zero_retrain_forgetting(jnp.eye(2), jnp.eye(2)[::-1])) == pytest.approx(1 - np.log(2))


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


# Summaries


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


# Attackers


def test_attackers_find_what_is_there():
    high, low = RNG.normal(3, 0.3, 100), RNG.normal(-3, 0.3, 100)
    asked = np.concatenate([high[:30], low[:10]])
    assert ju.audit.svc_efficacy(high, low, asked) == pytest.approx(0.25)
    assert ju.audit.svc_efficacy(high[:, None] * [1, 2], low[:, None] * [1, 2], asked[:, None] * [1, 2]) == pytest.approx(0.25)
    assert ju.audit.entropy_attack(low, high, asked) == pytest.approx(0.25)
    assert ju.audit.loss_attack_accuracy(low, high) == 1


def test_attackers_find_nothing_where_nothing_is():
    members, others, asked = RNG.normal(size=(3, 400))
    assert ju.audit.svc_efficacy(members, others, asked) == pytest.approx(0.5, abs=0.25)
    assert ju.audit.loss_attack_accuracy(members, others) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(800))


def test_attackers_refuse_by_name_and_inside_jit():
    with pytest.raises(ValueError, match="svc_efficacy: as many members as non-members are needed, got 3 and 2"):
        ju.audit.svc_efficacy(np.ones(3), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="loss_attack_accuracy needs at least 10 rows"):
        ju.audit.loss_attack_accuracy(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="entropy_attack: group 0 hold NaN"):
        ju.audit.entropy_attack(np.full(3, np.nan), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match=r"svc_efficacy: expected \[rows\]"):
        ju.audit.svc_efficacy(np.ones((3, 2)), np.ones((3, 1)), np.ones((3, 2)))
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(ju.audit.svc_efficacy)(jnp.ones(3), jnp.ones(3), jnp.ones(3))


# Confusion and relearning


def test_confusion_counts_only_swaps_of_the_two_classes():
    logits = jnp.eye(3)[jnp.array([1, 0, 2, 0, 2])]  # predictions
    labels = np.array([0, 0, 0, 1, 2])
    assert float(ju.audit.interclass_confusion(logits, labels, (0, 1))) == pytest.approx(2 / 4)
    assert ju.audit.interclass_confusion(jnp.stack([logits, logits]), labels, (0, 1)).shape == (2,)
    with pytest.raises(ValueError, match="two different classes"):
        ju.audit.interclass_confusion(logits, labels, (1, 1))
    with pytest.raises(ValueError, match=r"expected logits \[..., n, c\]"):
        ju.audit.interclass_confusion(logits, labels[:3], (0, 1))


@pytest.fixture(scope="module")
def relearn():
    data, model = blobs(), network()
    request = lane(ju.from_indices(data, [range(10)]), 0)

    def run(variables, target, data=data):
        return ju.audit.relearn_time(
            model, variables, data, request, optax.sgd(0.3), jax.random.key(1), target=target, rounds=30, batch_size=10
        )

    return data, model.init(jax.random.key(0)), jax.jit(run)


def test_relearning_counts_rounds_to_the_target(relearn):
    _, variables, run = relearn
    found = run(variables, 0.9)
    accuracies = np.asarray(found.accuracies)
    assert bool(found.reached)
    assert accuracies[int(found.rounds)] >= 0.9
    assert np.all(accuracies[: int(found.rounds)] < 0.9)
    assert float(run(variables, 0.0).rounds) == 0


def test_a_target_that_is_not_reached_is_said_to_be(relearn):
    _, variables, run = relearn
    found = run(variables, 1.1)
    assert not bool(found.reached)
    assert float(found.rounds) == 30


def test_relearning_reads_forgotten_rows_only(relearn):
    data, variables, run = relearn
    rows = jnp.arange(data.present.shape[0]) < 10
    broken = data._replace(train=data.train._replace(inputs=jnp.where(rows[:, None], data.train.inputs, jnp.nan)))
    np.testing.assert_allclose(run(variables, 0.9, broken).accuracies, run(variables, 0.9).accuracies)


# Comparator score


def slow_comparator(candidate, reference):
    best = 0.0
    for t in np.concatenate([candidate, reference]):
        missed, wrong = np.mean(candidate < t), np.mean(reference >= t)
        if missed == wrong == 0:
            return 1.0
        shares = [((1 - wrong), missed), ((1 - missed), wrong)]
        ratios = [np.log(right / error) for right, error in shares if right and error]
        if len(ratios) == 2 or ((missed == 0 or wrong == 0) and ratios):
            best = max(best, 1 - 2 ** -max(0.0, min(ratios)))
    return best


def test_comparator_equals_a_search_over_thresholds():
    candidate, reference = RNG.normal(size=(40, 5)), 1.5 * RNG.normal(size=(40, 5))
    found = jax.jit(ju.audit.comparator_score)(candidate, reference)

    def scores(x):
        soft = np.exp(x / 2) / np.exp(x / 2).sum(1, keepdims=True)
        return -np.sum(soft * np.log(soft), axis=1), np.max(np.exp(x) / np.exp(x).sum(1, keepdims=True), axis=1)

    pairs = [(s * a, s * b) for a, b in zip(scores(candidate), scores(reference), strict=True) for s in (1, -1)]
    np.testing.assert_allclose(found.attacks, [slow_comparator(*pair) for pair in pairs], atol=1e-5)
    assert float(found.quality) == pytest.approx(1 - max(found.attacks))


def test_comparator_at_the_ends_and_bad_input():
    sure = np.tile([[30.0, 0.0, 0.0]], (4, 1))
    assert ju.audit.comparator_score(sure, sure).quality == 1
    assert ju.audit.comparator_score(0 * sure, sure).quality == 0
    assert np.isnan(jax.jit(ju.audit.comparator_score)(np.nan * sure, sure).quality)
    with pytest.raises(ValueError, match="comparator_score: candidate and reference hold 4 and 3 rows"):
        ju.audit.comparator_score(sure, sure[:3])
    with pytest.raises(ValueError, match="temperature"):
        ju.audit.comparator_score(sure, sure, temperature=0.0)
