"""DELETE: its slope in closed form, its limits, and that forgotten classes teach nothing about each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

import jaxunlearn as ju
from tests.methods.runs import DATA, KEY, MODEL, REQUEST, VARIABLES, answer, descended, one_step
from tests.problems import blobs, distance, lane, linear_classifier

LABELS = np.asarray(DATA.train.targets)
TWO = lane(ju.from_classes(DATA, [[0, 1]], capacity=64), 0)  # only class 2 stays


def test_a_step_follows_the_prediction_without_the_own_class():
    nudged = jax.tree.map(lambda x: x + 0.3, VARIABLES)
    params, batch, stats = one_step(ju.decoupled_distillation(MODEL, optax.sgd(0.1)), nudged)
    inputs, labels = batch.forget.examples.inputs, np.asarray(batch.forget.examples.targets)
    predicted = softmax(np.asarray(MODEL.forward(VARIABLES, inputs).logits), axis=1)
    predicted[np.arange(4), labels] = 0
    predicted = jnp.asarray(predicted / predicted.sum(1, keepdims=True))

    def loss(params):
        student = jax.nn.log_softmax(MODEL.forward(ju.Variables(params), inputs).logits)
        return -jnp.mean(jnp.sum(predicted * student, axis=1))

    assert distance(params, descended(nudged.params, loss)) < 1e-6
    entropy = -jnp.mean(jnp.sum(jnp.where(predicted > 0, predicted * jnp.log(predicted), 0), axis=1))
    assert float(stats["loss"]) == pytest.approx(float(loss(nudged.params) - entropy), rel=1e-4)


@pytest.mark.slow
def test_with_one_class_left_it_is_random_labels_without_the_retain_set():
    """Rows of both forgotten classes can only be taught the third one."""
    own = answer("decoupled_distillation", request=TWO).variables
    assert distance(own, answer("random_label", request=TWO, alpha=0.0).variables) < 1e-5
    assert distance(own, VARIABLES) > 1e-2


def test_classes_that_leave_are_masked_whether_they_are_named_or_not():
    rows = lane(ju.from_indices(DATA, [np.flatnonzero(LABELS < 2)], capacity=64), 0)
    named, listed = (hidden_by(request) for request in (TWO, rows))
    assert named.tolist() == listed.tolist() == [True, True, False]
    assert hidden_by(REQUEST).tolist() == [False] * 3
    all_but_one = rows._replace(weights=rows.weights.at[0].set(0))
    assert hidden_by(all_but_one).sum() == 1


def hidden_by(request):
    """Classes that no row may be taught."""
    return ju.decoupled_distillation(MODEL, optax.sgd(0.1)).init(VARIABLES, DATA, request, KEY)[0].gone


def test_with_no_class_left_each_row_is_taught_the_others():
    whole = lane(ju.from_indices(DATA, [range(60)], capacity=64), 0)
    result = answer("decoupled_distillation", request=whole)
    assert int(result.status) == ju.Status.NOTHING_RETAINED
    assert distance(result.variables, VARIABLES) > 1e-2
    assert bool(jnp.all(jnp.isfinite(result.stats["loss"])))


def test_a_model_that_never_names_the_class_stays_as_it_is():
    """Logits of -1e4 at the class: what is to be copied is what is there."""
    model = linear_classifier()
    start = ju.Variables({"w": jnp.zeros((4, 3)).at[0, 0].set(-1e4)})
    inputs = DATA.train.inputs.at[:, 0].set(1.0)
    data = DATA._replace(train=ju.Examples(inputs, jnp.zeros(60, jnp.int32).at[30:].set(1)))
    request = lane(ju.from_classes(data, [[0]], capacity=64), 0)
    result = answer("decoupled_distillation", start, data=data, request=request, static={"model": model})
    assert distance(result.variables, start) == 0
    assert int(result.status) == ju.Status.UNCHANGED


@pytest.mark.slow
def test_a_class_is_forgotten_and_the_others_are_not():
    data = blobs(300, seed=4)
    train = jax.jit(ju.iterate(ju.retrain(MODEL, optax.adam(0.02)), num_steps=300, batch_size=32))
    trained = train(MODEL.init(KEY), data, ju.empty_request(256), KEY).variables
    request = lane(ju.from_classes(data, [[1]], capacity=256), 0)
    unlearn = jax.jit(ju.iterate(ju.decoupled_distillation(MODEL, optax.sgd(0.1)), num_steps=60, batch_size=32))
    after = ju.check(unlearn(trained, data, request, KEY)).variables

    def accuracy(variables, chosen):
        right = jnp.argmax(MODEL.forward(variables, data.train.inputs).logits, axis=1) == data.train.targets
        return float(jnp.mean(right[chosen]))

    own = np.asarray(data.train.targets) == 1
    assert accuracy(trained, own) > 0.9
    assert accuracy(after, own) < 0.05
    assert accuracy(after, ~own) > accuracy(trained, ~own) - 0.03


def test_targets_that_are_no_classes_are_refused():
    real = DATA._replace(train=DATA.train._replace(targets=jnp.zeros(60)))
    regression = MODEL._replace(loss=lambda outputs, examples: outputs.logits[:, 0] - examples.targets)
    single = MODEL._replace(forward=lambda *a, **k: ju.Outputs(MODEL.forward(*a, **k).logits[:, 0]))
    for model, data, message in ((regression, real, "integer labels"), (single, DATA, "needs logits")):
        unlearn = ju.iterate(ju.decoupled_distillation(model, optax.sgd(0.1)), 2, batch_size=4)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(unlearn, VARIABLES, data, REQUEST, KEY)
