"""Layers of several positions: sharing by expansion and by reduction."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature
from tests.curvature.test_kronecker import MAKES, equinox_cnn, fit, normal, plain, product_of, rows_of, trace_of
from tests.curvature.test_layer_tracing import exact_trace
from tests.curvature.test_matvecs import (  # noqa: F401
    KEY,
    MODEL,
    ROWS,
    VARIABLES,
    in_float64,
    matrix,
    matvec,
    rows_where,
    wide,
)

POSITIONS = 12


def pooled(mean=1.0):
    """A linear network on every position, a mean over positions, squared error: model, variables, rows, blocks."""

    def forward(variables, inputs, *, train=False, key=None):
        p = variables.params
        return ju.Outputs(jnp.mean((inputs @ p["a"] + p["ab"]) @ p["b"], axis=1))

    model = ju.Model(forward, lambda outputs, rows: 0.5 * jnp.sum((outputs.logits - rows.targets) ** 2, axis=1))
    params = {"a": normal(4, 3), "ab": normal(3), "b": normal(3, 2)}
    inputs = np.random.default_rng(0).normal(size=(20, POSITIONS, 4)) + mean * np.random.default_rng(1).normal(size=(20, 1, 4))
    return model, ju.Variables(params), ju.Examples(inputs, np.zeros((20, 2))), (slice(0, 15), slice(15, 21))


@pytest.mark.parametrize("make", MAKES)
def test_reduction_is_exact_for_linear_networks_with_a_mean_at_the_end(make):
    model, variables, rows, blocks = pooled()
    exact = matrix(partial(curvature.ggn_vp, model), variables, rows, params=variables.params)
    made = fit(make, model, variables, rows, kind="ggn", sharing="reduce")
    found = matrix(matvec, made, params=variables.params)
    for block in blocks:
        np.testing.assert_allclose(found[block, block], exact[block, block], atol=1e-10)
    assert made.describe(variables.params) == {
        "a": "kronecker (a, reduce)", "ab": "kronecker (a, reduce)", "b": "kronecker (b, reduce)",
    }  # fmt: skip


def test_expansion_gets_the_trace_of_a_mean_too_small_and_corrected_values_do_not():
    model, variables, rows, _ = pooled()
    exact = np.trace(matrix(partial(curvature.ggn_vp, model), variables, rows, params=variables.params))
    traces = {
        (make, sharing): float(trace_of(fit(make, model, variables, rows, kind="ggn", sharing=sharing)))
        for make in MAKES
        for sharing in ("expand", "reduce")
    }
    assert 3 < exact / traces[curvature.kfac, "expand"] < 30
    assert traces[curvature.kfac, "reduce"] == pytest.approx(exact, rel=1e-9)
    assert traces[curvature.ekfac, "expand"] == pytest.approx(exact, rel=1e-9)
    assert traces[curvature.ekfac, "reduce"] == pytest.approx(exact, rel=1e-9)


def test_expansion_is_exact_where_every_position_has_a_loss_of_its_own():
    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["w"])

    model = ju.Model(forward, lambda outputs, rows: 0.5 * jnp.sum((outputs.logits - rows.targets) ** 2, axis=(1, 2)))
    variables, rows = ju.Variables({"w": normal(4, 2)}), ju.Examples(normal(7, 5, 4), np.zeros((7, 5, 2)))
    exact = matrix(partial(curvature.ggn_vp, model), variables, rows, params=variables.params)
    for make in MAKES:
        found = matrix(matvec, fit(make, model, variables, rows, kind="ggn"), params=variables.params)
        np.testing.assert_allclose(found, exact, atol=1e-10)
    reduced = fit(curvature.kfac, model, variables, rows, kind="ggn", sharing="reduce")
    assert np.abs(matrix(matvec, reduced, params=variables.params) - exact).max() > 0.1


@pytest.mark.parametrize("make", MAKES)
def test_layers_of_one_position_are_the_same_either_way(make):
    found = [matrix(matvec, fit(make, MODEL, VARIABLES, ROWS, kind="fisher", sharing=x)) for x in ("expand", "reduce")]
    np.testing.assert_allclose(*found, atol=1e-12)
    kinds = fit(make, MODEL, VARIABLES, ROWS, sharing="reduce").describe(VARIABLES.params)
    assert set(kinds.values()) == {"kronecker (body)", "kronecker (head)"}


def test_reduction_comes_nearer_in_a_convolution_with_pooling():
    def forward(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return (
            jnp.mean(jnp.tanh(jax.lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", dimension_numbers=numbers)), (1, 2))
            @ p["o"]
        )

    params, rows = {"k": normal(3, 3, 1, 4) / 3, "o": normal(4, 3)}, rows_of(6, 6, 1, count=40)
    rows = rows._replace(inputs=rows.inputs + np.random.default_rng(1).normal(size=(40, 1, 1, 1)))
    model, variables = plain(forward, params)
    exact = matrix(partial(curvature.ggn_vp, model), variables, rows, params=params)[:36, :36]
    errors, traces = {}, {}
    for sharing in ("expand", "reduce"):
        made = fit(curvature.kfac, model, variables, rows, kind="ggn", sharing=sharing)
        block = matrix(matvec, made, params=params)[:36, :36]
        errors[sharing], traces[sharing] = np.linalg.norm(block - exact), np.trace(block) / np.trace(exact)
        corrected = fit(curvature.ekfac, model, variables, rows, kind="ggn", sharing=sharing)
        assert float(trace_of(corrected)) == pytest.approx(exact_trace(model, variables, rows), rel=1e-9)
    assert errors["reduce"] < errors["expand"]
    assert 1 / 40 < traces["expand"] < 1 / 3
    assert 0.5 < traces["reduce"] < 2


def test_a_mapping_chooses_by_the_path_of_the_kernel():
    model, variables, rows = equinox_cnn()
    variables = wide(variables)
    (name,) = {kind.split("(")[1].split(",")[0] for kind in describe(model, variables, rows).values() if "expand" in kind}
    chosen = describe(model, variables, rows, sharing={name: "reduce"})
    assert chosen == {key: value.replace("expand", "reduce") for key, value in describe(model, variables, rows).items()}
    vector = jax.tree.map(lambda x: np.cos(np.arange(x.size)).reshape(x.shape), variables.params)
    one, other = (
        product_of(fit(curvature.kfac, model, variables, rows, kind="ggn", sharing=x), vector)
        for x in ({name: "reduce"}, "reduce")
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)
    with pytest.raises(ValueError, match=rf"sharing names nowhere, and the layers are {name}, "):
        describe(model, variables, rows, sharing={"nowhere": "reduce"})
    for wrong in ("sum", {name: "sum"}):
        with pytest.raises(ValueError, match="'expand' or 'reduce', or a mapping of kernels' paths to these, got 'sum'"):
            curvature.ekfac(model, sharing=wrong)


def describe(model, variables, rows, **options):
    made = jax.eval_shape(curvature.kfac(model, **options), variables, rows, np.ones(len(rows.targets)), KEY)
    return made.describe(variables.params)


@pytest.mark.parametrize("make", MAKES)
def test_chunks_and_rows_that_do_not_count_change_nothing_in_a_reduction(make):
    model, variables, rows, _ = pooled()
    weights = np.where(np.arange(20) % 4, 1.0, 0.0)
    broken = rows._replace(inputs=np.where(weights[:, None, None] > 0, rows.inputs, np.nan))
    kept = jax.tree.map(lambda x: x[weights > 0], rows)
    vector = jax.tree.map(np.cos, variables.params)
    options = {"kind": "ggn", "sharing": "reduce"}
    expected = product_of(jax.jit(make(model, **options))(variables, kept, np.ones(15), KEY), vector)
    for chunk in (None, 6):
        made = jax.jit(make(model, chunk=chunk, **options))(variables, broken, weights, KEY)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), product_of(made, vector), expected)
