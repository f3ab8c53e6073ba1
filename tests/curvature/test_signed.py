"""Roots with random signs."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature, likelihoods
from jaxunlearn.curvature.logit_gradients import slopes
from tests.curvature.test_kronecker import shapes_in
from tests.curvature.test_matvecs import (  # noqa: F401
    KEY,
    MODEL,
    ROWS,
    VARIABLES,
    broken_where,
    flat,
    in_float64,
    matrix,
    matvec,
    rows_where,
    tree_of,
    whole,
    without,
)


@pytest.fixture
def signs(monkeypatch):
    """`signs(pattern)` replaces all random signs by this pattern, the same for all rows."""

    def choose(pattern):
        monkeypatch.setattr(likelihoods, "_signs", lambda key, like: pattern.reshape(like.shape).astype(like.dtype))

    return choose


def patterns(count):
    return np.array(list(itertools.product((-1.0, 1.0), repeat=count)))


COUNTED = likelihoods.product([(likelihoods.categorical(scale=2.0), 3), (likelihoods.bernoulli(), 1)])
BY_HAND = likelihoods.categorical()._replace(name="mine", signed=None)
FAMILIES = {
    "categorical": (likelihoods.categorical(), (4,), np.array(2)),
    "sequence": (likelihoods.categorical(ignore=-100), (4, 2), np.array([1, -100, 0, 1])),
    "bernoulli": (likelihoods.bernoulli(), (5,), np.array([0, 1, 1, 0, 1])),
    "one logit": (likelihoods.bernoulli(), (), np.array(1)),
    "gaussian": (likelihoods.gaussian(), (3,), np.zeros(3)),
    "poisson": (likelihoods.poisson(), (3,), np.array([1, 0, 4])),
    "roots alone": (BY_HAND, (4,), np.array(2)),
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_mean_over_all_signs_is_the_exact_matrix(name, signs):
    likelihood, shape, targets = FAMILIES[name]
    logits = np.random.default_rng(0).normal(size=shape)
    count = int(np.prod(shape, dtype=int))
    roots = likelihoods.exact_roots(likelihood, jnp.asarray(logits)[None], jnp.asarray(targets)[None]).reshape(-1, count)

    def root(pattern):
        signs(pattern)
        return likelihoods.signed_root(likelihood, KEY, jnp.asarray(logits), jnp.asarray(targets)).ravel()

    found = jax.jit(jax.vmap(root))(patterns(count))
    np.testing.assert_allclose(found.T @ found / len(found), roots.T @ roots, atol=1e-12)
    assert np.ptp(np.asarray(found), axis=0).max() > 0


def test_heads_have_signs_of_their_own(monkeypatch):
    """Every call for signs takes its own part of the pattern."""
    logits, targets = jnp.asarray(np.random.default_rng(0).normal(size=4)), jnp.array([2, 1])
    roots = likelihoods.exact_roots(COUNTED, logits[None], targets[None])[:, 0]

    def root(pattern):
        parts = iter([pattern[:3], pattern[3:]])
        monkeypatch.setattr(likelihoods, "_signs", lambda key, like: next(parts))
        return likelihoods.signed_root(COUNTED, KEY, logits, targets)

    found = jax.jit(jax.vmap(root))(patterns(4))
    np.testing.assert_allclose(found.T @ found / 16, roots.T @ roots, atol=1e-12)
    keys = []
    monkeypatch.setattr(
        likelihoods, "_signs", lambda key, like: (keys.append(jax.random.key_data(key)), jnp.ones_like(like))[1]
    )
    likelihoods.signed_root(COUNTED, KEY, logits, targets)
    assert len({tuple(np.asarray(key)) for key in keys}) == 2


FITS = {
    "diagonal": lambda kind: curvature.diagonal(MODEL, kind=kind, chunk=16),
    "kfac": lambda kind: curvature.kfac(MODEL, kind=kind, chunk=16),
    "gram": lambda kind: curvature.gram(MODEL, kind=kind),
    "dense": lambda kind: curvature.dense(MODEL, kind=kind),
    "lanczos": lambda kind: curvature.lanczos(partial(product, kind), rank=64),
    "nystrom": lambda kind: curvature.nystrom(partial(product, kind), rank=64),
}


def product(kind, variables, examples, weights):
    if kind == "fisher":
        return curvature.fisher_vp(MODEL, variables, examples, weights)
    return curvature.sampled_fisher_vp(MODEL, variables, examples, KEY, weights, kind=kind)


@pytest.mark.parametrize("name", list(FITS))
def test_every_representation_is_on_average_that_of_the_fisher_matrix(name, signs):
    """Exact for those that are linear in the factors of a row: over all patterns of three classes."""
    vector = tree_of(np.cos(np.arange(64)))

    def image(pattern):
        signs(pattern)
        return FITS[name]("signed")(VARIABLES, ROWS, jnp.ones(60), KEY).matvec(vector)

    found = jax.jit(lambda p: jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.lax.map(image, p)))(patterns(3))
    expected = jax.jit(lambda: FITS[name]("fisher")(VARIABLES, ROWS, jnp.ones(60), KEY).matvec(vector))()
    np.testing.assert_allclose(flat(found), flat(expected), atol=1e-6 if name == "nystrom" else 1e-10)


def test_corrected_eigenvalues_have_the_right_trace_on_average(signs):
    def trace(pattern):
        signs(pattern)
        return curvature.ekfac(MODEL, kind="signed")(VARIABLES, ROWS, jnp.ones(60), KEY).trace()

    found = jax.jit(lambda p: jax.lax.map(trace, p))(patterns(3))
    assert float(np.mean(found)) == pytest.approx(np.trace(whole("fisher")), rel=1e-10)


def test_signs_of_rows_are_independent():
    """Over keys, with the tolerance of the estimator's own standard error."""
    vector = tree_of(np.ones(64))
    draw = lambda key: curvature.sampled_fisher_vp(MODEL, VARIABLES, ROWS, key, kind="signed")(vector)
    many = np.asarray(
        jax.jit(jax.vmap(lambda key: jnp.concatenate([x.ravel() for x in jax.tree.leaves(draw(key))])))(
            jax.random.split(KEY, 2000)
        )
    )
    error = many.std(axis=0) / np.sqrt(len(many))
    assert np.max(np.abs(many.mean(axis=0) - whole("fisher") @ np.ones(64)) / (error + 1e-12)) < 4.5
    made = curvature.gram(MODEL, kind="signed")
    factors = [jax.jit(made)(VARIABLES, ROWS, jnp.ones(60), key).trace() for key in jax.random.split(KEY, 2)]
    assert factors[0] != factors[1]


@pytest.mark.parametrize("name", ["diagonal", "kfac", "gram"])
def test_signs_do_not_depend_on_chunks_or_on_rows_that_do_not_count(name):
    weights = without(3, 50)
    make = {"diagonal": curvature.diagonal, "kfac": curvature.kfac, "gram": curvature.gram}[name]
    found = [
        matrix(matvec, jax.jit(make(MODEL, kind="signed", chunk=chunk))(VARIABLES, rows, weights, KEY))
        for chunk, rows in ((None, ROWS), (7, broken_where(weights == 0)))
    ]
    np.testing.assert_allclose(*found, atol=1e-10)


def wide_classifier(classes):
    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(jnp.tanh(inputs @ variables.params["a"]) @ variables.params["b"])

    params = {"a": np.ones((4, 2)), "b": np.ones((2, classes))}
    return ju.Model(forward, ju.losses.cross_entropy), ju.Variables(params), ju.Examples(np.ones((8, 4)), np.zeros(8, int))


def test_a_thousand_classes_take_no_matrix_of_classes():
    model, variables, rows = wide_classifier(1000)
    for make, options in ((curvature.diagonal, {}), (curvature.gram, {})):
        for kind, few in (("signed", True), ("fisher", False)):
            fit = make(model, kind=kind, chunk=4, **options)
            traced = jax.make_jaxpr(fit)(variables, rows, jnp.ones(8), KEY)
            largest = max(int(np.prod(shape)) for shape in shapes_in(traced.jaxpr))
            assert (largest < 1000 * 1000) == few
    outputs = model.forward(variables, rows.inputs)
    traced = jax.make_jaxpr(lambda outputs: slopes("signed", model, outputs, rows, jnp.arange(8)))(outputs)
    assert max(int(np.prod(shape)) for shape in shapes_in(traced.jaxpr)) <= 12 * 1000  # rows of the probes of the loss


def test_signs_need_a_key_and_roots():
    with pytest.raises(ValueError, match="kind='signed' is drawn at random and needs a key"):
        curvature.diagonal(MODEL, kind="signed")(VARIABLES, ROWS, jnp.ones(60), None)
    model = MODEL._replace(likelihood=likelihoods.categorical()._replace(roots=None, signed=None))
    with pytest.raises(ValueError, match="can only be drawn from"):
        curvature.diagonal(model, kind="signed")(VARIABLES, ROWS, jnp.ones(60), KEY)
