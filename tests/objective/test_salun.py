import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.transforms import saliency_mask
from tests.problems import blobs, distance, lane, network

KEY = jax.random.key(0)
DATA, MODEL = blobs(), network()
VARIABLES = MODEL.init(jax.random.key(1))
REQUEST = lane(ju.from_indices(DATA, [[3, 8, 21, 40]]), 0)
LOOP = {"num_steps": 6, "batch_size": 4}


def test_all_weights_salient_is_random_labelling():
    optimizer = optax.adamw(1e-2)
    whole = jax.jit(ju.salun(MODEL, optimizer, fraction=1.0, **LOOP))(VARIABLES, DATA, REQUEST, KEY)
    plain = jax.jit(ju.random_label(MODEL, optimizer, **LOOP))(VARIABLES, DATA, REQUEST, KEY)
    assert distance(whole.variables, plain.variables) == 0


def test_half_of_the_weights_stay_to_the_bit_under_momentum_and_weight_decay():
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9))
    result = ju.check(jax.jit(ju.salun(MODEL, optimizer, fraction=0.5, **LOOP))(VARIABLES, DATA, REQUEST, KEY))
    same = [np.asarray(a == b) for a, b in zip(*map(jax.tree.leaves, (result.variables.params, VARIABLES.params)), strict=True)]
    total = sum(x.size for x in same)
    assert sum(x.sum() for x in same) == total - total // 2
    rows = jnp.zeros(60).at[jnp.array([3, 8, 21, 40])].set(1)
    mask = saliency_mask(ju.curvature.gradient_sum(MODEL, VARIABLES, DATA.train, rows), 0.5)
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
