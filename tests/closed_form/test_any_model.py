"""Removals with curvature from models that need not be convex: identities, limits and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxunlearn as ju
from jaxunlearn import convex, curvature
from jaxunlearn.closed_form.certified_newton_step import claimed_bound
from tests.problems import PROBLEM, blobs, distance, lane, linear_regression, network, regression_data

KEY = jax.random.key(0)
ROWS = [3, 8, 21, 40]
L2 = 0.3


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def wide(values):
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype == np.float32 else x, values)


def asked(data, rows=ROWS, capacity=8):
    request = lane(ju.from_indices(data, [rows]), 0)
    pad = capacity - request.indices.shape[0]
    return request._replace(
        indices=jnp.pad(request.indices, (0, max(pad, 0))), weights=jnp.pad(request.weights, (0, max(pad, 0)))
    )


def ridge_optimum(data, gone=()):
    kept = np.setdiff1d(np.arange(60), gone)
    x, y = np.asarray(data.train.inputs, float)[kept], np.asarray(data.train.targets, float)[kept]
    return np.linalg.solve(x.T @ x / len(kept) + L2 * np.eye(4), x.T @ y / len(kept))


def regression():
    data = wide(regression_data())
    model = linear_regression(L2)
    return model, data, ju.Variables({"w": jnp.asarray(ridge_optimum(data))})


@pytest.mark.parametrize("start", ["optimum", "anywhere"])
def test_newton_is_exact_for_least_squares(start):
    model, data, variables = regression()
    variables = variables if start == "optimum" else jax.tree.map(lambda x: x * 0 + 3.0, variables)
    request = asked(data)
    unlearn = jax.jit(ju.newton(model, damping=0.0, solver="cg", matrix="hessian", rtol=1e-12))
    result = ju.check(unlearn(variables, data, request, KEY))
    np.testing.assert_allclose(result.variables.params["w"], ridge_optimum(data, ROWS), rtol=1e-9)
    prepared = curvature.prepare(curvature.dense(model))(variables, data, KEY)
    corrected = ju.check(jax.jit(ju.newton(model, damping=0.0, correction="ggn"))(variables, prepared, request, KEY))
    np.testing.assert_allclose(corrected.variables.params["w"], ridge_optimum(data, ROWS), rtol=1e-9)


def test_influence_is_first_order_and_newton_is_not():
    model, data, variables = regression()
    prepared = curvature.prepare(curvature.dense(model))(variables, data, KEY)
    unlearn = jax.jit(ju.influence(model, damping=0.0))
    errors = []
    for count in (1, 2, 4, 8):
        after = unlearn(variables, prepared, asked(data, list(range(count)), 8), KEY).variables.params["w"]
        errors.append(np.linalg.norm(after - ridge_optimum(data, range(count))) / np.linalg.norm(ridge_optimum(data)))
    assert errors[0] < 2e-3
    assert errors[-1] < 64 * 3 * errors[0]
    assert errors[-1] > errors[0]


def explicit(product, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.vmap(lambda e: ravel_pytree(product(unravel(e)))[0])(jnp.eye(flat.size)))


def retained_pieces(model, variables, data):
    kept = np.ones(60)
    kept[ROWS] = 0
    total = curvature.gradient_sum(model, variables, data.train, jnp.asarray(kept))
    return jnp.asarray(kept), np.asarray(ravel_pytree(total)[0]) / (60 - len(ROWS))


def nonlinear():
    model, data = network(), wide(blobs())
    penalised = model._replace(regularizer=lambda p: 0.05 * sum(jnp.sum(x**2) for x in jax.tree.leaves(p)))
    return penalised, data, wide(model.init(jax.random.key(1)))


@pytest.mark.parametrize("how", ["cg", "woodbury", "cg preconditioned"])
def test_newton_of_a_network_is_the_dense_step(how):
    model, data, variables = nonlinear()
    kept, slope = retained_pieces(model, variables, data)
    matrix = explicit(curvature.ggn_vp(model, variables, data.train, kept), variables.params)
    flat = np.asarray(ravel_pytree(variables.params)[0])
    expected = flat - np.linalg.solve(matrix + (0.1 + 0.2) * np.eye(flat.size), slope + 0.1 * flat)
    if how == "woodbury":
        data = curvature.prepare(curvature.gram(model))(variables, data, KEY)
        unlearn = ju.newton(model, damping=0.2, correction="ggn")
    else:
        if how == "cg preconditioned":
            data = curvature.prepare(curvature.ekfac(model, kind="ggn"))(variables, data, KEY)
        unlearn = ju.newton(model, damping=0.2, solver="cg", rtol=1e-12, chunk=16)
    result = ju.check(jax.jit(unlearn)(variables, data, asked(data), KEY))
    np.testing.assert_allclose(ravel_pytree(result.variables.params)[0], expected, rtol=1e-8, atol=1e-10)


def test_influence_of_a_network_is_the_dense_step():
    model, data, variables = nonlinear()
    matrix = explicit(curvature.hvp(model, variables, data.train), variables.params)
    flat = np.asarray(ravel_pytree(variables.params)[0])
    rows = np.zeros(60)
    rows[ROWS] = 1
    pull = np.asarray(ravel_pytree(curvature.gradient_sum(model, variables, data.train, jnp.asarray(rows)))[0])
    expected = flat + np.linalg.solve(matrix + 1.1 * np.eye(flat.size), pull + len(ROWS) * 0.1 * flat) / 60
    unlearn = ju.influence(model, damping=1.0, solver="cg", matrix="hessian", rtol=1e-12)
    result = ju.check(jax.jit(unlearn)(variables, data, asked(data), KEY))
    np.testing.assert_allclose(ravel_pytree(result.variables.params)[0], expected, rtol=1e-9, atol=1e-11)


def test_solvers_that_stop_early_say_so():
    model, data, variables = nonlinear()
    few = jax.jit(ju.newton(model, damping=1e-3, solver="cg", rtol=1e-8, max_steps=3))
    result = few(variables, data, asked(data), KEY)
    assert int(result.status) == ju.Status.NOT_CONVERGED
    assert float(result.stats["residual"]) > 1e-8
    assert int(result.stats["solver_steps"]) == 3


def test_a_representation_that_does_not_hold_what_is_taken_off_says_so():
    model, data, variables = nonlinear()
    small = curvature.Diagonal(jax.tree.map(lambda x: jnp.zeros_like(x), variables.params))
    prepared = data._replace(extra={"curvature": small})
    plain = model._replace(regularizer=None)
    result = jax.jit(ju.newton(plain, damping=1e-6, correction="ggn"))(variables, prepared, asked(data), KEY)
    assert int(result.status) == ju.Status.NOT_CONVERGED
    assert float(result.stats["margin"]) <= 0


def test_woodfisher_inverts_the_empirical_fisher_matrix():
    model, data, variables = nonlinear()
    kept, slope = retained_pieces(model, variables, data)
    matrix = explicit(curvature.empirical_fisher_vp(model, variables, data.train, kept), variables.params)
    flat = np.asarray(ravel_pytree(variables.params)[0])
    rows = np.zeros(60)
    rows[ROWS] = 1
    own = np.asarray(ravel_pytree(curvature.gradient_sum(model, variables, data.train, jnp.asarray(rows)))[0])
    pull = own / 60 - len(ROWS) / 60 * slope
    expected = flat + 0.7 * np.linalg.solve(matrix + 0.01 * np.eye(flat.size), pull)
    result = ju.check(jax.jit(ju.woodfisher(model, alpha=0.7, damping=0.01, rtol=1e-12))(variables, data, asked(data), KEY))
    np.testing.assert_allclose(ravel_pytree(result.variables.params)[0], expected, rtol=1e-8, atol=1e-10)


def test_certified_newton_step_is_the_same_with_both_solvers():
    model, data, variables = nonlinear()
    kept, _ = retained_pieces(model, variables, data)
    plain = model._replace(regularizer=None)
    matrix = explicit(curvature.hvp(plain, variables, data.train, kept), variables.params)
    rows = np.zeros(60)
    rows[ROWS] = 1
    own = np.asarray(ravel_pytree(curvature.gradient_sum(plain, variables, data.train, jnp.asarray(rows)))[0])
    flat = np.asarray(ravel_pytree(variables.params)[0])
    expected = flat + np.linalg.solve(matrix + 3 * np.eye(flat.size), own) / (60 - len(ROWS))
    quick = ju.check(
        jax.jit(ju.certified_newton_step(plain, convexity=3.0, solver="cg", rtol=1e-10))(variables, data, asked(data), KEY)
    )
    np.testing.assert_allclose(ravel_pytree(quick.variables.params)[0], expected, rtol=1e-8, atol=1e-10)
    series = ju.certified_newton_step(plain, convexity=3.0, scale=12.0, max_steps=200, batch_size=32)
    slow = ju.check(jax.jit(series)(variables, data, asked(data), KEY))
    step = np.linalg.norm(expected - flat)
    assert np.linalg.norm(np.asarray(ravel_pytree(slow.variables.params)[0]) - expected) < 0.2 * step
    apart = jax.jit(ju.certified_newton_step(plain, convexity=3.0, scale=0.5, max_steps=50))(variables, data, asked(data), KEY)
    assert int(apart.status) in (ju.Status.NOT_CONVERGED, ju.Status.NONFINITE)


def test_the_claimed_bound_is_the_formula_and_infinite_without_convexity():
    constants = {"radius": 10.0, "lipschitz_gradient": 1.0, "lipschitz_hessian": 1.0, "convexity": 5.0, "num_weights": 100}
    expected = 20 * (10 + 5) / 4 + (32 * np.sqrt(np.log(1000)) / 4 + 1 / 8) * 10
    np.testing.assert_allclose(claimed_bound(**constants, smallest_eigenvalue=-1.0), expected)
    assert claimed_bound(**constants, smallest_eigenvalue=-6.0) == np.inf


def test_ntk_forgetting_is_exact_for_a_linear_model_with_squared_error():
    data = wide(regression_data())
    model = linear_regression()
    decay = 0.1
    x, y = np.asarray(data.train.inputs), np.asarray(data.train.targets)

    def ridge(rows, start):
        return start + np.linalg.solve(
            x[rows].T @ x[rows] + len(rows) * decay * np.eye(4), x[rows].T @ (y[rows] - x[rows] @ start)
        )

    start = np.full(4, 0.5)
    variables = ju.Variables({"w": jnp.asarray(start)})
    kept = np.setdiff1d(np.arange(60), ROWS)
    expected = start + ridge(kept, start) - ridge(np.arange(60), start)
    result = ju.check(jax.jit(ju.ntk_forgetting(model, decay=decay, rtol=1e-12))(variables, data, asked(data), KEY))
    np.testing.assert_allclose(result.variables.params["w"], expected, rtol=1e-9)
    # From 0, with the decay as the penalty of training, that is retraining.
    optimum = np.linalg.solve(x.T @ x + 60 * decay * np.eye(4), x.T @ y)
    zero = jax.jit(ju.ntk_forgetting(model, decay=decay, rtol=1e-12))
    at_zero = zero(ju.Variables({"w": jnp.zeros(4)}), data, asked(data), KEY).variables.params["w"]
    retrained = np.linalg.solve(x[kept].T @ x[kept] + len(kept) * decay * np.eye(4), x[kept].T @ y[kept])
    np.testing.assert_allclose(optimum + at_zero, retrained, rtol=1e-9)


def test_ntk_forgetting_equals_its_dual_form_on_some_layers():
    model, data, variables = nonlinear()
    decay, jacobian = 0.5, jax.jacobian(lambda p: model.forward(ju.Variables(p), data.train.inputs).logits)(variables.params)
    j = np.asarray(jacobian["head"]).reshape(180, -1)
    outputs = model.forward(variables, data.train.inputs)
    e = np.asarray(jax.nn.softmax(outputs.logits) - jax.nn.one_hot(data.train.targets, 3)).ravel()

    def solution(rows):
        which = (np.asarray(rows)[:, None] * 3 + np.arange(3)).ravel()
        jr = j[which]
        return -jr.T @ np.linalg.solve(jr @ jr.T + len(rows) * decay * np.eye(len(which)), e[which])

    delta = solution(np.setdiff1d(np.arange(60), ROWS)) - solution(np.arange(60))
    result = ju.check(
        jax.jit(ju.ntk_forgetting(model, decay=decay, layers="head", rtol=1e-12))(variables, data, asked(data), KEY)
    )
    np.testing.assert_allclose(
        np.ravel(result.variables.params["head"] - variables.params["head"]), delta, rtol=1e-8, atol=1e-11
    )
    assert distance(result.variables.params["body"], variables.params["body"]) == 0


def test_the_trapezium_lengthens_the_step_as_the_authors_do():
    model, data, variables = nonlinear()
    initial = wide(model.init(jax.random.key(7)))
    plain = jax.jit(ju.ntk_forgetting(model, decay=0.5))(variables, data, asked(data), KEY)
    data = data._replace(extra={"initial_params": initial.params})
    longer = jax.jit(ju.ntk_forgetting(model, decay=0.5, scale="trapezium"))(variables, data, asked(data), KEY)
    steps = [
        np.asarray(ravel_pytree(jax.tree.map(jnp.subtract, x.variables.params, variables.params))[0]) for x in (plain, longer)
    ]
    assert float(longer.stats["scale"]) > 1
    np.testing.assert_allclose(steps[1], float(longer.stats["scale"]) * steps[0], rtol=1e-6, atol=1e-12)


def test_projective_residual_is_the_projected_way_to_the_retrained_model():
    problem = convex.ridge(0.2)
    data = wide(regression_data())
    variables = convex.fit(problem, data, row_norm=None)
    shared = convex.prepare(problem)(variables, data, KEY)
    rows = ROWS[:2]
    request = asked(data, rows, 4)
    result = ju.check(jax.jit(ju.projective_residual(problem))(variables, shared, request, KEY))
    retrained = convex.fit(problem, ju.remove(data, request), row_norm=None)
    way = np.asarray(retrained.params["kernel"] - variables.params["kernel"])
    x = np.asarray(data.train.inputs)[rows]
    expected = x.T @ np.linalg.solve(x @ x.T, x @ way)
    np.testing.assert_allclose(result.variables.params["kernel"] - variables.params["kernel"], expected, rtol=1e-9, atol=1e-12)


def test_what_is_missing_or_wrong_is_named():
    model, data, variables = nonlinear()
    request = asked(data)
    with pytest.raises(ValueError, match=r"needs data.extra\['curvature'\].*ekfac"):
        ju.influence(model, damping=0.1)(variables, data, request, KEY)
    with pytest.raises(ValueError, match="leaves the forgotten rows out exactly"):
        ju.newton(model, damping=0.1, solver="cg", correction="ggn")
    with pytest.raises(ValueError, match="damping must lie in"):
        ju.newton(model, damping=-1.0)
    with pytest.raises(ValueError, match="solver must be"):
        ju.influence(model, damping=0.1, solver="lu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matrix must be one of"):
        ju.newton(model, damping=0.1, solver="cg", matrix="fisher")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights before training"):
        ju.ntk_forgetting(model, decay=0.1, scale="trapezium")(variables, data, request, KEY)
    with pytest.raises(ValueError, match="names no parameter"):
        ju.ntk_forgetting(model, decay=0.1, layers="tail")(variables, data, request, KEY)
    with pytest.raises(ValueError, match=r"projective_residual needs data.extra\['factorisation'\]"):
        ju.projective_residual(PROBLEM)(ju.Variables({"kernel": jnp.zeros((4, 3))}), data, request, KEY)
