import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.rows import map_rows, mean
from tests.audit.toys import random_network, random_networks
from tests.problems import blobs, network, normalized_network


@pytest.mark.parametrize("chunk", [1, 7, 30, 59, 60, 64])
def test_chunks_change_nothing(chunk):
    rows = ju.Examples({"a": jnp.arange(60.0), "b": jnp.arange(120).reshape(60, 2)}, jnp.arange(60))

    def function(part):
        return {"sum": part.inputs["a"] + part.targets, "pair": part.inputs["b"] * 2, "none": None}

    whole, cut = jax.jit(lambda rows: (function(rows), map_rows(function, rows, chunk=chunk)))(rows)
    jax.tree.map(np.testing.assert_array_equal, cut, whole)


def test_chunks_of_a_network_under_jit_and_vmap():
    data, model = blobs(), network()
    stacked = random_networks(3)
    cut = jax.jit(jax.vmap(lambda v: ju.audit.predict(model, v, data.train, chunk=7)))(stacked)
    whole = jax.jit(jax.vmap(lambda v: model.forward(v, data.train.inputs).logits))(stacked)
    np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-6)


def test_prediction_runs_in_evaluation_mode():
    data, model = blobs(), normalized_network()
    variables = ju.Variables({"w": jnp.ones((4, 3))}, {"mean": jnp.full(4, 2.0), "count": jnp.int32(1)})
    expected = model.forward(variables, data.train.inputs, train=False).logits
    np.testing.assert_allclose(ju.audit.predict(model, variables, data.train), expected, rtol=1e-5, atol=1e-6)


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
    data, model = blobs(), network()
    first, second = random_network(0), random_network(1)
    request = ju.ForgetRequest(jnp.arange(20), jnp.ones(20))
    arguments = {
        "predict": (first, data.train),
        "performance": (first, data, request, data.extra["validation"]),
        "loss_attack": (first, data, request, data.extra["validation"]),
        "divergence": (first, second, data.train),
        "forget_divergence": (first, second, data, request),
    }
    program = jax.make_jaxpr(lambda *a: getattr(ju.audit, audit)(model, *a, chunk=chunk))(*arguments[audit])
    found = list(precisions(program.jaxpr))
    assert len(found) >= 2
    assert all(p == (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST) for p in found)


def test_mean_is_unknown_over_nothing_and_blind_to_unused_rows():
    values = jnp.array([1.0, jnp.nan, 4.0, jnp.inf])
    assert mean(values, jnp.array([0.25, 0.0, 0.5, 0.0])) == 3.0
    assert jnp.isnan(mean(values, jnp.zeros(4)))
    assert mean(jnp.ones(3000, jnp.bfloat16), jnp.ones(3000)) == 1.0


def test_refusals():
    data, model, variables = blobs(), network(), random_network()
    test = data.extra["validation"]

    def trace(audit, model, *arguments, **options):
        return jax.eval_shape(lambda *a: getattr(ju.audit, audit)(model, *a, **options), *arguments)

    with pytest.raises(ValueError, match="chunk must be an integer of at least 1"):
        trace("predict", model, variables, data.train, chunk=0)
    with pytest.raises(ValueError, match="same leading axis"):
        trace("predict", model, variables, ju.Examples(jnp.ones((3, 4)), jnp.ones(2, int)))
    stacked = ju.from_indices(data, [[1], [2, 3]])
    reduced = model._replace(loss=lambda outputs, examples: jnp.mean(outputs.logits))
    for audit in ("performance", "loss_attack"):
        with pytest.raises(ValueError, match="expected one request"):
            trace(audit, model, variables, data, stacked, test)
        with pytest.raises(ValueError, match="leave out the mean"):
            trace(audit, reduced, variables, data, ju.empty_request(), test)
