"""Fisher matrices of losses that are no softmax, against the expectation taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature, likelihoods

ROWS, FEATURES = 24, 3
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(ROWS, FEATURES)).astype(np.float32)


def linear(outputs, loss, *, squeeze=False, likelihood=None):
    """A linear model with so many logits, its weights and the logits of all rows."""
    weights = np.random.default_rng(1).normal(size=(FEATURES, outputs)).astype(np.float32)

    def forward(variables, inputs, *, train=False, key=None):
        logits = inputs @ variables.params["w"]
        return ju.Outputs(logits[:, 0] if squeeze else logits)

    return ju.Model(forward, loss, likelihood=likelihood), ju.Variables({"w": jnp.asarray(weights)}), INPUTS @ weights


def trace(moments):
    """Trace of the Fisher matrix of a linear model: second moments [n, c] of the slopes of every logit."""
    return np.mean(np.sum(INPUTS**2, axis=1) * moments.sum(axis=1))


def spread(z):
    return 1 / (2 + 2 * np.cosh(z))


def multi_label(outputs, examples):
    return jnp.sum(optax.losses.sigmoid_binary_cross_entropy(outputs.logits, examples.targets.astype(jnp.float32)), axis=-1)


def one_logit(outputs, examples):
    return optax.losses.sigmoid_binary_cross_entropy(outputs.logits.reshape(-1), examples.targets.astype(jnp.float32))


def counts(outputs, examples):
    return jnp.exp(outputs.logits) - examples.targets * outputs.logits


def squares(outputs, examples):
    return jnp.sum((outputs.logits - examples.targets) ** 2, axis=-1)


def two_heads(outputs, examples):
    first = optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits[:, :3], examples.targets[:, 0])
    return first + optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits[:, 3:], examples.targets[:, 1])


def smoothed(outputs, examples):
    labels = optax.losses.safe_softmax_cross_entropy(outputs.logits, jnp.full_like(outputs.logits, 0.25))
    return 0.9 * ju.losses.cross_entropy(outputs, examples) + 0.1 * labels


def softmax(z):
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


HEADS = likelihoods.product([(likelihoods.categorical(), 3), (likelihoods.categorical(), 2)])
# name: model, targets, second moments of the slopes by hand
CASES = {
    "categorical": (linear(4, ju.losses.cross_entropy), np.arange(ROWS) % 4, lambda z: softmax(z) * (1 - softmax(z))),
    "multi-label": (linear(5, multi_label), RNG.integers(0, 2, (ROWS, 5)), spread),
    "one logit": (linear(1, one_logit), np.arange(ROWS) % 2, spread),
    "one logit, squeezed": (linear(1, one_logit, squeeze=True), np.arange(ROWS) % 2 == 1, spread),
    "counts": (linear(1, counts, squeeze=True), np.arange(ROWS) % 4, np.exp),
    "real counts": (linear(1, counts, squeeze=True), (np.arange(ROWS) % 4).astype(np.float32), np.exp),
    "squares": (linear(2, squares), RNG.normal(size=(ROWS, 2)).astype(np.float32), lambda z: np.full_like(z, 2.0)),
    "two heads": (
        linear(5, two_heads, likelihood=HEADS),
        np.stack([np.arange(ROWS) % 3, np.arange(ROWS) % 2], axis=1),
        lambda z: np.concatenate([softmax(x) * (1 - softmax(x)) for x in (z[:, :3], z[:, 3:])], axis=1),
    ),
    "smoothed labels": (
        linear(4, smoothed, likelihood=likelihoods.categorical()),
        np.arange(ROWS) % 4,
        lambda z: softmax(z) * (1 - softmax(z)),
    ),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    (model, variables, logits), targets, moments = CASES[request.param]
    return model, variables, ju.Examples(jnp.asarray(INPUTS), jnp.asarray(targets)), trace(moments(logits))


def test_the_fisher_matrix_is_that_of_what_the_model_predicts(case):
    model, variables, rows, expected = case
    made = jax.jit(curvature.diagonal(model, kind="fisher", chunk=None))(variables, rows, jnp.ones(ROWS), KEY)
    np.testing.assert_allclose(made.trace(), expected, rtol=1e-5)


def test_drawn_targets_give_it_on_average(case):
    model, variables, rows, expected = case
    fit = jax.jit(jax.vmap(curvature.diagonal(model, kind="sampled", chunk=None), in_axes=(None, None, None, 0)))
    found = np.asarray(jax.vmap(lambda made: made.trace())(fit(variables, rows, jnp.ones(ROWS), jax.random.split(KEY, 400))))
    assert abs(found.mean() - expected) < 5 * found.std() / 20


def test_the_default_of_ekfac_reads_the_loss():
    (model, variables, _), targets, _ = CASES["one logit"]
    rows = ju.Examples(jnp.asarray(INPUTS), jnp.asarray(targets))
    fit = jax.jit(jax.vmap(curvature.ekfac(model), in_axes=(None, None, None, 0)))
    found = fit(variables, rows, jnp.ones(ROWS), jax.random.split(KEY, 200))
    expected = trace(spread(INPUTS @ np.asarray(variables.params["w"])))
    np.testing.assert_allclose(np.mean(jax.vmap(lambda made: made.trace())(found)), expected, rtol=0.1)


@pytest.mark.parametrize(
    ("name", "expected", "scale"),
    [("multi-label", "bernoulli", 1), ("one logit", "bernoulli", 1), ("counts", "poisson", 1), ("squares", "gaussian", 2)],
)
def test_families_are_found_by_their_gradients(name, expected, scale):
    (model, variables, _), targets, _ = CASES[name]
    rows = ju.Examples(jnp.asarray(INPUTS), jnp.asarray(targets))
    found = likelihoods.of(model, model.forward(variables, rows.inputs), rows)
    assert found.name == expected
    np.testing.assert_allclose(found.scale, scale, rtol=1e-3)


def hinge(outputs, examples):
    return jnp.maximum(0, 1 - outputs.logits[:, 0] * (2 * examples.targets - 1))


@pytest.mark.parametrize(
    ("outputs", "loss", "targets", "reason"),
    [
        (4, smoothed, np.arange(ROWS) % 4, "categorical .* of the gradient differs"),
        (5, two_heads, CASES["two heads"][1], "none fits these shapes"),
        (1, hinge, np.arange(ROWS) % 2, "bernoulli .* poisson"),
        (2, lambda outputs, examples: jnp.sum(jnp.abs(outputs.logits - examples.targets), -1), CASES["squares"][1], "gaussian"),
    ],
)
def test_losses_that_are_no_likelihood_are_refused(outputs, loss, targets, reason):
    model, variables, _ = linear(outputs, loss)
    rows = ju.Examples(jnp.asarray(INPUTS), jnp.asarray(targets))
    with pytest.raises(ValueError, match=rf"(?s){reason}.*take kind='ggn'"):
        jax.eval_shape(curvature.kfac(model), variables, rows, jnp.ones(ROWS), KEY)
    jax.eval_shape(curvature.kfac(model, kind="ggn"), variables, rows, jnp.ones(ROWS), KEY)


def test_padding_of_sequences_is_left_out_and_the_rest_is_independent():
    likelihood = likelihoods.categorical(ignore=-100)
    logits, targets = jnp.asarray(RNG.normal(size=(1, 3, 4)), jnp.float32), jnp.array([[2, -100, 0]])
    u = likelihood.roots(logits, targets).reshape(-1, 12)
    p = softmax(np.asarray(logits)[0])
    expected = np.zeros((12, 12))
    for t in (0, 2):
        expected[4 * t : 4 * t + 4, 4 * t : 4 * t + 4] = np.diag(p[t]) - np.outer(p[t], p[t])
    np.testing.assert_allclose(u.T @ u, expected, atol=1e-6)
    drawn = jax.vmap(lambda key: likelihood.draw(key, logits[0], targets[0]))(jax.random.split(KEY, 20))
    assert np.all(np.asarray(drawn)[:, 1] == -100)
    assert np.ptp(np.asarray(drawn)[:, 0]) > 0
    assert not np.any(likelihood.slope(logits, targets)[:, 1])


def test_a_likelihood_of_one_s_own_may_only_be_drawn_from():
    own = likelihoods.gaussian()._replace(name="mine", roots=None)
    model, variables, _ = linear(2, squares, likelihood=own)
    rows = ju.Examples(jnp.asarray(INPUTS), jnp.asarray(CASES["squares"][1]))
    jax.eval_shape(curvature.diagonal(model, kind="sampled"), variables, rows, jnp.ones(ROWS), KEY)
    with pytest.raises(ValueError, match="'mine' can only be drawn from"):
        jax.eval_shape(curvature.diagonal(model, kind="fisher"), variables, rows, jnp.ones(ROWS), KEY)


@pytest.mark.parametrize("kind", ["ggn", "empirical", "fisher"])
def test_losses_that_read_features_are_refused(kind):
    def forward(variables, inputs, *, train=False, key=None):
        logits = inputs @ variables.params["w"]
        return ju.Outputs(logits, {"norm": jnp.sum(logits**2, axis=1)})

    model = ju.Model(forward, lambda outputs, examples: ju.losses.cross_entropy(outputs, examples) + outputs.features["norm"])
    rows = ju.Examples(jnp.asarray(INPUTS), jnp.asarray(np.arange(ROWS) % 4))
    variables = ju.Variables({"w": jnp.ones((FEATURES, 4))})
    product = {"ggn": curvature.ggn_vp, "empirical": curvature.empirical_fisher_vp, "fisher": curvature.fisher_vp}[kind]
    fit = curvature.dense(model, kind=kind)
    with pytest.raises(ValueError, match=r"reads outputs\.features"):
        jax.eval_shape(lambda v: product(model, variables, rows)(v), variables.params)
    with pytest.raises(ValueError, match=r"reads outputs\.features"):
        jax.eval_shape(lambda: jax.tree.leaves(fit(variables, rows, jnp.ones(ROWS), KEY)))
    plain = model._replace(loss=jax.jit(ju.losses.cross_entropy))  # features that the loss does not read are no hindrance
    jax.eval_shape(lambda: jax.tree.leaves(curvature.dense(plain, kind=kind)(variables, rows, jnp.ones(ROWS), KEY)))


def test_one_meaning_of_ggn_for_losses_that_are_not_convex_in_the_logits():
    """`1 - p_y` bends downwards in places: products keep that, roots cannot, and say so."""

    def loss(outputs, examples):
        return 1 - jnp.take_along_axis(jax.nn.softmax(outputs.logits), examples.targets[:, None], axis=1)[:, 0]

    model, variables, _ = linear(3, loss)
    rows = ju.Examples(jnp.asarray(INPUTS), jnp.asarray(np.arange(ROWS) % 3))
    fits = {kind: jax.jit(curvature.dense(model, kind=kind)) for kind in ("ggn", "ggn_psd")}
    made = {kind: fit(variables, rows, jnp.ones(ROWS), KEY) for kind, fit in fits.items()}
    assert np.isnan(made["ggn"].trace())
    assert np.isfinite(made["ggn_psd"].trace())
