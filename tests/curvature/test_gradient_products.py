"""Products of rows' gradients with directions, against the gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature
from tests.curvature.test_kronecker import CASES, normal, shapes_in
from tests.curvature.test_layer_tracing import STACKED, WIDTH, scanned
from tests.curvature.test_matvecs import MODEL, ROWS, VARIABLES, in_float64, stacked, wide  # noqa: F401
from tests.curvature.test_padding import PARAMS, language_model, sentences
from tests.curvature.test_tied import USES, rows_for, squared


def directions_for(params, count=4):
    """Random directions."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: rng.normal(size=(count, *np.shape(x))), params)


def expected(model, variables, rows, directions):
    return stacked(curvature.per_example_gradients(model, variables, rows)) @ stacked(directions).T


def agree(model, variables, rows, *, atol=1e-10, **options):
    directions = directions_for(variables.params)
    program = jax.jit(partial(curvature.gradient_products, model, **options))
    np.testing.assert_allclose(program(variables, rows, directions), expected(model, variables, rows, directions), atol=atol)


@pytest.mark.parametrize("name", list(CASES))
def test_modules_of_every_library(name):
    model, variables, rows = CASES[name]()
    agree(model, wide(variables), rows, atol=1e-6 if name == "wrapped" else 1e-10)


@pytest.mark.parametrize("name", list(USES))
def test_tables_and_parameters_that_are_used_in_two_forms(name):
    function, params, inputs, _ = USES[name]
    model, variables = squared(function, params)
    agree(model, variables, rows_for(function, params, np.concatenate([inputs, inputs[:, ::-1]])))


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_decoder_with_padding_and_chunks_that_do_not_divide(chunk):
    agree(language_model(), ju.Variables(PARAMS), sentences(), chunk=chunk)


def test_a_scan():
    function = lambda p, x: jax.vmap(lambda row: scanned(p, row[None])[0])(x)
    model, variables = squared(function, STACKED)
    agree(model, variables, rows_for(function, STACKED, normal(3, 5, WIDTH)))


@pytest.mark.parametrize("mode", ["fill", "clip"])
def test_numbers_that_a_table_does_not_have(mode):
    function = lambda p, x: jnp.tanh(jnp.nan_to_num(jnp.take(p["table"], x, axis=0, mode=mode)) @ p["head"])
    params = {"table": normal(5, 3), "head": normal(3, 2)}
    model, variables = squared(function, params)
    agree(model, variables, rows_for(function, params, np.array([[0, 7], [4, 2], [-9, 1]])))


def test_a_loss_that_reads_more_than_logits():
    """Curvature refuses it, products do not need to."""

    def loss(outputs, rows):
        return jnp.sum(jnp.sin(outputs.features["penultimate"]), axis=1) + ju.losses.cross_entropy(outputs, rows)

    agree(MODEL._replace(loss=loss), VARIABLES, ROWS)


def test_a_row_of_nan_reaches_no_other_row():
    rows = ju.Examples(np.where(np.arange(len(ROWS.targets))[:, None] == 3, np.nan, ROWS.inputs), ROWS.targets)
    directions = directions_for(VARIABLES.params)
    found = jax.jit(partial(curvature.gradient_products, MODEL))(VARIABLES, rows, directions)
    assert np.isnan(found[3]).all()
    kept = np.delete(np.arange(len(ROWS.targets)), 3)
    np.testing.assert_allclose(found[kept], expected(MODEL, VARIABLES, ROWS, directions)[kept], atol=1e-10)


def test_no_gradient_of_a_dense_layer_or_a_table_is_formed():
    function = lambda p, x: jnp.tanh(p["table"][x]) @ p["head"]
    params = {"table": normal(211, 3), "head": normal(3, 23)}
    model, variables = squared(function, params)
    rows = rows_for(function, params, np.arange(6))
    program = partial(curvature.gradient_products, model)
    shapes = shapes_in(jax.make_jaxpr(program)(variables, rows, directions_for(params)).jaxpr)
    assert (6, 5) not in shapes
    assert not any(shape[0] == 6 and (211 in shape or shape[-2:] == (3, 23)) for shape in shapes if len(shape) > 1)


@pytest.mark.parametrize(
    "change", [lambda x: x["body"], lambda x: {**x, "body": x["body"][:2]}, lambda x: jax.tree.map(lambda y: y[0], x)]
)
def test_directions_that_are_not_like_the_params_are_refused(change):
    with pytest.raises(ValueError, match="directions must"):
        curvature.gradient_products(MODEL, VARIABLES, ROWS, change(directions_for(VARIABLES.params)))
