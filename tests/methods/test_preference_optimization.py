"""The damping of pairs by hand, its limits, and where it is `npo`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import KEY, MODEL, VARIABLES, descended, forget_losses, one_step
from tests.problems import distance, other_label

NUDGED = jax.tree.map(lambda x: x - 0.4, VARIABLES)
OTHERS = other_label(ju.Examples((), jnp.array([0])), KEY)


def method(beta, retain_weight=0.0, refusals=other_label):
    return ju.preference_optimization(MODEL, optax.sgd(0.1), refusals=refusals, beta=beta, retain_weight=retain_weight)


def losses(params, rows):
    return ju.losses.cross_entropy(MODEL.forward(ju.Variables(params), rows.inputs), rows)


def by_hand(params, batch, beta, damped=True):
    """Parameters after a step of descent on refusals and ascent on rows, each pair damped."""
    rows, refused = batch.forget.examples, other_label(batch.forget.examples, KEY)

    def gain(rows):
        return losses(VARIABLES.params, rows) - losses(params, rows)

    margin = gain(refused) - gain(rows)
    damping = 2 / (1 + jnp.exp(beta * margin)) if damped else 1
    return descended(params, lambda p: jnp.mean(damping * (losses(p, refused) - losses(p, rows)))), margin


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_first_step_is_descent_and_ascent_whatever_beta_is(beta):
    params, batch, _ = one_step(method(beta))
    assert distance(params, by_hand(VARIABLES.params, batch, beta, damped=False)[0]) < 1e-6


@pytest.mark.parametrize("beta", [1.5, 1e-5])
def test_a_pair_is_damped_by_how_far_it_is_settled(beta):
    params, batch, stats = one_step(method(beta), NUDGED)
    expected, margin = by_hand(NUDGED.params, batch, beta)
    assert distance(params, expected) < 1e-5
    assert float(stats["margin"]) == pytest.approx(float(margin.mean()), rel=1e-4)
    undamped = by_hand(NUDGED.params, batch, beta, damped=False)[0]
    assert (distance(params, undamped) < 1e-5) == (beta < 1e-3)  # `beta -> 0`
    assert np.ptp(margin) > 0.1


def test_with_refusals_that_no_model_can_learn_it_is_npo():
    """Inputs of zeros and a loss that is the same for all parameters: log-ratios of 0."""

    def loss(outputs, examples):
        return jnp.where(examples.targets >= 3, 1.0, ju.losses.cross_entropy(outputs, examples))

    model = MODEL._replace(loss=loss)
    settled = ju.preference_optimization(
        model, optax.sgd(0.1), refusals=lambda rows, key: rows._replace(targets=rows.targets + 3), beta=0.7, retain_weight=2.0
    )
    ours, theirs = (one_step(x, NUDGED)[0] for x in (settled, ju.npo(model, optax.sgd(0.1), beta=0.7, retain_weight=2.0)))
    assert distance(ours, theirs) < 1e-6
    assert forget_losses(VARIABLES.params).shape == (4,)


@pytest.mark.parametrize("setting", ["beta", "retain_weight"])
def test_what_is_no_number_is_named(setting):
    with pytest.raises(TypeError, match=f"{setting} must be a number in .*, got None"):
        ju.preference_optimization(MODEL, optax.sgd(0.1), refusals=other_label, **{setting: None})
