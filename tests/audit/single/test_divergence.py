from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

import jaxunlearn as ju
from jaxunlearn import audit
from tests.audit.toys import classifier, random_network, random_networks, requests_for, scaled
from tests.problems import blobs, lane, linear_regression, network, regression_data

divergence = jax.jit(audit.divergence, static_argnums=0, static_argnames="chunk")


def by_scipy(model, first, second, inputs):
    predict = jax.jit(lambda variables: jax.nn.softmax(model.forward(variables, inputs).logits))
    p, q = np.asarray(predict(first), np.float64), np.asarray(predict(second), np.float64)
    return np.array([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)])


def two_models():
    model = network()
    return model, random_network(0), random_network(1)


@pytest.mark.parametrize("chunk", [None, 7])
def test_equals_scipy_with_weights_and_poisoned_rows(chunk):
    data, (model, first, second) = blobs(), two_models()
    weights = np.random.default_rng(0).uniform(0.5, 2, 60)
    weights[5] = 0
    expected = np.average(by_scipy(model, first, second, data.train.inputs), weights=weights)
    rows = data.train._replace(inputs=data.train.inputs.at[5].set(jnp.nan))
    value = divergence(model, first, second, rows, jnp.asarray(weights, jnp.float32), chunk=chunk)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(divergence(model, second, first, rows, weights, chunk=chunk), value, rtol=1e-5)


def test_limits():
    rows = ju.Examples(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1]))
    model, ones = classifier(), jnp.ones(2)
    assert abs(divergence(model, scaled(3.0), scaled(3.0), rows, ones)) < 1e-7
    np.testing.assert_allclose(divergence(model, scaled(200.0), scaled(-200.0), rows, ones), np.log(2), rtol=1e-6)
    assert jnp.isnan(divergence(model, scaled(1.0), scaled(2.0), rows, jnp.zeros(2)))


def test_half_precision_logits_are_compared_in_single():
    model = classifier()
    half = model._replace(forward=lambda v, x, **options: ju.Outputs(model.forward(v, x).logits.astype(jnp.bfloat16)))
    rows = ju.Examples(jnp.array([[1.0, 0.0]]), jnp.array([0]))
    expected = divergence(model, scaled(1.0), scaled(1.125), rows)
    np.testing.assert_allclose(divergence(half, scaled(1.0), scaled(1.125), rows), expected, rtol=1e-5)


def test_forgotten_rows_of_many_requests():
    data, (model, first, second) = blobs(), two_models()
    lists = [[3, 4, 5], [0, 10, 20, 30, 40, 50, 59]]
    padded = [lane(requests_for(data, [chosen], capacity=8), 0) for chosen in lists]
    requests = jax.tree.map(lambda *x: np.stack(x), *padded, ju.empty_request(8))
    values = jax.jit(jax.vmap(partial(audit.forget_divergence, model, first, second, data)))(requests)
    rows = by_scipy(model, first, second, data.train.inputs)
    np.testing.assert_allclose(values[:2], [rows[chosen].mean() for chosen in lists], rtol=1e-4)
    assert jnp.isnan(values[2])


def test_many_models_against_one():
    data, (model, _, first) = blobs(), two_models()
    models = random_networks(3)
    values = jax.jit(jax.vmap(lambda v: audit.divergence(model, v, first, data.train)))(models)
    expected = [divergence(model, lane(models, position), first, data.train) for position in range(3)]
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-7)
    assert 0 <= values[1] < 1e-6 < min(values[0], values[2])  # the second of them is that one


def test_real_outputs_are_refused():
    data, model, variables = regression_data(), linear_regression(), ju.Variables({"w": jnp.ones(4)})
    with pytest.raises(ValueError, match="expected logits"):
        audit.divergence(model, variables, variables, data.train)
