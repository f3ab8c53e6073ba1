"""A certificate as text, and looked at by somebody else."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates, convex
from jaxunlearn.certificates import Certificate, recheck
from jaxunlearn.certificates.certificate import Assumption
from tests.certificates.toys import GONE, PROBLEM, certified, toy, with_kernel
from tests.problems import lane

INF, NAN = float("inf"), float("nan")


def kernel_of(variables):
    return np.asarray(variables.params["kernel"])


# as text


def test_a_certificate_comes_back_to_the_last_digit():
    certificate = certified()
    text = certificate.to_json()
    assert text.isascii()
    assert Certificate.from_json(text) == certificate
    assert Certificate.from_json(text.encode()) == certificate
    assert Certificate.from_json(text.replace("\n", "\r\n")) == certificate  # there is no signature that could break
    assert json.loads(text)["format"] == "jaxunlearn certificate"
    assert json.loads(text)["version"] == 1
    assert set(json.loads(text)) == {"format", "version", *Certificate._fields}


def test_void_certificates_and_numbers_that_are_not_finite_come_back():
    data, _, request, result = toy()
    void = certified(with_kernel(result, np.full((3, 1), np.nan)), extractor=None)
    assert not void.valid
    assert np.isnan(void.residual)
    assert "Infinity" not in void.to_json()
    assert "NaN," not in void.to_json()
    assert repr(Certificate.from_json(void.to_json())) == repr(void)
    for value in (INF, -INF, NAN, -0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2):
        odd = certified()._replace(budget_left=value)
        assert repr(Certificate.from_json(odd.to_json())) == repr(odd)


def test_unicode_comes_back():
    words = "größe \u202e 𝛿 \x00 \"quoted\" 'too'\n"
    odd = certified()._replace(assumptions=(Assumption("名", True, words, "declared"),), mechanism=words)
    assert odd.to_json().isascii()
    assert Certificate.from_json(odd.to_json()) == odd


def test_who_says_that_an_assumption_holds():
    certificate = Certificate.from_json(certified().to_json())
    said = {each.name: each.source for each in certificate.assumptions if each.source != "checked"}
    assert said == {"extractor": "declared", "requests not adaptive": "declared", "one observed release": "assumed"}
    mechanism = certificates.Sekhari(1.0, 1.0)
    (constants,) = [x for x in certified(mechanism=mechanism).assumptions if x.name == "constants of the loss"]
    assert (constants.source, "1.0" in constants.detail) == ("declared", False)


def changed(**changes):
    return json.dumps({**json.loads(certified().to_json()), **changes})


def without(name):
    return json.dumps({key: value for key, value in json.loads(certified().to_json()).items() if key != name})


def inner(name, **changes):
    value = json.loads(certified().to_json())[name]
    return changed(**{name: {**value, **changes} if name == "subject" else [{**value[0], **changes}, *value[1:]]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda: "", "the certificate is empty"),
        (lambda: "null", "no format 'jaxunlearn certificate' of version 1 or 2: got None of version None"),
        (lambda: "[" * 100_000, "nested too deeply|no JSON"),
        (lambda: certified().to_json()[:-40], "no JSON that this library writes"),
        (lambda: certified().to_json() + "{}", "no JSON that this library writes: Extra data"),
        (lambda: "\ufeff" + certified().to_json(), "no JSON that this library writes"),
        (lambda: certified().to_json().encode("utf-16"), "no JSON that this library writes"),
        (lambda: certified().to_json().replace('"none', '"\\ud800').replace("'none", "'\\ud800"), "surrogates not allowed"),
        (lambda: changed(version=3), "got 'jaxunlearn certificate' of version 3"),
        (lambda: changed(version=2), "is of version 2, and what it says is said in version 1"),
        (lambda: changed(version=True), "of version True"),
        (lambda: changed(version=1.0), r"of version 1\.0"),
        (lambda: changed(format="jaxunlearn release"), "got 'jaxunlearn release'"),
        (lambda: changed(extra=1), r"missing \[\], unknown \['extra'\]"),
        (lambda: without("distance"), r"missing \['distance'\], unknown \[\]"),
        (lambda: certified().to_json().replace('"delta"', '"epsilon"'), r"fields \['epsilon'\] occur more than once"),
        (lambda: changed(epsilon=NAN), "NaN is no number of JSON"),
        (lambda: changed(residual=-INF), "-Infinity is no number of JSON"),
        (lambda: certified().to_json().replace('"epsilon": 1.0', '"epsilon": 1e999'), "1e999 is beyond float64"),
        (lambda: changed(epsilon="inf"), "needs 0 < epsilon < inf"),
        (lambda: changed(epsilon="Infinity"), "epsilon must be a number, got 'Infinity'"),
        (lambda: changed(epsilon=0), "needs 0 < epsilon < inf"),
        (lambda: changed(delta=1.0), "delta 1.0"),
        (lambda: changed(delta="nan"), "delta nan"),
        (lambda: changed(epsilon=True), "epsilon must be a number, got True"),
        (lambda: changed(sensitivity=10**400), "sensitivity must be a float64 number, got an integer of 1329 bits"),
        (lambda: changed(sensitivity=2**53 + 1), "integer of 54 bits"),
        (lambda: certified().to_json().replace('"epsilon": 1.0', '"epsilon": ' + "9" * 5000), "no JSON that this library"),
        (lambda: changed(valid=1), "valid must be true or false, got 1"),
        (lambda: changed(valid=False), r"says valid=False, but the assumptions that failed are \[\]"),
        (lambda: inner("assumptions", holds=False), r"says valid=True, but the assumptions that failed are \['status ok'\]"),
        (lambda: inner("assumptions", source="hearsay"), "source must be one of 'checked', 'declared', 'assumed'"),
        (lambda: inner("assumptions", detail=None), "detail must be text, got None"),
        (lambda: inner("assumptions", more=1), r"an assumption has other fields .* unknown \['more'\]"),
        (lambda: changed(assumptions={}), "assumptions must be a list"),
        (lambda: changed(subject=[]), "subject must be an object"),
        (lambda: inner("subject", weights="abc"), "weights must be 64 hexadecimal digits, got 'abc'"),
        (lambda: inner("subject", request=""), "request must be 64 hexadecimal digits"),
        (lambda: inner("subject", weights="A" * 64), "weights must be 64 hexadecimal digits"),
        (lambda: inner("subject", secret=None), "secret must be 64 hexadecimal digits"),
        (lambda: changed(mechanism=""), "mechanism must be text"),
    ],
)
def test_what_is_no_certificate_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Certificate.from_json(text())


def test_texts_of_another_type_are_refused():
    with pytest.raises(TypeError, match="expected the text of a certificate, got dict"):
        Certificate.from_json({})  # type: ignore[arg-type]


# by somebody else


def rechecked(certificate=None, variables=None, data=None, request=None, problem=PROBLEM, mechanism=None):
    own_data, _, own_request, own_result = toy()
    return recheck(
        Certificate.from_json(certified().to_json()) if certificate is None else certificate,
        own_result.variables if variables is None else variables,
        own_data if data is None else data,
        own_request if request is None else request,
        problem=problem,
        mechanism=mechanism,
    )


def test_a_recheck_agrees():
    certificate = certified()
    found = rechecked()
    assert (found.agrees, found.differences) == (True, ())
    assert (found.residual, found.distance) == (certificate.residual, certificate.distance)
    data = toy()[0]
    gone = data._replace(present=data.present.at[np.asarray(GONE)].set(0))
    inputs = np.array(data.train.inputs)
    inputs[GONE] = np.nan  # erased by now
    assert rechecked(data=gone).agrees
    assert rechecked(data=data._replace(train=data.train._replace(inputs=inputs))).agrees


def test_a_recheck_agrees_on_void_certificates():
    result = with_kernel(toy()[3], np.full((3, 1), np.nan))
    assert rechecked(certified(result), result.variables).agrees


def test_a_recheck_agrees_where_rows_are_added_in_another_order():
    """Two computers, played by sums in another order, differ by rounding, and by no more than is allowed."""
    certificate = certified()
    for sign in (-1, 1):
        moved = certificate._replace(residual=certificate.residual * (1 + sign * 1e-12))
        assert rechecked(moved).agrees
    assert not rechecked(certificate._replace(residual=certificate.residual * 2)).agrees


def test_changed_weights_are_found():
    _, variables, _, result = toy()
    for kernel in (kernel_of(variables), np.nextafter(kernel_of(result.variables), 9), kernel_of(result.variables) * np.nan):
        found = rechecked(variables=with_kernel(result, kernel).variables)
        assert not found.agrees
        assert found.differences[0] == "the weights are others"
    found = rechecked(variables=variables)
    assert found.differences[1].startswith("the residual is 0.")
    assert found.differences[2].startswith("the distance is 0.")
    assert found.distance > 1e-3


@pytest.mark.parametrize("what", ["label", "bit", "order", "dropped", "added", "dtype"])
def test_changed_rows_are_found(what):
    data = toy()[0]
    inputs, targets = (np.array(x) for x in data.train)
    present = np.array(data.present)
    if what == "label":
        targets[30] = 1 - targets[30]
    if what == "bit":
        inputs[30, 0] = np.nextafter(inputs[30, 0], np.float32(9))
    if what == "order":
        inputs[[30, 31]], targets[[30, 31]] = inputs[[31, 30]], targets[[31, 30]]
    if what == "dropped":
        present[30] = 0
    if what == "added":
        inputs, targets, present = np.tile(inputs, (2, 1)), np.tile(targets, 2), np.tile(present, 2)
    if what == "dtype":
        inputs = inputs.astype(np.float64)
    found = rechecked(data=data._replace(train=ju.Examples(inputs, targets), present=present))
    assert not found.agrees
    assert found.differences[0].startswith("the rows that are left")
    assert (len(found.differences) > 1) == (what not in ("order", "dtype"))  # else it is the digest that tells


@pytest.mark.parametrize("rows", [[3], [3, 18], [3, 17, 20]])
def test_changed_requests_are_found(rows):
    data = toy()[0]
    request = lane(ju.from_indices(data, [rows]), 0)
    found = rechecked(request=request)
    assert not found.agrees
    assert "the request names other rows" in found.differences
    gone = data._replace(present=data.present.at[np.asarray([3, 17])].set(0))
    assert "the request names other rows" in rechecked(data=gone, request=request).differences


def test_requests_that_name_no_rows_are_found():
    data, _, request, _ = toy()
    gone = data._replace(present=data.present.at[np.asarray(GONE)].set(0))
    found = rechecked(data=gone, request=ju.empty_request())
    assert found.differences == ("the request names other rows", "the request names no row")
    beyond = request._replace(indices=jnp.asarray(request.indices).at[0].set(60))
    assert "1 indices of the request name no row of these data" in rechecked(request=beyond).differences


def test_another_problem_or_secret_is_found():
    found = rechecked(problem=convex.logistic(0.06))
    assert found.differences[0] == "the problem is another"
    with_secret = convex.with_perturbation(toy()[0], (3, 1), 5.0, jax.random.key(1))
    assert "the secret of the objective is another, or is missing" in rechecked(data=with_secret).differences


def test_changed_certificates_are_found():
    certificate = certified()
    for name in ("residual", "distance"):
        for value in (0.0, INF, NAN, 2 * getattr(certificate, name)):
            (found,) = rechecked(certificate._replace(**{name: value})).differences
            assert found.startswith(f"the {name} is")
    other = certificate._replace(subject=certificate.subject._replace(request="0" * 64))
    assert rechecked(other).differences == ("the request names other rows",)


@pytest.mark.parametrize("mechanism", [certificates.DeleteThenNoise(), certificates.Sekhari(1.0, 1.0)])
def test_with_its_mechanism_a_certificate_is_computed_anew(mechanism):
    certificate = Certificate.from_json(certified(mechanism=mechanism).to_json())
    assert rechecked(certificate, mechanism=mechanism).differences == ()
    for name in ("sensitivity", "noise_scale", "budget_left"):
        changed = certificate._replace(**{name: 0.9 * getattr(certificate, name)})
        assert rechecked(changed).agrees
        (found,) = rechecked(changed, mechanism=mechanism).differences
        assert found.startswith(f"the {name} is ")
    (found,) = rechecked(certificate._replace(epsilon=2.0), mechanism=mechanism).differences
    assert found.startswith("the noise_scale is ")


def test_assumptions_that_were_dropped_added_or_turned_are_found():
    mechanism = certificates.DeleteThenNoise()
    result = with_kernel(toy()[3], np.full((3, 1), 2e-3) + 1)
    void = certified(result)
    assert not void.valid
    assert rechecked(void, result.variables, mechanism=mechanism).agrees
    kept = tuple(each for each in void.assumptions if each.holds)
    (found,) = rechecked(void._replace(assumptions=kept, valid=True), result.variables, mechanism=mechanism).differences
    assert found == "the assumption 'distance within the sensitivity' (checked) is missing"
    turned = tuple(each._replace(holds=True) for each in void.assumptions)
    (found,) = rechecked(void._replace(assumptions=turned, valid=True), result.variables, mechanism=mechanism).differences
    assert found.startswith("the assumption 'distance within the sensitivity' fails: at most ")
    more = (*certified().assumptions, Assumption("audited", True, "by me"))
    (found,) = rechecked(certified()._replace(assumptions=more), mechanism=mechanism).differences
    assert found == "the assumption 'audited' (checked) is none of this mechanism"
    found = rechecked(mechanism=certificates.DeleteThenNoise(2e-3)).differences
    assert found[0].startswith("the mechanism is DeleteThenNoise(sensitivity=0.002), the certificate says DeleteThenNoise(")


def test_mechanisms_that_read_statistics_need_the_removal():
    with pytest.raises(ValueError, match=r"ObjectivePerturbation reads \('quartic_bound',\) of the removal: repeat"):
        rechecked(mechanism=certificates.ObjectivePerturbation(1.0))


def test_arguments_of_another_type_are_refused():
    data, _, request, result = toy()
    with pytest.raises(TypeError, match="expected a Certificate, got str"):
        rechecked(certified().to_json())
    with pytest.raises(TypeError, match="expected a Variables, got Result"):
        rechecked(variables=result)
    with pytest.raises(TypeError, match="expected a Problem"):
        rechecked(problem=0.05)
    with pytest.raises(ValueError, match="recheck looks at one request"):
        rechecked(request=ju.from_indices(data, [[3], [17]]))
    certificate = certified()
    with pytest.raises(TypeError, match="outside jit and vmap"):
        jax.eval_shape(lambda x: rechecked(certificate, x), result.variables)
