"""Representations and solvers, against explicit matrices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxunlearn as ju
from jaxunlearn import curvature
from jaxunlearn.curvature.matvecs import per_example_gradients
from tests.curvature.test_matvecs import KEY, MODEL, ROWS, VARIABLES, in_float64, loss_at, matrix, wide  # noqa: F401
from tests.problems import blobs, lane

GGN = partial(curvature.ggn_vp, MODEL)
FITS = {
    "dense": curvature.dense(MODEL, chunk=16),
    "gram": curvature.gram(MODEL, kind="fisher", chunk=16),
    "lanczos": curvature.lanczos(GGN, rank=64),
    "nystrom": curvature.nystrom(GGN, rank=64),
    "low rank": curvature.lanczos(GGN, rank=9),
    "diagonal": curvature.diagonal(MODEL, chunk=16),
    "kfac": curvature.kfac(MODEL, kind="ggn"),
    "ekfac": curvature.ekfac(MODEL, kind="fisher", chunk=16),
    "last layer": curvature.dense(MODEL, layers="head"),
}


def fitted(name):
    return jax.jit(FITS[name])(VARIABLES, ROWS, jnp.ones(60), KEY)


def ggn():
    return matrix(GGN(VARIABLES, ROWS))


@pytest.mark.parametrize(("name", "error"), [("dense", 1e-12), ("gram", 1e-12), ("lanczos", 1e-10), ("nystrom", 1e-6)])
def test_full_representations_are_the_matrix(name, error):
    np.testing.assert_allclose(matrix(fitted(name).matvec), ggn(), atol=error)


def test_the_dense_hessian_has_its_negative_eigenvalues():
    made = curvature.dense(MODEL, kind="hessian")(VARIABLES, ROWS, jnp.ones(60), KEY)
    flat, unravel = ravel_pytree(VARIABLES.params)
    hessian = jax.hessian(lambda x: loss_at(MODEL, ROWS)(unravel(x)))(jnp.asarray(flat))
    np.testing.assert_allclose(made.values, np.linalg.eigvalsh(hessian), atol=1e-12)
    assert made.values[0] < 0


@pytest.mark.parametrize("name", list(FITS))
def test_functions_of_a_representation_are_those_of_its_matrix(name):
    made = fitted(name)
    explicit = matrix(made.matvec)
    part = np.arange(64) if name != "last layer" else np.arange(40, 64)  # bias, body and head in this order
    inside = np.ix_(part, part)
    np.testing.assert_allclose(explicit, explicit.T, atol=1e-12)
    np.testing.assert_allclose(ravel_pytree(made.diagonal(VARIABLES.params))[0], np.diag(explicit), atol=1e-12)
    np.testing.assert_allclose(made.trace(), np.trace(explicit), rtol=1e-10)
    solved = matrix(lambda v: made.solve(v, 0.05))
    np.testing.assert_allclose(solved[inside], np.linalg.inv(explicit[inside] + 0.05 * np.eye(len(part))), atol=1e-9)
    root = matrix(lambda v: made.sqrt_solve(v, 0.05))
    np.testing.assert_allclose(root @ root, solved, atol=1e-9)
    rest = np.setdiff1d(np.arange(64), part)
    assert not solved[rest].any()
    assert made.memory == sum(x.nbytes for x in jax.tree.leaves(made))


def test_a_block_is_the_block_of_the_matrix():
    np.testing.assert_allclose(matrix(fitted("last layer").matvec)[40:, 40:], ggn()[40:, 40:], atol=1e-12)


def test_the_diagonal_is_that_of_the_matrix_with_exact_labels():
    np.testing.assert_allclose(matrix(fitted("diagonal").matvec), np.diag(np.diag(ggn())), atol=1e-12)


def test_low_ranks_come_nearer_with_every_vector_and_leave_the_rest_to_the_damping():
    expected = ggn()
    errors = []
    for rank in (2, 8, 24, 64):
        made = jax.jit(curvature.lanczos(GGN, rank=rank))(VARIABLES, ROWS, jnp.ones(60), KEY)
        errors.append(np.linalg.norm(matrix(made.matvec) - expected))
    assert errors == sorted(errors, reverse=True)
    small = fitted("low rank")
    outside = np.linalg.svd(np.asarray(small.vectors))[2][-1]
    v = ravel_pytree(VARIABLES.params)[1](jnp.asarray(outside))
    np.testing.assert_allclose(ravel_pytree(small.solve(v, 0.1))[0], outside / 0.1, atol=1e-8)


def test_what_is_prepared_depends_on_present_rows_only():
    data = wide(blobs())
    gone = ju.remove(data, lane(ju.from_indices(data, [[5, 6]]), 0))
    broken = gone._replace(
        train=gone.train._replace(inputs=np.where(np.asarray(gone.present)[:, None] > 0, ROWS.inputs, np.nan))
    )
    kept = np.asarray(gone.present) > 0
    few = ju.training_data(ROWS.inputs[kept], ROWS.targets[kept])
    for name in ("dense", "gram", "diagonal", "kfac", "ekfac"):
        prepare = jax.jit(curvature.prepare(FITS[name], name="made"))
        a, b = (matrix(prepare(VARIABLES, x, KEY).extra["made"].matvec) for x in (broken, few))
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_bad_ranks_layers_and_kinds_are_refused():
    with pytest.raises(ValueError, match="at most the number of weights 64"):
        curvature.lanczos(GGN, rank=65)(VARIABLES, ROWS, jnp.ones(60), KEY)
    with pytest.raises(ValueError, match=r"names no parameter; there are bias, body, head"):
        curvature.dense(MODEL, layers="tail")(VARIABLES, ROWS, jnp.ones(60), KEY)
    with pytest.raises(ValueError, match="kind must be one of"):
        curvature.ekfac(MODEL, kind="true")(VARIABLES, ROWS, jnp.ones(60), KEY)
    real = ROWS._replace(targets=ROWS.targets * 1.0)
    with pytest.raises(ValueError, match="runs over classes"):
        curvature.diagonal(MODEL)(VARIABLES, real, jnp.ones(60), KEY)


# Solvers


def sides(count=4):
    unravel = ravel_pytree(VARIABLES.params)[1]
    flat = jax.random.normal(KEY, (count, 64), jnp.float64)
    return np.asarray(flat), jax.vmap(unravel)(flat)


def flat_of(trees):
    return np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(trees))


def test_conjugate_gradients_solve_every_lane_and_say_how():
    flat, b = sides()
    product = GGN(VARIABLES, ROWS)
    solve = jax.jit(jax.vmap(lambda b: curvature.cg(product, b, damping=0.01, rtol=1e-8, max_steps=200)))
    solved = solve(b)
    expected = np.linalg.solve(ggn() + 0.01 * np.eye(64), flat.T).T
    np.testing.assert_allclose(flat_of(solved.solution), expected, rtol=1e-5, atol=1e-6)
    residual = (ggn() + 0.01 * np.eye(64)) @ flat_of(solved.solution).T - flat.T
    np.testing.assert_allclose(solved.residual, np.linalg.norm(residual, axis=0) / np.linalg.norm(flat, axis=1), rtol=1e-3)
    assert solved.converged.all()
    assert solved.num_steps.min() > 5


def test_a_lane_that_did_not_converge_says_so_alone():
    flat, b = sides(2)
    eigenvector = np.linalg.eigh(ggn())[1][:, -1]
    easy = jax.tree.map(lambda x: x[0], jax.vmap(ravel_pytree(VARIABLES.params)[1])(jnp.asarray(eigenvector)[None]))
    b = jax.tree.map(lambda x, e: x.at[1].set(e), b, easy)
    product = GGN(VARIABLES, ROWS)
    solved = jax.jit(jax.vmap(lambda b: curvature.cg(product, b, damping=1e-3, rtol=1e-6, max_steps=3)))(b)
    assert solved.converged.tolist() == [False, True]
    assert solved.num_steps.tolist()[1] <= 2


def test_indefinite_matrices_and_zeros():
    _, b = sides(1)
    b = jax.tree.map(lambda x: x[0], b)
    assert not curvature.cg(curvature.hvp(MODEL, VARIABLES, ROWS), b, rtol=1e-6).converged
    nothing = curvature.cg(GGN(VARIABLES, ROWS), jax.tree.map(jnp.zeros_like, b), damping=0.1)
    assert nothing.converged
    assert not any(np.any(x) for x in jax.tree.leaves(nothing.solution))


def test_an_exact_preconditioner_needs_next_to_no_steps():
    _, b = sides()
    product, exact = GGN(VARIABLES, ROWS), fitted("dense")
    solve = jax.jit(jax.vmap(lambda b: curvature.cg(product, b, damping=1e-3, rtol=1e-8, preconditioner=exact)))
    solved = solve(b)
    assert solved.converged.all()
    assert solved.num_steps.max() <= 3


def test_lissa_solves_at_a_safe_scale_and_reports_that_it_went_apart_at_an_unsafe_one():
    _, b = sides(1)
    b = jax.tree.map(lambda x: x[0], b)
    product = GGN(VARIABLES, ROWS)
    scale = curvature.safe_scale(product, VARIABLES.params, KEY, damping=0.5)
    largest = np.linalg.eigvalsh(ggn())[-1] + 0.5
    assert 1.5 * largest < scale <= 2.01 * largest
    solve = jax.jit(
        lambda scale: curvature.lissa(lambda v, s: product(v), b, damping=0.5, scale=scale, num_steps=150, matvec=product)
    )
    good, bad = solve(scale), solve(0.45 * largest)
    expected = np.linalg.solve(ggn() + 0.5 * np.eye(64), ravel_pytree(b)[0])
    assert good.converged
    np.testing.assert_allclose(ravel_pytree(good.solution)[0], expected, rtol=1e-6, atol=1e-6)
    assert not bad.converged


def test_woodbury_is_the_inverse_of_what_is_left():
    flat, b = sides(1)
    gradients = per_example_gradients(MODEL, VARIABLES, ROWS)
    made = curvature.gram(MODEL, kind="empirical")(VARIABLES, ROWS, jnp.ones(60), KEY)
    columns = jax.tree.map(lambda g: jnp.concatenate([g[:5] / np.sqrt(60), jnp.zeros((2, *g.shape[1:]))]), gradients)
    v = flat_of(columns)
    found = jax.jit(lambda b: curvature.woodbury(made, columns, b, damping=0.02))(jax.tree.map(lambda x: x[0], b))
    left = matrix(made.matvec) + 0.02 * np.eye(64) - v.T @ v
    np.testing.assert_allclose(ravel_pytree(found.solution)[0], np.linalg.solve(left, flat[0]), rtol=1e-7, atol=1e-7)
    assert 0 < found.margin < 1
    over = jax.tree.map(lambda x: 10 * x, columns)
    assert curvature.woodbury(made, over, jax.tree.map(lambda x: x[0], b), damping=0.02).margin < 0


def test_bad_settings_of_solvers_are_refused():
    _, b = sides(1)
    with pytest.raises(ValueError, match="rtol is a relative residual"):
        curvature.cg(GGN(VARIABLES, ROWS), b, rtol=0.0)
    with pytest.raises(ValueError, match="max_steps must be an integer"):
        curvature.cg(GGN(VARIABLES, ROWS), b, max_steps=0)


def test_batches_of_gradients_are_averaged_as_published():
    weights = jnp.ones(60).at[3].set(0)
    found = curvature.batch_means(MODEL, VARIABLES, ROWS, weights, batch_size=25)
    kept = np.flatnonzero(np.asarray(weights))
    parts = [ju.Examples(*(x[kept[s : s + 25]] for x in ROWS)) for s in (0, 25, 50)]
    gradients = [jax.grad(loss_at(MODEL, part))(VARIABLES.params) for part in parts]
    expected = jax.tree.map(lambda *g: sum(x**2 for x in g) / 3, *gradients)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), found, expected)
