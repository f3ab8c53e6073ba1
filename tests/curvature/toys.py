"""A classifier of 64 weights and 60 rows in float64, with every row's part of every curvature matrix written out.

The matrices are made by plain automatic differentiation and NumPy, so that they share no code with what they are compared to.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxunlearn as ju
from tests.problems import blobs, lane, linear_regression, network, regression_data

KEY = jax.random.key(0)
NUM_ROWS, NUM_WEIGHTS = 60, 64
HEAD = slice(40, 64)  # flattened parameters are bias, body and head, in this order


def wide(values):
    """Arrays of float32 as NumPy arrays of float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype == np.float32 else x, values)


MODEL, DATA = network(), wide(blobs())
ROWS = DATA.train
VARIABLES = wide(MODEL.init(jax.random.key(1)))
FLAT = np.concatenate([np.ravel(x) for x in jax.tree.leaves(VARIABLES.params)])


def flat(values):
    """A tree as one vector."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(values)])


def tree_of(vector):
    """The vector as a tree like the parameters; leading axes stay."""
    vector = jnp.asarray(vector)
    leaves, form = jax.tree.flatten(VARIABLES.params)
    cuts = np.cumsum([x.size for x in leaves])[:-1]
    parts = jnp.split(vector, cuts, axis=-1)
    return form.unflatten([x.reshape(*vector.shape[:-1], *y.shape) for x, y in zip(parts, leaves, strict=True)])


def matrix(product, params=VARIABLES.params):
    """The matrix of a linear function of trees."""
    vector, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.vmap(lambda e: ravel_pytree(product(unravel(e)))[0]))(jnp.eye(vector.size)))


def _loss(params, inputs, target):
    row = ju.Examples(inputs[None], target[None])
    return MODEL.loss(MODEL.forward(ju.Variables(params), row.inputs), row)[0]


@cache
def hessians():
    """Of the loss of every row, [60, 64, 64]."""
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(jax.hessian(lambda v, x, y: _loss(tree_of(v), x, y)), (None, 0, 0)))(jnp.asarray(FLAT), *ROWS)
        return np.asarray(found)


@cache
def jacobians():
    """Of the logits of every row, [60, 3, 64], and the probabilities of the classes [60, 3]."""
    with jax.enable_x64(True):

        def logits(vector, inputs):
            return MODEL.forward(ju.Variables(tree_of(vector)), inputs[None]).logits[0]

        found = jax.jit(jax.vmap(lambda v, x: (jax.jacobian(logits)(v, x), jax.nn.softmax(logits(v, x))), (None, 0)))
        return tuple(map(np.asarray, found(jnp.asarray(FLAT), ROWS.inputs)))


@cache
def gradients():
    """Of the loss of every row, [60, 64]."""
    jacobian, p = jacobians()
    return np.einsum("nkd,nk->nd", jacobian, p - np.eye(3)[np.asarray(ROWS.targets)])


@cache
def parts(name):
    """Every row's part of a matrix, [60, 64, 64]."""
    if name == "hvp":
        return hessians()
    jacobian, p = jacobians()
    if name == "empirical":
        return np.einsum("nd,ne->nde", gradients(), gradients())
    inside = np.eye(3) if name == "jacobian" else p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None]
    return np.einsum("nkd,nkl,nle->nde", jacobian, np.broadcast_to(inside, (60, 3, 3)), jacobian)


def explicit(name, weights=None):
    """The mean over rows of a matrix: hvp, ggn, fisher, empirical or jacobian."""
    return np.average(parts(name), axis=0, weights=weights)


GONE = [3, 8, 21, 40]
KEPT = np.ones(NUM_ROWS)
KEPT[GONE] = 0
L2 = 0.3


def request_for(rows=GONE, capacity=8):
    """A request with padding."""
    return lane(ju.from_indices(DATA, [rows], capacity=capacity), 0)


def penalised():
    """The classifier with a penalty of 0.05 |w|^2, whose gradient is 0.1 w."""
    return MODEL._replace(regularizer=lambda params: 0.05 * sum(jnp.sum(x**2) for x in jax.tree.leaves(params)))


def ridge_optimum(gone=()):
    """Least squares with an L2 penalty on the rows that are left."""
    kept = np.setdiff1d(np.arange(NUM_ROWS), gone)
    x, y = (np.asarray(part, float)[kept] for part in regression_data().train)
    return np.linalg.solve(x.T @ x / len(kept) + L2 * np.eye(4), x.T @ y / len(kept))


def regression():
    """That problem: model, data and weights at the optimum."""
    return linear_regression(L2), wide(regression_data()), ju.Variables({"w": jnp.asarray(ridge_optimum())})
