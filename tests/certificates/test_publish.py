"""Releases: the right noise once, the same bits ever after, nothing else in the files."""

import hashlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxunlearn as ju
from jaxunlearn import certificates, tree
from jaxunlearn.certificates.certificate import Assumption, Certificate, Subject
from jaxunlearn.certificates.publish import ReleaseError, _standard_normal, load_release
from jaxunlearn.service import journal
from jaxunlearn.service.errors import LedgerError
from jaxunlearn.service.lock import locked

KEY = jax.random.key(0)
KERNEL = np.arange(6.0).reshape(3, 2) + np.pi


def result_of(kernel=KERNEL, code=0):
    with jax.enable_x64(True):
        return ju.Result(ju.Variables({"head": {"kernel": jnp.asarray(kernel)}}), jnp.asarray(np.int32(code)), {})


CERTIFICATE = Certificate(
    epsilon=1.0,
    delta=1e-5,
    sensitivity=0.01,
    noise_scale=0.25,
    budget_left=np.inf,
    valid=True,
    assumptions=(Assumption("float64", True, "float64 throughout"),),
    mechanism="DeleteThenNoise(max_distance=0.01)",
    residual=0.0,
    distance=0.0,
    subject=Subject("", "", "", ""),
)
VOID = (Assumption("extractor", False, "not declared: say one"), Assumption("float64", True, "float64 throughout"))


def publish(result, certificate, directory, **options):
    """A release with the certificate made for these weights."""
    subject = certificate.subject._replace(weights=tree.content_digest(result.variables.params))
    return certificates.publish(result, certificate._replace(subject=subject), directory, **options)


def kernel_of(variables):
    return np.asarray(variables.params["head"]["kernel"])


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def intents(directory):
    return [json.loads(path.read_text()) for path in sorted((directory / "private").glob("*.json"))]


def noise_of(seed, kernel, scale=0.25):
    return (
        kernel.astype(np.float64) + scale * _standard_normal(bytes.fromhex(seed), kernel.size).reshape(kernel.shape)
    ).astype(kernel.dtype)


# noise


def test_noise_is_normal_and_of_the_certified_scale(tmp_path):
    weights = np.linspace(-1, 1, 100_001)
    released = kernel_of(publish(result_of(weights), CERTIFICATE, tmp_path, key=KEY).variables)
    noise = (released - weights) / CERTIFICATE.noise_scale
    assert scipy.stats.kstest(noise, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:50_000], noise[50_000:100_000])[0, 1]) < 4 / 50_000**0.5
    assert np.array_equal(_standard_normal(b"seed", 7), _standard_normal(b"seed", 8)[[0, 1, 2, 3, 4, 5, 6]])


def test_entropy_comes_from_the_system_unless_a_key_is_given(tmp_path):
    first, second = (publish(result_of(), CERTIFICATE, tmp_path / name) for name in "ab")
    assert not np.any(kernel_of(first.variables) == kernel_of(second.variables))
    assert first.noise_key == "os"
    keyed = [publish(result_of(), CERTIFICATE, tmp_path / name, key=KEY) for name in "cd"]
    assert keyed[0].sha256 == keyed[1].sha256
    assert keyed[0].noise_key == "caller"
    with np.load(keyed[0].path, allow_pickle=False) as file:
        assert json.loads(str(file["about"]))["noise_key"] == "caller"


def test_different_weights_never_share_their_noise(tmp_path):
    first = publish(result_of(), CERTIFICATE, tmp_path / "a", key=KEY)
    moved = publish(result_of(KERNEL + 1), CERTIFICATE, tmp_path / "b", key=KEY)
    assert np.all(np.abs(kernel_of(moved.variables) - kernel_of(first.variables) - 1) > 1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_weights_are_rounded_after_the_noise(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("secrets.token_hex", lambda size: "ab" * size)
    kernel = KERNEL.astype(dtype)
    found = kernel_of(publish(result_of(kernel), CERTIFICATE, tmp_path).variables)
    assert found.dtype == dtype
    assert np.array_equal(found, noise_of("ab" * 32, kernel))


def test_a_model_trained_with_its_noise_gets_no_more(tmp_path):
    release = publish(result_of(), CERTIFICATE._replace(noise_scale=0.0, mechanism="ObjectivePerturbation"), tmp_path)
    assert np.array_equal(kernel_of(release.variables), KERNEL)


# replay and composition


def test_the_same_weights_get_the_same_bits(tmp_path):
    first = publish(result_of(), CERTIFICATE, tmp_path)
    before = contents(tmp_path)
    again = publish(result_of(), CERTIFICATE._replace(budget_left=0.5), tmp_path, key=KEY)
    assert contents(tmp_path) == before
    assert again._replace(variables=None) == first._replace(variables=None)
    assert kernel_of(again.variables).tobytes() == kernel_of(first.variables).tobytes()


def test_other_releases_add_their_cost(tmp_path):
    first = publish(result_of(), CERTIFICATE, tmp_path)
    tighter = publish(result_of(), CERTIFICATE._replace(epsilon=0.5, noise_scale=0.5), tmp_path)
    moved = publish(result_of(KERNEL + 1), CERTIFICATE, tmp_path)
    assert [(each.number, each.total_epsilon) for each in (first, tighter, moved)] == [(1, 1.0), (2, 1.5), (3, 2.5)]
    repeated = publish(result_of(), CERTIFICATE, tmp_path)
    assert (repeated.number, repeated.epsilon, repeated.total_epsilon, repeated.total_delta) == (1, 1.0, 2.5, moved.total_delta)
    assert moved.total_delta == pytest.approx(3e-5)
    assert repeated.sha256 == first.sha256
    with np.load(moved.path, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
    assert about == {
        "number": 3,
        "mechanism": "DeleteThenNoise",
        "epsilon": 1.0,
        "delta": 1e-5,
        "noise_scale": 0.25,
        "total_epsilon": 2.5,
        "total_delta": moved.total_delta,
        "noise_key": "os",
    }


# interruptions


class Interrupted(Exception):
    pass


def interrupt(monkeypatch, suffix, number):
    """Fail instead of the n-th write of a file with a suffix."""
    seen, write = [], journal.write

    def failing(path, content):
        seen.append(path) if path.suffix == suffix else None
        if len(seen) == number and path.suffix == suffix:
            raise Interrupted
        write(path, content)

    monkeypatch.setattr(journal, "write", failing)


@pytest.mark.parametrize(("suffix", "number"), [(".npz", 1), (".json", 2)])
def test_an_interrupted_release_is_completed_with_the_promised_bits(tmp_path, monkeypatch, suffix, number):
    with monkeypatch.context() as patch:
        interrupt(patch, suffix, number)
        with pytest.raises(Interrupted):
            publish(result_of(), CERTIFICATE, tmp_path)
    (intent,) = intents(tmp_path)
    promised = noise_of(intent["seed"], KERNEL)
    other = publish(result_of(KERNEL + 1), CERTIFICATE, tmp_path)
    assert (other.number, other.total_epsilon) == (2, 2.0)  # what was promised counts, delivered or not
    release = publish(result_of(), CERTIFICATE, tmp_path)
    assert (release.number, release.total_epsilon) == (1, 2.0)
    assert np.array_equal(kernel_of(release.variables), promised)
    assert [each["seed"] for each in intents(tmp_path)] == ["", ""]


def test_costs_are_not_taken_from_a_wrong_folder_nor_a_bound_that_only_likely_holds(tmp_path):
    for name, mechanism in (("plain", certificates.Neel()), ("likely", certificates.Neel(perfect=True))):
        publish(result_of(), CERTIFICATE._replace(mechanism=repr(mechanism)), tmp_path / name / "releases")
    plain, likely = (certificates.release_costs(tmp_path / name / "releases")[0] for name in ("plain", "likely"))
    assert (plain, likely) == ((1.0, 1e-5, 0.04), (1.0, 1e-5, None))
    for wrong, words in (("plain", "give .*releases"), ("nowhere", "there is no folder")):
        with pytest.raises(ReleaseError, match=words):
            certificates.release_costs(tmp_path / wrong)


def test_a_release_is_counted_from_its_promise_on_once_and_for_ever(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, ".npz", 1)
        with pytest.raises(Interrupted):
            publish(result_of(), CERTIFICATE, tmp_path)
    promised = certificates.release_costs(tmp_path)
    assert promised == ((1.0, 1e-5, 0.04),)
    for _ in range(2):  # completed, and asked for again
        publish(result_of(), CERTIFICATE, tmp_path)
        assert certificates.release_costs(tmp_path) == promised
    certificates.retract(tmp_path, 1, "superseded")
    assert certificates.release_costs(tmp_path) == promised
    publish(result_of(KERNEL + 1), CERTIFICATE._replace(noise_scale=0.0), tmp_path)
    both = certificates.release_costs(tmp_path)
    assert both == (*promised, (1.0, 1e-5, None))
    assert 1 < certificates.compose_costs(both, 2e-5).epsilon < 1.2


def test_nothing_was_promised_before_the_intent(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, ".json", 1)
        with pytest.raises(Interrupted):
            publish(result_of(), CERTIFICATE, tmp_path)
    assert publish(result_of(KERNEL + 1), CERTIFICATE, tmp_path).total_epsilon == 1.0


# what is in the files


def test_files_hold_neither_the_weights_nor_the_noise(tmp_path):
    release = publish(result_of(), CERTIFICATE, tmp_path)
    released = kernel_of(release.variables)
    found = b"".join(contents(tmp_path).values())
    assert released.tobytes() in found
    for secret in (KERNEL, released - KERNEL):
        assert not any(number.tobytes() in found or repr(float(number)).encode() in found for number in secret.ravel())
    unsalted = tree.content_digest({"params/head/kernel": KERNEL})
    assert unsalted.encode() not in found
    assert sorted(path.name for path in (tmp_path / "public").iterdir()) == ["release-000001.json", "release-000001.npz"]
    assert intents(tmp_path)[0]["release"] == hashlib.sha256(release.path.read_bytes()).hexdigest()
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o77 == 0


def test_a_release_is_read_into_its_model(tmp_path):
    release = publish(result_of(), CERTIFICATE, tmp_path)
    like = jax.eval_shape(lambda: result_of().variables)
    assert np.array_equal(kernel_of(load_release(release.path, like)), kernel_of(release.variables))
    with pytest.raises(ValueError, match=r"holds the weights of another model: expected .*bias.*found .*head/kernel"):
        load_release(release.path, ju.Variables({"bias": np.zeros(2)}))


# what is refused, with nothing written


@pytest.mark.parametrize(
    ("result", "certificate", "message"),
    [
        (
            result_of(),
            CERTIFICATE._replace(valid=False, assumptions=VOID),
            r"void, so nothing was released: extractor \(not decl",
        ),
        (result_of(), CERTIFICATE._replace(assumptions=VOID), r"void, so nothing was released: extractor \(not declared"),
        (result_of(), CERTIFICATE._replace(valid=False), "void, so nothing was released: it says so without naming"),
        (result_of(), CERTIFICATE._replace(epsilon=0.0), r"got epsilon=0\.0, delta=1e-05"),
        (result_of(), CERTIFICATE._replace(noise_scale=np.nan), "noise_scale=nan; make it with certify"),
        (
            result_of()._replace(status=np.zeros(3, np.int32)),
            CERTIFICATE,
            r"results of \(3,\) requests: merge\(\) the requests",
        ),
        (
            result_of(KERNEL.astype(np.float16)),
            CERTIFICATE,
            r"takes float64 or float32 params, got params/head/kernel \(float16\)",
        ),
        (result_of()._replace(variables=ju.Variables({"w": KERNEL}, {"mean": KERNEL})), CERTIFICATE, "released without noise"),
    ],
)
def test_what_is_not_certified_is_not_released(tmp_path, result, certificate, message):
    with pytest.raises(ValueError, match=message):
        publish(result, certificate, tmp_path / "releases")
    assert not list(tmp_path.iterdir())


def test_publish_is_for_the_host(tmp_path):
    with pytest.raises(TypeError, match="call it outside jit and vmap"):
        jax.eval_shape(lambda result: certificates.publish(result, CERTIFICATE, tmp_path), result_of())
    with pytest.raises(TypeError, match="call it outside jit and vmap"):
        jax.eval_shape(lambda key: certificates.publish(result_of(), CERTIFICATE, tmp_path, key=key), KEY)
    with pytest.raises(TypeError, match="expected a typed key"):
        certificates.publish(result_of(), CERTIFICATE, tmp_path, key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(ju.UnlearningError, match="NONFINITE"):
        certificates.publish(result_of(code=ju.Status.NONFINITE), CERTIFICATE, tmp_path)
    assert not list(tmp_path.iterdir())


def edit(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda d: edit(d / "private/release-000001.json", b'"epsilon":1.0', b'"epsilon":0.1'),
            "000001.json was tampered with",
        ),
        (
            lambda d: (d / "private/release-000001.json").write_bytes(b"nonsense"),
            "000001.json was tampered with: it is no JSON",
        ),
        (lambda d: edit(d / "private/release-000001.json", b'"version":2', b'"version":3'), "has another version than 2"),
        (lambda d: os.unlink(d / "private/release-000001.json"), "is release 2 where release 1 is expected"),
        (lambda d: os.unlink(d / "public/release-000001.npz"), "was released and is gone: put it back"),
        (lambda d: edit(d / "public/release-000001.npz", b"PK", b"KP"), "is not the file that was released"),
    ],
)
def test_a_spoilt_directory_is_refused(tmp_path, spoil, message):
    publish(result_of(), CERTIFICATE, tmp_path)
    publish(result_of(KERNEL + 1), CERTIFICATE, tmp_path)
    spoil(tmp_path)
    before = contents(tmp_path)
    for kernel in (KERNEL, KERNEL + 2):
        with pytest.raises(ReleaseError, match=message):
            publish(result_of(kernel), CERTIFICATE, tmp_path)
    assert contents(tmp_path) == before


def test_one_publisher_at_a_time(tmp_path):
    with locked(tmp_path / "lock"), pytest.raises(LedgerError, match="takes one writer at a time"):
        publish(result_of(), CERTIFICATE, tmp_path)
    assert publish(result_of(), CERTIFICATE, tmp_path).number == 1
