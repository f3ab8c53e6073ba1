"""Every refusal of `certify`, and one removal from start to end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates, convex
from jaxunlearn.certificates import DeleteThenNoise, ObjectivePerturbation
from tests.certificates.toys import GONE, PROBLEM, certified, failed, rows_of, toy, with_kernel
from tests.problems import lane

KEY = jax.random.key(0)


def kernel_of(variables):
    return np.asarray(variables.params["kernel"])


def without(data, rows):
    return data._replace(present=data.present.at[np.asarray(rows)].set(0))


def test_a_removal_is_certified_and_the_distance_is_true():
    data, _, _, result = toy()
    certificate = certified()
    assert certificate.valid, failed(certificate)
    assert (certificate.epsilon, certificate.delta, certificate.sensitivity) == (1.0, 1e-5, 1e-3)
    assert certificate.noise_scale == float(certificates.gaussian_scale(1e-3, 1.0, 1e-5))
    assert 0.999e-3 < certificate.budget_left < 1e-3
    assert certificate.mechanism == "DeleteThenNoise(sensitivity=0.001)"
    assert all(type(x) is float for x in (*certificate[:5], certificate.residual, certificate.distance))
    assert certified(data=without(data, GONE)) == certificate  # rows of the request may already be marked as removed
    retrained = convex.fit(PROBLEM, without(data, GONE))
    assert np.linalg.norm(kernel_of(result.variables) - kernel_of(retrained)) <= certificate.distance
    assert certificate.budget_left == 1e-3 - certificate.distance


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({"status": np.int32(ju.Status.EMPTY_REQUEST)}, "status ok", "EMPTY_REQUEST"),
        ({"status": np.int32(ju.Status.NOT_CONVERGED)}, "status ok", "NOT_CONVERGED"),
        ({"dtype": np.float32}, "float64", "float32"),
        ({"kernel": np.full((3, 1), np.nan)}, "finite values", "kernel"),
        ({"kernel": np.full((3, 1), 2e-3) + 1}, "distance within the sensitivity", "take more steps"),
        ({"scale": 1.1}, "rows within norm 1", "feature_rows"),
        ({"request": range(60)}, "retained rows", "0 rows are left"),
    ],
)
def test_what_was_found_voids(changes, name, reason):
    data, _, request, result = toy()
    if "status" in changes:
        result = result._replace(status=changes["status"])
    if "kernel" in changes:
        result = with_kernel(result, changes["kernel"])
    if "dtype" in changes:
        result = with_kernel(result, kernel_of(result.variables).astype(changes["dtype"]))
    if "scale" in changes:
        data = data._replace(train=data.train._replace(inputs=data.train.inputs * changes["scale"]))
    if "request" in changes:
        request = lane(ju.from_indices(data, [changes["request"]]), 0)
    certificate = certified(result, data, request)
    assert not certificate.valid
    assert name in failed(certificate)
    (found,) = [assumption for assumption in certificate.assumptions if assumption.name == name]
    assert reason in found.detail


def test_rows_of_norm_one_may_be_rounded():
    data = rows_of()
    inputs = np.asarray(data.train.inputs, np.float64)
    unit = (inputs / np.linalg.norm(inputs, axis=1, keepdims=True)).astype(np.float32)
    assert np.linalg.norm(unit.astype(np.float64), axis=1).max() > 1
    data = data._replace(train=data.train._replace(inputs=unit))
    variables, request = convex.fit(PROBLEM, data), toy()[2]
    result = convex.newton_removal(PROBLEM)(variables, data, request, KEY)
    assert certified(result, data).valid
    long = data._replace(train=data.train._replace(inputs=unit * np.float32(1 + 3e-6)))
    with pytest.raises(ValueError, match=r"the longest row has norm 1\.0000030\d+, more than 1\.0"):
        convex.fit(PROBLEM, long)


# Every way in which the removal did not do what it says


def changed(what):
    """The toy's data after something happened behind the removal's back."""
    data = toy()[0]
    inputs, targets = (np.array(x) for x in data.train)
    if what == "labels":
        targets[20:40] = 1 - targets[20:40]
    if what == "rows":
        inputs[20:40] = inputs[20:40][::-1]
    if what == "scale":
        inputs *= np.float32(0.3)
    return data._replace(train=ju.Examples(inputs, targets))


@pytest.mark.parametrize("what", ["labels", "rows", "scale"])
def test_rows_that_changed_behind_a_removal_are_noticed(what):
    """A step from a factorisation of other rows, with a bound that never saw them; rows changed after the removal."""
    data, variables, request, done = toy()
    unlearn = convex.woodbury_removal(PROBLEM, steps=1, measure=False)
    shared = ju.prepare(unlearn)(variables, data, KEY)
    result = unlearn(variables, changed(what)._replace(extra=shared.extra), request, KEY)
    retrained = convex.fit(PROBLEM, without(changed(what), GONE))
    distance = np.linalg.norm(kernel_of(result.variables) - kernel_of(retrained))
    assert float(result.stats["distance_bound"]) < distance
    for found in (result, done):
        certificate = certified(found, changed(what))
        assert failed(certificate) == ["distance within the sensitivity"]
    assert distance <= certified(result, changed(what)).distance
    assert certified(unlearn(variables, shared, request, KEY)).valid


def test_a_factorisation_that_was_tampered_with_is_noticed():
    data, variables, request, _ = toy()
    unlearn = convex.woodbury_removal(PROBLEM, steps=1, measure=False)
    shared = ju.prepare(unlearn)(variables, data, KEY)
    held = ju.slots.FACTORISATION.get(shared)
    with jax.enable_x64(True):
        value = held.value._replace(values=held.value.values * 5, gram=held.value.gram * 0)
    other = dataclasses.replace(held, value=value)
    result = unlearn(variables, shared._replace(extra={"factorisation": other}), request, KEY)
    assert failed(certified(result)) == ["distance within the sensitivity"]


def test_weights_of_other_requests_and_statistics_that_were_overwritten_are_noticed():
    data, variables, _, result = toy()
    stats = {**result.stats, **dict.fromkeys(("residual", "residual_bound", "distance_bound"), np.float64(0))}
    begun = result._replace(variables=variables, stats=stats)
    assert failed(certified(begun)) == ["distance within the sensitivity"]
    other = convex.newton_removal(PROBLEM)(variables, data, lane(ju.from_indices(data, [[5, 6]]), 0), KEY)
    assert failed(certified(other)) == ["distance within the sensitivity"]
    assert failed(certified(problem=convex.logistic(0.06))) == ["distance within the sensitivity"]


def test_rows_that_a_selection_skipped_are_noticed():
    data, variables, _, _ = toy()
    request = lane(ju.from_indices(data, [list(range(20))]), 0)
    unlearn = ju.filtered(lambda variables, data, request, key: request.indices == 0, convex.newton_removal(PROBLEM))
    result = unlearn(variables, data, request, KEY)
    certificate = certified(result, request=request)
    retrained = convex.fit(PROBLEM, without(data, range(20)))
    assert failed(certificate) == ["distance within the sensitivity"]
    assert 1e-3 < np.linalg.norm(kernel_of(result.variables) - kernel_of(retrained)) <= certificate.distance


def test_a_request_must_name_rows_of_the_data():
    """The trained weights are the optimum of all rows, which is no removal."""
    data, variables, request, result = toy()
    idle = result._replace(variables=variables, stats={})
    assert failed(certified(idle, request=ju.empty_request())) == ["rows of the request"]
    beyond = request._replace(indices=jnp.asarray(request.indices).at[0].set(60))
    beyond = beyond._replace(weights=jnp.asarray(request.weights).at[1:].set(0))
    assert "rows of the request" in failed(certified(idle, request=beyond))


def test_a_model_that_was_trained_without_its_secret_is_noticed():
    data, variables, request, _ = toy()
    with_secret = convex.with_perturbation(data, (3, 1), 5.0, jax.random.key(1))
    mechanism = ObjectivePerturbation(5.0)
    bare = convex.newton_removal(PROBLEM)(variables, data, request, KEY)
    assert "residual within its bound" in failed(certified(bare, with_secret, mechanism=mechanism))
    trained = convex.fit(PROBLEM, with_secret)
    assert certified(convex.newton_removal(PROBLEM)(trained, with_secret, request, KEY), with_secret, mechanism=mechanism).valid


def test_a_certificate_belongs_to_its_weights(tmp_path):
    _, variables, _, result = toy()
    certificate = certified()
    for other in (result._replace(variables=variables), with_kernel(result, kernel_of(result.variables) * (1 + 1e-15))):
        with pytest.raises(ValueError, match="made for other weights"):
            certificates.publish(other, certificate, tmp_path)
    assert not list(tmp_path.rglob("*.npz"))
    assert certificates.publish(result, certificate, tmp_path).number == 1


def test_what_a_certificate_is_about():
    subject = certified().subject
    assert subject.problem == "logistic with 1 outputs, l2 0.05"
    assert subject == certified(data=without(toy()[0], GONE)).subject
    assert subject.retained_rows != certified(data=changed("labels")).subject.retained_rows
    assert subject.secret == ""


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
    data, variables, request, result = toy()
    with pytest.raises(TypeError, match="Result of a removal"):
        certified(variables)
    with pytest.raises(TypeError, match="expected a Data"):
        certified(data=data.train)
    with pytest.raises(TypeError, match="expected a ForgetRequest, got list"):
        certified(request=GONE)
    with pytest.raises(TypeError, match="expected a Problem"):
        certified(problem=0.05)
    with pytest.raises(TypeError, match="mechanism must be such as"):
        certified(mechanism="guo")
    with pytest.raises(TypeError, match="mechanism must be such as"):
        certified(mechanism=DeleteThenNoise)
    for value in (0.0, -1.0, np.nan, np.inf, True, "1"):
        with pytest.raises(ValueError, match="sensitivity of DeleteThenNoise"):
            certified(mechanism=DeleteThenNoise(value))


def test_tracers_are_refused():
    with pytest.raises(TypeError, match="outside jit and vmap"):
        jax.jit(lambda result: certified(result).noise_scale)(toy()[3])
    with pytest.raises(TypeError, match="epsilon is needed on the host"):
        jax.jit(lambda epsilon: certified(epsilon=epsilon).noise_scale)(1.0)


def test_many_results_and_results_of_other_methods_are_refused():
    data, _, request, result = toy()
    with pytest.raises(ValueError, match="merge the requests"):
        certified(jax.tree.map(lambda x: np.stack([np.asarray(x)] * 3), result))
    with pytest.raises(ValueError, match="merge the requests"):
        certified(request=ju.from_indices(data, [[3], [17]]))
    with pytest.raises(ValueError, match="needs stats"):
        certified(mechanism=ObjectivePerturbation(1.0, bound="cubic"))  # type: ignore[arg-type]


def test_a_stream_is_certified_by_its_last_entry():
    data, variables, _, _ = toy()
    requests = ju.from_indices(data, [[3], [17], [20]])
    stream = jax.jit(ju.streamed(convex.newton_removal(PROBLEM)))(
        variables, data, requests, jax.random.split(jax.random.key(0), 3)
    )
    with pytest.raises(ValueError, match="end_of_stream"):
        certified(stream)
    last, left = ju.end_of_stream(stream, data)
    assert left.present.sum() == data.present.sum() - 3
    assert failed(certified(last)) == ["distance within the sensitivity"]  # of two rows, where three went
    assert certified(last, request=ju.merge(requests)) == certified(last, left, ju.merge(requests))
    assert certified(last, left, lane(requests, 2)).valid
