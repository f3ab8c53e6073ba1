"""The distillation, the objectives and the phases of dimensional alignment."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

import jaxunlearn as ju
from jaxunlearn.heads import alignment, eigenspace
from tests.methods.runs import DATA, KEY, MODEL, REQUEST, VARIABLES, answer, batch_of, stepped, sweep_equals_single_runs
from tests.problems import blobs, distance, forward, lane

RNG = np.random.default_rng(0)
DEFAULTS = {
    "rounds": 3, "forget_steps": 1, "recover_steps": 1, "alignment_weight": 1.0, "feature_weight": 0.0, "temperature": 1.0,
    "own_class": 0.0, "energy": 0.95,
}  # fmt: skip


def align(steps=6, **settings):
    """One compiled program for all of its settings."""
    return answer("dimensional_alignment", steps=steps, **{**DEFAULTS, **settings})


def method(**options):
    return ju.dimensional_alignment(MODEL, optax.sgd(0.1), **options)


def test_without_rounds_it_is_finetuning():
    assert distance(align(rounds=0).variables, answer("finetune").variables) == 0


@pytest.mark.parametrize(
    ("num_steps", "forget_steps", "rounds", "phases"),
    [
        (6, 1, None, [1, 0, 1, 0, 1, 0]),
        (7, 1, None, [1, 0, 1, 0, 1, 0, 0]),  # a round that does not fit is not begun
        (10, 2, None, [1, 1, 0, 1, 1, 0, 1, 1, 0, 0]),
        (7, 2, 1, [1, 1, 0, 0, 0, 0, 0]),
        (7, 1, 2, [1, 0, 1, 0, 0, 0, 0]),
        (7, 1, 9, [1, 0, 1, 0, 1, 0, 0]),  # as many as there is room for, where they are traced
        (7, 1, 0, [0] * 7),
    ],
)
def test_phases_alternate_and_recovery_comes_last(num_steps, forget_steps, rounds, phases):
    assert phases_of(num_steps, forget_steps, rounds)[:num_steps].tolist() == phases


@jax.jit
def phases_of(num_steps, forget_steps, rounds):
    """From the method's own steps, which only differ in where in the run they are."""
    stepwise = method(forget_steps=forget_steps, rounds=rounds)
    context, state, batch = batch_of(stepwise, sizes=(1, 1))
    one = jax.vmap(lambda step: stepwise.step(state, context, batch._replace(step=step, num_steps=num_steps), KEY)[1])
    return one(jnp.arange(10))["phase"]


def test_a_run_follows_the_phases():
    assert align(rounds=1, forget_steps=2).stats["phase"].tolist() == [1, 1, 0, 0, 0, 0]


def test_steps_follow_their_objectives():
    nudged = jax.tree.map(lambda x: x + 0.3, VARIABLES)
    options = {"alignment_weight": 2.0, "feature_weight": 0.4, "temperature": 1.5, "energy": 0.8}
    stepwise = method(rounds=1, **options)
    step_once = jax.jit(lambda state, context, batch: stepwise.step(state, context, batch._replace(num_steps=6), KEY))
    for step in (0, 1):
        context, state, batch = batch_of(stepwise, step=step, sizes=(4, 10))
        after, stats = step_once(state._replace(variables=nudged), context, batch)
        forget, retain = batch.forget.examples, batch.retain.examples
        retained = np.asarray(forward(nudged, retain.inputs).features["penultimate"], float)
        values, vectors = np.linalg.eigh(retained.T @ retained)
        cut = 1 + int(np.argmax(np.cumsum(values[::-1]) / values.sum() >= 0.8))
        projector = jnp.asarray(vectors[:, ::-1][:, :cut] @ vectors[:, ::-1][:, :cut].T, jnp.float32)
        predicted = np.array(softmax(np.asarray(forward(VARIABLES, forget.inputs).logits) / 1.5, axis=1))
        predicted[np.arange(4), np.asarray(forget.targets)] = 0
        predicted = jnp.asarray(predicted / predicted.sum(1, keepdims=True))

        def loss(params, step=step, forget=forget, retain=retain, projector=projector, predicted=predicted):
            if step == 0:
                outputs = forward(ju.Variables(params), forget.inputs)
                z, inside = outputs.features["penultimate"], jnp.where(predicted > 0, predicted, 1)
                kl = jnp.sum(predicted * (jnp.log(inside) - jax.nn.log_softmax(outputs.logits)), -1).mean()
                return kl + 2 * (1 - jnp.sum((z @ projector) * z) / jnp.sum(z**2))
            outputs, before = (forward(v, retain.inputs) for v in (ju.Variables(params), VARIABLES))
            away = outputs.features["penultimate"] - before.features["penultimate"]
            return ju.losses.cross_entropy(outputs, retain).mean() + 0.4 * jnp.sum(away**2, -1).mean()

        value, expected = stepped(nudged.params, loss)
        assert int(stats["phase"]) == 1 - step
        assert float(stats["loss"]) == pytest.approx(value, rel=1e-5)
        assert distance(after.variables.params, expected) < 1e-6


@pytest.mark.slow
def test_a_sweep_over_every_setting_equals_single_runs():
    settings = {
        "alignment_weight": [1.0, 2.0], "feature_weight": [0.0, 0.5], "temperature": [1.0, 2.0], "own_class": [0.0, 0.3],
        "energy": [0.9, 0.5], "rounds": [2, 9], "forget_steps": [1, 2], "recover_steps": [1, 1],
    }  # fmt: skip
    sweep_equals_single_runs("dimensional_alignment", **settings)


def test_bad_input_gets_a_clear_error():
    for options, message in (
        ({"alignment_weight": -1.0}, "alignment_weight must lie in"),
        ({"energy": 1.5}, "energy must lie in"),
        ({"own_class": -0.1}, "own_class must lie in"),
        ({"forget_steps": 0}, "forget_steps must lie in"),
        ({"recover_steps": 0}, "recover_steps must lie in"),
        ({"rounds": 4}, "rounds must lie in"),
        ({"rounds": -1}, "rounds must lie in"),
        ({"forget_steps": 6}, "forget_steps \\+ recover_steps"),
        ({"rank": 0}, "rank must be an integer"),
        ({"layer": "conv"}, "it has: penultimate"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(ju.iterate(method(**options), 6, batch_size=4), VARIABLES, DATA, REQUEST, KEY)


@pytest.mark.slow
def test_a_forgotten_class_moves_into_the_space_of_the_others_and_is_unlearned():
    data = blobs(300, seed=4)
    train = ju.iterate(ju.retrain(MODEL, optax.sgd(0.3)), num_steps=300, batch_size=32)
    request = lane(ju.from_classes(data, [[1]]), 0)
    both = jax.jit(ju.batched(train, in_axes=(None, None, 0, None), chunk=1))
    empty = request._replace(weights=jnp.zeros_like(request.weights), target=jnp.zeros(3, bool))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), empty, request)
    original, retrained = (lane(both(MODEL.init(KEY), data, stacked, KEY).variables, position) for position in (0, 1))

    @jax.jit
    def unlearn(weight):
        return ju.iterate(method(alignment_weight=weight), num_steps=100, batch_size=32)(original, data, request, KEY)

    unlearned, without = ju.check(unlearn(1.0)).variables, unlearn(0.0).variables
    forgotten = np.asarray(data.train.targets) == 1

    @jax.jit
    def aligned(features):
        space = eigenspace(features, jnp.asarray(~forgotten, jnp.float32), energy=0.95)
        return alignment(features, jnp.asarray(forgotten, jnp.float32), space)

    def looked(variables):
        outputs = forward(variables, data.train.inputs)
        right = np.argmax(outputs.logits, -1) == np.asarray(data.train.targets)
        return float(aligned(outputs.features["penultimate"])), right[forgotten].mean(), right[~forgotten].mean()

    before, after, aim = looked(original), looked(unlearned), looked(retrained)
    assert before[0] < aim[0]  # what the paper observes
    assert max(before[0], looked(without)[0]) < after[0]
    assert before[1] > 0.8
    assert after[1] < 0.1
    assert after[2] > aim[2] - 0.02
