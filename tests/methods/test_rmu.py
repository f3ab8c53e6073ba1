"""The objective by hand on rows and on tokens, the direction, and what moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods import runs
from tests.methods.runs import KEY, MODEL, VARIABLES, batch_of, descended, one_step
from tests.problems import distance, lane, token_network, token_rows

SGD = optax.sgd(0.1)
NUDGED = jax.tree.map(lambda x: x - 0.1, VARIABLES)


def features(params, inputs):
    return MODEL.forward(ju.Variables(params), inputs).features["penultimate"]


def test_a_step_goes_to_the_direction_and_back_to_the_trained_model():
    method = ju.rmu(MODEL, SGD, coefficient=2.0, alpha=3.0)
    params, batch, stats = one_step(method, NUDGED)
    goal = batch_of(method)[0].goal

    def loss(params):
        steered = jnp.mean((features(params, batch.forget.examples.inputs) - goal) ** 2)
        known = features(VARIABLES.params, batch.retain.examples.inputs)
        return steered + 3 * jnp.mean((features(params, batch.retain.examples.inputs) - known) ** 2)

    assert distance(params, descended(NUDGED.params, loss)) < 1e-6
    assert float(stats["loss"]) == pytest.approx(float(loss(NUDGED.params)), rel=1e-5)
    length = jnp.linalg.norm(features(NUDGED.params, batch.forget.examples.inputs), axis=1).mean()
    assert float(stats["forget_norm"]) == pytest.approx(float(length), rel=1e-5)
    assert distance(params["head"], NUDGED.params["head"]) == 0  # behind the layer


def test_the_direction_is_positive_of_the_length_asked_for_and_of_the_key():
    method = ju.rmu(MODEL, SGD, coefficient=2.5)
    first, other = (method.init(VARIABLES, runs.DATA, runs.REQUEST, key)[0].goal for key in (KEY, jax.random.key(9)))
    assert float(jnp.linalg.norm(first)) == pytest.approx(2.5, rel=1e-5)
    assert jnp.all(first >= 0)
    assert distance(first, other) > 0.1


def test_named_layers_alone_move_and_the_retain_set_pulls_nowhere_at_the_start():
    params, _, stats = one_step(ju.rmu(MODEL, SGD, layers="bias", alpha=1e6))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), params, VARIABLES.params)
    assert moved == {"body": False, "bias": True, "head": False}
    assert float(stats["retain_distance"]) == pytest.approx(0, abs=1e-12)


DATA = ju.training_data(*map(jnp.asarray, token_rows()))
TOKENS = token_network()
START = TOKENS.init(KEY)
REQUEST = lane(ju.from_indices(DATA, [[3, 4, 5]]), 0)


@pytest.mark.parametrize("everywhere", [False, True])
def test_of_sequences_the_positions_with_a_label_count(everywhere):
    counts = (lambda rows: jnp.ones(rows.targets.shape, bool)) if everywhere else None
    method = ju.rmu(TOKENS, SGD, layer="first", coefficient=2.0, alpha=0.0, counts=counts)
    context, state, batch = batch_of(method, data=DATA, request=REQUEST, variables=START)
    params, goal = jax.jit(method.step)(state, context, batch, KEY)[0].variables.params, context.goal
    tokens, labels = batch.forget.examples
    used = np.ones(labels.shape) if everywhere else np.asarray(labels >= 0, float)

    def loss(params):
        squares = jnp.mean((TOKENS.forward(ju.Variables(params), tokens).features["first"] - goal) ** 2, axis=-1)
        return jnp.mean(jnp.sum(squares * used, axis=1) / used.sum(axis=1))

    assert distance(params, descended(START.params, loss)) < 1e-6


def test_features_that_are_missing_or_positions_that_do_not_fit_are_named():
    def init(model, **options):
        return ju.rmu(model, SGD, **options).init(VARIABLES, runs.DATA, runs.REQUEST, KEY)

    with pytest.raises(ValueError, match=r"no features 'third' \(it has: penultimate\)"):
        init(MODEL, layer="third")
    with pytest.raises(ValueError, match="names no parameter"):
        init(MODEL, layers="third")
    method = ju.iterate(ju.rmu(TOKENS, SGD, layer="first", counts=lambda rows: rows.targets[:, 0] >= 0), 2, batch_size=3)
    with pytest.raises(ValueError, match=r"positions \(3, 6\), and those that count are given as \(3,\)"):
        jax.eval_shape(method, START, DATA, REQUEST, KEY)
    for setting in ("coefficient", "alpha"):
        with pytest.raises(ValueError, match=f"{setting} must lie in"):
            ju.rmu(MODEL, SGD, **{setting: -1.0})
