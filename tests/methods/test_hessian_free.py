"""Recollected vectors: exact for quadratic losses, second order for networks, and never farther off than their bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates as c
from tests.problems import blobs, distance, lane, linear_regression, network, regression_data

KEY, NOTHING = jax.random.key(0), ju.empty_request()
SAID = {"extractor": "none", "adaptive": False}


def one(data, rows):
    return lane(ju.from_indices(data, [rows], capacity=8), 0)


def trained(model, data, start, **options):
    """Weights, data with vectors, and retraining on the same batches as a function of the request."""
    options = {"learning_rate": 0.05, "num_steps": 20, "batch_size": 8, **options}
    done = jax.jit(ju.recollect(model, **options))(start, data, NOTHING, KEY)
    again = jax.jit(ju.recollect(model, **options, vectors=False))
    ready = data._replace(extra={**data.extra, **done.extra})
    return done.variables, ready, lambda request: again(start, data, request, KEY).variables


@pytest.fixture(scope="module")
def quadratic():
    data, model = regression_data(), linear_regression(0.3)
    return model, data, *trained(model, data, model.init(KEY))


@pytest.fixture(scope="module")
def deep():
    data, model = blobs(), network()
    return model, data, *trained(model, data, model.init(KEY), num_steps=30, chunk=17)


def test_one_row_of_a_quadratic_loss_is_retraining_on_the_same_batches(quadratic):
    model, data, variables, ready, retrain = quadratic
    unlearn = jax.jit(ju.batched(ju.hessian_free(model), in_axes=(None, None, 0, 0)))
    requests = ju.from_indices(data, [[row] for row in range(0, 60, 4)], capacity=2)
    found = unlearn(variables, ready, requests, jax.random.split(KEY, 15))
    moved = []
    for place in range(15):
        expected = retrain(lane(requests, place))
        assert distance(lane(found.variables, place), expected) < 1e-5
        moved.append(distance(variables, expected))
    assert max(moved) > 1e-2


def test_rows_at_disjoint_steps_of_a_quadratic_are_exact_only_up_to_their_interaction(quadratic):
    """Vectors of several rows leave out one another's Hessians only each by itself: a part of second order."""
    model, data, variables, ready, retrain = quadratic
    request = one(data, [3, 9, 20, 41])
    found = ju.hessian_free(model)(variables, ready, request, KEY).variables
    expected = retrain(request)
    assert distance(found, expected) < 0.2 * distance(variables, expected)


def test_vectors_of_a_network_are_right_to_first_order(deep):
    model, data, variables, ready, retrain = deep
    unlearn = jax.jit(ju.hessian_free(model))
    for row in (3, 17):
        expected = retrain(one(data, [row]))
        error = distance(unlearn(variables, ready, one(data, [row]), KEY).variables, expected)
        assert error < 0.1 * distance(variables, expected)


def test_at_small_rates_the_error_is_a_hundredth_of_the_change():
    data, model = blobs(), network()
    start, errors, moves = model.init(KEY), [], []
    for rate in (0.02, 0.01):
        variables, ready, retrain = trained(model, data, start, learning_rate=rate, num_steps=7, batch_size=30)
        expected, request = retrain(one(data, [5])), one(data, [5])
        found = ju.hessian_free(model)(variables, ready, request, KEY).variables
        errors.append(distance(found, expected))
        moves.append(distance(variables, expected))
    assert max(errors) < 1e-2 * min(moves)


def test_a_stream_is_the_merged_request_and_rows_never_read_change_nothing(deep):
    model, data, variables, ready, _ = deep
    unlearn = ju.hessian_free(model)
    requests = ju.from_indices(data, [[3], [9, 20]])
    stream = jax.jit(ju.streamed(unlearn))(variables, ready, requests, jax.random.split(KEY, 2))
    merged = unlearn(variables, ready, ju.merge(requests), KEY)
    assert distance(stream.variables, merged.variables) < 1e-6
    assert stream.status.tolist() == [0, 0]
    assert np.array_equal(np.asarray(stream.stats["hits"])[-1], merged.stats["hits"])
    spoilt = ready._replace(train=jax.tree.map(lambda x: jnp.full_like(x, 7), ready.train))
    assert distance(unlearn(variables, spoilt, ju.merge(requests), KEY).variables, merged.variables) == 0
    other = jax.tree.map(lambda x: x + 1, variables)
    assert unlearn(other, ready, one(data, [3]), KEY).status == ju.Status.STALE


def test_rows_that_are_gone_or_not_a_number_have_no_vector():
    data, model = blobs(), network()
    data = ju.remove(data, one(data, [4]))
    inputs = np.array(data.train.inputs)
    inputs[4] = np.nan
    data = data._replace(train=data.train._replace(inputs=inputs))
    done = jax.jit(ju.recollect(model, learning_rate=0.05, num_steps=9, batch_size=20, chunk=7))(
        model.init(KEY), data, NOTHING, KEY
    )
    held = done.extra["recollections"].value
    assert all(np.isfinite(x).all() and not np.any(x[4]) for x in map(np.asarray, jax.tree.leaves(held.vectors)))
    assert np.count_nonzero(np.asarray(held.trained)) == 59
    assert np.isfinite(np.concatenate([x.ravel() for x in map(np.asarray, jax.tree.leaves(done.variables))])).all()


def logistic():
    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["kernel"])

    def loss(outputs, examples):
        return jax.nn.softplus(jnp.where(examples.targets > 0, -1, 1) * outputs.logits[:, 0])

    return ju.Model(forward, loss)


def certified(result, ready, request, *, gradient, smooth, third, convexity=None, source="declared", data=None):
    known = (x for x in (gradient, smooth, third, convexity) if x is not None)
    mechanism = c.HessianFree(*(c.Constant(x, source) for x in known))
    data = ready if data is None else data
    return c.certify_run(result, data, request, mechanism=mechanism, epsilon=1.0, delta=1e-5, **SAID)


def test_errors_stay_below_their_bound_on_a_logistic_regression(tmp_path):
    """|x| <= 1, so G = 1, L = 1 / 4 and M = 1 / (6 sqrt 3) hold everywhere."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 4)).astype(np.float32)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    data, model = ju.training_data(inputs, (inputs[:, 0] > 0).astype(np.int32)), logistic()
    start = ju.Variables({"kernel": jnp.zeros((4, 1))})
    variables, ready, retrain = trained(model, data, start, learning_rate=0.5, num_steps=15)
    for rows in ([1], [1, 5, 9, 30], list(range(8))):
        request = one(data, rows)
        result = ju.hessian_free(model)(variables, ready, request, KEY)
        error = np.linalg.norm(np.asarray(result.variables.params["kernel"] - retrain(request).params["kernel"]))
        certificate = certified(result, ready, request, gradient=1.0, smooth=0.25, third=1 / (6 * 3**0.5))
        assert certificate.valid
        assert error <= certificate.sensitivity + 1e-6
        assert certificate.noise_scale == pytest.approx(float(c.gaussian_scale(certificate.sensitivity, 1.0, 1e-5)))
    other = certified(result, ready, one(data, [2]), gradient=1.0, smooth=0.25, third=0.1)
    assert [each.name for each in other.assumptions if not each.holds] == ["rows of the request"]
    guessed = certified(result, ready, request, gradient=1.0, smooth=0.25, third=0.1, source="estimated")
    assert sum(each.source == "estimated" for each in guessed.assumptions) == 3
    with pytest.raises(ValueError, match="accept="):
        c.publish(result, guessed, tmp_path)


def test_a_long_convex_training_has_a_bound_that_does_not_grow():
    """With a regularizer of mu = 0.1: L = 0.35, and the drift of rows that come in every batch settles at G / (b mu)."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(40, 4)).astype(np.float32)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    data = ju.training_data(inputs, (inputs[:, 0] > 0).astype(np.int32))
    model = logistic()._replace(regularizer=lambda params: 0.05 * jnp.sum(params["kernel"] ** 2))
    start = ju.Variables({"kernel": jnp.zeros((4, 1))})
    variables, ready, retrain = trained(model, data, start, learning_rate=2.0, num_steps=60)
    constants = {"gradient": 1.0, "smooth": 0.35, "third": 1 / (6 * 3**0.5)}
    for rows in ([1], [1, 5, 9, 30]):
        request = one(data, rows)
        result = ju.hessian_free(model)(variables, ready, request, KEY)
        error = np.linalg.norm(np.asarray(result.variables.params["kernel"] - retrain(request).params["kernel"]))
        certificate = certified(result, ready, request, convexity=0.1, **constants)
        assert certificate.valid
        assert error <= certificate.sensitivity + 1e-6
        assert certificate.sensitivity < 1e-9 * certified(result, ready, request, **constants).sensitivity
    long = certified(result._replace(stats={**result.stats, "rates": 3 * result.stats["rates"]}), ready, request, convexity=0.1,
                     **constants)  # fmt: skip
    assert [each.name for each in long.assumptions if not each.holds] == ["steps at most 2 / L", "finite noise"]
    limit = {"gradient_bound": 2.0, "smoothness": 1.0, "hessian_lipschitz": 3.0, "convexity": 0.5}
    settled = c.recollection_error([0.2] * 500, [1] * 500, 4, single=True, **limit)
    assert settled == pytest.approx(3.0 / (2 * 0.5) * (2.0 / (4 * 0.5)) ** 2)


def test_bounds_add_up_and_refuse_what_is_none():
    constants = {"gradient_bound": 1.0, "smoothness": 2.0, "hessian_lipschitz": 0.0}
    assert c.recollection_error([0.1, 0.1], [1, 1], 4, single=True, **constants) == 0
    assert c.recollection_error([0.1, 0.1], [1, 1], 4, **constants) == pytest.approx(0.1 / 4 * 2 * 0.1 / 4)
    curved = c.recollection_error([0.1, 0.1], [1, 0], 4, single=True, **{**constants, "hessian_lipschitz": 3.0})
    assert curved == pytest.approx(0.1 * 1.5 * (0.1 / 4) ** 2)
    assert c.recollection_error([10.0] * 500, [1] * 500, 4, **constants) == np.inf
    with pytest.raises(ValueError, match="number of rows per step"):
        c.recollection_error([0.1], [1, 1], 4, **constants)
    with pytest.raises(ValueError, match="batch_size must be at most the 60 rows"):
        ju.fixed_batches(60, KEY, num_steps=2, batch_size=61)


def test_every_row_comes_once_per_epoch():
    found = np.asarray(ju.fixed_batches(12, KEY, num_steps=7, batch_size=4))
    assert sorted(found[:3].ravel()) == sorted(found[3:6].ravel()) == list(range(12))
    assert not np.array_equal(found[:3], found[3:6])
