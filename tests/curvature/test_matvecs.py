"""Products with curvature matrices, against the matrices."""

from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxunlearn as ju
from jaxunlearn import curvature
from jaxunlearn.curvature.matvecs import row_factors
from tests.problems import blobs, lane, linear_regression, network, regression_data

KEY = jax.random.key(0)
PRODUCTS = {
    "hvp": curvature.hvp,
    "ggn": curvature.ggn_vp,
    "fisher": curvature.fisher_vp,
    "sampled": lambda m, v, e, w=None, **o: curvature.sampled_fisher_vp(m, v, e, KEY, w, **o),
    "empirical": curvature.empirical_fisher_vp,
    "jacobian": curvature.jacobian_vp,
}


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def wide(values):
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype == np.float32 else x, values)


MODEL, ROWS = network(), wide(blobs().train)
VARIABLES = wide(MODEL.init(jax.random.key(1)))


def matrix(product, params=VARIABLES.params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.vmap(lambda e: ravel_pytree(product(unravel(e)))[0]))(jnp.eye(flat.size)))


def loss_at(model, rows):
    return lambda p: jnp.mean(model.loss(model.forward(ju.Variables(p), rows.inputs), rows))


def test_hessian_products_are_those_of_the_hessian():
    flat, unravel = ravel_pytree(VARIABLES.params)
    hessian = jax.jit(jax.hessian(lambda x: loss_at(MODEL, ROWS)(unravel(x))))(jnp.asarray(flat))
    np.testing.assert_allclose(matrix(curvature.hvp(MODEL, VARIABLES, ROWS)), hessian, atol=1e-12)


def test_ggn_is_the_hessian_of_a_linear_model_and_the_exact_fisher_of_any_classifier():
    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["w"])

    linear, start = ju.Model(forward, ju.losses.cross_entropy), ju.Variables({"w": np.full((4, 3), 0.3)})
    hessian = matrix(curvature.hvp(linear, start, ROWS), start.params)
    np.testing.assert_allclose(matrix(curvature.ggn_vp(linear, start, ROWS), start.params), hessian, atol=1e-12)
    ggn = matrix(curvature.ggn_vp(MODEL, VARIABLES, ROWS))
    np.testing.assert_allclose(matrix(curvature.fisher_vp(MODEL, VARIABLES, ROWS)), ggn, atol=1e-12)
    assert np.abs(ggn - matrix(curvature.hvp(MODEL, VARIABLES, ROWS))).max() > 0.01


def test_empirical_fisher_is_the_mean_of_squares_and_no_fisher_matrix():
    gradients = jax.jit(partial(curvature.per_example_gradients, MODEL, chunk=13))(VARIABLES, ROWS)
    flat = np.concatenate([np.reshape(x, (60, -1)) for x in jax.tree.leaves(gradients)], axis=1)
    found = matrix(curvature.empirical_fisher_vp(MODEL, VARIABLES, ROWS))
    np.testing.assert_allclose(found, flat.T @ flat / 60, atol=1e-12)
    assert np.abs(found - matrix(curvature.fisher_vp(MODEL, VARIABLES, ROWS))).max() > 0.01
    np.testing.assert_allclose(flat.mean(axis=0), ravel_pytree(jax.grad(loss_at(MODEL, ROWS))(VARIABLES.params))[0], atol=1e-12)


def test_sampled_labels_are_right_on_average():
    direction = jax.tree.map(jnp.ones_like, VARIABLES.params)
    draw = lambda key: ravel_pytree(curvature.sampled_fisher_vp(MODEL, VARIABLES, ROWS, key)(direction))[0]
    many = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, 2000)))
    expected = np.asarray(ravel_pytree(curvature.fisher_vp(MODEL, VARIABLES, ROWS)(direction))[0])
    error = many.std(axis=0) / np.sqrt(len(many))
    assert np.max(np.abs(many.mean(axis=0) - expected) / (error + 1e-12)) < 4.5


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_chunks_and_rows_that_do_not_count_change_nothing(name):
    product = PRODUCTS[name]
    whole = matrix(product(MODEL, VARIABLES, ROWS))
    for chunk in (7, 60):
        np.testing.assert_allclose(matrix(product(MODEL, VARIABLES, ROWS, chunk=chunk)), whole, atol=1e-12)
    if name == "sampled":
        return
    weights = np.ones(60)
    weights[[3, 50]] = 0
    broken = ROWS._replace(inputs=np.where(weights[:, None] > 0, ROWS.inputs, np.nan))
    kept = ju.Examples(*(x[weights > 0] for x in ROWS))
    expected = matrix(product(MODEL, VARIABLES, kept))
    for chunk in (None, 8):
        np.testing.assert_allclose(matrix(product(MODEL, VARIABLES, broken, weights, chunk=chunk)), expected, atol=1e-12)


def test_factors_of_rows_make_up_each_matrix():
    for kind in ("ggn", "fisher", "empirical", "jacobian"):
        factors = jax.jit(partial(row_factors, kind, MODEL))(VARIABLES, ROWS, jnp.zeros(60))
        flat = np.concatenate([np.reshape(x, (-1, x[0, 0].size)) for x in jax.tree.leaves(factors)], axis=1)
        np.testing.assert_allclose(flat.T @ flat / 60, matrix(PRODUCTS[kind](MODEL, VARIABLES, ROWS)), atol=1e-12)


def test_the_fisher_matrix_of_least_squares_is_its_ggn():
    rows, model = wide(regression_data().train), linear_regression()
    start = ju.Variables({"w": np.zeros(4)})
    found = matrix(curvature.ggn_vp(model, start, rows), start.params)
    np.testing.assert_allclose(found, rows.inputs.T @ rows.inputs / 60, atol=1e-12)
    np.testing.assert_allclose(matrix(curvature.fisher_vp(model, start, rows), start.params), found, atol=1e-12)


def test_the_regularizer_has_products_of_its_own():
    model = linear_regression(0.7)
    found = curvature.regularizer_vp(model, ju.Variables({"w": jnp.zeros(4)}))({"w": jnp.arange(4.0)})
    np.testing.assert_allclose(found["w"], 0.7 * np.arange(4))
    nothing = curvature.regularizer_vp(MODEL, VARIABLES)(VARIABLES.params)
    assert not any(np.any(x) for x in jax.tree.leaves(nothing))


@pytest.mark.parametrize("name", ["hvp", "ggn"])
def test_rows_may_be_spread_over_devices(name):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    rows = jax.device_put(ROWS, NamedSharding(mesh, P("data")))
    product = jax.jit(lambda rows, v: PRODUCTS[name](MODEL, VARIABLES, rows)(v))
    np.testing.assert_allclose(
        ravel_pytree(product(rows, VARIABLES.params))[0],
        ravel_pytree(product(ROWS, VARIABLES.params))[0],
        atol=1e-12,
    )


def precisions(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from precisions(inner)


@pytest.mark.parametrize("name", list(PRODUCTS))
@pytest.mark.parametrize("chunk", [None, 16])
def test_products_run_at_the_highest_precision(name, chunk):
    traced = jax.make_jaxpr(lambda v: PRODUCTS[name](MODEL, VARIABLES, ROWS, chunk=chunk)(v))(VARIABLES.params)
    used = list(precisions(traced.jaxpr))
    assert used
    assert set(used) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a vector like the params"):
        curvature.hvp(MODEL, VARIABLES, ROWS)({**VARIABLES.params, "head": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"weights must have shape \(60,\)"):
        curvature.ggn_vp(MODEL, VARIABLES, ROWS, jnp.ones(3))
    with pytest.raises(ValueError, match="chunk"):
        curvature.hvp(MODEL, VARIABLES, ROWS, chunk=0)
    with pytest.raises(TypeError, match="typed key"):
        curvature.sampled_fisher_vp(MODEL, VARIABLES, ROWS, jnp.zeros(2, jnp.uint32))
    scalar = MODEL._replace(loss=lambda outputs, examples: jnp.mean(outputs.logits))
    with pytest.raises(ValueError, match="one value per row"):
        partial(curvature.hvp, scalar)(VARIABLES, ROWS)


@pytest.mark.parametrize(("name", "chunk"), [("hvp", None), ("hvp", 16), ("ggn", 16), ("empirical", None)])
def test_many_vectors_at_once_are_many_vectors_one_by_one(name, chunk):
    product = PRODUCTS[name](MODEL, VARIABLES, ROWS, chunk=chunk)
    vectors = jax.vmap(ravel_pytree(VARIABLES.params)[1])(jax.random.normal(KEY, (3, 64), jnp.float64))
    together, one = jax.jit(jax.vmap(product))(vectors), jax.jit(product)
    for place in range(3):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), lane(together, place), one(lane(vectors, place)))


@pytest.mark.parametrize("name", ["hvp", "ggn", "fisher", "sampled"])
def test_weights_count_as_often_as_the_row_would(name):
    if name == "sampled":
        weights = np.where(np.arange(60) % 7, 1.0, 0.0)
        broken = ROWS._replace(inputs=np.where(weights[:, None] > 0, ROWS.inputs, np.nan))
        expected = matrix(PRODUCTS[name](MODEL, VARIABLES, ROWS, weights))
        for chunk in (None, 8):
            np.testing.assert_allclose(
                matrix(PRODUCTS[name](MODEL, VARIABLES, broken, weights, chunk=chunk)), expected, atol=1e-12
            )
        return
    few, counts = ju.Examples(*(x[:10] for x in ROWS)), np.arange(10) % 4
    repeated = ju.Examples(*(np.repeat(x, counts, axis=0) for x in few))
    expected = matrix(PRODUCTS[name](MODEL, VARIABLES, repeated))
    found = matrix(PRODUCTS[name](MODEL, VARIABLES, few, jnp.asarray(counts / 2), chunk=4))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_gradients_of_rows_have_a_leading_axis_and_do_not_depend_on_chunks():
    whole = jax.jit(lambda rows: curvature.per_example_gradients(MODEL, VARIABLES, rows))(ROWS)
    assert jax.tree.map(jnp.shape, whole) == jax.tree.map(lambda x: (60, *x.shape), VARIABLES.params)
    for chunk in (7, 60, 64):
        cut = curvature.per_example_gradients(MODEL, VARIABLES, ROWS, chunk=chunk)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-13), cut, whole)


def test_products_keep_the_dtype_of_the_weights_and_take_plain_numbers():
    narrow = jax.tree.map(lambda x: np.asarray(x, np.float32), VARIABLES)
    for make in (curvature.hvp, curvature.ggn_vp, curvature.empirical_fisher_vp, curvature.jacobian_vp):
        product = make(MODEL, narrow, ROWS, np.ones(60))
        assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(product, narrow.params))} == {np.dtype(np.float32)}
    line = ju.Model(
        lambda variables, inputs, **options: ju.Outputs(inputs[:, 0] * variables.params["w"]), ju.losses.squared_error
    )
    data = ju.training_data(np.ones((6, 2)), np.zeros(6))
    assert float(curvature.hvp(line, ju.Variables({"w": 0.5}), data.train)({"w": 2.0})["w"]) == 2
