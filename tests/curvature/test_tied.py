"""Tables that are looked up, and parameters that are used in two forms."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature
from jaxunlearn.curvature.layer_moments import of_layers
from jaxunlearn.curvature.layer_tracing import find
from tests.curvature.test_kronecker import MAKES, fit, normal, plain, product_of, rows_of, shapes_in
from tests.curvature.test_layer_tracing import exact_trace, slots_of
from tests.curvature.test_matvecs import KEY, in_float64, matrix, matvec  # noqa: F401
from tests.curvature.test_padding import PARAMS, decoder, language_model, sentences

TOKENS, LARGE = 7, 200  # of tables, and of one that is too large for an exact block


def squared(function, params):
    model = ju.Model(
        lambda v, x, *, train=False, key=None: ju.Outputs(function(v.params, x)),
        lambda outputs, rows: 0.5 * jnp.sum((outputs.logits - rows.targets) ** 2, axis=tuple(range(1, outputs.logits.ndim))),
    )
    return model, ju.Variables(params)


def rows_for(function, params, inputs):
    return ju.Examples(inputs, np.zeros(jax.eval_shape(function, params, inputs).shape))


def tokens(count, length, size=LARGE):
    return np.random.default_rng(0).integers(0, size, (count, length)) ** 2 // size  # some far more often than others


@pytest.mark.parametrize("make", MAKES)
def test_a_linear_table_is_exact_and_no_matrix_of_its_rows_is_made(make):
    mix = normal(3, 3)
    function, params = (lambda p, x: p["table"][x] @ mix), {"table": normal(LARGE, 3)}
    model, variables = squared(function, params)
    rows = rows_for(function, params, tokens(8, 2))
    arguments = (variables, rows, np.ones(8), KEY)
    made = jax.jit(make(model, kind="ggn"))(*arguments)
    assert made.describe(params) == {"table": "kronecker (table, lookup)"}
    counts = np.bincount(rows.inputs.ravel(), minlength=LARGE) / 8
    found = matrix(matvec, made, params=params)
    np.testing.assert_allclose(found, np.kron(np.diag(counts), mix @ mix.T), atol=1e-10)
    traced = jax.make_jaxpr(make(model, kind="ggn"))(*arguments)
    assert not any(shape.count(LARGE) > 1 for shape in shapes_in(traced.jaxpr))


def two_heads(p, x):
    """Rows of the table in other coordinates, and the table as a head."""
    return jnp.concatenate([p["table"][x[0]] @ MIX, x[1] @ p["table"].T], axis=1)


MIX = normal(3, 3)


def test_numbers_out_of_range_are_left_out_where_the_lookup_leaves_them_out():
    ids = np.array([[0, 3], [199, 199], [5, 200], [250, 7], [-250, -1]])
    for mode, make in (("fill", curvature.kfac), ("fill", curvature.ekfac), ("clip", curvature.ekfac)):
        function = lambda p, x, mode=mode: p["table"].at[x].get(mode=mode, fill_value=0 if mode == "fill" else None) @ MIX
        params = {"table": normal(LARGE, 3)}
        model, variables = squared(function, params)
        rows = rows_for(function, params, ids)
        counts = np.zeros(LARGE)
        kept = ids if mode == "fill" else np.clip(np.where(ids < 0, ids + LARGE, ids), 0, LARGE - 1)
        np.add.at(counts, np.where(kept < 0, kept + LARGE, kept)[(kept >= -LARGE) & (kept < LARGE)], 1 / len(ids))
        found = matrix(matvec, fit(make, model, variables, rows, kind="ggn"), params=params)
        np.testing.assert_allclose(found, np.kron(np.diag(counts), MIX @ MIX.T), atol=1e-10)


@pytest.mark.parametrize("make", MAKES)
def test_a_linear_tied_table_is_exact_where_its_matrix_is_a_kronecker_product(make):
    """Every token as often as the others, and inputs of the head like gradients of the lookup: `I (x) c M M'`."""
    white = np.linalg.qr(np.random.default_rng(0).normal(size=(14, 3)))[0] * np.sqrt(14)
    inputs = (np.tile(np.arange(TOKENS), 2), white @ MIX.T)
    params = {"table": normal(TOKENS, 3)}
    model, variables = squared(two_heads, params)
    rows = rows_for(two_heads, params, inputs)
    made = fit(make, model, variables, rows, kind="ggn")
    assert made.describe(params) == {"table": "kronecker (table, lookup + transpose, expand)"}
    expected = np.kron(np.eye(TOKENS), (1 / TOKENS + 1) * MIX @ MIX.T)
    np.testing.assert_allclose(matrix(matvec, made, params=params), expected, atol=1e-10)
    exact = matrix(partial(curvature.ggn_vp, model), variables, rows, params=params)
    np.testing.assert_allclose(exact, expected, atol=1e-10)


def test_corrected_values_of_a_tied_table_are_exact_where_its_uses_share_eigenvectors():
    """Tokens that differ in number: no Kronecker product any more."""
    inputs = (np.array([0, 0, 0, 1, 1, 2, 5]), np.linalg.qr(normal(7, 3))[0] * np.array([1.0, 2, 3]) @ np.linalg.qr(MIX)[0])

    def function(p, x):
        return jnp.concatenate([p["table"][x[0]], x[1] @ p["table"].T], axis=1)

    params = {"table": normal(TOKENS, 3)}
    model, variables = squared(function, params)
    rows = rows_for(function, params, inputs)
    exact = matrix(partial(curvature.ggn_vp, model), variables, rows, params=params)
    found = {make: matrix(matvec, fit(make, model, variables, rows, kind="ggn"), params=params) for make in MAKES}
    np.testing.assert_allclose(found[curvature.ekfac], exact, atol=1e-10)
    assert np.trace(found[curvature.kfac]) == pytest.approx(np.trace(exact))
    assert np.linalg.norm(found[curvature.kfac] - exact) > 0.05 * np.linalg.norm(exact)


# Uses, and the gradients that they make up


def autoencoder(p, x):
    return jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T) @ p["o"]


def stacked(p, x):
    turn = lambda h, w: (h + jnp.tanh(jnp.tanh(h @ w) @ w.T), None)
    return jax.lax.scan(turn, x, p["w"])[0] @ p["o"]


def tied(p, x):
    return jnp.tanh(p["table"][x] + p["positions"]) @ p["table"].T


def tied_columns(p, x):
    return jnp.tanh(jnp.take(p["table"], x, axis=1).transpose(1, 2, 0) + p["positions"]) @ p["table"]


def both_ways(p, x):
    return jnp.tanh(p["table"][x] + jax.nn.one_hot(x[:, ::-1], TOKENS) @ p["table"]) @ p["table"].T


TABLE = {"table": normal(TOKENS, 3), "positions": normal(4, 3)}
USES = {
    "autoencoder": (autoencoder, {"w": normal(5, 4), "o": normal(5, 3)}, normal(1, 5), {"w": ("product", "transpose")}),
    "stacked": (stacked, {"w": normal(3, 5, 4), "o": normal(5, 3)}, normal(1, 5), {"w": ("product", "transpose")}),
    "tied": (tied, TABLE, tokens(1, 4, TOKENS), {"table": ("lookup", "transpose")}),
    "columns": (tied_columns, {**TABLE, "table": normal(3, TOKENS)}, tokens(1, 4, TOKENS), {"table": ("lookup", "transpose")}),
    "both ways": (both_ways, TABLE, tokens(1, 4, TOKENS), {"table": ("lookup", "product", "transpose")}),
    "rows of matrices": (
        lambda p, x: jnp.einsum("btij,j->bti", p["t"][x], np.arange(2.0)), {"t": normal(TOKENS, 3, 2)}, tokens(1, 4, TOKENS),
        {"t": ("lookup",)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(USES))
def test_uses_make_up_the_gradient(name):
    forward, params, row, expected = USES[name]
    taps = find(forward, params, row, tables=0)
    found = {layer.name: layer.uses for layer in taps.layers}
    assert {leaf: found[leaf] for leaf in expected} == expected
    weight = np.random.default_rng(0).normal(size=jax.eval_shape(forward, params, row).shape)

    def total(shifts):
        y, activations = taps.run(params, row, shifts)
        return jnp.sum(jnp.sin(y) * weight), activations

    slopes, activations = jax.jit(jax.grad(total, has_aux=True))(taps.zeros())
    pulled = jax.tree.leaves(jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(forward(p, row)) * weight)))(params))
    for layer, of_a, of_g in zip(
        taps.layers, *(of_layers(taps.layers, x) for x in (activations, taps.rows(slopes))), strict=True
    ):
        whole = 0.0
        for use, a, g in zip(layer.uses, of_a, of_g, strict=True):
            if use == "lookup":
                a = jax.nn.one_hot(a, layer.form.inputs)
            whole = whole + (g.mT @ a if use == "transpose" else a.mT @ g)
        np.testing.assert_allclose(whole, layer.matrix(pulled), atol=1e-11)


@pytest.mark.parametrize("name", ["autoencoder", "stacked"])
def test_nothing_of_the_trace_is_lost_and_blocks_come_nearer_than_diagonals(name):
    function, params, _, _ = USES[name]
    model, variables = plain(function, params)
    rows = rows_of(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = fit(curvature.ekfac, model, variables, rows, kind="fisher")
    assert float(made.trace()) == pytest.approx(exact_trace(model, variables, rows), rel=1e-9)
    block = slots_of(params, "w")
    exact = matrix(partial(curvature.fisher_vp, model), variables, rows, params=params)[block, block]
    found = matrix(matvec, made, params=params)[block, block]
    assert np.linalg.norm(found - exact) < 0.9 * np.linalg.norm(np.diag(np.diag(exact)) - exact)


def tied_decoder(p, x):
    return decoder({**p, "head": p["table"].T}, x)


TIED = {name: value for name, value in PARAMS.items() if name != "head"}


def test_a_tied_decoder_has_all_of_its_trace_whatever_its_layout():
    """The table is [tokens, width] or [width, tokens]; padding, chunks and rows that do not count change nothing."""

    def columns(p, x):
        return tied_decoder({**p, "table": p["table"].T}, x)

    rows, vector = sentences(), jax.tree.map(np.cos, TIED)
    model = language_model(tied_decoder)
    one = fit(curvature.ekfac, model, ju.Variables(TIED), rows, kind="fisher")
    kinds = one.describe(TIED)
    assert (kinds["table"], kinds["bias"]) == ("kronecker (table, lookup + transpose, expand)", "exact")
    assert float(one.trace()) == pytest.approx(exact_trace(model, ju.Variables(TIED), rows), rel=1e-9)
    expected = product_of(one, vector)
    flip = lambda p: {**p, "table": p["table"].T}
    weights = np.array([1.0, 1, 0, 1, 1, 1])
    broken = jax.tree.map(lambda x: np.insert(x, 2, 10**6, axis=0), rows)
    other = jax.jit(curvature.ekfac(language_model(columns), kind="fisher", chunk=4))(
        ju.Variables(flip(TIED)), broken, weights, KEY
    )
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), flip(product_of(other, flip(vector))), expected)


def test_a_large_table_counts_its_tokens_and_reduction_is_for_products():
    function = lambda p, x: jnp.mean(jnp.tanh(p["table"][x]), axis=1) @ p["o"]
    params = {"table": normal(LARGE, 3), "o": normal(3, 3)}
    model, variables = plain(function, params)
    rows = ju.Examples(tokens(6, 5), np.arange(6) % 3)
    made = fit(curvature.ekfac, model, variables, rows, kind="fisher", sharing="reduce", chunk=4)
    assert made.describe(params)["table"] == "kronecker (table, lookup)"
    assert float(made.trace()) == pytest.approx(exact_trace(model, variables, rows), rel=1e-9)
    unseen = np.setdiff1d(np.arange(LARGE), rows.inputs)
    assert not np.any(np.asarray(product_of(made, params)["table"])[unseen])
    solved = made.solve(params, 0.5)["table"]
    np.testing.assert_allclose(solved[unseen], 2 * params["table"][unseen], rtol=1e-9)
    with pytest.raises(ValueError, match="sharing names table, and the layers with products are o"):
        fit(curvature.kfac, model, variables, rows, kind="fisher", sharing={"table": "reduce"})
