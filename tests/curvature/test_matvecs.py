"""Products with curvature matrices, against the matrices."""

from functools import cache, partial

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
from jaxunlearn.curvature.single_rows import row_factors
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
VARIABLES = wide(jax.jit(MODEL.init)(jax.random.key(1)))


def flat(values):
    """A tree as one vector."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(values)])


def tree_of(vector, params=VARIABLES.params):
    """The vector as a tree like the parameters; leading axes stay."""
    leaves, form = jax.tree.flatten(params)
    parts = np.split(vector, np.cumsum([x.size for x in leaves])[:-1], axis=-1)
    return form.unflatten([x.reshape(*vector.shape[:-1], *y.shape) for x, y in zip(parts, leaves, strict=True)])


def stacked(values):
    """A tree with a leading axis as one vector for every entry."""
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(values)], axis=1)


@partial(jax.jit, static_argnums=0)
def _images(make, basis, arguments):
    return jax.vmap(make(*arguments))(basis)


def matrix(make, *arguments, params=VARIABLES.params):
    """The matrix of `make(*arguments)`, a linear function of trees; one program makes and applies it."""
    return stacked(_images(make, tree_of(np.eye(flat(params).size), params), arguments))


def matvec(made):
    return made.matvec


def product(name, rows=ROWS, weights=None, **options):
    """The matrix of a product of the toy model."""
    return matrix(partial(PRODUCTS[name], MODEL, **options), VARIABLES, rows, weights)


@cache
def whole(name):
    """That without chunks and weights."""
    return product(name)


def without(*rows):
    """Weights of zero for these rows and of one for the others."""
    return np.where(np.isin(np.arange(60), rows), 0.0, 1.0)


def rows_where(kept):
    """Those rows alone."""
    return ju.Examples(*(x[kept] for x in ROWS))


def broken_where(gone):
    """All rows, without numbers in those that are gone."""
    return ROWS._replace(inputs=np.where(gone[:, None], np.nan, ROWS.inputs))


def loss_at(model, rows):
    return lambda p: jnp.mean(model.loss(model.forward(ju.Variables(p), rows.inputs), rows))


@cache
def hessian():
    """Of the mean loss, by plain automatic differentiation."""
    unravel = ravel_pytree(VARIABLES.params)[1]
    return np.asarray(jax.jit(jax.hessian(lambda x: loss_at(MODEL, ROWS)(unravel(x))))(flat(VARIABLES.params)))


def test_hessian_products_are_those_of_the_hessian():
    np.testing.assert_allclose(whole("hvp"), hessian(), atol=1e-12)


def test_ggn_is_the_hessian_of_a_linear_model_and_the_exact_fisher_of_any_classifier():
    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["w"])

    linear, start = ju.Model(forward, ju.losses.cross_entropy), ju.Variables({"w": np.full((4, 3), 0.3)})
    hessian, ggn = (matrix(partial(x, linear), start, ROWS, params=start.params) for x in (curvature.hvp, curvature.ggn_vp))
    np.testing.assert_allclose(ggn, hessian, atol=1e-12)
    np.testing.assert_allclose(whole("fisher"), whole("ggn"), atol=1e-12)
    assert np.abs(whole("ggn") - whole("hvp")).max() > 0.01


def test_empirical_fisher_is_the_mean_of_squares_and_no_fisher_matrix():
    gradients = jax.jit(partial(curvature.per_example_gradients, MODEL, chunk=13))(VARIABLES, ROWS)
    rows = stacked(gradients)
    np.testing.assert_allclose(whole("empirical"), rows.T @ rows / 60, atol=1e-12)
    assert np.abs(whole("empirical") - whole("fisher")).max() > 0.01
    mean = flat(jax.jit(jax.grad(loss_at(MODEL, ROWS)))(VARIABLES.params))
    np.testing.assert_allclose(rows.mean(axis=0), mean, atol=1e-12)


def test_sampled_labels_are_right_on_average():
    direction = jax.tree.map(np.ones_like, VARIABLES.params)
    draw = lambda key: ravel_pytree(curvature.sampled_fisher_vp(MODEL, VARIABLES, ROWS, key)(direction))[0]
    many = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, 2000)))
    expected = whole("fisher") @ np.ones(64)
    error = many.std(axis=0) / np.sqrt(len(many))
    assert np.max(np.abs(many.mean(axis=0) - expected) / (error + 1e-12)) < 4.5


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_chunks_and_rows_that_do_not_count_change_nothing(name):
    for chunk in (7, 60):
        np.testing.assert_allclose(product(name, chunk=chunk), whole(name), atol=1e-12)
    if name == "sampled":
        return
    weights = without(3, 50)
    expected = product(name, rows_where(weights > 0))
    for chunk in (None, 8):
        found = product(name, broken_where(weights == 0), weights, chunk=chunk)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_factors_of_rows_make_up_each_matrix():
    for kind in ("ggn", "fisher", "empirical", "jacobian"):
        factors = jax.jit(partial(row_factors, kind, MODEL))(VARIABLES, ROWS, np.zeros(60))
        rows = np.concatenate([np.reshape(x, (-1, x[0, 0].size)) for x in jax.tree.leaves(factors)], axis=1)
        np.testing.assert_allclose(rows.T @ rows / 60, whole(kind), atol=1e-12)


def test_the_fisher_matrix_of_least_squares_is_its_ggn():
    rows, model = wide(regression_data().train), linear_regression()
    start = ju.Variables({"w": np.zeros(4)})
    found = matrix(partial(curvature.ggn_vp, model), start, rows, params=start.params)
    np.testing.assert_allclose(found, rows.inputs.T @ rows.inputs / 60, atol=1e-12)
    np.testing.assert_allclose(matrix(partial(curvature.fisher_vp, model), start, rows, params=start.params), found, atol=1e-12)


def test_the_regularizer_has_products_of_its_own():
    model = linear_regression(0.7)
    found = curvature.regularizer_vp(model, ju.Variables({"w": np.zeros(4)}))({"w": np.arange(4.0)})
    np.testing.assert_allclose(found["w"], 0.7 * np.arange(4))
    nothing = jax.jit(curvature.regularizer_vp(MODEL, VARIABLES))(VARIABLES.params)
    assert not any(np.any(x) for x in jax.tree.leaves(nothing))


@pytest.mark.parametrize("name", ["hvp", "ggn"])
def test_rows_may_be_spread_over_devices(name):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    rows = jax.device_put(ROWS, NamedSharding(mesh, P("data")))
    multiply = jax.jit(lambda rows, v: PRODUCTS[name](MODEL, VARIABLES, rows)(v))
    np.testing.assert_allclose(flat(multiply(rows, VARIABLES.params)), flat(multiply(ROWS, VARIABLES.params)), atol=1e-12)


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
        curvature.hvp(MODEL, VARIABLES, ROWS)({**VARIABLES.params, "head": np.zeros(3)})
    with pytest.raises(ValueError, match=r"weights must have shape \(60,\)"):
        curvature.ggn_vp(MODEL, VARIABLES, ROWS, np.ones(3))
    with pytest.raises(ValueError, match="chunk"):
        curvature.hvp(MODEL, VARIABLES, ROWS, chunk=0)
    with pytest.raises(TypeError, match="typed key"):
        curvature.sampled_fisher_vp(MODEL, VARIABLES, ROWS, jnp.zeros(2, jnp.uint32))
    scalar = MODEL._replace(loss=lambda outputs, examples: jnp.mean(outputs.logits))
    with pytest.raises(ValueError, match="one value per row"):
        partial(curvature.hvp, scalar)(VARIABLES, ROWS)


@pytest.mark.parametrize(("name", "chunk"), [("hvp", None), ("hvp", 16), ("ggn", 16), ("empirical", None)])
def test_many_vectors_at_once_are_many_vectors_one_by_one(name, chunk):
    multiply = lambda v: PRODUCTS[name](MODEL, VARIABLES, ROWS, chunk=chunk)(v)
    vectors = tree_of(np.random.default_rng(0).normal(size=(3, 64)))
    together, one = jax.jit(jax.vmap(multiply))(vectors), jax.jit(multiply)
    for place in range(3):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), lane(together, place), one(lane(vectors, place)))


@pytest.mark.parametrize("name", ["hvp", "ggn", "fisher", "sampled"])
def test_weights_count_as_often_as_the_row_would(name):
    if name == "sampled":
        weights = np.where(np.arange(60) % 7, 1.0, 0.0)
        expected = product(name, ROWS, weights)
        for chunk in (None, 8):
            found = product(name, broken_where(weights == 0), weights, chunk=chunk)
            np.testing.assert_allclose(found, expected, atol=1e-12)
        return
    few, counts = ju.Examples(*(x[:10] for x in ROWS)), np.arange(10) % 4
    repeated = ju.Examples(*(np.repeat(x, counts, axis=0) for x in few))
    np.testing.assert_allclose(product(name, few, counts / 2, chunk=4), product(name, repeated), atol=1e-12)


def test_gradients_of_rows_have_a_leading_axis_and_do_not_depend_on_chunks():
    gradients = lambda **options: jax.jit(partial(curvature.per_example_gradients, MODEL, **options))(VARIABLES, ROWS)
    whole = gradients()
    assert jax.tree.map(jnp.shape, whole) == jax.tree.map(lambda x: (60, *x.shape), VARIABLES.params)
    for chunk in (7, 60, 64):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-13), gradients(chunk=chunk), whole)


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
