"""Certificates under attack: releases of the worst pair of neighbours, told apart by the best threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import audit
from jaxunlearn.certificates import DeleteThenNoise, removal_budget
from tests.certificates.toys import certified

RELEASES = 200_000
LEVEL = 0.999
estimate = jax.jit(audit.epsilon_lower_bound, static_argnames="level")


@jax.jit
def releases(means, noise_scale, key):
    """Scores of releases from both worlds: their projections on the line between the means."""
    noisy = means[:, None] + noise_scale * jax.random.normal(key, (2, RELEASES, 2))
    line = (means[0] - means[1]) / jnp.linalg.norm(means[0] - means[1])
    return jnp.einsum("wri,i->wr", noisy, line)


def neighbours(sensitivity):
    """The retrained optimum, and a removal exactly as far from it as the certificate allows."""
    direction = np.array([0.6, -0.8])
    return jnp.asarray(np.stack([0.1 + sensitivity * direction, np.full(2, 0.1)]), jnp.float32)


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-2), (2.0, 1e-3), (4.0, 1e-5)])
def test_certified_epsilon_stands_and_half_the_noise_is_caught(epsilon, delta):
    certificate = certified(epsilon=epsilon, delta=delta, mechanism=DeleteThenNoise(1e-2))
    assert certificate.valid
    means = neighbours(certificate.sensitivity)
    honest = estimate(*releases(means, certificate.noise_scale, jax.random.key(1)), delta=delta, level=LEVEL)
    halved = estimate(*releases(means, certificate.noise_scale / 2, jax.random.key(2)), delta=delta, level=LEVEL)
    assert 0.5 * epsilon < honest <= certificate.epsilon  # an attack that finds nothing would prove nothing
    assert halved > certificate.epsilon


def test_a_removal_farther_than_the_sensitivity_is_caught():
    certificate = certified(delta=1e-2)
    far = neighbours(3 * certificate.sensitivity)
    assert estimate(*releases(far, certificate.noise_scale, jax.random.key(3)), delta=1e-2, level=LEVEL) > 1.0


def objective_perturbation(sigma, l2, rng):
    """One weight, five rows, the odd one removed by one Newton step: (removed, retrained, quartic bounds), a secret each."""
    rows, kept = np.array([-1.0, 1, 1, 1, 1]), np.ones(4)

    def slope(w, x, secret):
        return np.sum(-x / (1 + np.exp(x * w[:, None])), axis=1) + l2 * len(x) * w + secret

    def bend(w, x):
        return np.sum(x**2 / (2 + 2 * np.cosh(x * w[:, None])), axis=1) + l2 * len(x)

    def optimum(x, secret):
        w = np.zeros_like(secret)
        for _ in range(8):
            w = w - slope(w, x, secret) / bend(w, x)
        assert np.abs(slope(w, x, secret)).max() < 1e-9
        return w

    secret, other = rng.normal(0, sigma, (2, RELEASES))
    trained = optimum(rows, secret)
    step = -slope(trained, kept, secret) / bend(trained, kept)
    bounds = np.linalg.norm(kept) * np.sqrt(4) * step**2 / (12 * np.sqrt(3))
    assert (np.abs(slope(trained + step, kept, secret)) <= bounds + 1e-12).all()
    return np.float32(trained + step), np.float32(optimum(kept, other)), bounds


def test_objective_perturbation_stands_within_its_budget_and_falls_beyond():
    removed, retrained, bounds = objective_perturbation(0.3, 0.25, np.random.default_rng(0))
    assert 0.8 * removal_budget(0.3, 1.0, 1e-2) < bounds.max() <= removal_budget(0.3, 1.0, 1e-2)
    assert estimate(removed, retrained, delta=1e-2, level=LEVEL) <= 1.0
    removed, retrained, bounds = objective_perturbation(0.03, 0.25, np.random.default_rng(1))
    assert bounds.min() > removal_budget(0.03, 1.0, 1e-2)
    assert estimate(removed, retrained, delta=1e-2, level=LEVEL) > 1.0
