"""Theorems of others, with numbers worked by hand."""

import math

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates, convex
from jaxunlearn.certificates import Neel, ObjectivePerturbation, Sekhari
from tests.certificates.toys import PROBLEM, assessed, certified, failed, rows_of, toy
from tests.problems import lane

DESCENT = {"contraction": 0.5, "descent_steps": 3.0, "strong_convexity": 0.1, "lipschitz": 2.0}


def secret(sigma, size=2):
    return sigma * np.array([[1.0], [-1.0]])[:size]


def holds(assessment):
    return not failed(assessment)


def test_budget_of_objective_perturbation_by_hand():
    """c = sqrt(2 ln 15000) = 4.385; 10 / 4.385 = 2.280."""
    np.testing.assert_allclose(certificates.removal_budget(10.0, 1.0, 1e-4), 2.280, atol=1e-3)
    np.testing.assert_allclose(certificates.removal_budget(1.0, 0.5, 1.5 * math.exp(-8)), 0.125)  # c = 4


def test_budget_follows_the_exact_gaussian_where_the_published_one_is_too_large():
    for delta in (1e-3, 1e-5, 1e-9):
        published = 12 / math.sqrt(2 * math.log(1.5 / delta))
        assert float(certificates.delta_of(1.0, published, 12.0)) > delta
        budget = certificates.removal_budget(1.0, 12.0, delta)
        assert budget < published
        assert float(certificates.delta_of(1.0, budget * (1 - 1e-9), 12.0)) <= delta


def test_objective_perturbation_spends_its_budget_over_a_stream():
    sigma, budget = 1e-3, certificates.removal_budget(1e-3, 1.0, 1e-5)
    spent, count = 0.0, 0
    while holds(found := assessed(ObjectivePerturbation(sigma, spent=spent), secret=secret(sigma))):
        assert found.noise_scale == 0
        np.testing.assert_allclose(found.budget_left, budget - found.sensitivity)
        spent, count = found.sensitivity, count + 1
    assert failed(found) == ["budget left"]
    assert found.budget_left < 0
    assert count == math.floor(budget / 1e-4) == 2
    assert "fresh secret" in found.assumptions[-1].detail


@pytest.mark.parametrize(("bound", "value"), [("quartic", 1e-4), ("data", 3e-4)])
def test_objective_perturbation_reads_the_bound_it_is_told(bound, value):
    found = assessed(ObjectivePerturbation(1.0, bound=bound), secret=secret(1.0), rounding=1e-7)
    assert holds(found)
    np.testing.assert_allclose(found.sensitivity, value + 1e-7)


def test_worst_case_grows_with_the_secret():
    found = assessed(ObjectivePerturbation(10.0, bound="worst_case"), secret=secret(10.0))
    assert holds(found)
    np.testing.assert_allclose(found.sensitivity, 4e-2 * (1 + 10 * math.sqrt(2) / 200) ** 2, rtol=1e-8)


@pytest.mark.parametrize(
    ("held", "options", "changes", "name"),
    [
        (None, {}, {}, "secret of the objective"),
        (secret(1.0, size=1), {}, {}, "secret of the objective"),
        (secret(np.nan), {}, {}, "secret of the objective"),
        (secret(1e-6), {}, {}, "secret of the objective"),
        (secret(1.0), {}, {"residual": 2e-4}, "residual within its bound"),
        (secret(1.0), {}, {"residual": np.nan}, "residual within its bound"),
        (secret(1.0), {}, {"quartic_bound": np.inf}, "residual within its bound"),
        (secret(1.0), {}, {"quartic_bound": np.nan}, "residual within its bound"),
        (secret(1.0), {"spent": 0.3}, {}, "budget left"),
    ],
)
def test_objective_perturbation_refuses(held, options, changes, name):
    assert name in failed(assessed(ObjectivePerturbation(1.0, **options), secret=held, **changes))


def test_objective_perturbation_from_start_to_end():
    data = convex.with_perturbation(rows_of(), (3, 1), 5.0, jax.random.key(0))
    request = lane(ju.from_indices(data, [[3]]), 0)
    unlearn = jax.jit(convex.newton_removal(PROBLEM, steps=1))
    result = unlearn(convex.fit(PROBLEM, data), data, request, jax.random.key(0))
    for bound in ("quartic", "data", "worst_case"):
        certificate = certified(result, data, request, mechanism=ObjectivePerturbation(5.0, bound=bound))
        assert certificate.sensitivity >= float(result.stats["residual"])
        assert certificate.valid or failed(certificate) == ["budget left"]


@pytest.mark.parametrize(
    "options", [{"sigma": 0.0}, {"sigma": np.nan}, {"sigma": 1.0, "spent": -1.0}, {"sigma": 1.0, "spent": np.nan}]
)
def test_parameters_of_objective_perturbation_are_checked(options):
    with pytest.raises(ValueError, match="of ObjectivePerturbation"):
        assessed(ObjectivePerturbation(**options), secret=secret(1.0))


def test_sekhari_by_hand():
    """2 * 0.5 * 2^2 * 2^2 / (0.1^3 * 100^2) = 16 / 10 = 1.6."""
    np.testing.assert_allclose(certificates.sekhari_sensitivity(2.0, 0.5, 0.1, 100, 2), 1.6)
    found = assessed(Sekhari(2.0, 0.5), epsilon=0.5)
    assert holds(found)
    np.testing.assert_allclose(found.sensitivity, 1.6)
    published = 1.6 * math.sqrt(2 * math.log(1.25e5)) / 0.5  # 15.50
    np.testing.assert_allclose(float(certificates.textbook_scale(1.6, 0.5, 1e-5)), published)
    assert 0.5 * published < found.noise_scale < published
    assert certified(mechanism=Sekhari(2.0, PROBLEM.curvature_lipschitz)).valid


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_forget": 51, "num_retain": 49}, "at most half of the rows forgotten"),
        ({"residual": 2.0 * 9.8}, "distance within the sensitivity"),
        ({"l2": 0.0}, "distance within the sensitivity"),
    ],
)
def test_sekhari_refuses(changes, name):
    assert name in failed(assessed(Sekhari(2.0, 0.5), **changes))


def test_neel_by_hand():
    """g^I = 1/8: 8 * 2 * (1/8) / (0.1 * 1000 * 7/8) = 2 / 87.5; noise 4 sqrt2 * 2 / 8 / (0.1 * 1000 * 7/8 * r)."""
    np.testing.assert_allclose(certificates.neel_sensitivity(0.5, 3, 2.0, 0.1, 1000), 2 / 87.5)
    root = math.sqrt(math.log(1e5) + 1) - math.sqrt(math.log(1e5))  # 3.53758 - 3.39307
    np.testing.assert_allclose(root, 0.14429, atol=5e-5)
    np.testing.assert_allclose(certificates.neel_scale(2 / 87.5, 1.0, 1e-5), math.sqrt(2) / (87.5 * root))
    tail = 2 * math.log(2e5)
    wider = math.sqrt(tail + 3) - math.sqrt(tail + 2)
    np.testing.assert_allclose(certificates.neel_scale(2 / 87.5, 1.0, 1e-5, perfect=True), 2 / 87.5 / wider)


def test_neel_steps_by_hand():
    """g = 1/e makes the logarithms plain: ln(sqrt 20 / (0.6321 * 0.10018)) + ln ln 4e6 = 4.2573 + 2.7214."""
    found = certificates.neel_steps(1 / math.e, 10, 1, 1.0, 1e-5)
    np.testing.assert_allclose(found, 4.2573 + 2.7214, atol=2e-4)
    assert certificates.neel_steps(1 / math.e, 10, 50, 1.0, 1e-5) > found
    assert certificates.neel_steps(1.0, 10, 1, 1.0, 1e-5) == math.inf


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_noise_of_neel_is_at_least_the_exact_one(epsilon):
    for perfect in (False, True):
        assert certificates.neel_scale(1.0, epsilon, 1e-5, perfect=perfect) >= float(
            certificates.gaussian_scale(1.0, epsilon, 1e-5)
        )


def test_neel_certifies_a_descent():
    found = assessed(Neel(), **DESCENT, num_forget=1, num_retain=99)
    assert holds(found)
    np.testing.assert_allclose(found.sensitivity, 2 / 8.75)
    np.testing.assert_allclose(found.noise_scale, certificates.neel_scale(2 / 8.75, 1.0, 1e-5))
    doubled = assessed(Neel(largest_request=2), **DESCENT)
    assert holds(doubled)
    np.testing.assert_allclose(doubled.noise_scale, 2 * found.noise_scale)


@pytest.mark.parametrize(
    ("changes", "mechanism", "name"),
    [
        ({}, Neel(), "size of the request"),
        ({"residual": 0.23 * 9.8}, Neel(largest_request=2), "distance within the sensitivity"),
        ({"strong_convexity": 0.2}, Neel(largest_request=2), "strong convexity of the descent"),
        ({"contraction": 1.0}, Neel(largest_request=2), "distance within the sensitivity"),
        ({}, Neel(perfect=True, largest_request=2), "steps of the perfect variant"),
    ],
)
def test_neel_refuses(changes, mechanism, name):
    assert name in failed(assessed(mechanism, **{**DESCENT, **changes}))


def test_perfect_variant_with_enough_steps():
    found = assessed(Neel(perfect=True, largest_request=2), **{**DESCENT, "descent_steps": 30.0, "residual": 1e-9})
    assert holds(found), failed(found)


def test_neel_needs_a_descent():
    with pytest.raises(ValueError, match="descent_to_delete for Neel"):
        certified(mechanism=Neel())
    with pytest.raises(ValueError, match="update of Neel"):
        assessed(Neel(update=0), **DESCENT)


def test_descent_to_delete_from_start_to_end():
    data, variables, _, _ = toy()
    request = lane(ju.from_indices(data, [[3]]), 0)
    unlearn = jax.jit(convex.descent_to_delete(PROBLEM, steps=20))
    certificate = certified(unlearn(variables, data, request, jax.random.key(0)), data, request, mechanism=Neel())
    assert certificate.valid, failed(certificate)
    shrink = (0.25 / 0.35) ** 20
    np.testing.assert_allclose(certificate.sensitivity, 8 * 2 * shrink / (0.05 * 60 * (1 - shrink)))


def test_a_descent_from_far_away_is_not_certified():
    """The theorem needs a start near the optimum, which the statistics of a descent cannot tell."""
    data, variables, request, _ = toy()
    with jax.enable_x64(True):
        far = jax.tree.map(lambda x: x + 80, variables)
    result = jax.jit(convex.descent_to_delete(PROBLEM, steps=3))(far, data, request, jax.random.key(0))
    certificate = certified(result, mechanism=Neel(largest_request=2))
    assert failed(certificate) == ["distance within the sensitivity"]
