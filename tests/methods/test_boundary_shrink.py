"""Boundary Shrink: which labels rows get, in which units they are searched, and its variants."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import (
    DATA,
    KEY,
    MODEL,
    RATE,
    REQUEST,
    ROWS,
    VARIABLES,
    answer,
    descended,
    forget_losses,
    sweep_equals_single_runs,
)
from tests.problems import distance, lane, linear_classifier, normalized_network

SGD, MOMENTUM = optax.sgd(RATE), optax.sgd(RATE, momentum=0.9)
INPUTS, TARGETS = DATA.train.inputs[jnp.array(ROWS)], DATA.train.targets[jnp.array(ROWS)]
EVERYTHING = lane(ju.from_indices(DATA, [range(60)], capacity=60), 0)
OWN = {"uncrossed": "own"}
AS_PUBLISHED = {**OWN, "reweight": True}
SLOW = pytest.mark.slow


@cache
def search(model=MODEL, static=()):
    """What the trained model says of the slots of a request; numbers among the settings are traced."""

    def run(variables, data, request, settings):
        return ju.boundary_shrink(model, SGD, **dict(static), **settings).init(variables, data, request, KEY)[0]

    return jax.jit(run)


def found(variables=VARIABLES, data=DATA, request=EVERYTHING, static=None, model=MODEL, **settings):
    """Labels and the like of every row of a request, by default of all."""
    known = {"eps": 0.5, "mean": np.zeros(4), "std": np.ones(4), "low": -np.inf, "high": np.inf, "round_to": 1e-6, **settings}
    known = {name: jnp.asarray(value, jnp.float32) for name, value in known.items()}
    return search(model, tuple((static or {}).items()))(variables, data, request, known)


def logits_of(inputs, variables=VARIABLES):
    return MODEL.forward(variables, inputs).logits


def slopes_of(inputs, targets, variables=VARIABLES):
    """Gradient of the cross-entropy in the inputs, row by row."""
    return jax.grad(lambda x: jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits_of(x, variables), targets)))(
        inputs
    )


def test_labels_are_those_across_the_border_in_unnormalised_units():
    mean, std = np.array([0.3, -0.2, 0.0, 0.1], np.float32), np.array([2.0, 0.5, 1.0, 3.0], np.float32)
    settings = {"eps": 0.9, "mean": mean, "std": std, "low": -1.5, "high": 2.0, "round_to": 0.25}
    inputs, targets = DATA.train
    x = np.clip(inputs * std + mean + 0.9 * np.sign(slopes_of(inputs, targets)), -1.5, 2.0)
    across = logits_of((np.round(x / 0.25) * 0.25 - mean) / std)
    own = found(static=AS_PUBLISHED, **settings)
    assert own.labels.tolist() == jnp.argmax(across, axis=1).tolist()
    assert own.crossed.tolist() == (own.labels != targets).tolist()
    assert 0 < own.crossed.sum() < 60
    second = jnp.argmax(jnp.where(jax.nn.one_hot(targets, 3, dtype=bool), -jnp.inf, across), axis=1)
    assert found(**settings).labels.tolist() == second.tolist()
    assert jnp.array_equal(found(**settings).crossed, own.crossed)


def test_weights_are_those_of_the_authors_code():
    inputs, targets = DATA.train
    across = jax.nn.softmax(logits_of(inputs + 0.9 * jnp.sign(slopes_of(inputs, targets))))
    top = jnp.sort(across, axis=1)[:, ::-1]
    expected = 3 / (1 + jnp.exp(-5 * (top[:, 1] - top[:, 0] - 0.5)))
    weighed = found(eps=0.9, static=AS_PUBLISHED)
    np.testing.assert_allclose(weighed.weights[weighed.crossed], expected[weighed.crossed], rtol=1e-4)
    assert jnp.all((expected > 0.0016) & (expected < 0.228))


@pytest.mark.parametrize(
    ("steps", "step", "reach"), [(3, 0.2, 0.6), pytest.param(1, None, 1.0, marks=SLOW), pytest.param(5, None, 1.0, marks=SLOW)]
)
def test_two_classes_are_crossed_where_the_search_reaches(steps, step, reach):
    # In a linear model of two classes every step goes the same way: x w moves by reach |w|_1.
    w = jnp.array([[0.0, 1.0], [0.0, -2.0], [0.0, 0.5], [0.0, 0.0]])
    data = DATA._replace(train=DATA.train._replace(targets=jnp.argmax(DATA.train.inputs @ w, axis=1)))
    method = ju.boundary_shrink(LINEAR, SGD, eps=1.0, search_steps=steps, search_step=step, chunk=7)
    here = jax.jit(method.init)(ju.Variables({"w": w}), data, EVERYTHING, KEY)[0]
    margins = jnp.abs(data.train.inputs @ w[:, 1])
    clear = jnp.abs(margins - reach * 3.5) > 1e-4
    np.testing.assert_array_equal(here.crossed[clear], (margins < reach * 3.5)[clear])
    assert 0 < here.crossed.sum() < 60
    np.testing.assert_array_equal(here.labels, 1 - data.train.targets)


LINEAR = linear_classifier()


def two_classes(variables, inputs, **options):
    return ju.Outputs(MODEL.forward(variables, inputs).logits[:, :2])


def test_with_two_classes_it_is_random_labelling_of_the_forget_set():
    data = DATA._replace(train=DATA.train._replace(targets=jnp.minimum(DATA.train.targets, 1)))
    static = {"model": MODEL._replace(forward=two_classes), "optimizer": MOMENTUM}
    flipped = answer("random_label", data=data, alpha=0.0, static=static)
    shrunk = answer("boundary_shrink", data=data, eps=0.3, static=static)
    assert distance(shrunk.variables, flipped.variables) < 1e-6
    assert distance(shrunk.variables, VARIABLES) > 0.01


def test_a_step_descends_on_the_new_labels():
    near = found(eps=0.9, static=AS_PUBLISHED)
    labels = near.labels[jnp.array(ROWS)]
    result = answer("boundary_shrink", eps=0.9, steps=1, static=OWN)

    def loss(params):
        return jnp.mean(forget_losses(params, labels))

    assert distance(result.variables.params, descended(VARIABLES.params, loss)) < 1e-6
    assert float(result.stats["loss"][0]) == pytest.approx(float(loss(VARIABLES.params)), rel=1e-5)
    assert float(result.stats["crossed"][0]) == near.crossed[jnp.array(ROWS)].mean()


@SLOW
def test_curvature_is_measured_along_the_sign_of_the_gradient():
    def bends(variables):
        here = slopes_of(INPUTS, TARGETS, variables)
        there = INPUTS + 0.9 * jnp.sign(here) / jnp.linalg.norm(jnp.sign(here), axis=1, keepdims=True)
        return jnp.linalg.norm(slopes_of(there, TARGETS, variables) - here, axis=1)

    held = {"eps": 0.9, "curvature": 0.7, "static": OWN}
    once, twice = (answer("boundary_shrink", steps=steps, **held) for steps in (1, 2))
    expected = 0.7 / 4 * jnp.linalg.norm(bends(once.variables) - bends(VARIABLES))
    room = 0.7 / 4 * 1e-3 * jnp.linalg.norm(bends(VARIABLES))
    assert expected > 5 * room
    assert expected - room - 1e-6 < twice.stats["bending"][1] < expected + 1e-6
    # where nothing has moved there is nothing to hold, and rounding does not steer
    assert once.stats["bending"][0] < 1e-6
    free = answer("boundary_shrink", steps=1, eps=0.9, static=OWN)
    assert distance(once.variables, free.variables) < 1e-5


def test_nowhere_to_go_is_the_models_own_answer_or_its_second():
    said = jnp.argsort(logits_of(DATA.train.inputs), axis=1)[:, ::-1]
    right = DATA._replace(train=DATA.train._replace(targets=said[:, 0]))
    assert found(data=right, eps=0.0, static=AS_PUBLISHED).labels.tolist() == said[:, 0].tolist()
    assert found(data=right, eps=0.0).labels.tolist() == said[:, 1].tolist()
    assert not found(data=right, eps=0.0).crossed.any()
    # a model that is right everywhere then trains on true labels
    kept = answer("boundary_shrink", data=right, eps=0.0, static=OWN)
    assert jnp.argmax(logits_of(INPUTS, kept.variables), axis=1).tolist() == said[jnp.array(ROWS), 0].tolist()


def test_classes_that_are_asked_for_are_nobodys_neighbours():
    requests = ju.from_classes(DATA, [[0], [0, 2], [0, 1, 2]], capacity=60, num_classes=3)
    for place, allowed in enumerate(([1, 2], [1], [0, 1, 2])):
        request = lane(requests, place)
        own, labels = DATA.train.targets[request.indices], found(request=request).labels
        asked = (request.weights > 0) & request.target[own]
        assert set(labels[asked & (own != 1)].tolist()) <= set(allowed)
        assert not jnp.any((labels == own)[asked])


def test_a_model_that_is_sure_has_neighbours_too():
    sure = ju.Variables({**VARIABLES.params, "head": 1e4 * VARIABLES.params["head"]})
    right = jnp.argmax(logits_of(INPUTS), axis=1) == TARGETS
    assert jnp.any(right)
    assert not jnp.any(slopes_of(INPUTS, TARGETS, sure)[right])  # the gradient of the loss underflows
    assert found(sure, eps=3.0).crossed[jnp.array(ROWS)][right].any()


def test_normalised_inputs_have_the_neighbours_of_unnormalised_ones():
    mean, std = jnp.array([1.0, -2.0, 0.5, 0.0]), jnp.array([0.5, 2.0, 4.0, 1.0])
    normalised = DATA._replace(train=DATA.train._replace(inputs=(DATA.train.inputs - mean) / std))
    weights = {**VARIABLES.params, "body": std[:, None] * VARIABLES.params["body"]}
    weights["bias"] = weights["bias"] + mean @ VARIABLES.params["body"]
    plain, other = found(eps=0.7), found(ju.Variables(weights), normalised, eps=0.7, mean=mean, std=std)
    assert plain.labels.tolist() == other.labels.tolist()
    assert plain.crossed.tolist() == other.crossed.tolist()
    assert len(set(plain.labels.tolist())) == 3


@pytest.mark.parametrize(("options", "moves"), [({}, False), pytest.param({"bn": "all"}, True, marks=SLOW)])
def test_the_forget_set_moves_no_running_statistics_unless_asked(options, moves):
    model = normalized_network()
    variables = model.init(KEY)
    method = ju.boundary_shrink(model, SGD, **options)
    result = jax.jit(ju.iterate(method, 2, batch_size=4))(variables, DATA, REQUEST, KEY)
    assert (distance(result.variables.state, variables.state) > 0) == moves
    assert distance(result.variables.params, variables.params) > 0


def test_a_row_without_an_answer_is_not_passed_over():
    model = linear_classifier(lambda inputs: jnp.log(inputs + 10))  # no number far on the negative side
    run = ju.iterate
    answers = jax.jit(lambda low: run(ju.boundary_shrink(model, SGD, eps=100.0, low=low), 1, batch_size=4)(*call))
    call = (ju.Variables({"w": jax.random.normal(KEY, (4, 3))}), DATA, REQUEST, KEY)
    assert [int(answers(low).status) for low in (-np.inf, -9.0)] == [ju.Status.NONFINITE, ju.Status.OK]


def test_what_is_not_fit_for_it_is_refused():
    def tried(data=DATA, model=MODEL, **settings):
        method = ju.iterate(ju.boundary_shrink(model, SGD, **settings), 1, batch_size=4)
        return jax.eval_shape(method, VARIABLES, data, REQUEST, KEY)

    tried(mean=(0.1, 0.2, 0.3, 0.4), std=[1.0, 2.0, 1.0, 1.0])
    with pytest.raises(TypeError, match="must be floating-point, got int"):
        tried(DATA._replace(train=DATA.train._replace(inputs=DATA.train.inputs.astype(int))))
    with pytest.raises(ValueError, match=r"mean of shape \(3,\) does not fit rows of shape \(4,\)"):
        tried(mean=(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match=r"std of shape \(60, 4\) does not fit"):
        tried(std=np.ones((60, 4)))
    with pytest.raises(ValueError, match="compares classes"):
        tried(DATA._replace(train=DATA.train._replace(targets=DATA.train.targets * 1.0)))
    one = MODEL._replace(forward=lambda v, x, **options: ju.Outputs(MODEL.forward(v, x).logits[:, :1]))
    with pytest.raises(ValueError, match="boundary_shrink compares classes"):
        tried(model=one)
    for name, value in {"eps": -0.1, "std": 0.0, "curvature": -1.0, "round_to": 0.0, "search_step": 0.0}.items():
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            ju.boundary_shrink(MODEL, SGD, **{name: value})
    with pytest.raises(ValueError, match="high must lie in"):
        ju.boundary_shrink(MODEL, SGD, low=1.0, high=0.0)
    with pytest.raises(ValueError, match="uncrossed must be one of runner-up, own, got 'second'"):
        ju.boundary_shrink(MODEL, SGD, uncrossed="second")
    with pytest.raises(ValueError, match="search_steps"):
        ju.boundary_shrink(MODEL, SGD, search_steps=0)


@SLOW
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("boundary_shrink", eps=[0.2, 2.0], static=OWN)
    sweep_equals_single_runs("boundary_shrink", curvature=[0.0, 2.0], std=[1.0, 0.5], high=[1.0, 3.0])


def _hidden(params, inputs):
    for weights, bias in params["body"]:
        inputs = jax.nn.relu(inputs @ weights + bias)
    return inputs


def _relu_network():
    """Two hidden layers of 32 on the plane."""

    def apply(variables, features):
        return features @ variables.params["kernel"] + variables.params["bias"]

    def forward(variables, inputs, *, train=False, key=None):
        hidden = _hidden(variables.params, inputs)
        return ju.Outputs(apply(variables, hidden), {"penultimate": hidden})

    def init(key):
        first, second, last = jax.random.split(key, 3)
        body = [
            (jax.random.normal(key, shape) * np.sqrt(2 / shape[0]), jnp.zeros(32))
            for key, shape in ((first, (2, 32)), (second, (32, 32)))
        ]
        return ju.Variables({"body": body, "kernel": jax.random.normal(last, (32, 4)) / np.sqrt(32), "bias": jnp.zeros(4)})

    def put(variables, kernel, bias):
        return variables._replace(params={**variables.params, "kernel": kernel, "bias": bias})

    head = ju.Head(apply, lambda v: (v.params["kernel"], v.params["bias"]), put)
    return ju.Model(forward, ju.losses.cross_entropy, init, head)


@SLOW
def test_on_blobs_the_borders_move_and_the_other_classes_stay():
    """One of four classes on the corners of a square, 100 steps of SGD on its rows; means over six seeds."""
    model, seeds = _relu_network(), 6
    targets = np.repeat(np.arange(4, dtype=np.int32), 100)
    corners = 2 * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]], np.float32)
    noise = np.random.default_rng(0).normal(size=(seeds, 400, 2))
    worlds = ju.Data(
        ju.Examples(jnp.asarray(corners[targets] + noise, jnp.float32), jnp.tile(targets, (seeds, 1))), jnp.ones((seeds, 400))
    )
    request = lane(ju.from_classes(lane(worlds, 0), [[0]], capacity=100), 0)
    keys = jax.random.split(KEY, seeds)

    def run(make, start, *, request=request, num_steps=100, batch_size=100):
        """`eps -> Variables` of all seeds."""

        def answers(eps):
            unlearn = ju.iterate(make(eps), num_steps, batch_size=batch_size)
            return jax.vmap(unlearn, in_axes=(0, 0, None, 0))(start, worlds, request, keys).variables

        return jax.jit(answers)

    def accuracies(variables):
        """Of the class, and of the others."""
        logits = jax.vmap(lambda v, x: model.forward(v, x).logits)(variables, worlds.train.inputs)
        right = jnp.argmax(logits, axis=2) == targets
        return float(right[:, :100].mean()), float(right[:, 100:].mean())

    momentum = optax.sgd(1e-2, momentum=0.9)
    fit = ju.retrain(model, optax.adam(1e-2))
    trained = run(lambda _: fit, jax.vmap(model.init)(keys), request=ju.empty_request(), num_steps=300, batch_size=64)(0.0)
    random = accuracies(run(lambda _: ju.random_label(model, momentum, alpha=0.0), trained)(0.0))
    expanded = accuracies(run(lambda _: ju.boundary_expand(model, momentum), trained)(0.0))
    shrunk = accuracies(run(lambda eps: ju.boundary_shrink(model, momentum, eps=eps), trained)(1.5))
    published = run(lambda eps: ju.boundary_shrink(model, momentum, eps=eps, **OWN), trained)
    little, enough, far = (accuracies(published(eps)) for eps in (0.5, 1.5, 3.0))
    assert min(accuracies(trained)) > 0.9
    for forget, retain in (expanded, shrunk):
        assert forget < 0.1
        assert retain > random[1] + 0.15
    assert little[0] > 0.8  # most rows cross no border, and are taught their own class
    assert enough[0] < 0.6
    assert enough[1] > random[1] + 0.15
    assert far[1] < enough[1] - 0.2  # beyond the neighbours
