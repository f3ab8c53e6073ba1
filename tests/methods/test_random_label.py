"""Which labels are drawn, and what is descended on."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import sampling
from jaxunlearn.methods.random_label import wrong_labels
from tests.methods.runs import (
    DATA,
    KEY,
    MODEL,
    REQUEST,
    ROWS,
    VARIABLES,
    answer,
    descended,
    forget_losses,
    one_step,
    sweep_equals_single_runs,
)
from tests.problems import distance, lane


def test_with_all_weight_on_the_retain_set_it_is_finetuning():
    assert distance(answer("random_label", alpha=1.0).variables, answer("finetune").variables) < 1e-6


def test_wrong_labels_are_uniform_over_what_is_left():
    slots = jnp.arange(6000)
    labels = slots % 5
    excluded = jnp.array([False, True, False, False, False])
    drawn = np.asarray(wrong_labels(KEY, slots, labels, excluded))
    for own in range(5):
        counts = np.bincount(drawn[np.asarray(labels) == own], minlength=5)
        allowed = [c for c in range(5) if c not in (own, 1)]
        assert counts.sum() == counts[allowed].sum() == 1200
        expected = 1200 / len(allowed)
        assert np.all(np.abs(counts[allowed] - expected) < 5 * np.sqrt(expected))
    # A slot keeps its label whatever else is in the batch; with nothing left excluded classes come back.
    again = wrong_labels(KEY, slots[100:107], labels[100:107], excluded)
    assert again.tolist() == drawn[100:107].tolist()
    two = wrong_labels(KEY, jnp.arange(50), jnp.arange(50) % 2, jnp.array([True, True]))
    assert two.tolist() == (1 - np.arange(50) % 2).tolist()


def test_it_descends_on_the_labels_it_drew_once():
    method = ju.random_label(MODEL, optax.sgd(0.1), alpha=0.3)
    params, batch, stats = one_step(method)
    retained = batch.retain.examples
    context, _ = method.init(VARIABLES, DATA, REQUEST, KEY)
    order = jnp.argsort(batch.forget.slots)
    labels = wrong_labels(context[0], batch.forget.slots, batch.forget.examples.targets, jnp.zeros(3, bool))[order]
    assert not jnp.any(labels == DATA.train.targets[jnp.array(ROWS)])

    def loss(params):
        outputs = MODEL.forward(ju.Variables(params), retained.inputs)
        return 0.3 * jnp.mean(ju.losses.cross_entropy(outputs, retained)) + 0.7 * jnp.mean(forget_losses(params, labels))

    assert distance(params, descended(VARIABLES.params, loss)) < 1e-6
    assert float(stats["relabelled_loss"]) == pytest.approx(float(jnp.mean(forget_losses(VARIABLES.params, labels))), rel=1e-5)


def test_labels_are_drawn_once_or_in_every_step():
    # A batch holds the whole request, so that nothing but the labels can change from step to step.
    assert np.ptp(answer("random_label", alpha=0.0, rate=0.0).stats["relabelled_loss"]) < 1e-6
    assert np.ptp(answer("random_label", alpha=0.0, rate=0.0, static={"redraw": True}).stats["relabelled_loss"]) > 1e-3


def test_the_classes_that_are_to_go_are_avoided():
    request = lane(ju.from_classes(DATA, [[0, 2]]), 0)
    assert sampling.forgotten_classes(request.target, 5).tolist() == [True, False, True, False, False]
    assert not sampling.forgotten_classes((), 3).any()
    with pytest.raises(ValueError, match="names 3 classes, but the model has 2 logits"):
        sampling.forgotten_classes(request.target, 2)


def test_both_terms_take_turns():
    two = answer("random_label", alpha=0.3, steps=2, static={"turns": (1, 1)})
    first = answer("random_label", alpha=0.3, steps=1, static={"turns": (1, 1)}).variables
    assert two.stats["phase"].tolist()[:2] == [1, 0]
    wrong_only = answer("random_label", alpha=0.0, steps=1, rate=0.07).variables  # of the rate, its weight 0.7
    assert distance(first, wrong_only) < 1e-7
    method = ju.random_label(MODEL, optax.sgd(0.1), alpha=0.3, turns=(1, 1))
    _, batch, stats = one_step(method, step=1)
    retained = batch.retain.examples
    outputs = MODEL.forward(VARIABLES, retained.inputs)
    assert float(stats["loss"]) == pytest.approx(0.3 * float(jnp.mean(ju.losses.cross_entropy(outputs, retained))), rel=1e-5)
    assert float(two.stats["visited"]) == 1
    half = answer("random_label", steps=3, static={"turns": (1, 5), "batch_size": 2})
    assert float(half.stats["visited"]) == 0.5  # what is drawn in a retain step is not read
    with pytest.raises(ValueError, match="retain_steps must be an integer of at least 1, got 0"):
        ju.random_label(MODEL, optax.sgd(0.1), turns=(1, 0))


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("random_label", alpha=[0.2, 0.6])
