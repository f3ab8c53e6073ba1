"""Eigenspaces, the alignment with them, and its slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.heads import Eigenspace, alignment, eigenspace

RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(6, 6)))[0].astype(np.float32)
SPACE = Eigenspace(jnp.asarray(BASIS.T), 1.0 * (jnp.arange(6) < 2))  # of the first two columns


def rows_in(columns, count=5):
    return (RNG.normal(size=(count, len(columns))) @ BASIS[:, columns].T).astype(np.float32)


def score(features, space=SPACE, weights=None):
    features = jnp.asarray(features)
    return alignment(features, jnp.ones(len(features)) if weights is None else weights, space)


def test_alignment_is_1_inside_and_0_outside():
    assert float(score(rows_in([0, 1]))) == pytest.approx(1, abs=1e-6)
    assert float(score(rows_in([2, 5]))) == pytest.approx(0, abs=1e-6)
    assert float(score(np.zeros((3, 6), np.float32))) == 1
    space = Eigenspace(jnp.eye(64), 1.0 * (jnp.arange(64) < 16))
    # of a quotient of chi-squares: sd = sqrt(2 k (D - k) / D^2 / (n D + 2)) = 0.0024
    assert float(score(RNG.normal(size=(2000, 64)).astype(np.float32), space)) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("rows", "features"), [(40, 6), (4, 6)])
@pytest.mark.parametrize("options", [{"energy": 0.7}, {"energy": 0.95}, {"rank": 2}])
def test_the_eigenspace_is_that_of_the_second_moment(rows, features, options):
    retained = (RNG.normal(size=(rows, features)) * np.array([5, 3, 2, 1, 0.5, 0.1])).astype(np.float32)
    forgotten = RNG.normal(size=(7, features)).astype(np.float32)
    values, vectors = np.linalg.eigh(retained.T.astype(float) @ retained / rows)
    values, vectors = values[::-1], vectors[:, ::-1]
    cut = 2 if "rank" in options else 1 + int(np.argmax(np.cumsum(values) / values.sum() >= options["energy"]))
    expected = np.sum((forgotten @ vectors[:, :cut]) ** 2) / np.sum(forgotten**2)
    space = eigenspace(retained, jnp.ones(rows), **options)
    assert int(space.shares.sum()) == cut
    assert float(score(forgotten, space)) == pytest.approx(expected, rel=1e-5)


def test_scale_and_rotation_do_not_matter_and_the_soft_form_has_this_limit():
    retained, forgotten = rows_in([0, 1], 20), RNG.normal(size=(7, 6)).astype(np.float32)
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0].astype(np.float32)
    ones = jnp.ones(20)
    plain = float(score(forgotten, eigenspace(retained, ones, energy=1.0)))
    assert float(score(3 * forgotten, eigenspace(7 * retained, ones, energy=1.0))) == pytest.approx(plain, rel=1e-5)
    turned = eigenspace(retained @ turn, ones, energy=1.0)
    assert int(turned.shares.sum()) == 2  # directions that hold rounding errors only are none
    assert float(score(forgotten @ turn, turned)) == pytest.approx(plain, rel=1e-4)
    moment = retained.T.astype(float) @ retained / 20
    inside = forgotten @ moment @ np.linalg.inv(moment + 1e-9 * np.eye(6))
    assert np.sum(inside * forgotten) / np.sum(forgotten**2) == pytest.approx(plain, rel=1e-4)


def test_the_slope_of_the_alignment():
    z = RNG.normal(size=(5, 6)).astype(np.float32)
    slope = jax.grad(lambda z: 1 - score(z))(jnp.asarray(z))
    inside = z @ BASIS[:, :2] @ BASIS[:, :2].T
    np.testing.assert_allclose(slope, -2 * (inside - float(score(z)) * z) / np.sum(z**2), atol=1e-6)
    assert float(jnp.abs(jax.grad(score)(jnp.asarray(rows_in([0, 1])))).max()) < 1e-6
    assert not jnp.any(jax.grad(score)(jnp.zeros((2, 6))))
    values, current = [], jnp.asarray(z)
    climb = jax.jit(jax.value_and_grad(score))
    for _ in range(20):
        value, slope = climb(current)
        values.append(float(value))
        current = current + 2.0 * slope
    assert np.all(np.diff(values) > 0)


def test_no_slope_flows_through_the_eigenspace():
    def of_retained(retained):
        return score(RNG.normal(size=(3, 6)), eigenspace(retained, jnp.ones(4)))

    assert not jnp.any(jax.grad(of_retained)(jnp.ones((4, 6))))  # equal singular values, too


def test_rows_that_do_not_count_do_not_matter():
    z = RNG.normal(size=(5, 6)).astype(np.float32)
    padded = jnp.concatenate([jnp.asarray(z), jnp.full((3, 6), jnp.nan)])
    weights = jnp.array([1, 1, 1, 1, 1, 0, 0, 0.0])
    assert float(score(padded, SPACE, weights)) == pytest.approx(float(score(z)), rel=1e-6)
    slope = jax.grad(lambda z: score(z, SPACE, weights))(padded)
    np.testing.assert_allclose(slope[:5], jax.grad(score)(jnp.asarray(z)), atol=1e-7)
    assert not jnp.any(slope[5:])
    for options in ({"energy": 0.8}, {"rank": 3}):
        one, other = eigenspace(padded, weights, **options), eigenspace(jnp.asarray(z), jnp.ones(5), **options)
        probe = rows_in([0, 3, 5])
        assert float(score(probe, one)) == pytest.approx(float(score(probe, other)), rel=1e-5)
        assert int(one.shares.sum()) == int(other.shares.sum())
    nothing = eigenspace(padded, jnp.zeros(8))
    assert not jnp.any(nothing.shares)
    assert float(score(z, nothing)) == 0
