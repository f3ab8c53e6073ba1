"""Every refusal of `certify`, and one removal from start to end."""

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates, convex
from jaxunlearn.certificates import DeleteThenNoise, ObjectivePerturbation
from tests.certificates.toys import DECLARED, certified, data_of, failed, result_of


@pytest.fixture(scope="module")
def removal():
    rng = np.random.default_rng(0)
    data = ju.training_data(convex.feature_rows(rng.normal(size=(60, 2))), rng.integers(0, 2, 60).astype(np.int32))
    problem = convex.logistic(0.05)
    variables = convex.fit(problem, data)
    request = jax.tree.map(lambda x: x[0], ju.from_indices(data, [[3, 17]]))
    return problem, variables, data, jax.jit(convex.newton_removal(problem))(variables, data, request, jax.random.key(0))


def test_a_removal_is_certified_and_the_distance_is_true(removal):
    problem, _, data, result = removal
    certificate = certificates.certify(result, data, **DECLARED)
    assert certificate.valid, failed(certificate)
    assert (certificate.epsilon, certificate.delta, certificate.sensitivity) == (1.0, 1e-5, 1e-3)
    assert certificate.noise_scale == float(certificates.gaussian_scale(1e-3, 1.0, 1e-5))
    assert 0.999e-3 < certificate.budget_left < 1e-3
    assert certificate.mechanism == "DeleteThenNoise(sensitivity=0.001)"
    assert all(type(x) is float for x in certificate[:5])
    gone = data._replace(present=data.present.at[np.array([3, 17])].set(0))
    assert certificates.certify(result, gone, **DECLARED)._replace(assumptions=()) == certificate._replace(assumptions=())
    retrained = convex.fit(problem, gone)
    distance = np.linalg.norm(np.asarray(result.variables.params["kernel"]) - np.asarray(retrained.params["kernel"]))
    assert distance <= 1e-3 - certificate.budget_left + 1e-12


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({"status": 1}, "status ok", "EMPTY_REQUEST"),
        ({"status": 4}, "status ok", "NOT_CONVERGED"),
        ({"dtype": np.float32}, "float64", "float32"),
        ({"kernel": (np.nan, 0.0)}, "finite values", "kernel"),
        ({"distance_bound": np.inf}, "finite values", "distance_bound"),
        ({"distance_bound": np.nan}, "distance within the sensitivity", "nan"),
        ({"distance_bound": 2e-3}, "distance within the sensitivity", "take more steps"),
        ({"row_norm": 1.0001}, "rows within norm 1", "feature_rows"),
        ({"row_norm": np.nan}, "rows within norm 1", "nan"),
        ({"l2": 0.0}, "strong convexity", "has to be positive"),
        ({"num_retain": 0.0, "num_forget": 100.0}, "retained rows", "0 rows are left"),
        ({"num_retain": 50.0}, "data of the removal", "earlier requests"),
    ],
)
def test_what_was_measured_voids(changes, name, reason):
    certificate = certified(result_of(**changes))
    assert not certificate.valid
    assert name in failed(certificate)
    (found,) = [assumption for assumption in certificate.assumptions if assumption.name == name]
    assert reason in found.detail


@pytest.mark.parametrize(
    ("declared", "name", "reason"),
    [
        ({"extractor": None}, "extractor", "not declared"),
        ({"extractor": "trained on forgotten rows"}, "extractor", "keep them"),
        ({"extractor": "Public"}, "extractor", "'public'"),
        ({"extractor": True}, "extractor", "True"),
        ({"adaptive": None}, "requests not adaptive", "not declared"),
        ({"adaptive": True}, "requests not adaptive", "adaptive=True"),
        ({"adaptive": 0}, "requests not adaptive", "adaptive=0"),
    ],
)
def test_what_was_declared_voids(declared, name, reason):
    certificate = certified(**declared)
    assert not certificate.valid
    assert failed(certificate) == [name]
    (found,) = [assumption for assumption in certificate.assumptions if assumption.name == name]
    assert reason in found.detail


@pytest.mark.parametrize("extractor", ["none", "public", "trained on other data"])
def test_extractors_that_never_saw_the_rows_are_accepted(extractor):
    assert certified(extractor=extractor, adaptive=np.False_).valid


def test_every_certificate_says_that_one_release_is_observed():
    (last,) = [assumption for assumption in certified().assumptions if assumption.name == "one observed release"]
    assert last.holds
    assert "one release" in last.detail


def test_rounding_of_the_residual_is_counted():
    many = {"num_retain": 1e8 - 2, "distance_bound": 0.0, "l2": 1e-4}
    certificate = certified(result_of(**many), mechanism=DeleteThenNoise(1e-6))
    assert "distance within the sensitivity" in failed(certificate)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, np.nan, np.inf])
def test_epsilons_out_of_range(epsilon):
    with pytest.raises(ValueError, match="epsilon must be positive"):
        certified(epsilon=epsilon)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, np.nan])
def test_deltas_out_of_range(delta):
    with pytest.raises(ValueError, match="delta must be between 0 and 1"):
        certified(delta=delta)


@pytest.mark.parametrize("number", ["1", None, True, [1.0], 1j])
def test_what_is_no_number(number):
    with pytest.raises(TypeError, match="epsilon must be a number"):
        certified(epsilon=number)


def test_arguments_of_another_type():
    with pytest.raises(TypeError, match="Result of a removal"):
        certified(result_of().variables)
    with pytest.raises(TypeError, match="expected Data"):
        certified(data=data_of().train)
    with pytest.raises(TypeError, match="mechanism must be such as"):
        certified(mechanism="guo")
    with pytest.raises(TypeError, match="mechanism must be such as"):
        certified(mechanism=DeleteThenNoise)
    for value in (0.0, -1.0, np.nan, np.inf, True, "1"):
        with pytest.raises(ValueError, match="sensitivity of DeleteThenNoise"):
            certified(mechanism=DeleteThenNoise(value))


def test_tracers_are_refused():
    with pytest.raises(TypeError, match="outside jit and vmap"):
        jax.jit(lambda result: certified(result).noise_scale)(result_of())
    with pytest.raises(TypeError, match="outside jit and vmap"):
        jax.jit(lambda epsilon: certified(epsilon=epsilon).noise_scale)(1.0)


def test_many_results_and_results_of_other_methods_are_refused():
    many = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 3), result_of())
    with pytest.raises(ValueError, match="merge the requests"):
        certified(many)
    with pytest.raises(ValueError, match="newton_removal"):
        certified(result_of()._replace(stats={}))
    with pytest.raises(ValueError, match="needs stats"):
        certified(mechanism=ObjectivePerturbation(1.0, bound="cubic"))  # type: ignore[arg-type]


def test_a_stream_is_certified_by_its_last_entry(removal):
    problem, variables, data, _ = removal
    requests = ju.from_indices(data, [[3], [17], [20]])
    stream = jax.jit(ju.streamed(convex.newton_removal(problem)))(
        variables, data, requests, jax.random.split(jax.random.key(0), 3)
    )
    with pytest.raises(ValueError, match="end_of_stream"):
        certificates.certify(stream, data, **DECLARED)
    last, left = ju.end_of_stream(stream, data)
    assert left.present.sum() == data.present.sum() - 3
    assert failed(certificates.certify(last, data, **DECLARED)) == ["data of the removal"]
    assert certificates.certify(last, left, **DECLARED).valid
