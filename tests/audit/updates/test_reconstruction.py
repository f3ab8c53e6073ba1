"""Rows read off the difference of weights: exact where it is, and said not to be where it is not."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import audit, summation
from tests.problems import NUM_FEATURES, blobs, lane

KEY = jax.random.key(0)


@cache
def ridge_pair(*gone):
    """Ridge with three outputs and an intercept, before and after an exact removal, and the Hessians."""
    data = blobs()
    data = ju.training_data(data.train.inputs, jax.nn.one_hot(data.train.targets, 3))
    learner = summation.ridge(penalty=0.3)

    @jax.jit
    def run(data, request):
        fitted = summation.fit(learner, data)
        return fitted, summation.summation(learner)(fitted, data, request, KEY)

    fitted, result = run(data, lane(ju.from_indices(data, [list(gone)]), 0))
    weights = [np.vstack([v.params["intercept"], v.params["weights"]]) for v in (fitted, ju.check(result).variables)]
    rows = np.hstack([np.ones((60, 1)), np.asarray(data.train.inputs, np.float64)])
    penalty = 0.3 * np.diag([0.0] + [1.0] * NUM_FEATURES)
    return data, *weights, rows.T @ rows + penalty, np.delete(rows, gone, axis=0)


def test_a_row_that_was_removed_from_ridge_is_found_to_rounding():
    data, before, after, hessian, kept = ridge_pair(11)
    row, target = (np.asarray(x, np.float64)[11] for x in data.train)
    for matrix in (hessian, kept.T @ kept + np.diag([0.0] + [0.3] * NUM_FEATURES)):
        found = audit.reconstruct_linear(before, after, matrix, intercept=0)
        np.testing.assert_allclose(found.row[1:], row, rtol=1e-8, atol=1e-9)
        assert float(found.agreement) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(before.T @ np.asarray(found.row) + np.asarray(found.factor), target, atol=1e-9)
    direction = audit.reconstruct_linear(before, after, hessian).row
    whole = np.concatenate([[1], row])
    assert abs(np.dot(direction, whole)) == pytest.approx(np.linalg.norm(whole), rel=1e-9)


def test_an_unknown_hessian_makes_it_an_estimate():
    data, before, after, hessian, _ = ridge_pair(11)
    row = np.asarray(data.train.inputs, np.float64)[11]
    public = np.asarray(blobs(300).train.inputs, np.float64)  # rows of the same law
    public = np.hstack([np.ones((300, 1)), public])
    estimate = public.T @ public / 5 + 0.3 * np.eye(NUM_FEATURES + 1)
    found = np.asarray(audit.reconstruct_linear(before, after, estimate, intercept=0).row)[1:]
    likeness = found @ row / np.linalg.norm(found) / np.linalg.norm(row)
    assert 0.8 < likeness < 1 - 1e-6


def test_two_rows_are_no_row():
    _, before, after, hessian, _ = ridge_pair(11, 30)
    assert float(audit.reconstruct_linear(before, after, hessian, intercept=0).agreement) < 0.999
    assert np.isnan(audit.reconstruct_linear(before, before, hessian).agreement)
    with pytest.raises(ValueError, match="Hessian"):
        audit.reconstruct_linear(before, after, hessian[1:, 1:])


def hidden_layer():
    def forward(variables, inputs, *, train=False, key=None):
        hidden = jax.nn.relu(inputs @ variables.params["first"]["w"] + variables.params["first"]["b"])
        return ju.Outputs(hidden @ variables.params["last"])

    first, last = jax.random.split(KEY)
    params = {
        "first": {"w": jax.random.normal(first, (NUM_FEATURES, 16)), "b": jnp.zeros(16)},
        "last": jax.random.normal(last, (16, 3)) / 4,
    }
    return ju.Model(forward, ju.losses.cross_entropy), ju.Variables(params)


@partial(jax.jit, static_argnums=0)
def steps(model, variables, rows, weights, count, rate=1e-2):
    """Plain gradient descent on the sum of the rows' losses."""

    def total(params):
        return jnp.sum(weights * model.loss(model.forward(ju.Variables(params), rows.inputs), rows))

    def step(_, params):
        return jax.tree.map(lambda w, g: w - (rate * g).astype(w.dtype), params, jax.grad(total)(params))

    return jax.lax.fori_loop(0, count, step, variables.params)["first"]


def test_one_step_with_and_without_a_row_gives_the_row():
    model, variables = hidden_layer()
    with jax.enable_x64(True):
        variables = jax.tree.map(jnp.float64, variables)
        rows = jax.tree.map(lambda x: x[:20], blobs().train)
        agreements = []
        for count in (1, 30):
            first, second = (
                steps(model, variables, rows, weights, count) for weights in (jnp.ones(20), jnp.ones(20).at[4].set(0))
            )
            change = jax.tree.map(jnp.subtract, first, second)
            found = audit.reconstruct_first_layer(change["w"], change["b"])
            agreements.append(float(found.agreement))
            if count == 1:
                np.testing.assert_allclose(found.row, rows.inputs[4], rtol=1e-6)
    assert agreements[0] == pytest.approx(1, abs=1e-9)
    assert agreements[1] < 0.99  # retrained for longer, it is no row any more, and says so


def test_one_step_of_ascent_gives_the_row_of_a_request():
    model, variables = hidden_layer()
    data = blobs()
    row = jax.tree.map(lambda x: x[7:8], data.train)
    after = steps(model, variables, row, jnp.ones(1), 1, rate=-0.1)
    change = jax.tree.map(jnp.subtract, variables.params["first"], after)
    found = audit.reconstruct_first_layer(change["w"], change["b"])
    np.testing.assert_allclose(found.row, row.inputs[0], rtol=1e-3, atol=1e-3)  # in float32
    nothing = audit.reconstruct_first_layer(0 * change["w"], 0 * change["b"])
    assert np.isnan(nothing.agreement)
    with pytest.raises(ValueError, match="flatten"):
        audit.reconstruct_first_layer(change["w"], change["b"][:3])
