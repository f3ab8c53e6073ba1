"""K-FAC and EK-FAC: what is found in a model's program, and what is made of it."""

import json
from functools import cache, partial
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxunlearn as ju
from jaxunlearn import curvature
from jaxunlearn.adapters import from_equinox, from_haiku, from_linen, from_nnx
from jaxunlearn.curvature.layer_tracing import find
from jaxunlearn.curvature.logit_gradients import slopes
from jaxunlearn.curvature.single_rows import per_example_gradients, row_factors
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
    wide,
    without,
)
from tests.problems import linear_classifier

LOSS = ju.losses.cross_entropy


def rows_of(*shape, count=6):
    return ju.Examples(normal(count, *shape), np.arange(count) % 3)


def fit(make, model, variables, rows, **options):
    return jax.jit(make(model, **options))(variables, rows, np.ones(len(rows.targets)), KEY)  # X


trace_of = jax.jit(lambda made: made.trace())
diagonal_of = jax.jit(lambda made, params: made.diagonal(params))
product_of = jax.jit(lambda made, vector: made.matvec(vector))


# Which parameters are found


class LinenCnn(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), strides=(2, 2))(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=2)(x))
        x = nn.LayerNorm()(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(x), {}


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(5, 7, rngs=rngs), nnx.LayerNorm(7, rngs=rngs)
        self.conv, self.last = nnx.Conv(1, 2, (3,), rngs=rngs), nnx.Linear(14, 3, rngs=rngs)

    def __call__(self, x):
        hidden = self.conv(nnx.relu(self.norm(self.first(x)))[..., None])
        return self.last(hidden.reshape(hidden.shape[0], -1))


def plain(function, params):
    return ju.Model(lambda v, x, *, train=False, key=None: ju.Outputs(function(v.params, x)), LOSS), ju.Variables(params)


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape)


@cache
def linen():
    model = from_linen(LinenCnn(), LOSS, np.zeros((1, 6, 6, 2)))
    return model, jax.jit(model.init)(KEY), rows_of(6, 6, 2)


@cache
def equinox_cnn():
    layers = [
        eqx.nn.Conv2d(2, 4, 3, stride=2, padding=1, key=KEY), eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(36, 3, key=KEY),
    ]  # fmt: skip
    return *from_equinox(eqx.nn.Sequential(layers), LOSS), rows_of(2, 5, 5)


@cache
def equinox_mlp():
    return *from_equinox(eqx.nn.MLP(5, 3, 7, 2, key=KEY), LOSS), rows_of(5)


@cache
def haiku_mlp():
    transformed = hk.transform_with_state(lambda x, is_training: hk.nets.MLP([7, 3])(x))
    rows = rows_of(5)
    model = from_haiku(transformed, LOSS, rows.inputs[:2])
    return model, jax.jit(model.init)(KEY), rows


@cache
def nnx_net():
    return *from_nnx(NnxNet(nnx.Rngs(0)), LOSS), rows_of(5)


def heads():
    def function(p, x):
        hidden = jax.nn.relu(jnp.einsum("btd,dhk->bthk", x, p["q"]) + p["qb"])
        return jnp.einsum("bthk,hkc->bc", hidden, p["o"]) @ p["w"].T

    return *plain(function, {"q": normal(5, 2, 3), "qb": normal(2, 3), "o": normal(2, 3, 4), "w": normal(3, 4)}), rows_of(4, 5)


def wrapped():
    def function(p, x):
        layer = jax.checkpoint(jax.jit(lambda w, x: jax.nn.relu(x.astype(jnp.float32) @ w.T.astype(jnp.float32))))
        return layer(p["w"], x) @ p["o"] * p["scale"]

    return *plain(function, {"w": normal(4, 5), "o": normal(4, 3), "scale": np.ones(())}), rows_of(5)


CASES = {f.__name__: f for f in (linen, equinox_mlp, equinox_cnn, haiku_mlp, nnx_net, heads, wrapped)}


@pytest.mark.parametrize("name", list(CASES))
def test_every_kind_of_module_has_its_layers_and_all_of_the_trace(name):
    model, variables, rows = CASES[name]()
    variables = wide(variables)
    made = fit(curvature.ekfac, model, variables, rows, kind="fisher")
    kinds = made.describe(variables.params)
    outside = {path for path, kind in kinds.items() if not kind.startswith("kronecker")}
    expected = {
        "linen": {"LayerNorm_0/scale", "LayerNorm_0/bias"},
        "nnx_net": {"norm/scale", "norm/bias"},
        "wrapped": {"scale"},
    }
    assert outside == expected.get(name, set())
    factors = jax.jit(partial(row_factors, "fisher", model))(variables, rows, np.zeros(6))
    trace = sum(np.sum(np.asarray(x) ** 2) for x in jax.tree.leaves(factors)) / 6
    assert float(trace_of(made)) == pytest.approx(trace, rel=1e-5 if name == "wrapped" else 1e-9)


def test_a_bias_shares_the_block_of_its_kernel_and_a_bias_that_is_none_does_not():
    def function(p, x):
        hidden = x @ p["w"]
        return (hidden + p["b"]) * (1 + hidden) @ p["o"]  # the output is used before its bias, too

    model, variables = plain(function, {"w": normal(5, 4), "b": normal(4), "o": normal(4, 3)})
    kinds = fit(curvature.kfac, model, variables, rows_of(5)).describe(variables.params)
    assert kinds == {"b": "exact", "o": "kronecker (o)", "w": "kronecker (w)"}
    assert fit(curvature.kfac, MODEL, VARIABLES, ROWS).describe(VARIABLES.params)["bias"] == "kronecker (body)"


def test_large_parameters_outside_of_layers_get_their_diagonal():
    model, variables = plain(lambda p, x: (x * p["scale"]) @ p["w"], {"scale": normal(600), "w": normal(600, 3)})
    rows = rows_of(600)
    made = fit(curvature.kfac, model, variables, rows, kind="fisher")
    assert made.describe(variables.params)["scale"] == "diagonal"
    exact = fit(curvature.diagonal, model, variables, rows, kind="fisher")
    np.testing.assert_allclose(diagonal_of(made, variables.params)["scale"], exact.values["scale"], rtol=1e-10)


def test_custom_derivatives_are_kept():
    model, variables = plain(lambda p, x: jax.nn.relu(0 * x @ p["w"]) @ p["o"], {"w": normal(5, 4), "o": normal(4, 3)})
    made = fit(curvature.kfac, model, variables, rows_of(5), kind="fisher")
    assert not any(np.any(x) for x in jax.tree.leaves(product_of(made, variables.params)["w"]))  # relu has slope 0 at 0


@pytest.mark.parametrize("numbers", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "HWNC")])
@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1, 1), "padding": "SAME"},
        {"window_strides": (2, 1), "padding": "VALID"},
        {"window_strides": (1, 1), "padding": ((1, 0), (2, 2)), "rhs_dilation": (2, 1)},
        {"window_strides": (1, 1), "padding": ((1, 1), (0, 1)), "lhs_dilation": (2, 1)},
    ],
)
def test_rows_of_a_convolution_make_up_its_gradient(numbers, options):
    sizes = {"N": 1, "C": 2, "H": 6, "W": 5, "I": 2, "O": 3}
    x = normal(*(sizes[axis] for axis in numbers[0]))
    kernel = normal(*({**sizes, "H": 3, "W": 2}[axis] for axis in numbers[1]))

    def forward(params, x):
        return jax.lax.conv_general_dilated(x, params["k"], dimension_numbers=numbers, **options)

    taps = find(forward, {"k": kernel}, x)
    weight = normal(*jax.eval_shape(forward, {"k": kernel}, x).shape)
    (layer,) = taps.layers

    @jax.jit
    def both(kernel, x):
        def total(shifts):
            y, activations = taps.run({"k": kernel}, x, shifts)
            return jnp.sum(jnp.sin(y) * weight), activations

        slopes, (a,) = jax.grad(total, has_aux=True)(taps.zeros())
        expected = jax.grad(lambda p: jnp.sum(jnp.sin(forward(p, x)) * weight))({"k": kernel})
        again = layer.parts(layer.matrix([kernel]), [kernel])[0]
        return a.mT @ taps.rows(slopes)[0], layer.matrix([expected["k"]]), again

    found, expected, again = both(kernel, x)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(again, kernel)


# How good the blocks are


def test_one_row_and_one_layer_is_exact():
    model, variables = plain(lambda p, x: x @ p["w"] + p["b"], {"w": normal(5, 3), "b": normal(3)})
    row = rows_of(5, count=1)
    made = fit(curvature.ekfac, model, variables, row, kind="empirical")
    gradient = flat(jax.jit(partial(per_example_gradients, model))(variables, row))
    np.testing.assert_allclose(matrix(matvec, made, params=variables.params), np.outer(gradient, gradient), atol=1e-12)


def test_linear_networks_with_white_inputs_are_exact():
    inputs = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 4)))[0] * np.sqrt(12)
    model = ju.Model(
        lambda v, x, *, train=False, key=None: ju.Outputs(x @ v.params["a"] @ v.params["b"]),
        lambda outputs, rows: 0.5 * jnp.sum((outputs.logits - rows.targets) ** 2, axis=1),
    )
    variables = ju.Variables({"a": normal(4, 3), "b": normal(3, 2)})
    rows = ju.Examples(inputs, np.zeros((12, 2)))
    exact = matrix(partial(curvature.ggn_vp, model), variables, rows, params=variables.params)
    for make in (curvature.kfac, curvature.ekfac):
        found = matrix(matvec, fit(make, model, variables, rows, kind="ggn"), params=variables.params)
        for block in (slice(0, 12), slice(12, 18)):
            np.testing.assert_allclose(found[block, block], exact[block, block], atol=1e-10)


@pytest.mark.parametrize("case", ["mlp", "cnn"])
def test_corrected_eigenvalues_come_nearer(case):
    if case == "mlp":
        model, variables, rows, blocks = MODEL, VARIABLES, ROWS, (slice(0, 40), slice(40, 64))
    else:
        model, variables, rows = equinox_cnn()
        variables, blocks = wide(variables), (slice(0, 76), slice(76, 187))
    exact = matrix(partial(curvature.ggn_vp, model), variables, rows, params=variables.params)
    found = {make: matrix(matvec, fit(make, model, variables, rows, kind="ggn"), params=variables.params) for make in MAKES}
    for block in blocks:
        errors = [np.linalg.norm(found[make][block, block] - exact[block, block]) for make in MAKES]
        assert errors[1] < errors[0]
        assert not found[curvature.ekfac][block, (blocks[0] if block is blocks[1] else blocks[1])].any()


MAKES = (curvature.kfac, curvature.ekfac)


@pytest.mark.parametrize("make", MAKES)
def test_chunks_and_rows_that_do_not_count_change_nothing(make):
    weights = without(3, 50)
    expected = matrix(matvec, fit(make, MODEL, VARIABLES, rows_where(weights > 0), kind="fisher"))
    for chunk in (None, 7):
        made = jax.jit(make(MODEL, kind="fisher", chunk=chunk))(VARIABLES, broken_where(weights == 0), weights, KEY)
        np.testing.assert_allclose(matrix(matvec, made), expected, atol=1e-10)


def shapes_in(jaxpr):
    for equation in jaxpr.eqns:
        yield from (x.aval.shape for x in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from shapes_in(inner)


@pytest.mark.parametrize("chunk", [None, 5])
def test_gradients_of_all_rows_are_never_held(chunk):
    arguments = (VARIABLES, ROWS, np.ones(60), KEY)
    traced = jax.make_jaxpr(curvature.ekfac(MODEL, chunk=chunk))(*arguments)
    limit = (
        60 * 24 if chunk is None else 60 * 8
    )  # rows times the weights of the smallest kernel; without a chunk activations are
    assert max(int(np.prod(shape)) for shape in shapes_in(traced.jaxpr)) < limit
    squares = jax.make_jaxpr(curvature.diagonal(MODEL, kind="empirical", chunk=5))(*arguments)
    assert max(int(np.prod(shape)) for shape in shapes_in(squares.jaxpr)) < 60 * 24


@pytest.mark.parametrize("name", ["ggn", "kfac", "ekfac"])
def test_products_equal_those_of_an_independent_implementation(name):
    stored = json.loads(Path(__file__).with_name("oracle.json").read_text())
    params = {key: np.asarray(value, float) for key, value in stored["params"].items()}
    rows = ju.Examples(np.asarray(stored["inputs"], float), np.asarray(stored["targets"]))

    def function(p, x):
        return jnp.tanh(x @ p["first"] + p["first_bias"]) @ p["last"] + p["last_bias"]

    model, variables = plain(function, params)
    if name == "ggn":
        product = jax.jit(lambda v: curvature.ggn_vp(model, variables, rows)(v))
    else:
        product = partial(product_of, fit(getattr(curvature, name), model, variables, rows, kind="ggn"))
    for vector, expected in zip(stored["vectors"], stored["products"][name], strict=True):
        found = product({key: np.asarray(value, float) for key, value in vector.items()})
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), found, {k: np.asarray(v) for k, v in expected.items()})


def test_small_tables_have_an_exact_block_and_large_ones_their_tokens():
    def function(p, x):
        hidden = p["table"][x] + p["small"][x % 4]  # [b, 9, 2]
        return jnp.tanh(hidden).reshape(len(x), -1) @ p["o"]

    params = {"table": normal(300, 2), "small": normal(4, 2), "o": normal(18, 3)}
    model, variables = plain(function, params)
    rows = ju.Examples(np.arange(54).reshape(6, 9) * 5 % 300, np.arange(6) % 3)
    made = fit(curvature.ekfac, model, variables, rows, kind="fisher")
    diagonal = diagonal_of(made, params)
    assert made.describe(params) == {"o": "kronecker (o)", "small": "exact", "table": "kronecker (table, lookup)"}
    exact = fit(curvature.diagonal, model, variables, rows, kind="fisher")
    np.testing.assert_allclose(diagonal["small"], exact.values["small"], atol=1e-12)
    np.testing.assert_allclose(jnp.sum(diagonal["table"], axis=1), jnp.sum(exact.values["table"], axis=1), atol=1e-12)
    whole = matrix(partial(curvature.fisher_vp, model), variables, rows, params=params)
    np.testing.assert_allclose(matrix(matvec, made, params=params)[54:62, 54:62], whole[54:62, 54:62], atol=1e-12)


@pytest.mark.parametrize("make", MAKES)
def test_rows_that_do_not_count_change_nothing_in_convolutions_and_in_exact_blocks(make):
    model, variables, rows = linen()
    variables, weights = wide(variables), np.array([1.0, 0, 1, 1, 0, 1])
    broken = rows._replace(inputs=np.where(weights[:, None, None, None] > 0, rows.inputs, np.nan))
    kept = jax.tree.map(lambda x: x[weights > 0], rows)
    vector = jax.tree.map(lambda x: np.cos(np.arange(x.size)).reshape(x.shape), variables.params)
    expected = product_of(fit(make, model, variables, kept, kind="fisher"), vector)
    for chunk in (None, 4):
        made = jax.jit(make(model, kind="fisher", chunk=chunk))(variables, broken, weights, KEY)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), product_of(made, vector), expected)


def test_chunked_convolutions_hold_no_gradients_of_all_rows():
    model, variables, rows = equinox_cnn()
    rows = jax.tree.map(lambda x: np.tile(x, (40, *(1,) * (x.ndim - 1))), rows)
    for make in MAKES:
        traced = jax.make_jaxpr(make(model, kind="sampled", chunk=4))(wide(variables), rows, np.ones(240), KEY)
        computed = [shape for shape in shapes_in(traced.jaxpr) if shape != rows.inputs.shape]
        assert max(int(np.prod(shape)) for shape in computed) < 240 * 111  # rows times the weights of the largest layer


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float16])
def test_inputs_of_few_bits_are_summed_in_many(make, dtype):
    model, variables = linear_classifier(), ju.Variables({"w": np.arange(12.0).reshape(4, 3) / 1000})
    inputs = np.random.default_rng(0).integers(0, 200, (60, 4))
    found, expected = (
        trace_of(fit(make, model, variables, ju.Examples(inputs.astype(x), np.arange(60) % 3), kind="fisher"))
        for x in (dtype, np.float64)
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_a_derivative_of_its_own_is_kept_where_a_parameter_enters():
    model, variables = plain(lambda p, x: x @ p["w"] + jax.nn.relu(p["b"]), {"w": normal(4, 3), "b": np.zeros(3)})
    rows = ju.Examples(normal(6, 4), np.arange(6) % 3)
    made = fit(curvature.kfac, model, variables, rows, kind="fisher")
    assert made.describe(variables.params) == {"b": "exact", "w": "kronecker (w)"}
    np.testing.assert_array_equal(diagonal_of(made, variables.params)["b"], 0)  # where a product with max would see a half


@pytest.mark.parametrize("sure", [5.0, 20.0, 100.0])
def test_rows_that_a_model_is_certain_of_keep_their_gauss_newton_matrix(sure):
    outputs = ju.Outputs(jnp.asarray(np.random.default_rng(0).normal(size=(40, 10)), jnp.float32).at[:, 3].add(sure))
    rows = ju.Examples(None, jnp.full(40, 3))
    model = ju.Model(lambda variables, inputs, **_: outputs, ju.losses.cross_entropy)
    ours, theirs = (slopes(kind, model, outputs, rows, jnp.zeros(40, jnp.uint32)) for kind in ("ggn", "fisher"))
    matrices = [jnp.einsum("sbi,sbj->bij", u, u) for u in (ours, theirs)]
    np.testing.assert_allclose(*matrices, atol=2e-6)
    bent = model._replace(loss=lambda outputs, examples: -ju.losses.cross_entropy(outputs, examples))
    found = slopes("ggn", bent, ju.Outputs(outputs.logits / 20), rows, jnp.zeros(40, jnp.uint32))
    assert jnp.all(jnp.isnan(found).any(axis=(0, 2)))  # what is indefinite by more than rounding is told
