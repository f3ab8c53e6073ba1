"""What the reference prediction is, that a step descends towards it, and what it cannot forget."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import class_order, sampling
from jaxunlearn.methods.regun import draw_like
from tests.methods.runs import DATA, KEY, MODEL, REQUEST, VARIABLES, answer, sweep_equals_single_runs
from tests.problems import blobs, distance, held_out, lane, network

SIZE, CLASSES, OTHERS = 8, 3, 6
LABELS, UNSEEN = np.array([0, 1, 2, 0, 1, 2, 0, 1]), np.array([0, 0, 1, 1, 1, 1])  # no held-out row of class 2
FORGOTTEN = [1, 2, 6]


def table():
    """Every row has logits of its own, which are parameters; the last rows are held out."""

    def forward(variables, inputs, *, train=False, key=None):
        logits = inputs @ variables.params["logits"]
        return ju.Outputs(logits, {"penultimate": inputs @ variables.params["logits"] @ jnp.array([[1.0, 2], [0, 1], [1, 0]])})

    rng = np.random.default_rng(0)
    inputs = np.eye(SIZE + OTHERS, dtype=np.float32)
    params = {"logits": jnp.asarray(rng.normal(size=(SIZE + OTHERS, CLASSES)).astype(np.float32) * 2)}
    data = ju.training_data(inputs[:SIZE], LABELS.astype(np.int32))
    others = ju.Examples(jnp.asarray(inputs[SIZE:]), jnp.asarray(UNSEEN, jnp.int32))
    return ju.Model(forward, ju.losses.cross_entropy), ju.Variables(params), data, others


TABLE, START, TRAINED_ON, OTHER_ROWS = table()
LOGITS = np.asarray(START.params["logits"], np.float64)
ONE = lane(ju.from_indices(TRAINED_ON, [FORGOTTEN], capacity=4), 0)


@cache
def program(reference, average):
    def step(variables, temperature, alpha, key):
        method = ju.regun(
            TABLE,
            optax.sgd(1.0),
            held_out=OTHER_ROWS,
            alpha=alpha,
            temperature=temperature,
            reference=reference,
            average=average,
        )
        context, state = method.init(variables, TRAINED_ON, ONE, KEY)
        batch = method.sample(sampling.split(TRAINED_ON, ONE, KEY), context, 0, KEY, sampling.BatchSizes(3, 4))
        after, stats = method.step(state, context, batch._replace(step=0, num_steps=1), key)
        return after.variables.params["logits"], stats

    return jax.jit(step)


def stepped(reference="class_informed", average="probabilities", temperature=1.0, alpha=0.0, key=KEY):
    """How far a step of rate 1 moves the logits of the forget set, and its statistics."""
    after, stats = program(reference, average)(START, temperature, alpha, key)
    return LOGITS[FORGOTTEN] - np.asarray(after)[FORGOTTEN], stats


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def test_a_step_descends_on_the_divergence_from_one_mean_prediction():
    """Its gradient in the logits is `(p - q) / (b T)`, with one q for the batch."""
    moved, stats = stepped("nearest", temperature=2.0)
    features = LOGITS @ np.array([[1.0, 2], [0, 1], [1, 0]])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    nearest = np.argmax(features[FORGOTTEN] @ features[SIZE:].T, axis=1)
    q = softmax(LOGITS[SIZE:] / 2)[nearest].mean(axis=0)
    p = softmax(LOGITS[FORGOTTEN] / 2)
    np.testing.assert_allclose(moved, (p - q) / 6, atol=1e-6)
    np.testing.assert_allclose(stats["divergence"], np.mean(np.sum(q * np.log(q / p), axis=1)), rtol=1e-5)


@pytest.mark.slow
def test_logits_can_be_averaged_in_place_of_probabilities():
    moved, _ = stepped("own_class", average="logits", temperature=2.0)
    of_class = [LOGITS[SIZE:][UNSEEN == 0].mean(0), LOGITS[SIZE:][UNSEEN == 1].mean(0), LOGITS[SIZE:].mean(0)]
    q = softmax(np.array([of_class[label] for label in LABELS[FORGOTTEN]]) / 2)
    np.testing.assert_allclose(moved, (softmax(LOGITS[FORGOTTEN] / 2) - q) / 6, atol=1e-6)


def test_every_row_gets_the_mean_of_its_class_where_that_is_asked_for():
    moved, _ = stepped("own_class")
    said = softmax(LOGITS[SIZE:])
    q = np.array([said[UNSEEN == 1].mean(0), said.mean(0), said[UNSEEN == 0].mean(0)])  # none is held out of class 2
    np.testing.assert_allclose(moved, (softmax(LOGITS[FORGOTTEN]) - q) / 3, atol=1e-6)


def test_held_out_rows_are_drawn_by_the_labels_of_the_batch():
    keys, labels = jax.random.split(KEY, 500), jnp.asarray(LABELS)
    rows = class_order.by_class(OTHER_ROWS.targets, jnp.ones(OTHERS, bool), CLASSES)
    draws = jax.jit(jax.vmap(lambda key: [draw_like(rows, x, SIZE, key) for x in (labels, None)]))
    drawn, uniform = jax.device_get(draws(keys))
    for label, row in ((0, 0), (1, 1)):
        np.testing.assert_array_equal(UNSEEN[drawn[:, row]], label)
    of_class = [np.bincount(drawn[:, place], minlength=OTHERS) / 500 for place in (0, 1, 2)]
    for found, wanted in zip(of_class, ([3, 3, 0, 0, 0, 0], [0, 0, 1.5, 1.5, 1.5, 1.5], [1] * 6), strict=True):
        assert np.abs(found - np.array(wanted) / 6).max() < 0.09  # four standard errors
    assert np.abs(np.bincount(uniform.ravel(), minlength=OTHERS) / uniform.size - 1 / 6).max() < 0.024


@pytest.mark.slow
def test_one_row_compared_with_itself_is_let_be():
    data, one = blobs(), lane(ju.from_indices(blobs(), [[5]]), 0)
    itself = jax.tree.map(lambda x: x[5:6], data.train)
    method = ju.regun(network(), optax.sgd(1.0), held_out=itself, alpha=0.0)
    result = jax.jit(ju.iterate(method, 3, batch_size=1))(VARIABLES, data, one, KEY)
    assert distance(result.variables, VARIABLES) < 1e-6


@pytest.mark.slow
def test_a_bias_alone_ends_at_the_reference():
    model = ju.Model(
        lambda variables, inputs, **_: ju.Outputs(0 * inputs[:, :3] + variables.params["bias"]), ju.losses.cross_entropy
    )
    trained, start = (ju.Variables({"bias": jnp.array(x)}) for x in ([0.2, 0.7, -1.1], [1.0, 0.0, 2.0]))
    method = ju.regun(model, optax.sgd(2.0), held_out=held_out(), alpha=0.0)

    def init(variables, *rest):
        return method.init(trained, *rest)[0], method.init(variables, *rest)[1]

    run = jax.jit(ju.iterate(method._replace(init=init), 60, batch_size=4, damaged_at=np.inf))
    found = run(start, DATA, REQUEST, KEY).variables.params["bias"]
    np.testing.assert_allclose(jax.nn.softmax(found), jax.nn.softmax(trained.params["bias"]), atol=1e-4)


@pytest.mark.slow
def test_without_the_divergence_it_is_fine_tuning():
    assert distance(answer("regun", alpha=1.0).variables, answer("finetune").variables) < 1e-6


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("regun", alpha=[0.2, 0.7], temperature=[1.0, 3.0])


@pytest.mark.parametrize(("name", "left"), [("regun", 1.0), pytest.param("random_label", 0.0, marks=pytest.mark.slow)])
def test_a_class_is_not_forgotten(name, left):
    """The trained model knows held-out rows of the class, so that is what the reference says; wrong labels drive it out."""
    data, others = blobs(), held_out()
    means = jnp.stack([jnp.mean(data.train.inputs[data.train.targets == label], axis=0) for label in range(3)])
    trained = ju.Variables({"w": means.T, "bias": -jnp.sum(means**2, axis=1) / 2})  # linear discriminant analysis
    model = ju.Model(
        lambda variables, inputs, **_: ju.Outputs(inputs @ variables.params["w"] + variables.params["bias"]),
        ju.losses.cross_entropy,
    )
    options = {"held_out": others} if name == "regun" else {}
    run = jax.jit(ju.iterate(getattr(ju, name)(model, optax.adam(0.2), **options), 60, batch_size=16, damaged_at=np.inf))
    request = lane(ju.from_classes(data, [[2]], num_classes=3), 0)
    result = ju.check(run(trained, data, request, KEY))
    rows = data.train.inputs[data.train.targets == 2]
    before, after = (np.mean(np.argmax(model.forward(v, rows).logits, axis=1) == 2) for v in (trained, result.variables))
    assert before > 0.95
    assert after == pytest.approx(left, abs=0.1)


def test_bad_input_is_told():
    for options, message in (
        ({"reference": "class"}, "reference must be one of class_informed, uniform, nearest, own_class, got 'class'"),
        ({"average": "mean"}, "average must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            ju.regun(MODEL, optax.sgd(0.1), held_out=held_out(), **options)

    def start(others, **options):
        jax.eval_shape(ju.regun(MODEL, optax.sgd(0.1), held_out=others, **options).init, VARIABLES, DATA, REQUEST, KEY)

    with pytest.raises(TypeError, match="held_out must be Examples"):
        start(tuple(held_out()))
    with pytest.raises(ValueError, match=r"held_out has labels \[-1\]"):
        start(held_out()._replace(targets=jnp.full(20, -1)))
    with pytest.raises(ValueError, match=r"forward returns no features 'body' \(it has: penultimate\)"):
        start(held_out(), reference="nearest", layer="body")
