"""Newton's step on the retain set: exact for least squares, the dense step for a network, and what it cannot do is said."""

import jax
import jax.numpy as jnp
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
    MODEL,
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
        options = {"correction": "ggn", "fit": curvature.gram(model), "chunk": 3}
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
    assert int(result.status) == ju.Status.INDEFINITE
    assert float(result.stats["margin"]) <= 0


@pytest.mark.parametrize("solver", ["representation", "cg"])
def test_a_matrix_that_is_not_positive_says_so(solver):
    """A saddle: eigenvalues 1 and -1.35, of which damping mends none, then all."""

    def loss(outputs, examples):
        return 0.5 * (outputs.logits[:, 0] ** 2 - 1.35 * outputs.logits[:, 1] ** 2)

    model = ju.Model(lambda variables, inputs, **options: ju.Outputs(inputs * variables.params["w"]), loss)
    data = ju.training_data(np.ones((6, 2)), np.zeros(6))
    variables, request = ju.Variables({"w": jnp.ones(2)}), request_for([1])
    for method in (ju.newton, ju.influence):
        unlearn = {
            damping: method(model, damping=damping, solver=solver, matrix="hessian", fit=curvature.dense(model, kind="hessian"))
            for damping in (0.01, 2.0)
        }
        prepared = jax.jit(ju.prepare(unlearn[2.0]))(variables, data, KEY)
        status = [int(jax.jit(one)(variables, prepared, request, KEY).status) for one in unlearn.values()]
        assert status == [ju.Status.INDEFINITE, ju.Status.OK]


def test_a_singular_matrix_needs_damping():
    """Ten rows and 64 weights: what no row sees has eigenvalues that are rounding."""
    model, key = MODEL._replace(regularizer=None), KEY
    data = ju.remove(DATA, request_for(range(10, 60), capacity=50))
    for fit in (curvature.ekfac(model), curvature.kfac(model), curvature.dense(model), curvature.gram(model)):
        unlearn = [ju.influence(model, damping=damping, fit=fit) for damping in (0.0, 1e-3)]
        prepared = jax.jit(ju.prepare(unlearn[0]))(VARIABLES, data, key)
        status = [int(jax.jit(one)(VARIABLES, prepared, request_for([1]), key).status) for one in unlearn]
        assert status[0] in (ju.Status.INDEFINITE, ju.Status.NONFINITE)
        assert status[1] == ju.Status.OK


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
