"""Influence as a removal: the dense step, and right to first order in the share of the forget set."""

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature
from tests.curvature.toys import (
    DATA,
    FLAT,
    GONE,
    KEY,
    MODEL,
    VARIABLES,
    explicit,
    flat,
    gradients,
    penalised,
    regression,
    request_for,
    ridge_optimum,
)


@pytest.fixture(autouse=True, scope="module")
def in_float64():
    with jax.enable_x64(True):
        yield


def test_it_is_first_order_in_the_number_of_rows():
    model, data, variables = regression()
    unlearn = ju.influence(model, damping=0.0, fit=curvature.dense(model))
    prepared = jax.jit(ju.prepare(unlearn))(variables, data, KEY)
    counts = (1, 2, 4, 8)
    requests = ju.from_indices(data, [range(count) for count in counts])
    results = jax.jit(jax.vmap(lambda request: unlearn(variables, prepared, request, KEY)))(requests)
    assert not results.status.any()
    expected = np.stack([ridge_optimum(range(count)) for count in counts])
    errors = np.linalg.norm(results.variables.params["w"] - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors[0] < 2e-3
    assert errors[-1] < 64 * 3 * errors[0]
    assert errors[-1] > errors[0]


def test_on_a_network_it_is_the_dense_step():
    pull = gradients()[GONE].sum(axis=0) + len(GONE) * 0.1 * FLAT
    step = np.linalg.solve(explicit("hvp") + 2.1 * np.eye(64), pull) / 60
    unlearn = ju.influence(penalised(), damping=2.0, solver="cg", matrix="hessian", rtol=1e-12)
    result = ju.check(jax.jit(unlearn)(VARIABLES, DATA, request_for(), KEY))
    np.testing.assert_allclose(flat(result.variables.params), FLAT + step, rtol=1e-9, atol=1e-11)
    assert float(result.stats["step_norm"]) == pytest.approx(np.linalg.norm(step))


def test_a_representation_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"'curvature'\] is missing .*jaxunlearn.prepare\(unlearn\)"):
        jax.eval_shape(ju.influence(MODEL, damping=0.1), VARIABLES, DATA, request_for(), KEY)
