"""A student and its two teachers."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import DATA, KEY, MODEL, REQUEST, VARIABLES, answer, descended, one_step, sweep_equals_single_runs
from tests.problems import distance

ITSELF = MODEL._replace(init=lambda key: VARIABLES)


def test_nothing_changes_where_the_student_equals_its_teachers():
    assert distance(answer("bad_teacher", alpha=1.0).variables, VARIABLES) < 1e-6
    assert distance(answer("bad_teacher", alpha=0.5, static={"model": ITSELF}).variables, VARIABLES) < 1e-6


def test_it_follows_its_two_teachers():
    nudged = jax.tree.map(lambda x: x + 0.3, VARIABLES)
    method = ju.bad_teacher(MODEL, optax.sgd(0.1), alpha=0.3, temperature=2.0)
    params, batch, _ = one_step(method, nudged)
    (_, incompetent), _ = method.init(VARIABLES, DATA, REQUEST, KEY)
    assert distance(incompetent, VARIABLES) > 0.1

    def kl(teacher, params, inputs):
        target = jax.nn.log_softmax(MODEL.forward(teacher, inputs).logits / 2)
        student = jax.nn.log_softmax(MODEL.forward(ju.Variables(params), inputs).logits / 2)
        return 4 * jnp.mean(jnp.sum(jnp.exp(target) * (target - student), -1))

    def loss(params):
        retained = kl(VARIABLES, params, batch.retain.examples.inputs)
        return 0.3 * retained + 0.7 * kl(incompetent, params, batch.forget.examples.inputs)

    assert distance(params, descended(nudged.params, loss)) < 1e-6


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("bad_teacher", alpha=[0.5, 0.4], temperature=[1.0, 2.0])
