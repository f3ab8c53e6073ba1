"""Which parameters are salient, and that the others stay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.transforms import saliency_mask
from tests.methods.runs import DATA, MODEL, ROWS, VARIABLES, answer
from tests.problems import distance

DECAYING = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9))


def test_all_parameters_salient_is_random_labelling():
    whole = answer("salun", static={"optimizer": DECAYING, "fraction": 1.0})
    plain = answer("random_label", static={"optimizer": DECAYING})
    assert distance(whole.variables, plain.variables) < 1e-7  # two programs round in their own ways


def test_half_of_the_parameters_stay_to_the_bit_under_momentum_and_weight_decay():
    result = ju.check(answer("salun", static={"optimizer": DECAYING, "fraction": 0.5}))
    same = [np.asarray(a == b) for a, b in zip(*map(jax.tree.leaves, (result.variables.params, VARIABLES.params)), strict=True)]
    total = sum(x.size for x in same)
    assert sum(x.sum() for x in same) == total - total // 2
    rows = jnp.zeros(60).at[jnp.array(ROWS)].set(1)
    mask = jax.jit(lambda rows: saliency_mask(ju.curvature.gradient_sum(MODEL, VARIABLES, DATA.train, rows), 0.5))(rows)
    for stays, salient in zip(same, jax.tree.leaves(mask), strict=True):
        np.testing.assert_array_equal(stays, np.asarray(salient) == 0)


def test_masks_have_exactly_their_share_and_ties_are_taken_in_order():
    gradient = {"a": jnp.zeros(5), "b": jnp.array([0.0, -2.0])}
    mask = saliency_mask(gradient, 0.5)
    assert mask["a"].tolist() == [1, 1, 0, 0, 0]
    assert mask["b"].tolist() == [0, 1]
    assert not any(jnp.any(x) for x in jax.tree.leaves(saliency_mask(gradient, 0.0)))
    with pytest.raises(ValueError, match="fraction must lie in"):
        saliency_mask(gradient, 1.5)


@pytest.mark.parametrize(
    "optimizer",
    [optax.adamw(0.1), optax.lion(0.1, weight_decay=0.1), optax.adam(0.1), optax.sgd(0.1, momentum=0.9, nesterov=True)],
    ids=["adamw", "lion", "adam", "nesterov"],
)
@pytest.mark.parametrize("how", ["keep", "restrict"])
def test_what_is_held_stays_to_the_bit_under_any_optimizer(how, optimizer):
    params = {"body": jnp.arange(1.0, 7).reshape(2, 3), "head": jnp.array([0.5, -3.0])}
    if how == "keep":
        mask = {"body": jnp.array([[1.0, 0, 0], [0, 1, 0]]), "head": jnp.array([0.0, 1.0])}
        held = optax.chain(optimizer, ju.transforms.keep(mask))
    else:
        mask, held = {"body": jnp.zeros((2, 3)), "head": jnp.ones(2)}, ju.transforms.restrict(optimizer, "head")

    def step(carried, key):
        params, state = carried
        gradient = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
        updates, state = held.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (after, _), _ = jax.jit(lambda start: jax.lax.scan(step, start, jax.random.split(jax.random.key(0), 5)))(
        (params, held.init(params))
    )
    for before, now, moves in zip(*map(jax.tree.leaves, (params, after, mask)), strict=True):
        np.testing.assert_array_equal(np.asarray(before == now), np.asarray(moves) == 0)
