"""Similarities of features against their definitions and known values."""

from functools import partial

import jax
import numpy as np
import pytest
import scipy.linalg

from jaxunlearn import audit

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 6)), RNG.normal(size=(40, 9))
Y[:, :3] += X[:, :3]
linear_cka = jax.jit(audit.linear_cka, static_argnames="debiased")
minibatch_cka = jax.jit(audit.minibatch_cka, static_argnames="batch_size")
procrustes_similarity = jax.jit(audit.procrustes_similarity)
dimensional_alignment_score = jax.jit(audit.dimensional_alignment_score)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def rotation(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def biased(x, y):
    """By its kernels, as defined."""
    centring = np.eye(len(x)) - 1 / len(x)
    k, m = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    return np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))


def hsic(x, y):
    """The unbiased estimator by kernels with zero diagonals."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    return (np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * np.sum(k @ m)) / (n * (n - 3))


def unbiased(x, y):
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


@pytest.mark.parametrize(("debiased", "twin"), [(False, biased), (True, unbiased)])
def test_cka_is_what_its_kernels_say(debiased, twin):
    assert float(linear_cka(X, Y, debiased=debiased)) == pytest.approx(twin(X, Y), rel=1e-10)
    assert float(linear_cka(Y, X, debiased=debiased)) == pytest.approx(twin(X, Y), rel=1e-10)
    assert float(linear_cka(X, 3 * X @ rotation(6) + RNG.normal(size=6), debiased=debiased)) == pytest.approx(1, abs=1e-10)
    wide = RNG.normal(size=(12, 50))
    assert float(linear_cka(wide, X[:12], debiased=debiased)) == pytest.approx(twin(wide, X[:12]), rel=1e-9)


def test_unrelated_features_look_alike_to_the_biased_estimator_alone():
    x, y = np.random.default_rng(0).normal(size=(2, 256, 1024)).astype(np.float32)
    assert float(linear_cka(x, y, debiased=False)) == pytest.approx(1024 / (256 + 1024), abs=0.01)  # 0.80
    assert abs(float(linear_cka(x, y))) < 0.02


@pytest.mark.parametrize("measure", [linear_cka, procrustes_similarity, lambda *a: linear_cka(*a, debiased=False)])
def test_rows_that_do_not_count_may_hold_anything(measure):
    weights = np.arange(40) % 3 > 0
    broken = np.where(weights[:, None], X, np.nan)
    assert float(measure(broken, Y, weights)) == pytest.approx(float(measure(X[weights], Y[weights])), rel=1e-10)


def test_batches_average_their_terms_before_the_ratio():
    terms = [np.mean([hsic(a[s : s + 16], b[s : s + 16]) for s in (0, 16)]) for a, b in ((X, Y), (X, X), (Y, Y))]
    expected = terms[0] / np.sqrt(terms[1] * terms[2])
    assert float(minibatch_cka(X, Y, batch_size=16)) == pytest.approx(expected, rel=1e-10)  # the last 8 rows fill no batch
    assert float(minibatch_cka(X, Y, batch_size=40)) == pytest.approx(float(linear_cka(X, Y)), rel=1e-10)
    weights = np.arange(40) < 16
    assert float(minibatch_cka(X, Y, weights, batch_size=16)) == pytest.approx(unbiased(X[:16], Y[:16]), rel=1e-10)


def test_procrustes_is_what_the_best_rotation_leaves():
    y = Y[:, :6]
    a, b = (z - z.mean(axis=0) for z in (X, y))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    best = scipy.linalg.orthogonal_procrustes(a, b)[0]
    left = np.sum((a @ best - b) ** 2)
    assert float(procrustes_similarity(X, y)) == pytest.approx(1 - left / 2, rel=1e-10)
    assert float(procrustes_similarity(X, 2 * X @ rotation(6) - 1)) == pytest.approx(1)


def test_alignment_is_a_share_of_energy():
    basis = rotation(8)
    retain = RNG.normal(size=(50, 3)) @ basis[:3]
    inside, outside = RNG.normal(size=(20, 3)) @ basis[:3], RNG.normal(size=(20, 5)) @ basis[3:]
    score = lambda f, **options: float(dimensional_alignment_score(f, retain, energy=1.0, **options))
    assert score(inside) == pytest.approx(1)
    assert score(outside) == pytest.approx(0, abs=1e-12)
    both = score(inside + outside)
    assert both == pytest.approx(np.sum(inside**2) / np.sum((inside + outside) ** 2))
    assert score(inside + outside, ridge=1e-10) == pytest.approx(both, rel=1e-6)
    turned = rotation(8, 1)
    found = dimensional_alignment_score(3 * (inside + outside) @ turned, retain @ turned, energy=1.0)
    assert float(found) == pytest.approx(both)
    broken = np.where(np.arange(20)[:, None] < 5, np.nan, inside + outside)
    found = dimensional_alignment_score(broken, retain, np.arange(20) >= 5, energy=1.0)
    assert float(found) == pytest.approx(score((inside + outside)[5:]))


def test_isotropic_features_align_by_the_share_of_dimensions():
    retain = RNG.normal(size=(3000, 16)) @ rotation(64)[:16]
    found = dimensional_alignment_score(RNG.normal(size=(2000, 64)), retain, energy=0.999999)
    assert float(found) == pytest.approx(0.25, abs=0.02)


def test_the_energy_says_how_many_directions_count():
    retain = np.diag([np.sqrt(6.0), np.sqrt(3.0), 1.0, 0.0])  # shares 0.6, 0.3, 0.1
    forget = np.eye(4)
    for energy, directions in ((0.5, 1), (0.6, 1), (0.7, 2), (0.95, 3), (1.0, 3)):
        assert float(dimensional_alignment_score(forget, retain, energy=energy)) == pytest.approx(directions / 4)


def test_models_are_one_vmap():
    models = np.stack([X, X @ rotation(6), Y[:, :6]])
    found = jax.jit(jax.vmap(audit.linear_cka, (0, None)))(models, X)
    np.testing.assert_allclose(found, [1, 1, unbiased(Y[:, :6], X)], rtol=1e-8)
    assert np.isfinite(jax.jit(jax.grad(lambda z: audit.dimensional_alignment_score(z, X)))(X)).all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="leading axis"):
        audit.linear_cka(X, Y[:10])
    with pytest.raises(ValueError, match="at least 4 rows"):
        audit.linear_cka(X[:3], Y[:3])
    with pytest.raises(ValueError, match="batches of at least 4 rows"):
        audit.minibatch_cka(X, Y, batch_size=3)
    with pytest.raises(ValueError, match="one width"):
        audit.dimensional_alignment_score(X, Y)
    with pytest.raises(ValueError, match="energy"):
        audit.dimensional_alignment_score(X, X, energy=1.5)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_features_of_any_scale_have_the_same_similarity(scale):
    z, y = np.random.default_rng(0).normal(size=(2, 50, 8)).astype(np.float32)
    for measure in (partial(linear_cka, debiased=False), linear_cka, procrustes_similarity):
        np.testing.assert_allclose(measure(np.float32(scale) * z, y), measure(z, y), rtol=1e-4)
        np.testing.assert_allclose(measure(np.float32(scale) * z, np.float32(scale) * z), 1, rtol=1e-5)
