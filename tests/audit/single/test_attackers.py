"""Attackers that are trained, the comparator score, and confusion of two classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju

RNG = np.random.default_rng(0)
comparator_score = jax.jit(ju.audit.comparator_score)


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
    found = comparator_score(candidate, reference)

    def scores(x):
        soft = np.exp(x / 2) / np.exp(x / 2).sum(1, keepdims=True)
        return -np.sum(soft * np.log(soft), axis=1), np.max(np.exp(x) / np.exp(x).sum(1, keepdims=True), axis=1)

    pairs = [(s * a, s * b) for a, b in zip(scores(candidate), scores(reference), strict=True) for s in (1, -1)]
    np.testing.assert_allclose(found.attacks, [slow_comparator(*pair) for pair in pairs], atol=1e-5)
    assert float(found.quality) == pytest.approx(1 - max(found.attacks))


def test_comparator_at_the_ends_and_bad_input():
    sure = np.tile([[30.0, 0.0, 0.0]], (4, 1))
    assert comparator_score(sure, sure).quality == 1
    assert comparator_score(0 * sure, sure).quality == 0
    assert np.isnan(comparator_score(np.nan * sure, sure).quality)
    with pytest.raises(ValueError, match="comparator_score: candidate and reference hold 4 and 3 rows"):
        ju.audit.comparator_score(sure, sure[:3])
    with pytest.raises(ValueError, match="temperature"):
        ju.audit.comparator_score(sure, sure, temperature=0.0)


def test_confusion_counts_only_swaps_of_the_two_classes():
    logits = np.eye(3)[[1, 0, 2, 0, 2]]  # predictions
    labels = np.array([0, 0, 0, 1, 2])
    assert float(ju.audit.interclass_confusion(logits, labels, (0, 1))) == pytest.approx(2 / 4)
    assert ju.audit.interclass_confusion(np.stack([logits, logits]), labels, (0, 1)).shape == (2,)
    with pytest.raises(ValueError, match="two different classes"):
        ju.audit.interclass_confusion(logits, labels, (1, 1))
    with pytest.raises(ValueError, match=r"expected logits \[..., n, c\]"):
        ju.audit.interclass_confusion(logits, labels[:3], (0, 1))
