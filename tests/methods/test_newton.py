"""Newton's step on the retain set: exact for least squares, the dense step for a network, and what it cannot do is said."""

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature
from tests.curvature.toys import (
    DATA,
    FLAT,
    GONE,
    KEPT,
    KEY,
    VARIABLES,
    explicit,
    flat,
    gradients,
    penalised,
    regression,
    request_for,
    ridge_optimum,
)


@pytest.fixture(autouse=True, scope="module")
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("solver", ["cg", "representation"])
def test_it_is_exact_for_least_squares_from_anywhere(solver):
    model, data, optimum = regression()
    options = {"matrix": "hessian", "rtol": 1e-12} if solver == "cg" else {"correction": "ggn", "fit": curvature.dense(model)}
    unlearn = ju.newton(model, damping=0.0, solver=solver, **options)
    prepare, run = jax.jit(ju.prepare(unlearn)), jax.jit(unlearn)
    for variables in (optimum, ju.Variables({"w": np.full(4, 3.0)})):
        result = ju.check(run(variables, prepare(variables, data, KEY), request_for(), KEY))
        np.testing.assert_allclose(result.variables.params["w"], ridge_optimum(GONE), rtol=1e-9)


@pytest.mark.parametrize("solver", ["cg", "representation"])
def test_on_a_network_it_is_the_dense_step(solver):
    model = penalised()
    step = np.linalg.solve(explicit("ggn", KEPT) + 0.3 * np.eye(64), np.average(gradients(), axis=0, weights=KEPT) + 0.1 * FLAT)
    if solver == "cg":  # with a preconditioner, which changes nothing but the number of steps
        options = {"rtol": 1e-12, "chunk": 16, "fit": curvature.diagonal(model)}
    else:
        options = {"correction": "ggn", "fit": curvature.gram(model)}
    unlearn = ju.newton(model, damping=0.2, solver=solver, **options)
    prepared = jax.jit(ju.prepare(unlearn))(VARIABLES, DATA, KEY)
    result = ju.check(jax.jit(unlearn)(VARIABLES, prepared, request_for(), KEY))
    np.testing.assert_allclose(flat(result.variables.params), FLAT - step, rtol=1e-8, atol=1e-10)
    assert float(result.stats["step_norm"]) == pytest.approx(np.linalg.norm(step))


def test_a_solver_that_stops_early_says_so():
    model, data, variables = regression()
    few = jax.jit(ju.newton(model, damping=1e-3, solver="cg", rtol=1e-8, max_steps=2))
    result = few(jax.tree.map(lambda x: x + 1, variables), data, request_for(), KEY)
    assert int(result.status) == ju.Status.NOT_CONVERGED
    assert float(result.stats["residual"]) > 1e-8
    assert int(result.stats["solver_steps"]) == 2


def test_a_representation_that_does_not_hold_what_is_taken_off_says_so():
    model, data, variables = regression()
    nothing = curvature.Diagonal({"w": np.zeros(4)})
    unlearn = ju.newton(model._replace(regularizer=None), damping=1e-6, correction="ggn", fit=lambda *_: nothing)
    prepared = jax.jit(ju.prepare(unlearn))(variables, data, KEY)
    result = jax.jit(unlearn)(variables, prepared, request_for(), KEY)
    assert int(result.status) == ju.Status.NOT_CONVERGED
    assert float(result.stats["margin"]) <= 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.1, "solver": "cg", "correction": "ggn"}, "leaves the rows of the forget set out exactly"),
        ({"damping": -1.0}, "damping must lie in"),
        ({"damping": 0.1, "solver": "lu"}, "solver must be"),
        ({"damping": 0.1, "solver": "cg", "matrix": "fisher"}, "matrix must be one of"),
        ({"damping": 0.1, "chunk": 0}, "chunk must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ju.newton(penalised(), **options)
