"""Which kernels become layers, in which form, and what is said about the others."""

import re
import warnings
from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature
from jaxunlearn.adapters import from_equinox, from_linen
from jaxunlearn.curvature import programs
from jaxunlearn.curvature.layer_tracing import find
from jaxunlearn.curvature.parameter_uses import matrix_form
from jaxunlearn.curvature.single_rows import per_example_gradients, row_factors
from tests.curvature.test_kronecker import diagonal_of, fit, normal, plain, product_of, rows_of
from tests.curvature.test_matvecs import KEY, in_float64, matrix, matvec, wide  # noqa: F401


def kinds_of(function, params, rows, make=curvature.ekfac, **options):
    """What every parameter got, from the program alone."""
    model, variables = plain(function, params)
    made = jax.eval_shape(partial(make(model, **options)), variables, rows, np.ones(len(rows.targets)), KEY)
    return made.describe(params)


def slots_of(params, name):
    """Where the entries of a parameter stand among all."""
    start = 0
    for key, value in sorted(params.items()):
        if key == name:
            return slice(start, start + value.size)
        start += value.size
    raise KeyError(name)


def exact_trace(model, variables, rows):
    factors = jax.jit(partial(row_factors, "fisher", model))(variables, rows, np.zeros(len(rows.targets)))
    return sum(np.sum(np.asarray(x) ** 2) for x in jax.tree.leaves(factors)) / len(rows.targets)


def gradients_agree(forward, params, row):
    """Activations and gradients of every layer make up the gradient of its parameters."""
    taps = find(forward, params, row)
    shape = jax.eval_shape(forward, params, row)
    weight = np.random.default_rng(0).normal(size=shape.shape)

    def total(shifts):
        y, activations = taps.run(params, row, shifts)
        return jnp.sum(jnp.sin(y) * weight), activations

    slopes, activations = jax.jit(jax.grad(total, has_aux=True))(taps.zeros())
    expected = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(forward(p, row)) * weight)))(params)
    leaves, pulled = jax.tree.leaves(params), jax.tree.leaves(expected)
    for layer, a, g in zip(taps.layers, activations, taps.rows(slopes), strict=True):
        a = a if layer.bias is None else jnp.concatenate([a, jnp.ones_like(a[..., :1])], axis=-1)
        assert a.shape[1] == g.shape[1] == layer.positions
        np.testing.assert_allclose(a.mT @ g, layer.matrix(pulled), atol=1e-11)
        for leaf, value in layer.parts(layer.matrix(leaves), leaves).items():
            np.testing.assert_array_equal(value, leaves[leaf])
    return taps


# What falls back, and what is said about it


def test_kernels_in_several_forms_and_in_loops_fall_back_and_are_named(monkeypatch):
    monkeypatch.setattr(programs, "LONGEST_LOOP", 2)

    def function(p, x):
        hidden = jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["cell"] + p["cell_bias"]), None), x, None, length=3)[0]
        return (hidden @ p["tied"] @ p["tied"].T + jnp.sum(p["tied"], axis=1)) @ p["o"] + p["ob"]

    params = {"cell": normal(25, 25), "cell_bias": normal(25), "tied": normal(25, 4), "o": normal(25, 3), "ob": normal(3)}
    model, variables = plain(function, params)
    rows = rows_of(25)
    for make in (curvature.kfac, curvature.ekfac):
        with pytest.warns(UserWarning, match="no Kronecker block") as said:
            made = fit(make, model, variables, rows, kind="fisher")
        (text,) = [str(x.message) for x in said]
        assert "multiplied inside a branch or a long loop: cell (diagonal)" in text
        assert "used in several ways: tied (exact block)" in text
        assert "cell_bias" not in text
        found = made.describe(params)
        assert found == {
            "cell": "diagonal", "cell_bias": "exact", "tied": "exact", "o": "kronecker (o)", "ob": "kronecker (o)",
        }  # fmt: skip
    exact = matrix(partial(curvature.fisher_vp, model), variables, rows, params=params)
    block = slots_of(params, "tied")
    np.testing.assert_allclose(matrix(matvec, made, params=params)[block, block], exact[block, block], atol=1e-10)
    np.testing.assert_allclose(flat_of(diagonal_of(made, params)["cell"]), np.diag(exact)[slots_of(params, "cell")], atol=1e-10)
    assert float(made.trace()) == pytest.approx(np.trace(exact), rel=1e-9)


def flat_of(x):
    return np.ravel(np.asarray(x))


FALLEN = {
    "scaled": (lambda p, x: x @ (p["w"] * p["scale"]), {"w": normal(5, 3), "scale": normal(3)}),
    "weight-normalised": (
        lambda p, x: x @ (p["scale"] * p["w"] / jnp.linalg.norm(p["w"], axis=0)),
        {"w": normal(5, 3), "scale": normal(3)},
    ),
    "split unevenly": (lambda p, x: jnp.tanh(x @ p["w"][:, :3]) * (x @ p["w"][:, 3:])[:, :1], {"w": normal(5, 7)}),
    "overlapping parts": (lambda p, x: jnp.tanh(x @ p["w"][:, :3]) * (x @ p["w"][:, 1:]), {"w": normal(5, 4)}),
    "embedding and normalised head": (
        lambda p, x: jnp.tanh(p["w"][jnp.int32(x[:, 0] > 0)]) @ (p["w"] / jnp.linalg.norm(p["w"], axis=1, keepdims=True)).T,
        {"w": normal(3, 4)},
    ),
    "branch": (
        lambda p, x: jax.lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: 2 * x @ w, p["w"]),
        {"w": normal(5, 3)},
    ),
    "a long loop": (
        lambda p, x: jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), x, None, length=programs.LONGEST_LOOP + 1)[0],
        {"w": normal(5, 5)},
    ),
    "loops in a loop": (
        lambda p, x: jax.lax.scan(
            lambda h, _: (jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), h, None, length=9)[0], None),
            x,
            None,
            length=9,
        )[0],
        {"w": normal(5, 5)},
    ),
    "some of the stacked layers": (
        lambda p, x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"][1:])[0],
        {"w": normal(3, 5, 5)},
    ),
    "low rank": (lambda p, x: x @ (p["w"] @ p["w2"]), {"w": normal(5, 2), "w2": normal(2, 3)}),
    "scaled in jit": (jax.jit(lambda p, x: jax.jit(jnp.dot)(x, p["w"] * 2)), {"w": normal(5, 3)}),
    "rows of a batch as a group": (
        lambda p, x: jax.lax.conv_general_dilated(
            x.reshape(2, 1, 5), p["w"], (1,), "SAME", dimension_numbers=("NCH", "OIH", "NCH"), batch_group_count=2
        ).reshape(1, -1)[:, :4],
        {"w": normal(4, 1, 3)},
    ),
}


@jax.custom_vjp
def halved(x, w):
    """A product whose backward pass is not its derivative."""
    return x @ w


halved.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T / 2, kept[0].T @ g / 2))


@jax.custom_jvp
def doubled(x, w):
    return x @ w


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * (tangents[0] @ primals[1] + primals[0] @ tangents[1])))


def test_a_product_with_a_backward_pass_of_its_own_is_named_and_keeps_it():
    function = lambda p, x: halved(x[:, :3], p["w"]) @ p["o"]
    params = {"w": normal(3, 4), "o": normal(4, 3)}
    model, variables = plain(function, params)
    rows = rows_of(6)
    with pytest.warns(UserWarning, match="custom_vjp") as said:
        made = fit(curvature.kfac, model, variables, rows, kind="empirical")
    assert any("w (exact block)" in str(x.message) for x in said)
    gradients = np.asarray(jax.jit(partial(per_example_gradients, model))(variables, rows)["w"]).reshape(6, -1)
    block = slots_of(params, "w")
    np.testing.assert_allclose(matrix(matvec, made, params=params)[block, block], gradients.T @ gradients / 6, atol=1e-10)


def routed(p, x):
    """Rows of one sequence, the first two to one expert, then three, and one to none."""
    return jnp.tanh(jax.lax.ragged_dot(x[0], p["w"], jnp.array([2, 0, 3]))).sum(axis=0)[None] @ p["o"]


ROUTED = {"w": normal(3, 3, 4), "o": normal(4, 3)}


def test_ragged_products_are_groups_of_the_rows_that_they_get():
    row = normal(1, 6, 3)
    (layer, _) = gradients_agree(routed, ROUTED, row).layers
    assert (layer.name, layer.form.groups, layer.positions) in (("w", 3, 6), ("o", 1, 1))

    def apart(p, x):
        parts = [x[0, :2] @ p["w0"], x[0, 2:5] @ p["w2"], jnp.zeros((1, 4))]
        return jnp.tanh(jnp.concatenate(parts)).sum(axis=0)[None] @ p["o"]

    rows, vector = rows_of(6, 3), jax.tree.map(np.cos, ROUTED)
    split = lambda p: {"w0": p["w"][0], "w2": p["w"][2], "o": p["o"]}
    one = product_of(fit(curvature.ekfac, *plain(routed, ROUTED), rows, kind="empirical"), vector)
    other = product_of(fit(curvature.ekfac, *plain(apart, split(ROUTED)), rows, kind="empirical"), split(vector))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-11), split(one), other)
    assert not one["w"][1].any()


def test_ragged_products_in_long_loops_are_refused():
    def looped(p, x):
        turn = lambda _, h: jax.lax.ragged_dot(h, p["w"], jnp.array([2, 4]))
        return jax.lax.fori_loop(0, jnp.int32(jnp.sum(x) > 0), turn, x[0]).sum(axis=0)[None]

    with pytest.raises(ValueError, match="w is multiplied by ragged_dot in a loop"):
        find(looped, {"w": normal(2, 3, 3)}, normal(1, 6, 3))


def test_functions_with_a_derivative_of_their_own_keep_it_where_they_do_not_multiply():
    """A custom_vjp on the way of an activation; a custom_jvp that multiplies is opened: its derivative is the product's."""

    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.01, 0.01),))
    forward = lambda p, x: clipped(x @ p["w"]) @ p["o"]
    taps = gradients_agree(forward, {"w": normal(5, 4), "o": normal(4, 3)}, normal(1, 5))
    assert {x.name for x in taps.layers} == {"o", "w"}
    taps = find(lambda p, x: doubled(x, p["w"]), {"w": normal(5, 4)}, normal(1, 5))
    assert [x.name for x in taps.layers] == ["w"]


def test_literals_are_read():
    """Numbers in the program: inputs of inner functions, operands of sums and products, outputs."""
    inner = jax.jit(lambda w, x, scale: (scale * (x @ w) + 1.0, 3.0))

    def forward(p, x):
        y, constant = inner(p["w"], 2.0 * x, 0.5)
        y = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w) + 0.5, 1.0), y, p["stack"])[0]
        return y * constant + p["scale"] * 2.0

    params = {"w": normal(5, 4), "stack": normal(2, 4, 4), "scale": np.ones(())}
    taps = gradients_agree(forward, params, normal(1, 5))
    assert {layer.name for layer in taps.layers} == {"w", "stack"}
    assert not taps.unfactored
    flat = find(lambda p, x: (forward(p, x), 1.0), params, normal(1, 5))
    outputs, _ = flat.run(params, normal(1, 5), flat.zeros())
    assert outputs[1] == 1.0


@pytest.mark.parametrize("name", list(FALLEN))
def test_kernels_that_are_no_layers_are_named(name):
    function, params = FALLEN[name]
    inputs = normal(1, 10) if name.startswith("rows") else normal(1, 5)
    rows = ju.Examples(inputs, np.zeros(1, int))
    with pytest.warns(UserWarning, match="no Kronecker block") as said:
        kinds = kinds_of(function, params, rows)
    (text,) = [str(x.message) for x in said]
    assert "w (" in text
    assert ("w2 (" in text) == ("w2" in params)
    assert "scale (" not in text
    assert "bias (" not in text
    assert set(kinds.values()) == {"exact"}


def test_embeddings_normalisation_positions_and_what_is_stopped_are_not_named():
    def function(p, x):
        hidden = p["table"][x] + p["positions"]
        hidden = (hidden - jnp.mean(hidden, axis=(1, 2), keepdims=True)) * p["norm"] + p["norm_bias"]
        frozen = hidden @ jax.lax.stop_gradient(p["o"])
        return jnp.mean(hidden @ p["o"] + frozen, axis=1) * p["temperature"]

    params = {"table": normal(30, 4), "positions": normal(9, 4), "norm": normal(9, 4), "norm_bias": normal(9, 4)}
    params |= {"o": normal(4, 3), "temperature": np.ones(())}
    rows = ju.Examples(np.arange(54).reshape(6, 9) % 30, np.arange(6) % 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kinds = kinds_of(function, params, rows)
    assert kinds.pop("o") == "kronecker (o, expand)"
    assert set(kinds.values()) == {"exact"}


def test_a_kernel_that_is_stopped_elsewhere_keeps_its_gradient():
    forward = lambda p, x: jnp.tanh(x @ p["w"]) @ jax.lax.stop_gradient(p["w"]).T
    assert len(gradients_agree(forward, {"w": normal(5, 4)}, normal(1, 5)).layers) == 1


# Kernels that several products use


def siamese(p, x):
    towers = [jax.nn.softplus(x[:, k] @ p["w"] + p["b"]) for k in range(2)]
    return (towers[0] * towers[1]) @ p["o"]


SIAMESE = {"w": normal(5, 4), "b": normal(4), "o": normal(4, 3)}


def test_towers_share_one_layer_with_the_positions_of_both():
    taps = gradients_agree(siamese, SIAMESE, normal(1, 2, 5))
    assert [(x.name, x.positions, x.bias is None) for x in taps.layers] == [("w", 2, False), ("o", 1, True)]
    model, variables = plain(siamese, SIAMESE)
    rows = rows_of(2, 5)
    made = fit(curvature.ekfac, model, variables, rows, kind="fisher")
    assert made.describe(SIAMESE) == {"w": "kronecker (w, expand)", "b": "kronecker (w, expand)", "o": "kronecker (o)"}
    assert float(made.trace()) == pytest.approx(exact_trace(model, variables, rows), rel=1e-9)


def stacked_towers(p, x):
    towers = jax.nn.softplus(x @ p["w"] + p["b"])
    return (towers[:, 0] * towers[:, 1]) @ p["o"]


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_two_uses_are_two_positions_of_one(sharing):
    rows, vector = rows_of(2, 5), jax.tree.map(np.cos, SIAMESE)
    for make in (curvature.kfac, curvature.ekfac):
        one, other = (
            product_of(fit(make, *plain(f, SIAMESE), rows, kind="fisher", sharing=sharing), vector)
            for f in (siamese, stacked_towers)
        )
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-11), one, other)


def test_an_unrolled_loop_is_one_layer():
    def unrolled(p, x):
        for _ in range(3):
            x = jnp.tanh(x @ p["cell"].T + p["cb"])
        return x @ p["o"]

    params = {"cell": normal(5, 5), "cb": normal(5), "o": normal(5, 3)}
    taps = gradients_agree(unrolled, params, normal(1, 5))
    assert [(x.name, x.positions) for x in taps.layers] == [("cell", 3), ("o", 1)]
    assert not taps.others


# Layers in loops


WIDTH, DEPTH = 4, 3


def block(x, w):
    mixed = jax.nn.softmax(jnp.einsum("td,sd->ts", x @ w["query"], x @ w["key"] + w["key_bias"])) @ x
    joined = jnp.einsum("tgk,gkd->td", (mixed @ w["up"]).reshape(len(x), 2, -1), w["down"])
    return (x + jnp.tanh(joined)) * w["norm"]


BLOCK = {"query": (WIDTH, 3), "key": (WIDTH, 3), "key_bias": (3,), "up": (WIDTH, 6), "down": (2, 3, WIDTH), "norm": (WIDTH,)}


def scanned(p, x, reverse=False):
    body = jax.checkpoint(lambda h, w: (block(h, w), None))
    return jax.lax.scan(body, x[0], p["layers"], reverse=reverse)[0].mean(axis=0)[None] @ p["head"]


def written_out(p, x):
    h = x[0]
    for layer in range(DEPTH):
        h = block(h, {name: p[f"{name}_{layer}"] for name in BLOCK})
    return h.mean(axis=0)[None] @ p["head"]


STACKED = {"layers": {name: normal(DEPTH, *shape) for name, shape in BLOCK.items()}, "head": normal(WIDTH, 3)}


def apart(tree):
    layers = {f"{name}_{i}": x[i] for name, x in tree["layers"].items() for i in range(DEPTH)}
    return {**layers, "head": tree["head"]}


def test_layers_of_a_scan_are_groups_of_one_layer():
    row = normal(1, 5, WIDTH)
    for reverse in (False, True):
        taps = gradients_agree(partial(scanned, reverse=reverse), STACKED, row)
        found = {x.name: (x.form.groups, x.positions, x.bias is None) for x in taps.layers}
        assert found == {
            "layers/query": (DEPTH, 5, True), "layers/key": (DEPTH, 5, False), "layers/up": (DEPTH, 5, True),
            "layers/down": (DEPTH, 5, True), "head": (1, 1, True),
        }  # fmt: skip


def test_eigenvectors_of_groups_are_found_one_by_one_on_cpus():
    """Several batches of them in one program wait for each other for ever where XLA has two threads (jaxlib 0.10.1)."""
    arguments = (ju.Variables(STACKED), rows_of(5, WIDTH), np.ones(6), KEY)
    text = jax.jit(curvature.kfac(plain(scanned, STACKED)[0], kind="empirical")).lower(*arguments).as_text()
    calls = [line for line in text.splitlines() if "syevd" in line and "custom_call" in line]
    assert calls
    assert not any(re.search(r"tensor<\d+x\d+x\d+xf", line) for line in calls)


@pytest.mark.parametrize("make", [curvature.kfac, curvature.ekfac])
def test_a_scanned_model_has_the_curvature_of_the_same_model_written_out(make):
    rows, vector = rows_of(5, WIDTH), jax.tree.map(np.cos, STACKED)
    one = product_of(fit(make, *plain(scanned, STACKED), rows, kind="fisher"), vector)
    other = product_of(fit(make, *plain(written_out, apart(STACKED)), rows, kind="fisher"), apart(vector))
    for name, value in apart(one).items():
        if not name.startswith("norm"):  # small ones get one exact block, with the products of layers or without
            np.testing.assert_allclose(value, other[name], atol=1e-10, err_msg=name)


def test_parts_of_a_kernel_are_groups():
    def halves(p, x):
        return jnp.tanh(x @ p["w"][:, :3]) * (x @ p["w"][:, 3:] + p["b"][3:])

    taps = gradients_agree(halves, {"w": normal(5, 6), "b": normal(6)}, normal(1, 5))
    assert [(x.name, x.form.groups, x.bias) for x in taps.layers] == [("w", 2, None)]


BIASES = {
    "one bias on one use": lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) * (x @ p["w"]) @ p["o"],
    "two biases": lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) * jnp.tanh(x @ p["w"] + p["c"]) @ p["o"],
    "used elsewhere": lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) * jnp.tanh(2 * x @ p["w"] + p["b"]) * p["b"] @ p["o"],
    "of two layers": lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) * jnp.tanh(x @ p["v"] + p["b"]) @ p["o"],
}


@pytest.mark.parametrize("name", list(BIASES))
def test_biases_that_do_not_belong_to_every_use_stay_outside(name):
    params = {"w": normal(5, 4), "b": normal(4), "o": normal(4, 3)}
    params |= {"two biases": {"c": normal(4)}, "of two layers": {"v": normal(5, 4)}}.get(name, {})
    taps = gradients_agree(BIASES[name], params, normal(1, 5))
    assert all(layer.bias is None for layer in taps.layers)
    assert not taps.unfactored
    model, variables = plain(BIASES[name], params)
    made = fit(curvature.ekfac, model, variables, rows_of(5), kind="fisher")
    assert {value for key, value in made.describe(params).items() if key in ("b", "c")} == {"exact"}
    assert float(made.trace()) == pytest.approx(exact_trace(model, variables, rows_of(5)), rel=1e-9)


# Groups and flips


def per_head(p, x):
    hidden = jnp.tanh(jnp.einsum("bthk,hkc->bthc", x, p["heads"]) + p["hb"])
    return jnp.einsum("bthc,hco->bo", hidden, p["o"])


def experts(p, x):
    gates = jax.nn.softmax(x[:, 0, 0] @ p["gate"])
    hidden = jax.vmap(lambda w, b: jnp.tanh(x[:, :, 0] @ w + b))(p["experts"], p["eb"])
    return jnp.einsum("be,ebtk,ko->bo", gates, hidden, p["o"])


def grouped(p, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, p["k"], (2, 1), "SAME", dimension_numbers=numbers, feature_group_count=2, rhs_dilation=(1, 2)
    )
    return jnp.tanh(y + p["kb"]).reshape(len(x), -1) @ p["o"]


def depthwise(p, x):
    y = jax.lax.conv_general_dilated(
        x, p["k"], (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW"), feature_group_count=4
    )
    return jnp.tanh(y + p["kb"][:, None, None]).reshape(len(x), -1) @ p["o"]


def flipped(p, x):
    y = jax.lax.conv_transpose(x, p["k"], (2, 2), "SAME", transpose_kernel=True)
    return jnp.mean(jnp.tanh(y + p["kb"]), axis=(1, 2)) @ p["o"]


def fused_heads(p, x):
    """One matrix [heads * k, c] that the forward pass cuts into heads."""
    hidden = jnp.einsum("bthk,hkc->bthc", x, p["heads"].reshape(2, 3, 4))
    return jnp.einsum("bthc->bc", jnp.tanh(hidden)) @ p["o"]


def same_sizes(p, x):
    return jnp.einsum("bhk,khc->bc", jnp.tanh(jnp.einsum("bhk,hkc->bhc", x, p["a"]) + p["ab"]), p["o"])


def half(p, x):
    y = jnp.einsum("bthk,hkc->bthc", x.astype(jnp.float16), p["heads"].astype(jnp.float16)).astype(float)
    return jnp.sum(jnp.tanh(y), axis=(1, 2)) @ p["o"]


GROUPS = {
    "per_head": (per_head, {"heads": normal(2, 3, 4), "hb": normal(2, 4), "o": normal(2, 4, 3)}, (5, 2, 3), ("heads", 2, 5)),
    "experts": (
        experts, {"gate": normal(3, 2), "experts": normal(2, 3, 4), "eb": normal(2, 4), "o": normal(4, 3)}, (5, 1, 3),
        ("experts", 1, 5),  # every expert sees the same rows: their outputs stand side by side
    ),
    "grouped": (grouped, {"k": normal(3, 2, 2, 6), "kb": normal(6), "o": normal(2 * 4 * 6, 3)}, (4, 4, 4), ("k", 2, 8)),
    "depthwise": (depthwise, {"k": normal(4, 1, 2, 2), "kb": normal(4), "o": normal(36, 3)}, (4, 4, 4), ("k", 4, 9)),
    "flipped": (flipped, {"k": normal(3, 2, 4, 2), "kb": normal(4), "o": normal(4, 3)}, (3, 3, 2), ("k", 1, 36)),
    "fused_heads": (fused_heads, {"heads": normal(6, 4), "o": normal(4, 3)}, (5, 2, 3), ("heads", 2, 5)),
    "same_sizes": (same_sizes, {"a": normal(3, 3, 3), "ab": normal(3, 3), "o": normal(3, 3, 3)}, (3, 3), ("a", 3, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(GROUPS))
def test_groups_are_blocks_of_their_own(name):
    function, params, shape, (kernel, groups, positions) = GROUPS[name]
    taps = gradients_agree(function, params, normal(1, *shape))
    assert not taps.others
    (layer,) = [layer for layer in taps.layers if layer.name == kernel]
    assert (layer.form.groups, layer.positions) == (groups, positions)
    model, variables = plain(function, params)
    rows = rows_of(*shape)
    made = fit(curvature.ekfac, model, variables, rows, kind="fisher")
    words = [kernel, *[f"{groups} groups"] * (groups > 1), *["expand"] * (positions > 1)]
    assert made.describe(params)[kernel] == f"kronecker ({', '.join(words)})"
    assert float(made.trace()) == pytest.approx(exact_trace(model, variables, rows), rel=1e-9)
    found = matrix(matvec, made, params=params)
    np.testing.assert_allclose(
        flat_of(jnp.concatenate([flat_of(x) for x in jax.tree.leaves(diagonal_of(made, params))])), np.diag(found), atol=1e-10
    )


def test_heads_are_what_as_many_layers_are():
    """Blocks of a grouped kernel against layers of their own, one for every head."""

    def apart(p, x):
        hidden = [jnp.tanh(x[:, :, h] @ p["heads"][h]) for h in range(2)]
        return jnp.einsum("bthc,hco->bo", jnp.stack(hidden, axis=2), p["o"])

    def together(p, x):
        return jnp.einsum("bthc,hco->bo", jnp.tanh(jnp.einsum("bthk,hkc->bthc", x, p["heads"])), p["o"])

    params, rows = {"heads": normal(2, 3, 4), "o": normal(2, 4, 3)}, rows_of(5, 2, 3)
    split = {"heads": [*params["heads"]], "o": params["o"]}
    vector = jax.tree.map(np.cos, params)
    for make in (curvature.kfac, curvature.ekfac):
        one = product_of(fit(make, *plain(together, params), rows, kind="fisher"), vector)
        other = product_of(
            fit(make, *plain(apart, split), rows, kind="fisher"), {"heads": [*vector["heads"]], "o": vector["o"]}
        )
        np.testing.assert_allclose(one["heads"], np.stack(other["heads"]), atol=1e-11)
        np.testing.assert_allclose(one["o"], other["o"], atol=1e-11)


def test_heads_of_few_bits():
    params = {"heads": normal(2, 3, 4), "o": normal(4, 3)}
    made = fit(curvature.kfac, *plain(half, params), rows_of(5, 2, 3), kind="fisher")
    assert made.describe(params)["heads"] == "kronecker (heads, 2 groups, expand)"
    assert np.isfinite(made.trace())


class Upwards(nn.Module):
    transpose_kernel: bool

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.ConvTranspose(4, (3, 2), strides=(2, 1), transpose_kernel=self.transpose_kernel)(x)
        return nn.Dense(3)(jnp.mean(nn.tanh(x), axis=(1, 2))), {}


def equinox_upwards(groups):
    layers = [
        eqx.nn.ConvTranspose2d(2, 4, 3, stride=2, groups=groups, key=KEY), eqx.nn.Lambda(jnp.tanh),
        eqx.nn.Lambda(lambda x: jnp.mean(x, axis=(1, 2))), eqx.nn.Linear(4, 3, key=KEY),
    ]  # fmt: skip
    return *from_equinox(eqx.nn.Sequential(layers), ju.losses.cross_entropy), rows_of(2, 3, 3)


def linen_upwards(transpose_kernel):
    model = from_linen(Upwards(transpose_kernel), ju.losses.cross_entropy, np.zeros((1, 3, 3, 2)))
    return model, jax.jit(model.init)(KEY), rows_of(3, 3, 2)


@pytest.mark.parametrize("make", [partial(linen_upwards, True), partial(linen_upwards, False), partial(equinox_upwards, 2)])
def test_transposed_convolutions_of_module_libraries(make):
    model, variables, rows = make()
    variables = wide(variables)
    made = fit(curvature.ekfac, model, variables, rows, kind="fisher")
    assert all(kind.startswith("kronecker") for kind in made.describe(variables.params).values())
    assert float(made.trace()) == pytest.approx(exact_trace(model, variables, rows), rel=1e-9)


@pytest.mark.parametrize("name", ["per_head", "grouped", "siamese"])
@pytest.mark.parametrize("make", [curvature.kfac, curvature.ekfac])
def test_rows_that_do_not_count_and_chunks_change_nothing_in_groups(name, make):
    function, params, shape = (siamese, SIAMESE, (2, 5)) if name == "siamese" else GROUPS[name][:3]
    model, variables = plain(function, params)
    rows, weights = rows_of(*shape), np.array([1.0, 0, 1, 1, 0, 1])
    broken = rows._replace(inputs=np.where(weights.reshape(-1, *[1] * len(shape)) > 0, rows.inputs, np.nan))
    kept = jax.tree.map(lambda x: x[weights > 0], rows)
    vector = jax.tree.map(np.cos, params)
    expected = product_of(fit(make, model, variables, kept, kind="fisher"), vector)
    for chunk in (None, 4):
        made = jax.jit(make(model, kind="fisher", chunk=chunk))(variables, broken, weights, KEY)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), product_of(made, vector), expected)
    direct = make(model, kind="fisher")(variables, kept, np.ones(4), KEY).matvec(vector)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), direct, expected)


def test_groups_serve_many_vectors_at_once_and_solve():
    function, params, shape, _ = GROUPS["grouped"]
    made = fit(curvature.kfac, *plain(function, params), rows_of(*shape), kind="fisher")
    vectors = jax.tree.map(lambda x: np.random.default_rng(0).normal(size=(3, *x.shape)), params)
    solve = lambda v: made.solve(v, 0.1)
    together = jax.jit(jax.vmap(solve))(vectors)
    again = jax.vmap(lambda x: jax.tree.map(lambda cx, y: cx + 0.1 * y, made.matvec(x), x))(together)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), again, vectors)
    one = [solve(jax.tree.map(lambda x, place=place: x[place], vectors)) for place in range(3)]
    jax.tree.map(lambda x, *y: np.testing.assert_allclose(x, np.stack(y), atol=1e-10), together, *one)


# Forms


def test_forms_are_found_from_positions_alone():
    whole = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (1, 0, 3, 2)):
        for flips in ((), (1,), (0, 3), (0, 1, 2, 3)):
            found = np.flip(whole, flips).transpose(order).reshape(1, 12, -1)
            form = matrix_form(found)
            np.testing.assert_array_equal(form.matrices(whole), found)
            np.testing.assert_array_equal(form.leaf(found, whole.shape), whole)
    assert matrix_form(np.zeros((1, 1, 1), int)).matrices(np.ones((1, 1))).shape == (1, 1, 1)
    for broken in ([0, 2, 1, 3, 5, 4], [0, 0, 1, 1, 2, 2], [1, 2, 3, 4, 5, 6], [0, 3, 1, 4, 2, 6]):
        assert matrix_form(np.array(broken).reshape(1, 2, 3)) is None
    assert matrix_form(np.arange(6).reshape(3, 2).T.reshape(2, 3)[None]) is not None
    assert matrix_form(np.arange(6).reshape(3, 2).T.reshape(3, 2).T[None]) is None


def test_weights_of_zero_everywhere_have_factors():
    function, params, shape, _ = GROUPS["per_head"]
    model, variables = plain(function, jax.tree.map(np.zeros_like, params))
    made = fit(curvature.ekfac, model, variables, rows_of(*shape), kind="fisher")
    assert float(made.trace()) == 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(made.solve(params, 1.0)))


def test_a_loop_of_no_turns_that_returns_rows_is_left_as_it_is():
    def function(p, x):
        carry, rows = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), jnp.sum(h)), x, p["none"])
        return carry @ p["o"] + jnp.sum(rows)

    taps = gradients_agree(function, {"none": np.zeros((0, 4, 4)), "o": normal(4, 3)}, normal(1, 4))
    assert [x.name for x in taps.layers] == ["o"]
