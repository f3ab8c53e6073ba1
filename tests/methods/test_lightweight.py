"""Exact for least squares, quadratic for logistic regression, first step Newton's; and where it cannot forget, it says so."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import convex
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
    wide,
)
from tests.problems import NUM_CLASSES, blobs, distance, lane

EXACT = {"damping": 0.0, "rtol": 1e-13, "matrix": "hessian"}


@pytest.fixture(autouse=True, scope="module")
def in_float64():
    with jax.enable_x64(True):
        yield


def answer(unlearn, variables=VARIABLES, data=DATA, request=None):
    return jax.jit(unlearn)(variables, data, request_for() if request is None else request, KEY)


def test_one_step_is_exact_for_least_squares():
    model, data, optimum = regression()
    result = ju.check(answer(ju.lightweight(model, max_iterations=1, tolerance=1e-6, **EXACT), optimum, data))
    np.testing.assert_allclose(result.variables.params["w"], ridge_optimum(GONE), atol=1e-10)
    assert int(result.stats["iterations"]) == 1


def test_on_a_network_its_first_step_is_the_dense_step_and_newtons():
    """The dense step follows the definition, and `newton` is the same."""
    step = np.linalg.solve(explicit("ggn", KEPT) + 0.3 * np.eye(64), np.average(gradients(), axis=0, weights=KEPT) + 0.1 * FLAT)
    one = answer(ju.lightweight(penalised(), damping=0.2, max_iterations=1, tolerance=1.0, rtol=1e-12, chunk=16))
    assert int(one.stats["iterations"]) == 0  # nothing above a tolerance of all
    one = answer(ju.lightweight(penalised(), damping=0.2, max_iterations=1, rtol=1e-12, chunk=16))
    np.testing.assert_allclose(flat(one.variables.params), FLAT - step, atol=1e-10)
    newton = answer(ju.newton(penalised(), damping=0.2, solver="cg", rtol=1e-12))
    assert distance(one.variables, newton.variables) < 1e-12
    assert float(one.stats["step_norm"]) == pytest.approx(float(newton.stats["step_norm"]))


def logistic(rows=200, gone=20):
    """Classes with an L2 penalty: the problem, its data in float64, the optimum, a request, and the retrained optimum."""
    problem, data = convex.softmax(1e-2, NUM_CLASSES), wide(blobs(rows))
    request = lane(ju.from_indices(data, [range(gone)]), 0)
    return (
        problem,
        data,
        convex.fit(problem, data, row_norm=None),
        request,
        convex.fit(problem, ju.remove(data, request), row_norm=None),
    )


def test_it_converges_quadratically_to_the_retrained_optimum():
    problem, data, optimum, request, retrained = logistic()
    distances = [distance(optimum, retrained)]
    for count in (1, 2, 3):
        unlearn = ju.lightweight(problem.model, max_iterations=count, tolerance=1e-14, max_steps=200, **EXACT)
        distances.append(distance(answer(unlearn, optimum, data, request).variables, retrained))
    factor = distances[1] / distances[0] ** 2
    assert distances[1] < 0.1 * distances[0]
    for first, second in pairwise(distances[1:]):
        assert second < 2 * factor * first**2


def test_at_the_optimum_the_forget_set_alone_knows_the_contribution():
    problem, data, optimum, request, _ = logistic()
    result = answer(ju.lightweight(problem.model, max_iterations=1, **EXACT), optimum, data, request)
    part, left = ju.forget_rows(data, request), 200 - 20
    pull = ju.curvature.gradient_sum(problem.model, optimum, part.examples, part.weights)
    own = (np.asarray(pull["kernel"]) + 20 * problem.l2 * np.asarray(optimum.params["kernel"])) / left
    assert float(result.stats["contribution_before"]) == pytest.approx(np.linalg.norm(own), abs=1e-12)


def test_without_a_regularizer_the_step_of_the_forget_set_alone_is_the_stochastic_newton_step():
    model, data, _ = regression()
    model = model._replace(regularizer=None)
    inputs, targets = (np.asarray(x) for x in data.train)
    optimum = ju.Variables({"w": np.linalg.lstsq(inputs, targets, rcond=None)[0]})
    own = answer(ju.lightweight(model, max_iterations=1, **EXACT), optimum, data).variables
    alone = answer(ju.stochastic_newton(model, damping=0.0, solver="cg", rtol=1e-13), optimum, data).variables
    assert distance(own, optimum) > 1e-3
    assert distance(own, alone) < 1e-10


def test_a_class_that_is_removed_is_predicted_less():
    problem, data, optimum, _, _ = logistic()
    rows = np.flatnonzero(np.asarray(data.train.targets) == 1)
    request = lane(ju.from_indices(data, [rows]), 0)
    result = answer(ju.lightweight(problem.model, **EXACT), optimum, data, request)

    def predicted(variables):
        return float(jnp.mean(jax.nn.softmax(problem.model.forward(variables, data.train.inputs[rows]).logits)[:, 1]))

    assert predicted(result.variables) < 0.5 * predicted(optimum)
    same = answer(ju.lightweight(problem.model, **EXACT), optimum, data, ju.empty_request())
    assert distance(same.variables, optimum) == 0


def test_it_stops_where_the_contribution_is_gone_and_requests_side_by_side_stop_by_themselves():
    problem, data, optimum, _, _ = logistic()
    unlearn = ju.lightweight(problem.model, damping=1e-3, tolerance=0.02, max_iterations=8)
    requests = ju.from_indices(data, [range(1), range(100, 180)])
    together = jax.jit(jax.vmap(unlearn, in_axes=(None, None, 0, None)))(optimum, data, requests, KEY)
    assert len(set(together.stats["iterations"].tolist())) == 2
    for place in range(2):
        alone = answer(unlearn, optimum, data, lane(requests, place))
        assert int(alone.stats["iterations"]) == int(together.stats["iterations"][place]) < 8
        assert distance(alone.variables, lane(together.variables, place)) < 1e-12
    assert not together.status.any()
    assert (together.stats["contribution_after"] <= 0.02 * together.stats["contribution_before"]).all()


def test_what_ends_before_the_contribution_is_gone_did_not_converge():
    result = answer(ju.lightweight(MODEL, damping=10.0, max_iterations=2))
    assert int(result.status) == ju.Status.NOT_CONVERGED
    assert int(result.stats["iterations"]) == 2
    assert 0 < float(result.stats["contribution_after"]) < float(result.stats["contribution_before"])


def test_a_step_that_would_raise_the_loss_is_shortened():
    """Newton's step on log cosh goes ever further from |w| > 1.09 on."""

    def loss(outputs, examples):
        return jnp.log(jnp.cosh(outputs.logits[:, 0]))

    model = ju.Model(lambda variables, inputs, **options: ju.Outputs(inputs * variables.params["w"]), loss)
    data, start = ju.training_data(np.ones((6, 1)), np.zeros(6)), ju.Variables({"w": jnp.full(1, 2.0)})
    plain = answer(ju.newton(model, damping=0.0, solver="cg", matrix="hessian"), start, data, request_for([1]))
    assert abs(float(plain.variables.params["w"][0])) > 10
    result = ju.check(answer(ju.lightweight(model, damping=0.0, matrix="hessian"), start, data, request_for([1])))
    assert abs(float(result.variables.params["w"][0])) < 1e-2


def test_a_model_that_interpolates_stays_and_the_status_says_so():
    """Every row is fitted exactly, and nothing is regularized: no gradient is left that could move it."""
    model = MODEL._replace(loss=ju.losses.squared_error)
    logits = np.asarray(model.forward(VARIABLES, DATA.train.inputs).logits)
    noise = np.random.default_rng(0).normal(size=logits.shape)
    for rounding in (0.0, 1e-15):
        data = DATA._replace(train=DATA.train._replace(targets=logits + rounding * noise))
        for unlearn in (ju.lightweight(model), ju.newton(model, damping=1e-2, solver="cg")):
            assert distance(answer(unlearn, data=data).variables, VARIABLES) < 1e-12
        result = answer(ju.lightweight(model), data=data)
        assert distance(result.variables, VARIABLES) == 0
        assert int(result.status) == ju.Status.UNCHANGED


def test_nothing_moves_where_no_row_is_left():
    result = answer(ju.lightweight(MODEL), request=request_for(range(60), capacity=60))
    assert int(result.status) == ju.Status.NOTHING_RETAINED
    assert distance(result.variables, VARIABLES) == 0


def test_it_is_a_reconstruction():
    assert ju.METHODS["lightweight"].reconstruction
    assert "reconstruction" in ju.lightweight.__doc__


@pytest.mark.parametrize(
    "options", [{"damping": -1.0}, {"tolerance": 2.0}, {"max_iterations": 0}, {"matrix": "fisher"}, {"chunk": 0}]
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ju.lightweight(MODEL, **options)
