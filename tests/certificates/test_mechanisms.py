"""Theorems of others, with numbers worked by hand."""

import math

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates, convex
from jaxunlearn.certificates import Neel, ObjectivePerturbation, Sekhari
from tests.certificates.toys import certified, data_of, failed, result_of

DESCENT = {"contraction": 0.5, "descent_steps": 3.0, "smoothness": 0.3, "strong_convexity": 0.1, "lipschitz": 2.0}


def secret(sigma, size=2):
    values = sigma * np.array([[1.0], [-1.0]])[:size]
    return data_of(extra={"perturbation": values})


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
    while True:
        certificate = certified(data=secret(sigma), mechanism=ObjectivePerturbation(sigma, spent=spent))
        if not certificate.valid:
            break
        assert certificate.noise_scale == 0
        np.testing.assert_allclose(certificate.budget_left, budget - certificate.sensitivity)
        spent, count = certificate.sensitivity, count + 1
    assert failed(certificate) == ["budget left"]
    assert certificate.budget_left < 0
    assert count == math.floor(budget / 1e-4) == 2
    assert "fresh secret" in certificate.assumptions[-3].detail


@pytest.mark.parametrize(("bound", "value"), [("quartic", 1e-4), ("data", 3e-4)])
def test_objective_perturbation_reads_the_bound_it_is_told(bound, value):
    certificate = certified(data=secret(1.0), mechanism=ObjectivePerturbation(1.0, bound=bound))
    assert certificate.valid, failed(certificate)
    np.testing.assert_allclose(certificate.sensitivity, value, rtol=1e-6)


def test_worst_case_grows_with_the_secret():
    certificate = certified(data=secret(10.0), mechanism=ObjectivePerturbation(10.0, bound="worst_case"))
    assert certificate.valid
    np.testing.assert_allclose(certificate.sensitivity, 4e-2 * (1 + 10 * math.sqrt(2) / 200) ** 2, rtol=1e-8)


@pytest.mark.parametrize(
    ("data", "options", "stats", "name"),
    [
        (data_of(), {}, {}, "secret of the objective"),
        (secret(1.0, size=1), {}, {}, "secret of the objective"),
        (secret(np.nan), {}, {}, "secret of the objective"),
        (secret(1e-6), {}, {}, "secret of the objective"),
        (secret(1.0), {}, {"residual": 2e-4}, "residual within its bound"),
        (secret(1.0), {}, {"quartic_bound": np.inf}, "residual within its bound"),
        (secret(1.0), {}, {"quartic_bound": np.nan}, "residual within its bound"),
        (secret(1.0), {"spent": 0.3}, {}, "budget left"),
    ],
)
def test_objective_perturbation_refuses(data, options, stats, name):
    certificate = certified(result_of(**stats), data, mechanism=ObjectivePerturbation(1.0, **options))
    assert not certificate.valid
    assert name in failed(certificate)


def test_an_unmeasured_residual_leaves_the_bound_to_stand_alone():
    certificate = certified(result_of(residual=np.nan), secret(1.0), mechanism=ObjectivePerturbation(1.0, bound="data"))
    assert certificate.valid
    assert "not measured" in str(certificate.assumptions)


def test_objective_perturbation_from_start_to_end():
    rng = np.random.default_rng(0)
    data = ju.training_data(convex.feature_rows(rng.normal(size=(60, 2))), rng.integers(0, 2, 60).astype(np.int32))
    data = convex.with_perturbation(data, (3, 1), 5.0, jax.random.key(0))
    problem = convex.logistic(0.05)
    request = jax.tree.map(lambda x: x[0], ju.from_indices(data, [[3]]))
    unlearn = jax.jit(convex.newton_removal(problem, steps=1))
    result = unlearn(convex.fit(problem, data), data, request, jax.random.key(0))
    for bound in ("quartic", "data", "worst_case"):
        certificate = certified(result, data, mechanism=ObjectivePerturbation(5.0, bound=bound))
        assert certificate.sensitivity >= float(result.stats["residual"])
        assert certificate.valid or failed(certificate) == ["budget left"]


@pytest.mark.parametrize(
    "options", [{"sigma": 0.0}, {"sigma": np.nan}, {"sigma": 1.0, "spent": -1.0}, {"sigma": 1.0, "spent": np.nan}]
)
def test_parameters_of_objective_perturbation_are_checked(options):
    with pytest.raises(ValueError, match="of ObjectivePerturbation"):
        certified(data=secret(1.0), mechanism=ObjectivePerturbation(**options))


def test_sekhari_by_hand():
    """2 * 0.5 * 2^2 * 2^2 / (0.1^3 * 100^2) = 16 / 10 = 1.6."""
    np.testing.assert_allclose(certificates.sekhari_sensitivity(2.0, 0.5, 0.1, 100, 2), 1.6)
    certificate = certified(mechanism=Sekhari(2.0, 0.5), epsilon=0.5)
    assert certificate.valid, failed(certificate)
    np.testing.assert_allclose(certificate.sensitivity, 1.6)
    published = 1.6 * math.sqrt(2 * math.log(1.25e5)) / 0.5  # 15.50
    np.testing.assert_allclose(float(certificates.textbook_scale(1.6, 0.5, 1e-5)), published)
    assert 0.5 * published < certificate.noise_scale < published


@pytest.mark.parametrize(
    ("stats", "name"),
    [
        ({"num_forget": 51.0, "num_retain": 49.0}, "at most half of the rows forgotten"),
        ({"distance_bound": 2.0}, "distance within the sensitivity"),
        ({"l2": 0.0}, "finite noise"),
    ],
)
def test_sekhari_refuses(stats, name):
    certificate = certified(result_of(**stats), mechanism=Sekhari(2.0, 0.5))
    assert not certificate.valid
    assert name in failed(certificate)


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
    result = result_of(**DESCENT, num_forget=1.0, num_retain=99.0)
    certificate = certified(result, mechanism=Neel())
    assert certificate.valid, failed(certificate)
    np.testing.assert_allclose(certificate.sensitivity, 2 / 8.75)
    np.testing.assert_allclose(certificate.noise_scale, certificates.neel_scale(2 / 8.75, 1.0, 1e-5))
    doubled = certified(result_of(**DESCENT), mechanism=Neel(largest_request=2))
    assert doubled.valid
    np.testing.assert_allclose(doubled.noise_scale, 2 * certificate.noise_scale)


@pytest.mark.parametrize(
    ("stats", "mechanism", "name"),
    [
        ({}, Neel(), "size of the request"),
        ({"distance_bound": 0.75}, Neel(largest_request=2), "distance within the sensitivity"),
        ({"strong_convexity": 0.2}, Neel(largest_request=2), "strong convexity of the descent"),
        ({"contraction": 1.0}, Neel(largest_request=2), "finite noise"),
        ({}, Neel(perfect=True, largest_request=2), "steps of the perfect variant"),
    ],
)
def test_neel_refuses(stats, mechanism, name):
    certificate = certified(result_of(**{**DESCENT, **stats}), mechanism=mechanism)
    assert not certificate.valid
    assert name in failed(certificate)


def test_perfect_variant_with_enough_steps():
    certificate = certified(result_of(**{**DESCENT, "descent_steps": 30.0}), mechanism=Neel(perfect=True, largest_request=2))
    assert certificate.valid, failed(certificate)


def test_neel_needs_a_descent():
    with pytest.raises(ValueError, match="descent_to_delete for Neel"):
        certified(mechanism=Neel())
    with pytest.raises(ValueError, match="update of Neel"):
        certified(result_of(**DESCENT), mechanism=Neel(update=0))


def test_descent_to_delete_from_start_to_end():
    rng = np.random.default_rng(0)
    data = ju.training_data(convex.feature_rows(rng.normal(size=(60, 2))), rng.integers(0, 2, 60).astype(np.int32))
    problem = convex.logistic(0.05)
    request = jax.tree.map(lambda x: x[0], ju.from_indices(data, [[3]]))
    unlearn = jax.jit(convex.descent_to_delete(problem, steps=20))
    certificate = certified(unlearn(convex.fit(problem, data), data, request, jax.random.key(0)), data, mechanism=Neel())
    assert certificate.valid, failed(certificate)
    shrink = (0.25 / 0.35) ** 20
    np.testing.assert_allclose(certificate.sensitivity, 8 * 2 * shrink / (0.05 * 60 * (1 - shrink)))
