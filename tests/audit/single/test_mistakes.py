"""Confusion, missed rows and costs, against counts by hand and against the accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju

RNG = np.random.default_rng(0)
LOGITS, TARGETS = RNG.normal(size=(50, 4)).astype(np.float32), RNG.integers(0, 3, 50).astype(np.int32)  # no row of class 3
WEIGHTS = (RNG.random(50) < 0.6).astype(np.float32)


def test_counts_are_those_by_hand_and_ignored_rows_may_hold_anything():
    spoiled = np.where(WEIGHTS[:, None] > 0, LOGITS, np.nan)
    labels = np.where(WEIGHTS > 0, TARGETS, 99)
    found = ju.audit.confusion_matrix(spoiled, labels, WEIGHTS)
    expected = np.zeros((4, 4))
    np.add.at(expected, (TARGETS[WEIGHTS > 0], LOGITS.argmax(1)[WEIGHTS > 0]), 1)
    np.testing.assert_array_equal(found, expected)
    missed = np.asarray(ju.audit.false_negative_rates(spoiled, labels, WEIGHTS))
    np.testing.assert_allclose(missed[:3], 1 - np.diag(expected)[:3] / expected[:3].sum(1), rtol=1e-6)
    assert np.isnan(missed[3])


def test_equal_costs_are_one_minus_the_accuracy_and_a_missed_class_costs_what_was_said():
    accuracy = ju.audit.accuracy(jnp.asarray(LOGITS), jnp.asarray(TARGETS), jnp.asarray(WEIGHTS))
    plain = ju.audit.expected_cost(LOGITS, TARGETS, ju.audit.error_costs(4, {}), WEIGHTS)
    assert float(plain) == pytest.approx(1 - float(accuracy), abs=1e-6)
    share = WEIGHTS[TARGETS == 1].sum() / WEIGHTS.sum()
    dear = jax.jit(ju.audit.expected_cost)(LOGITS, TARGETS, ju.audit.error_costs(4, {1: 10.0}), WEIGHTS)
    missed = ju.audit.false_negative_rates(LOGITS, TARGETS, WEIGHTS)[1]
    assert float(dear - plain) == pytest.approx(9 * share * float(missed), rel=1e-5)


def test_a_broken_model_and_an_empty_set_are_unknown():
    broken = LOGITS.copy()
    broken[3, 2] = np.nan
    assert np.isnan(ju.audit.confusion_matrix(broken, TARGETS)).all()
    assert np.isnan(ju.audit.expected_cost(broken, TARGETS, np.ones((4, 4))))
    assert np.isnan(ju.audit.expected_cost(LOGITS, TARGETS, np.ones((4, 4)), np.zeros(50)))


@pytest.mark.parametrize("shape", [(50,), (50, 1)])
def test_one_logit_is_that_of_class_one(shape):
    score, labels = LOGITS[:, 0].reshape(shape), TARGETS % 2
    both = ju.audit.confusion_matrix(np.stack([0 * LOGITS[:, 0], LOGITS[:, 0]], axis=1), labels)
    np.testing.assert_array_equal(ju.audit.confusion_matrix(jnp.asarray(score, jnp.bfloat16), labels), both)


def test_many_models_are_one_vmap_away():
    stacked = np.stack([LOGITS, -LOGITS])
    many = jax.vmap(ju.audit.false_negative_rates, (0, None))(stacked, TARGETS)
    np.testing.assert_allclose(many[1], ju.audit.false_negative_rates(-LOGITS, TARGETS), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ju.audit.confusion_matrix(LOGITS[None], TARGETS), "use jax.vmap"),
        (lambda: ju.audit.confusion_matrix(LOGITS, TARGETS + 3), "labels"),
        (lambda: ju.audit.confusion_matrix(LOGITS, TARGETS.astype(np.float32)), "integer labels"),
        (lambda: ju.audit.expected_cost(LOGITS, TARGETS, np.ones((3, 3))), "true class by predicted class"),
        (lambda: ju.audit.expected_cost(LOGITS, TARGETS, np.full((4, 4), np.inf)), "infinite"),
        (lambda: ju.audit.error_costs(3, {3: 2.0}), "classes 0 to 2"),
        (lambda: ju.audit.error_costs(3, {0: -1.0}), "finite costs"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
