"""Diagonals add classes up one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature
from tests.curvature.test_kronecker import shapes_in
from tests.curvature.test_matvecs import KEY, MODEL, ROWS, VARIABLES, flat, in_float64, whole  # noqa: F401


def test_the_memory_of_a_diagonal_does_not_grow_with_the_classes():
    """Twenty classes that share a large hidden layer: one gradient of a row at a time."""

    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(jnp.tanh(inputs @ variables.params["a"]) @ variables.params["b"])

    chunk, classes, hidden = 8, 20, 64
    model = ju.Model(forward, ju.losses.cross_entropy)
    variables = ju.Variables({"a": np.ones((32, hidden)), "b": np.ones((hidden, classes))})
    rows = ju.Examples(np.ones((16, 32)), np.zeros(16, int))
    weights = 32 * hidden + hidden * classes
    for kind in ("fisher", "ggn", "signed"):
        fit = curvature.diagonal(model, kind=kind, chunk=chunk)
        traced = jax.make_jaxpr(fit)(variables, rows, jnp.ones(16), KEY)
        assert max(int(np.prod(shape)) for shape in shapes_in(traced.jaxpr)) <= chunk * weights
        compiled = jax.jit(fit).lower(variables, rows, jnp.ones(16), KEY).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 4 * chunk * weights * 8


@pytest.mark.parametrize("kind", ["fisher", "ggn", "empirical"])
def test_diagonals_are_those_of_the_matrices(kind):
    for chunk in (None, 7):
        made = jax.jit(curvature.diagonal(MODEL, kind=kind, chunk=chunk))(VARIABLES, ROWS, jnp.ones(60), KEY)
        np.testing.assert_allclose(flat(made.values), np.diag(whole(kind)), atol=1e-12)
