"""Forgetting in the tangent space: exact for a linear model, equal to its dual form, lengthened as the authors do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from tests.curvature.toys import DATA, GONE, HEAD, KEY, MODEL, ROWS, VARIABLES, flat, jacobians, request_for, wide
from tests.problems import distance, linear_regression, regression_data

LEFT = np.setdiff1d(np.arange(60), GONE)


@pytest.fixture(autouse=True, scope="module")
def in_float64():
    with jax.enable_x64(True):
        yield


def on_the_head(**options):
    return jax.jit(ju.ntk_forgetting(MODEL, weight_decay=0.5, layers="head", rtol=1e-12, **options))


@pytest.fixture(scope="module")
def plain(in_float64):
    return ju.check(on_the_head()(VARIABLES, DATA, request_for(), KEY))


def test_it_is_exact_for_a_linear_model_with_squared_error():
    data, decay = wide(regression_data()), 0.1
    x, y = np.asarray(data.train.inputs), np.asarray(data.train.targets)

    def ridge(rows, start):
        gram = x[rows].T @ x[rows] + len(rows) * decay * np.eye(4)
        return np.linalg.solve(gram, x[rows].T @ (y[rows] - x[rows] @ start))

    unlearn = jax.jit(ju.ntk_forgetting(linear_regression(), weight_decay=decay, rtol=1e-12))
    for start in (np.full(4, 0.5), np.zeros(4)):
        result = ju.check(unlearn(ju.Variables({"w": jnp.asarray(start)}), data, request_for(), KEY))
        step = ridge(LEFT, start) - ridge(np.arange(60), start)
        np.testing.assert_allclose(result.variables.params["w"], start + step, rtol=1e-9)
    # from 0, with the weight decay as the penalty of training, that is retraining
    optimum, retrained = ridge(np.arange(60), np.zeros(4)), ridge(LEFT, np.zeros(4))
    np.testing.assert_allclose(optimum + result.variables.params["w"], retrained, rtol=1e-9)


def test_it_equals_its_dual_form_on_some_layers(plain):
    jacobian, probabilities = jacobians()
    errors = probabilities - np.eye(3)[np.asarray(ROWS.targets)]

    def solution(rows):
        j, e = jacobian[rows][:, :, HEAD].reshape(-1, 24), errors[rows].ravel()
        return -j.T @ np.linalg.solve(j @ j.T + len(rows) * 0.5 * np.eye(len(j)), e)

    step = plain.variables.params["head"] - VARIABLES.params["head"]
    np.testing.assert_allclose(np.ravel(step), solution(LEFT) - solution(np.arange(60)), rtol=1e-8, atol=1e-11)
    assert distance(plain.variables.params["body"], VARIABLES.params["body"]) == 0


def test_the_trapezium_lengthens_the_step_as_the_authors_do(plain):
    data = ju.slots.INITIAL_PARAMS.put(DATA, wide(MODEL.init(jax.random.key(7))).params)
    longer = on_the_head(scale="trapezium")(VARIABLES, data, request_for(), KEY)
    steps = [flat(x.variables.params) - flat(VARIABLES.params) for x in (plain, longer)]
    assert float(longer.stats["scale"]) > 1
    np.testing.assert_allclose(steps[1], float(longer.stats["scale"]) * steps[0], rtol=1e-6, atol=1e-12)


def test_what_is_missing_or_wrong_is_named():
    for options, message in (
        ({"scale": "trapezium"}, r"'initial_params'\] is missing .*the weights before training"),
        ({"layers": "tail"}, "names no parameter"),
    ):
        unlearn = ju.ntk_forgetting(MODEL, weight_decay=0.1, **options)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(unlearn, VARIABLES, DATA, request_for(), KEY)
    for options in ({"weight_decay": -1.0}, {"weight_decay": 1.0, "scale": "long"}, {"weight_decay": 1.0, "scale": -1.0}):
        with pytest.raises(ValueError, match=list(options)[-1]):
            ju.ntk_forgetting(MODEL, **options)
