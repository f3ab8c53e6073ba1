"""Phases, objectives and limits of SCRUB; and that it and gradient difference unlearn a class."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import KEY, MODEL, VARIABLES, answer, batch_of, stepped, sweep_equals_single_runs
from tests.problems import blobs, distance, lane

LONG = {"num_steps": 14}
DEFAULTS = {"forget_steps": 1, "retain_steps": 1, "forget_epochs": 3, "alpha": 0.5, "gamma": 1.0, "temperature": 2.0}


def scrub(steps=6, **settings):
    """One compiled program for all of its settings."""
    return answer("scrub", steps=steps, static=LONG, **{**DEFAULTS, **settings})


def test_it_alternates_as_its_schedule_says():
    result = scrub(14, forget_steps=2, retain_steps=3, forget_epochs=2)
    assert result.stats["phase"].tolist() == [1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_without_forget_phase_and_distillation_it_is_finetuning():
    plain = scrub(alpha=0.0, gamma=1.0, forget_epochs=0)
    assert distance(plain.variables, answer("finetune").variables) < 1e-6
    silent = scrub(alpha=1.0, gamma=0.0, forget_epochs=0)
    assert distance(silent.variables, VARIABLES) < 1e-6  # the student already equals its teacher


def test_the_first_forget_step_stands_on_a_saddle_and_later_ones_climb():
    # KL(teacher || student) has zero gradient where they are equal: the paper's reason to alternate.
    assert distance(scrub(1, forget_epochs=1).variables, VARIABLES) < 1e-6
    result = scrub(12, forget_steps=2, retain_steps=1, forget_epochs=4)
    climbed = result.stats["distance"][:12][result.stats["phase"][:12] == 1]
    assert float(climbed[0]) == pytest.approx(0, abs=1e-6)
    assert float(climbed[-1]) > float(climbed[2]) > 0


def test_it_follows_its_two_objectives():
    nudged = jax.tree.map(lambda x: x + 0.3, VARIABLES)
    alpha, gamma, temperature = 0.4, 0.8, 3.0
    method = ju.scrub(MODEL, optax.sgd(0.1), alpha=alpha, gamma=gamma, temperature=temperature)
    step_once = jax.jit(method.step)

    def distance_to_teacher(params, inputs):
        teacher = MODEL.forward(VARIABLES, inputs).logits / temperature
        student = MODEL.forward(ju.Variables(params), inputs).logits / temperature
        gap = jax.nn.log_softmax(teacher) - jax.nn.log_softmax(student)
        return temperature**2 * jnp.mean(jnp.sum(jax.nn.softmax(teacher) * gap, -1))

    for step, forgets in ((0, True), (1, False)):
        context, state, batch = batch_of(method, step=step, sizes=(4, 4))
        after, stats = step_once(state._replace(variables=nudged), context, batch, KEY)
        part = (batch.forget if forgets else batch.retain).examples

        def loss(params, part=part, forgets=forgets):
            kl = distance_to_teacher(params, part.inputs)
            task = jnp.mean(ju.losses.cross_entropy(MODEL.forward(ju.Variables(params), part.inputs), part))
            return -kl if forgets else alpha * kl + gamma * task

        assert int(stats["phase"]) == forgets
        value, expected = stepped(nudged.params, loss)
        assert distance(after.variables.params, expected) < 1e-5
        assert float(stats["loss"]) == pytest.approx(value, rel=1e-4)


def test_a_sweep_over_every_setting_equals_single_runs():
    sweep_equals_single_runs(
        "scrub", static=LONG, alpha=[0.5, 1.0], gamma=[1.0, 1.0], temperature=[2.0, 3.0],
        forget_steps=[1, 2], retain_steps=[1, 1], forget_epochs=[2, 1],
    )  # fmt: skip


def test_a_forgotten_class_is_unlearned_and_the_others_are_kept():
    data = blobs(300, seed=4)
    train = ju.iterate(ju.retrain(MODEL, optax.sgd(0.3)), num_steps=400, batch_size=32)
    trained = jax.jit(train)(MODEL.init(KEY), data, ju.empty_request(), KEY).variables
    request = lane(ju.from_classes(data, [[1]]), 0)
    forgotten = np.asarray(data.train.targets) == 1

    def accuracies(variables):
        right = np.asarray(jnp.argmax(MODEL.forward(variables, data.train.inputs).logits, -1) == data.train.targets)
        return right[forgotten].mean(), right[~forgotten].mean()

    before_forget, before_retain = accuracies(trained)
    assert before_forget > 0.9
    methods = (
        ju.gradient_difference(MODEL, optax.sgd(0.1), alpha=0.8),
        ju.scrub(MODEL, optax.sgd(0.1), forget_epochs=50),
    )
    for method in methods:
        result = jax.jit(ju.iterate(method, num_steps=200, batch_size=32))(trained, data, request, KEY)
        forget, retain = accuracies(result.variables)
        assert forget < 0.1, method
        assert retain > before_retain - 0.05, method
