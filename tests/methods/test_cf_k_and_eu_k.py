"""Fine-tuning and retraining of named layers."""

import jax.numpy as jnp
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import KEY, VARIABLES, answer
from tests.problems import distance, network, normalized_network

DECAYING = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
HEAD = {"layers": "head", "optimizer": DECAYING}


@pytest.mark.parametrize("name", ["cf_k", "eu_k"])
def test_frozen_layers_stay_bit_identical_under_momentum_and_weight_decay(name):
    params = answer(name, static=HEAD).variables.params
    for leaf in ("body", "bias"):
        assert jnp.array_equal(params[leaf], VARIABLES.params[leaf])
    assert jnp.all(params["head"] != VARIABLES.params["head"])


@pytest.mark.parametrize(("name", "reference"), [("cf_k", "finetune"), ("eu_k", "retrain")])
def test_all_layers_make_cf_k_finetuning_and_eu_k_retraining(name, reference):
    assert distance(answer(name, static={"layers": ""}).variables, answer(reference).variables) == 0


def test_the_first_step_of_cf_k_is_the_heads_part_of_finetuning():
    moved = answer("cf_k", steps=1, static={"layers": by_predicate}).variables.params["head"]
    assert jnp.allclose(moved, answer("finetune", steps=1).variables.params["head"], atol=1e-6)


def by_predicate(path):
    return path == "head"


def test_eu_k_keeps_nothing_of_the_retrained_layers():
    other = VARIABLES._replace(params={**VARIABLES.params, "head": 100 * VARIABLES.params["head"] + 3})
    assert distance(*(answer("eu_k", start, static=HEAD).variables for start in (VARIABLES, other))) == 0


def test_eu_k_starts_the_state_of_its_layers_afresh():
    model = normalized_network()
    used = model.init(KEY)
    used = used._replace(state={"mean": used.state["mean"] + 50, "count": jnp.int32(1000)})
    fresh = answer("eu_k", used, static={"model": model, "layers": "w|mean", "bn": "frozen"}).variables.state
    assert not fresh["mean"].any()
    assert int(fresh["count"]) == 1000


def test_layers_that_name_nothing_are_refused():
    with pytest.raises(ValueError, match="names no parameter; there are bias, body, head"):
        answer("cf_k", static={"layers": "Dense_7"})
    with pytest.raises(TypeError, match="regular expression"):
        answer("eu_k", static={"layers": 3})
    with pytest.raises(ValueError, match="eu_k starts its layers from fresh parameters: pass Model"):
        ju.eu_k(network()._replace(init=None), optax.sgd(0.1), layers="head")
