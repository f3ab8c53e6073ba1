"""The stochastic Newton step: the same with both solvers, and no certificate."""

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.stochastic_newton import claimed_bound
from tests.curvature.toys import DATA, FLAT, GONE, KEPT, KEY, VARIABLES, explicit, flat, gradients, penalised, request_for
from tests.problems import lane

STEP = {"damping": 3.0}


@pytest.fixture(autouse=True, scope="module")
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def expected(in_float64):
    """The dense step, the penalty's Hessian included."""
    return np.linalg.solve(explicit("hvp", KEPT) + 3.1 * np.eye(64), gradients()[GONE].sum(axis=0)) / (60 - len(GONE))


def test_conjugate_gradients_take_the_dense_step(expected):
    unlearn = ju.stochastic_newton(penalised(), damping=3.0, solver="cg", rtol=1e-10)
    result = ju.check(jax.jit(unlearn)(VARIABLES, DATA, request_for(), KEY))
    np.testing.assert_allclose(flat(result.variables.params) - FLAT, expected, rtol=1e-7, atol=1e-10)


def test_the_series_comes_near_at_a_safe_scale_and_reports_that_it_diverged_at_an_unsafe_one(expected):
    def unlearn(scale):
        method = ju.stochastic_newton(penalised(), damping=3.0, scale=scale, max_steps=200, batch_size=32)
        return method(VARIABLES, DATA, request_for(), KEY)

    results = jax.jit(jax.vmap(unlearn))(np.array([12.0, 0.5]))
    slow, apart = lane(results, 0), lane(results, 1)
    assert np.linalg.norm(flat(slow.variables.params) - FLAT - expected) < 0.2 * np.linalg.norm(expected)
    assert int(slow.status) == 0
    assert float(slow.stats["residual"]) < 0.1
    assert int(apart.status) in (ju.Status.NOT_CONVERGED, ju.Status.NONFINITE)


def test_the_claimed_bound_is_the_formula_and_infinite_where_the_damping_does_not_suffice():
    constants = {"radius": 10.0, "lipschitz_gradient": 1.0, "lipschitz_hessian": 1.0, "damping": 5.0, "num_weights": 100}
    expected = 20 * (10 + 5) / 4 + (32 * np.sqrt(np.log(1000)) / 4 + 1 / 8) * 10
    np.testing.assert_allclose(claimed_bound(**constants, smallest_eigenvalue=-1.0), expected)
    assert claimed_bound(**constants, smallest_eigenvalue=-6.0) == np.inf


def test_the_claimed_bound_is_never_below_that_of_clipped_weights():
    """With M C >= lambda_min: then noise for it is at least that of output perturbation, which makes no step at all."""
    for radius, lipschitz, smallest, damping in ((1.0, 0.1, 0.1, 0.0), (20.0, 0.01, 0.2, 3.0), (10.0, 5.0, -4.0, 5.0)):
        assert lipschitz * radius >= smallest
        found = claimed_bound(
            radius=radius, lipschitz_gradient=0.0, lipschitz_hessian=lipschitz, damping=damping, num_weights=10,
            smallest_eigenvalue=smallest,
        )  # fmt: skip
        assert found >= 2 * radius * (1 - 1e-6)


def test_it_claims_no_guarantee_and_is_found_under_its_old_names():
    assert ju.METHODS["stochastic_newton"].guarantee == "none"
    for alias in ("certified_newton_step", "certified_unlearning"):
        assert ju.catalogue.method_of(alias) == "stochastic_newton"


@pytest.mark.parametrize("options", [{"damping": -1.0}, {"scale": -1.0}, {"max_steps": 0}, {"batch_size": 0}, {"solver": "lu"}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ju.stochastic_newton(penalised(), **{"damping": 1.0, **options})
