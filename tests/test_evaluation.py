"""Rows in evaluation mode: chunks change nothing, precision is the highest, sums see what counts."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.evaluation import class_labels, map_rows, sum_rows
from tests.audit.toys import random_network, random_networks
from tests.problems import blobs, held_out, network, normalized_network

DATA, MODEL, TEST = blobs(), network(), held_out()


@pytest.mark.parametrize("chunk", [1, 7, 30, 59, 60, 64])
def test_chunks_change_nothing(chunk):
    rows = ju.Examples({"a": jnp.arange(60.0), "b": jnp.arange(120).reshape(60, 2)}, jnp.arange(60))

    def function(part):
        return {"sum": part.inputs["a"] + part.targets, "pair": part.inputs["b"] * 2, "none": None}

    whole, cut = jax.jit(lambda rows: (function(rows), map_rows(function, rows, chunk=chunk)))(rows)
    jax.tree.map(np.testing.assert_array_equal, cut, whole)


@pytest.mark.parametrize("chunk", [1, 7, 59, 60, None])
def test_sums_count_every_row_once_and_nothing_of_weight_0(chunk):
    values = jnp.arange(60).at[5].set(10**6)
    weights = jnp.ones(60).at[5].set(0).at[6].set(2)

    def function(part, weights):
        return {"count": jnp.sum(weights), "weighted": jnp.sum(part["x"] * weights)}

    rows = {"x": values.astype(float).at[5].set(jnp.nan)}
    found = jax.jit(lambda rows, weights: sum_rows(function, rows, weights, chunk=chunk))(rows, weights)
    assert float(found["count"]) == 60
    assert float(found["weighted"]) == sum(range(60)) - 5 + 6


def test_chunks_of_a_network_under_jit_and_vmap():
    stacked = random_networks(3)
    cut = jax.jit(jax.vmap(lambda v: ju.audit.predict(MODEL, v, DATA.train, chunk=7)))(stacked)
    whole = jax.jit(jax.vmap(lambda v: MODEL.forward(v, DATA.train.inputs).logits))(stacked)
    np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-6)


def test_prediction_runs_in_evaluation_mode():
    model = normalized_network()
    variables = ju.Variables({"w": jnp.ones((4, 3))}, {"mean": jnp.full(4, 2.0), "count": jnp.int32(1)})
    expected = model.forward(variables, DATA.train.inputs, train=False).logits
    np.testing.assert_allclose(ju.audit.predict(model, variables, DATA.train), expected, rtol=1e-5, atol=1e-6)


def precisions(jaxpr):
    """Precision of every matrix product in a program, inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from precisions(inner)


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("audit", ["predict", "performance", "loss_attack", "divergence", "forget_divergence"])
def test_matrix_products_run_at_the_highest_precision(audit, chunk):
    first, second = random_network(0), random_network(1)
    request = ju.ForgetRequest(jnp.arange(20), jnp.ones(20))
    arguments = {
        "predict": (first, DATA.train),
        "performance": (first, DATA, request, TEST),
        "loss_attack": (first, DATA, request, TEST),
        "divergence": (first, second, DATA.train),
        "forget_divergence": (first, second, DATA, request),
    }
    program = jax.make_jaxpr(lambda *a: getattr(ju.audit, audit)(MODEL, *a, chunk=chunk))(*arguments[audit])
    found = list(precisions(program.jaxpr))
    assert len(found) >= 2
    assert all(p == (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST) for p in found)


def test_class_labels_are_one_array_of_integers():
    assert class_labels(DATA.train.targets) is DATA.train.targets
    for targets in (jnp.zeros(3), jnp.zeros((3, 1), int), {"label": jnp.zeros(3, int)}):
        with pytest.raises(ValueError, match="one array of integer labels"):
            class_labels(targets)


def test_refusals():
    variables = random_network()

    def trace(audit, model, *arguments, **options):
        return jax.eval_shape(lambda *a: getattr(ju.audit, audit)(model, *a, **options), *arguments)

    with pytest.raises(ValueError, match="chunk must be an integer of at least 1"):
        trace("predict", MODEL, variables, DATA.train, chunk=0)
    with pytest.raises(ValueError, match="same leading axis"):
        trace("predict", MODEL, variables, ju.Examples(jnp.ones((3, 4)), jnp.ones(2, int)))
    stacked = ju.from_indices(DATA, [[1], [2, 3]])
    reduced = MODEL._replace(loss=lambda outputs, examples: jnp.mean(outputs.logits))
    for audit in ("performance", "loss_attack"):
        with pytest.raises(ValueError, match="expected one request"):
            trace(audit, MODEL, variables, DATA, stacked, TEST)
        with pytest.raises(ValueError, match="leave out the mean"):
            trace(audit, reduced, variables, DATA, ju.empty_request(), TEST)
