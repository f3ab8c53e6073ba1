"""Langevin steps and noisy steps on fixed batches: the descent that they are without noise, and the noise that they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates as c
from jaxunlearn import convex
from tests.problems import lane

PROBLEM, KEY = convex.logistic(0.1), jax.random.key(0)
SAID = {"epsilon": 1.0, "delta": 1e-3, "extractor": "none", "adaptive": False, "secret_key": True}
SIZE, GONE = 37, [4, 9, 30]


def data():
    rng = np.random.default_rng(0)
    inputs = convex.feature_rows(rng.normal(size=(SIZE, 2)))
    return ju.training_data(inputs, (inputs[:, 0] > 0).astype(np.int32))


DATA = data()
ZERO = ju.Variables({"kernel": jnp.zeros((3, 1), jnp.float32)})
REQUEST = lane(ju.from_indices(DATA, [GONE]), 0)


@pytest.fixture(scope="module")
def noiseless():
    """One compiled program per method, noise traced."""
    return {
        "langevin": jax.jit(lambda s, v, d, r, k: convex.langevin(PROBLEM, sigma=s, steps=60)(v, d, r, k)),
        "pnsgd": jax.jit(lambda s, v, d, r, k: convex.pnsgd(PROBLEM, sigma=s, epochs=2, batch_size=10)(v, d, r, k)),
    }


def test_without_noise_langevin_ends_at_the_retrained_optimum(noiseless):
    found = noiseless["langevin"](0.0, ZERO, DATA, REQUEST, KEY)
    optimum = convex.fit(PROBLEM, ju.remove(DATA, REQUEST)).params["kernel"]
    assert np.abs(np.asarray(found.variables.params["kernel"]) - np.asarray(optimum)).max() < 1e-5
    learned = noiseless["langevin"](0.0, ZERO, DATA, ju.empty_request(3), KEY)
    optimum = convex.fit(PROBLEM, DATA).params["kernel"]
    assert np.abs(np.asarray(learned.variables.params["kernel"]) - np.asarray(optimum)).max() < 1e-5


def test_batches_stay_where_they_are_and_the_last_one_is_short(noiseless):
    """Batches of 10, 10, 10 and 7 rows, without those that go, in turn."""
    found = noiseless["pnsgd"](0.0, ZERO, DATA, REQUEST, KEY)
    inputs, labels = np.asarray(DATA.train.inputs, float), np.asarray(DATA.train.targets)
    w, rate = np.zeros(3), 1 / (0.25 + 0.1)
    for step in range(8):
        rows = np.setdiff1d(np.arange(10 * (step % 4), min(10 * (step % 4) + 10, SIZE)), GONE)
        slope = 1 / (1 + np.exp(-inputs[rows] @ w)) - labels[rows]
        w = w - rate * (inputs[rows].T @ slope / rows.size + 0.1 * w)
    assert np.abs(np.asarray(found.variables.params["kernel"])[:, 0] - w).max() < 1e-6
    assert float(found.stats["smallest_batch"]) == 7
    assert float(found.stats["descent_steps"]) == 8


def test_noise_has_the_variance_of_its_step(noiseless):
    """What is left of the noise of all steps is a geometric sum, up to the curvature of the loss."""
    keys = jax.random.split(KEY, 400)
    many = jax.jit(jax.vmap(noiseless["langevin"], in_axes=(None, None, None, None, 0)))
    flat = data()._replace(present=jnp.zeros(SIZE).at[0].set(1.0))
    row = np.asarray(flat.train.inputs)[0]
    away = np.linalg.svd(row[None])[2][1]  # the loss of one row does not bend this way: only the penalty does
    with jax.enable_x64(True):
        found = many(0.1, ZERO, flat, ju.empty_request(3), keys)
    seen = np.asarray(found.variables.params["kernel"])[:, :, 0] @ away
    rate = 1 / 0.35
    expected = 2 * rate * 0.1**2 / (1 - (1 - rate * 0.1) ** 2)
    assert seen.var() == pytest.approx(expected, rel=5 * (2 / 400) ** 0.5)


def test_one_batch_is_langevin():
    whole = convex.langevin(PROBLEM, sigma=0.1, steps=3)(ZERO, DATA, REQUEST, KEY)
    batch = convex.pnsgd(PROBLEM, sigma=0.1, epochs=3, batch_size=100)(ZERO, DATA, REQUEST, KEY)
    assert np.array_equal(whole.variables.params["kernel"], batch.variables.params["kernel"])


def failed(certificate):
    return [each.name for each in certificate.assumptions if not each.holds]


def test_certificates_of_a_stream_add_up(noiseless):
    result = noiseless["langevin"](1.0, ZERO, DATA, REQUEST, KEY)
    first = c.certify_run(result, DATA, REQUEST, mechanism=c.Langevin(), **SAID)
    assert first.valid
    rate, mu = 1 / 0.35, c.langevin_mu(3, SIZE, 1.0, 0.1, 1 / 0.35, 1.0)
    assert first.sensitivity == pytest.approx(c.unlearned_mu([mu], [60], 0.1, rate), rel=1e-6)
    assert first.budget_left == pytest.approx(1.0, abs=1e-2)
    second = c.certify_run(result, DATA, REQUEST, mechanism=c.Langevin(before=50.0), **SAID)
    assert second.sensitivity == pytest.approx(c.unlearned_mu([50.0 + mu], [60], 0.1, rate), rel=1e-6)
    assert "retraining" in next(each.detail for each in first.assumptions if each.name == "compared with")


def test_rows_that_are_too_long_and_steps_that_are_void_the_certificate(noiseless):
    longer = DATA._replace(train=DATA.train._replace(inputs=2 * np.asarray(DATA.train.inputs)))
    result = noiseless["langevin"](1.0, ZERO, longer, REQUEST, KEY)
    assert failed(c.certify_run(result, longer, REQUEST, mechanism=c.Langevin(), **SAID)) == ["rows within the promised norm"]
    rushed = result._replace(stats={**result.stats, "learning_rate": 9.0, "row_norm": 1.0})
    assert "step at most 1 / L" in failed(c.certify_run(rushed, longer, REQUEST, mechanism=c.Langevin(), **SAID))
    quiet = noiseless["langevin"](1e-3, ZERO, DATA, REQUEST, KEY)._replace(stats={**result.stats, "descent_steps": 0.0})
    void = c.certify_run(quiet, DATA, REQUEST, mechanism=c.Langevin(before=9.0), **SAID)
    assert "noise of the run suffices" in failed(void)


def test_losses_without_bounded_gradients_are_refused():
    with pytest.raises(ValueError, match="least squares"):
        convex.langevin(convex.ridge(0.1), sigma=0.1, steps=3)
    with pytest.raises(ValueError, match="sigma must lie in"):
        convex.pnsgd(PROBLEM, sigma=-1.0, epochs=1, batch_size=4)
