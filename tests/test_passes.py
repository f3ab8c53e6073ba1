"""What a training pass leaves behind."""

import jax
import jax.numpy as jnp
import pytest

import jaxunlearn as ju
from jaxunlearn import passes
from tests.problems import blobs, linear_regression, network, normalized_network

KEY = jax.random.key(1)
PART = ju.Weighted(blobs(5).train, jnp.ones(5), jnp.arange(5))


@pytest.mark.parametrize("bn", ["frozen", "retain", "all", "evaluate"])
@pytest.mark.parametrize("side", ["forget", "retain"])
def test_state_moves_where_the_policy_says(bn, side):
    model = normalized_network()
    variables = model.init(jax.random.key(0))
    _, moved = passes.train_pass(model, variables, PART, KEY, side=side, bn=bn)
    assert int(moved.state["count"]) == int(bn in ("all", side) or (bn, side) == ("evaluate", "retain"))
    _, unmoved = passes.train_pass(model, variables, PART._replace(weights=jnp.zeros(5)), KEY, side=side, bn=bn)
    assert int(unmoved.state["count"]) == 0


def test_the_forget_side_may_be_seen_as_it_is_evaluated():
    model = normalized_network()
    variables = model.init(jax.random.key(0))
    evaluated = ju.losses.cross_entropy(model.forward(variables, PART.examples.inputs), PART.examples)
    for bn, side, equal in (("evaluate", "forget", True), ("retain", "forget", False), ("evaluate", "retain", False)):
        found, _ = passes.train_pass(model, variables, PART, KEY, side=side, bn=bn)
        assert bool(jnp.allclose(found.losses, evaluated)) == equal
    with pytest.raises(ValueError, match="bn must be one of frozen, retain, all, evaluate, got 'eval'"):
        passes.train_pass(model, variables, PART, KEY, side="forget", bn="eval")


def test_reduced_losses_and_lost_states_are_refused():
    reduced = network()._replace(loss=lambda outputs, examples: ju.losses.cross_entropy(outputs, examples).mean())
    with pytest.raises(ValueError, match="one value per row"):
        passes.train_pass(reduced, network().init(jax.random.key(0)), PART, KEY, side="retain", bn="retain")
    model = normalized_network()
    forward = model.forward
    forgetful = model._replace(forward=lambda v, x, *, train=False, key=None: forward(v, x, train=train)._replace(state=()))
    with pytest.raises(ValueError, match=r"Outputs\.state"):
        passes.train_pass(forgetful, model.init(jax.random.key(0)), PART, KEY, side="retain", bn="retain")


def test_the_penalty_is_the_models_regularizer():
    params = {"w": jnp.arange(4.0)}
    assert float(passes.penalty(linear_regression(0.5), params)) == 0.25 * 14
    assert passes.penalty(network(), params) == 0
