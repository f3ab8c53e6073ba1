"""Centroids of what stays, the nearest one of another class, and the objective."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import DATA, KEY, MODEL, REQUEST, ROWS, VARIABLES, answer, batch_of, stepped, sweep_equals_single_runs
from tests.problems import distance, forward, lane

LABELS = np.asarray(DATA.train.targets)
DEFAULTS = {"distance_weight": 1.0, "retain_weight": 1.4, "temperature": 2.0, "repeats": 5}


def draw(**settings):
    """One compiled program for all of these."""
    return answer("duck", **{**DEFAULTS, **settings})


def method(**options):
    return ju.duck(MODEL, optax.sgd(0.1), **options)


def units(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def features(variables, inputs):
    return np.asarray(forward(variables, inputs).features["penultimate"])


def aims_of(rows, data=DATA, **options):
    request = lane(ju.from_indices(data, [rows], capacity=64), 0)
    return jax.tree.map(np.asarray, aim(data, request, tuple(options.items())))


aim = jax.jit(lambda data, request, options: method(**dict(options)).init(VARIABLES, data, request, KEY)[0], static_argnums=2)


def expected_aims(rows, present=None):
    """The nearest centroid of another class among rows that stay; classes without such rows have none."""
    found = features(VARIABLES, DATA.train.inputs)
    stays = np.setdiff1d(np.arange(60) if present is None else present, rows)
    classes = np.unique(LABELS[stays])
    centroids = units(np.array([found[stays][LABELS[stays] == label].mean(0) for label in classes]))
    cosines = np.where(classes == LABELS[rows][:, None], -np.inf, units(found[rows]) @ centroids.T)
    return centroids[cosines.argmax(1)]


def test_without_distance_it_is_finetuning():
    plain = answer("finetune").variables
    assert distance(draw(distance_weight=0.0, retain_weight=1.0, temperature=1.0).variables, plain) == 0
    assert distance(draw().variables, plain) > 1e-3


def test_a_step_follows_the_objective():
    stepwise = method(distance_weight=0.8, retain_weight=0.6, temperature=1.5)
    context, state, batch = batch_of(stepwise, sizes=(4, 12))
    nudged = jax.tree.map(lambda x: x + 0.2, VARIABLES)
    after, stats = jax.jit(stepwise.step)(state._replace(variables=nudged), context, batch, KEY)
    forget, retain = batch.forget.examples, batch.retain.examples
    aims = jnp.asarray(expected_aims(np.array(ROWS)))[np.asarray(batch.forget.slots)]

    def loss(params):
        z = forward(ju.Variables(params), forget.inputs).features["penultimate"]
        away = 1 - jnp.mean(jnp.sum(z / jnp.linalg.norm(z, axis=1, keepdims=True) * aims, axis=1))
        outputs = forward(ju.Variables(params), retain.inputs)
        return 0.8 * away + 0.6 * ju.losses.cross_entropy(outputs._replace(logits=outputs.logits / 1.5), retain).mean()

    value, params = stepped(nudged.params, loss)
    assert distance(after.variables.params, params) < 1e-6
    assert float(stats["loss"]) == pytest.approx(value, rel=1e-5)
    assert float(stats["loss"]) == pytest.approx(0.8 * float(stats["distance"]) + 0.6 * float(stats["retain_loss"]), rel=1e-5)


@pytest.mark.parametrize("label", [None, 0, 1, 2])
def test_rows_are_drawn_to_the_nearest_centroid_of_another_class(label):
    """Class by class, too: in a list without the forgotten class, places are no labels."""
    rows = np.array(ROWS) if label is None else np.flatnonzero(label == LABELS)
    found = aims_of(rows)
    np.testing.assert_allclose(found.directions[: len(rows)], expected_aims(rows), atol=1e-6)
    assert found.found[: len(rows)].all()


def test_centroids_are_those_of_present_rows_that_stay():
    gone = np.arange(40, 55)
    removed = ju.remove(DATA, lane(ju.from_indices(DATA, [gone]), 0))
    broken = removed._replace(train=removed.train._replace(inputs=removed.train.inputs.at[gone].set(jnp.nan)))
    rows = np.arange(10)
    expected = expected_aims(rows, np.setdiff1d(np.arange(60), gone))
    np.testing.assert_allclose(aims_of(rows, broken).directions[:10], expected, atol=1e-6)


@pytest.mark.slow
def test_chunks_change_nothing():
    np.testing.assert_allclose(aims_of(ROWS, chunk=7).directions, aims_of(ROWS).directions, atol=1e-6)


def test_where_no_other_class_stays_rows_are_not_drawn_anywhere():
    """Of two classes one leaves: it is drawn to the other. If all that stays is of the row's own class, it is left alone."""
    own = int(LABELS[3])
    present = DATA._replace(present=jnp.asarray(own == LABELS, jnp.float32))
    assert not aims_of([3], present).found[0]
    alone = draw(data=present, request=lane(ju.from_indices(present, [[3]], capacity=16), 0))
    kept = draw(data=present, request=lane(ju.from_indices(present, [[3]], capacity=16), 0), distance_weight=0.0)
    assert distance(alone.variables, kept.variables) < 1e-6
    assert alone.stats["distance"].tolist() == [0.0] * 6
    two = DATA._replace(present=jnp.asarray(LABELS < 2, jnp.float32))
    rows = np.flatnonzero(LABELS == 0)
    found = aims_of(rows, two)
    other = units(features(VARIABLES, DATA.train.inputs[LABELS == 1]).mean(0)[None])
    np.testing.assert_allclose(found.directions[: len(rows)], np.repeat(other, len(rows), axis=0), atol=1e-6)


@pytest.mark.slow
def test_without_the_retain_set_a_row_arrives_at_its_centroid():
    one = lane(ju.from_indices(DATA, [[3]], capacity=16), 0)
    options = {"static": {"num_steps": 200}, "steps": 200, "retain_weight": 0.0, "rate": 0.5}
    result = draw(request=one, **options)
    assert float(result.stats["distance"][-1]) < 1e-3 < 0.1 * float(result.stats["distance"][0])
    ended = units(features(result.variables, DATA.train.inputs[3:4]))
    assert float(ended[0] @ expected_aims(np.array([3]))[0]) > 0.999


@pytest.mark.slow
def test_a_sweep_over_every_setting_equals_single_runs():
    settings = {"distance_weight": [1.0, 3.0], "retain_weight": [1.0, 0.9], "temperature": [1.5, 2.0], "repeats": [1, 2]}
    sweep_equals_single_runs("duck", **settings)


def test_bad_input_gets_a_clear_error():
    def trace(stepwise, data=DATA):
        jax.eval_shape(ju.iterate(stepwise, 2, batch_size=4), VARIABLES, data, REQUEST, KEY)

    with pytest.raises(ValueError, match=r"no features 'conv' \(it has: penultimate"):
        trace(method(layer="conv"))
    real = DATA._replace(train=DATA.train._replace(targets=jnp.zeros(60)))
    regression = MODEL._replace(loss=lambda outputs, examples: outputs.logits[:, 0] - examples.targets)
    with pytest.raises(ValueError, match="integer labels"):
        trace(ju.duck(regression, optax.sgd(0.1)), real)
    single = MODEL._replace(forward=lambda *a, **k: ju.Outputs(forward(*a, **k).logits[:, 0]))
    with pytest.raises(ValueError, match="duck compares classes"):
        trace(ju.duck(single, optax.sgd(0.1)))
    for name, value in {"distance_weight": -1.0, "retain_weight": -1.0, "temperature": 0.0, "repeats": 0}.items():
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            method(**{name: value})


def test_labels_of_eight_bits_serve_256_classes():
    """The number of classes does not fit into them, and marks the rows that count for nothing."""

    def predict(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["w"], {"penultimate": inputs})

    model = ju.Model(predict, ju.losses.cross_entropy)
    variables = ju.Variables({"w": jnp.zeros((4, 256))})
    inputs, labels = jax.random.normal(KEY, (12, 4)), np.array([0, 1, 2, 255] * 3)
    request = ju.ForgetRequest(jnp.array([1, 0, 0]), jnp.array([1.0, 0, 0]), jnp.zeros(256, bool))
    found = []
    for dtype in (np.uint8, np.int32):
        data = ju.training_data(inputs, labels.astype(dtype))
        data = data._replace(present=data.present.at[jnp.array([0, 6, 7])].set(0))
        found.append(ju.duck(model, optax.sgd(0.1)).init(variables, data, request, KEY)[0])
    assert distance(found[0].directions, found[1].directions) == 0
