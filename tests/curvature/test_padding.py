"""Which positions of a row count in Kronecker factors."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature
from jaxunlearn.curvature.layer_tracing import find
from tests.curvature.test_kronecker import fit, normal, plain, product_of, rows_of
from tests.curvature.test_layer_tracing import exact_trace
from tests.curvature.test_matvecs import in_float64  # noqa: F401

VOCABULARY, WIDTH, LENGTH = 5, 4, 6
LENGTHS = np.array([6, 3, 3, 6, 6])
SHARINGS = pytest.mark.parametrize("sharing", ["expand", "reduce"])


def decoder(p, tokens):
    """Causal attention that does not look at padding, and a head with a bias."""
    x = p["table"][jnp.maximum(tokens, 0)]
    scores = jnp.einsum("btk,bsk->bts", x @ p["q"], x @ p["k"])
    seen = (np.tril(np.ones(2 * tokens.shape[1:])) > 0) & (tokens >= 0)[:, None, :] | np.eye(tokens.shape[1], dtype=bool)
    return (x + jax.nn.softmax(jnp.where(seen, scores, -1e30)) @ (x @ p["v"])) @ p["head"] + p["bias"]


SHAPES = {
    "table": (VOCABULARY, WIDTH), "q": (WIDTH, 3), "k": (WIDTH, 3), "v": (WIDTH, WIDTH), "head": (WIDTH, VOCABULARY),
    "bias": (VOCABULARY,),
}  # fmt: skip
PARAMS = {name: normal(*shape) for name, shape in SHAPES.items()}
VARIABLES = ju.Variables(PARAMS)


def language_model(function=decoder):
    return ju.Model(
        lambda v, x, *, train=False, key=None: ju.Outputs(function(v.params, x)), ju.losses.sequence_log_loss(reduction="sum"),
        likelihood=ju.likelihoods.categorical(ignore=-1),
    )  # fmt: skip


MODEL = language_model()


def sentences(lengths=LENGTHS):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (len(lengths), LENGTH + 1))
    real = np.arange(LENGTH) < lengths[:, None]
    return ju.Examples(np.where(real, tokens[:, :-1], -1), np.where(real, tokens[:, 1:], -1))


@cache
def seen_by_layers():
    """Activations and gradients of every row by itself, without its padding: [(a [T, i], g [T, o])] by layers."""
    rows, found = sentences(), {}
    for inputs, targets, length in zip(*rows, LENGTHS, strict=True):
        row = ju.Examples(inputs[None, :length], targets[None, :length])
        taps = find(lambda p, x: decoder(p, x), PARAMS, row.inputs)

        def loss(shifts, row=row, taps=taps):
            logits, activations = taps.run(PARAMS, row.inputs, shifts)
            return MODEL.loss(ju.Outputs(logits), row)[0], activations

        gradients, activations = jax.jit(jax.grad(loss, has_aux=True))(taps.zeros())
        for layer, a, g in zip(taps.layers, activations, taps.rows(gradients), strict=True):
            a = a[0] if layer.bias is None else np.pad(a[0], ((0, 0), (0, 1)), constant_values=1)
            found.setdefault(layer.name, []).append((np.asarray(a), np.asarray(g[0])))
    return found


@SHARINGS
def test_padded_rows_have_the_factors_of_the_same_rows_without_padding(sharing):
    made = fit(curvature.kfac, MODEL, VARIABLES, sentences(), kind="empirical", sharing=sharing)
    assert [layer.name for layer in made.layers] == ["q", "k", "v", "head"]
    for layer, (left, right), values in zip(made.layers, made.bases, made.values, strict=True):
        rows = seen_by_layers()[layer.name]
        if layer.name == "q":  # a query that sees one key alone, or keys of one token, does not count: its gradient is 0
            used = [abs(g).max(axis=1) > 1e-14 for _, g in rows]
            assert not any(x[0] for x in used)
            rows = [(a[x], g[x]) for (a, g), x in zip(rows, used, strict=True)]
        if sharing == "reduce":
            rows = [(a.mean(axis=0, keepdims=True), g.sum(axis=0, keepdims=True)) for a, g in rows]
        inputs = sum(a.T @ a for a, _ in rows) / len(rows)
        outputs = sum(g.T @ g for _, g in rows) / sum(len(g) for _, g in rows)
        basis = np.kron(left[0], right[0])
        np.testing.assert_allclose(basis * np.ravel(values) @ basis.T, np.kron(inputs, outputs), atol=1e-11)


def test_more_padding_changes_nothing_and_the_trace_is_all_there():
    rows, vector = sentences(), jax.tree.map(np.cos, PARAMS)
    wide = ju.Examples(*(np.pad(x, ((0, 0), (0, 4)), constant_values=-1) for x in rows))
    one = product_of(fit(curvature.ekfac, MODEL, VARIABLES, rows, kind="fisher"), vector)
    made = fit(curvature.ekfac, MODEL, VARIABLES, wide, kind="fisher", chunk=2)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-11), product_of(made, vector), one)
    assert float(made.trace()) == pytest.approx(exact_trace(MODEL, VARIABLES, rows), rel=1e-9)


def test_the_root_of_the_matrix_does_not_matter():
    vector = jax.tree.map(np.cos, PARAMS)
    one, other = (
        product_of(fit(curvature.kfac, MODEL, VARIABLES, sentences(), kind=kind), vector) for kind in ("ggn", "fisher")
    )
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-9), one, other)


def test_a_row_without_labels_is_no_row_but_for_the_mean():
    """K-FAC is a mean over all rows, those without a loss included, so that the others keep their sums."""
    rows, vector = sentences(), jax.tree.map(np.cos, PARAMS)
    rows = rows._replace(targets=np.where(np.arange(5)[:, None] < 3, rows.targets, -1))
    some = jax.tree.map(lambda x: x[:3], rows)
    one, other = (product_of(fit(curvature.kfac, MODEL, VARIABLES, x, kind="empirical"), vector) for x in (rows, some))
    for name in ("q", "k", "v", "head"):
        np.testing.assert_allclose(one[name] * 5, other[name] * 3, atol=1e-10)


def test_tokens_that_an_expert_does_not_get_are_not_in_its_factors():
    def experts(p, x):
        hidden = jnp.tanh(jnp.einsum("ebtk,eko->beto", jnp.stack([x, x]), p["experts"]))
        return jnp.einsum("beto,bet->bo", hidden, gates(x)) @ p["o"]

    def gates(x):
        return (jnp.arange(2)[:, None] == jnp.argmax(x[:, None, :, :2], axis=3)).astype(x.dtype)

    params, rows = {"experts": normal(2, 3, 4), "o": normal(4, 3)}, rows_of(5, 3)
    made = fit(curvature.kfac, *plain(experts, params), rows, kind="empirical")
    (place,) = [place for place, layer in enumerate(made.layers) if layer.name == "experts"]
    for expert in range(2):
        own = rows.inputs[np.asarray(gates(jnp.asarray(rows.inputs)))[:, expert] > 0]
        values, vectors = np.linalg.eigh(own.T @ own)
        found = np.asarray(made.values[place][expert]).sum(axis=1)
        np.testing.assert_allclose(found / found.sum(), values / values.sum(), atol=1e-10)
        np.testing.assert_allclose(np.abs(vectors.T @ made.bases[place][0][expert]), np.eye(3), atol=1e-8)


def test_convolutions_count_dead_positions_as_published():
    def function(p, x):
        y = jax.lax.conv_general_dilated(x, p["k"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jax.nn.relu(y), axis=(1, 2)) @ p["o"]

    params, rows = {"k": normal(1, 1, 2, 1), "o": normal(1, 3)}, rows_of(3, 3, 2)
    made = fit(curvature.kfac, *plain(function, params), rows, kind="empirical")
    a = np.asarray(rows.inputs).reshape(-1, 2)
    assert np.any(a @ params["k"][0, 0] < 0)
    values = np.linalg.eigvalsh(a.T @ a)
    np.testing.assert_allclose(np.ravel(made.values[0]) / np.sum(made.values[0]), values / values.sum(), atol=1e-10)
