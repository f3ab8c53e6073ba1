"""Representations and solvers, against explicit matrices."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxunlearn as ju
from jaxunlearn import curvature
from tests.curvature.test_matvecs import KEY, MODEL, ROWS, VARIABLES, flat, in_float64, loss_at, matrix, matvec, wide  # noqa: F401
from tests.problems import blobs, lane, linear_classifier

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


@cache
def fitted(name):
    return jax.jit(FITS[name])(VARIABLES, ROWS, jnp.ones(60), KEY)


@cache
def ggn():
    return matrix(GGN, VARIABLES, ROWS)


@pytest.mark.parametrize(("name", "error"), [("dense", 1e-12), ("gram", 1e-12), ("lanczos", 1e-10), ("nystrom", 1e-6)])
def test_full_representations_are_the_matrix(name, error):
    np.testing.assert_allclose(matrix(matvec, fitted(name)), ggn(), atol=error)


def test_the_dense_hessian_has_its_negative_eigenvalues():
    made = curvature.dense(MODEL, kind="hessian")(VARIABLES, ROWS, jnp.ones(60), KEY)
    flat, unravel = ravel_pytree(VARIABLES.params)
    hessian = jax.hessian(lambda x: loss_at(MODEL, ROWS)(unravel(x)))(jnp.asarray(flat))
    np.testing.assert_allclose(made.values, np.linalg.eigvalsh(hessian), atol=1e-12)
    assert made.values[0] < 0


@pytest.mark.parametrize("name", list(FITS))
def test_functions_of_a_representation_are_those_of_its_matrix(name):
    made = fitted(name)
    explicit = matrix(matvec, made)
    part = np.arange(64) if name != "last layer" else np.arange(40, 64)  # bias, body and head in this order
    inside = np.ix_(part, part)
    np.testing.assert_allclose(explicit, explicit.T, atol=1e-12)
    diagonal, trace = jax.jit(lambda made: (made.diagonal(VARIABLES.params), made.trace()))(made)
    np.testing.assert_allclose(flat(diagonal), np.diag(explicit), atol=1e-12)
    np.testing.assert_allclose(trace, np.trace(explicit), rtol=1e-10)
    solved = matrix(lambda made: lambda v: made.solve(v, 0.05), made)
    np.testing.assert_allclose(solved[inside], np.linalg.inv(explicit[inside] + 0.05 * np.eye(len(part))), atol=1e-9)
    root = matrix(lambda made: lambda v: made.sqrt_solve(v, 0.05), made)
    np.testing.assert_allclose(root @ root, solved, atol=1e-9)
    rest = np.setdiff1d(np.arange(64), part)
    assert not solved[rest].any()
    assert made.memory == sum(x.nbytes for x in jax.tree.leaves(made))


def test_a_block_is_the_block_of_the_matrix():
    np.testing.assert_allclose(matrix(matvec, fitted("last layer"))[40:, 40:], ggn()[40:, 40:], atol=1e-12)


def test_the_diagonal_is_that_of_the_matrix_with_exact_labels():
    np.testing.assert_allclose(matrix(matvec, fitted("diagonal")), np.diag(np.diag(ggn())), atol=1e-12)


def test_low_ranks_come_nearer_with_every_vector_and_leave_the_rest_to_the_damping():
    expected = ggn()
    errors = []
    for rank in (2, 8, 24, 64):
        made = jax.jit(curvature.lanczos(GGN, rank=rank))(VARIABLES, ROWS, jnp.ones(60), KEY)
        errors.append(np.linalg.norm(matrix(matvec, made) - expected))
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
        prepare = jax.jit(curvature.prepare(FITS[name]))
        a, b = (matrix(matvec, prepare(VARIABLES, x, KEY).extra["curvature"].value) for x in (broken, few))
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [12, 48])
def test_lanczos_steps_beyond_the_rank_of_a_matrix_invent_nothing(dtype, rank):
    """8 gradients of 64 weights: a matrix of rank 8, whose other eigenvalues are 0."""
    rows = np.random.default_rng(0).normal(size=(8, 64)).astype(dtype)
    product = lambda *_: lambda v: {"w": rows.T @ (rows @ v["w"])}
    fit = curvature.lanczos(product, rank=rank)
    made = jax.jit(fit)(ju.Variables({"w": jnp.zeros(64, dtype)}), None, None, KEY)
    expected = np.linalg.eigvalsh(rows @ rows.T)
    tolerance = 1e-4 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(np.sort(made.values)[-8:], expected, rtol=tolerance)
    np.testing.assert_allclose(np.sort(made.values)[:-8], 0, atol=tolerance * expected[-1])
    np.testing.assert_allclose(made.vectors @ made.vectors.T, np.eye(rank), atol=tolerance)


def test_bad_ranks_layers_and_kinds_are_refused():
    with pytest.raises(ValueError, match="at most the number of weights 64"):
        curvature.lanczos(GGN, rank=65)(VARIABLES, ROWS, jnp.ones(60), KEY)
    with pytest.raises(ValueError, match=r"names no parameter; there are bias, body, head"):
        curvature.dense(MODEL, layers="tail")(VARIABLES, ROWS, jnp.ones(60), KEY)
    with pytest.raises(ValueError, match="kind must be one of"):
        curvature.ekfac(MODEL, kind="true")(VARIABLES, ROWS, jnp.ones(60), KEY)
    real = ROWS._replace(targets=ROWS.targets * 1.0)
    with pytest.raises(TypeError, match="class numbers"):
        curvature.diagonal(MODEL)(VARIABLES, real, jnp.ones(60), KEY)


def sides(count=4):
    unravel = ravel_pytree(VARIABLES.params)[1]
    flat = jax.random.normal(KEY, (count, 64), jnp.float64)
    return np.asarray(flat), jax.vmap(unravel)(flat)


def test_batches_of_gradients_are_averaged_as_published():
    weights = jnp.ones(60).at[3].set(0)
    found = curvature.batch_means(MODEL, VARIABLES, ROWS, weights, batch_size=25)
    kept = np.flatnonzero(np.asarray(weights))
    parts = [ju.Examples(*(x[kept[s : s + 25]] for x in ROWS)) for s in (0, 25, 50)]
    gradients = [jax.grad(loss_at(MODEL, part))(VARIABLES.params) for part in parts]
    expected = jax.tree.map(lambda *g: sum(x**2 for x in g) / 3, *gradients)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), found, expected)


def test_the_dense_hessian_is_the_hessian():
    made = curvature.dense(MODEL, kind="hessian")(VARIABLES, ROWS, jnp.ones(60), KEY)
    np.testing.assert_allclose(matrix(matvec, made), matrix(partial(curvature.hvp, MODEL), VARIABLES, ROWS), atol=1e-12)


@pytest.mark.parametrize("name", ["gram", "low rank", "diagonal", "ekfac", "last layer"])
def test_representations_go_in_and_out_of_compiled_programs_and_share_right_hand_sides(name):
    made = fitted(name)
    leaves, form = jax.tree.flatten(made)
    again = jax.tree.unflatten(form, leaves)
    _, b = sides(3)
    solve = jax.jit(lambda made, b: jax.vmap(lambda v: made.solve(v, 0.1))(b))
    together = solve(again, b)
    for place in range(3):
        alone = made.solve(lane(b, place), 0.1)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), lane(together, place), alone)


@pytest.mark.parametrize("name", ["gram", "lanczos", "nystrom"])
def test_every_block_is_the_block_of_the_matrix(name):
    fits = {
        "gram": curvature.gram(MODEL, layers="head"),
        "lanczos": curvature.lanczos(GGN, rank=24, layers="head"),
        "nystrom": curvature.nystrom(GGN, rank=24, layers="head"),
    }
    made = jax.jit(fits[name])(VARIABLES, ROWS, jnp.ones(60), KEY)
    found = matrix(matvec, made)
    np.testing.assert_allclose(found[40:, 40:], ggn()[40:, 40:], atol=1e-8)
    assert not found[:40].any()


@pytest.mark.parametrize("name", ["lanczos", "nystrom"])
def test_products_without_absent_rows_make_the_same_low_rank(name):
    weights = jnp.ones(60).at[jnp.array([5, 6])].set(0)
    broken = ROWS._replace(inputs=np.where(np.asarray(weights)[:, None] > 0, ROWS.inputs, np.nan))
    kept = ju.Examples(*(x[np.asarray(weights) > 0] for x in ROWS))
    found = jax.jit(FITS[name])(VARIABLES, broken, weights, KEY)
    np.testing.assert_allclose(matrix(matvec, found), matrix(GGN, VARIABLES, kept), atol=1e-6)


def test_batches_ignore_what_rows_that_do_not_count_hold():
    weights = jnp.ones(60).at[3].set(0)
    broken = ROWS._replace(inputs=np.where(np.asarray(weights)[:, None] > 0, ROWS.inputs, np.nan))
    means = jax.jit(lambda rows: curvature.batch_means(MODEL, VARIABLES, rows, weights, batch_size=25))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-14), means(broken), means(ROWS))


@pytest.mark.parametrize("rows", [3, 4, 5])
def test_the_gram_form_is_whole_when_rows_and_weights_are_as_many(rows):
    model, few = linear_classifier(), ju.Examples(*(x[:rows] for x in ROWS))
    variables = ju.Variables({"w": np.full((4, 3), 0.3)})
    made = jax.jit(curvature.gram(model, kind="fisher"))(variables, few, jnp.ones(rows), KEY)  # 3 vectors a row, 12 weights
    expected = np.linalg.inv(matrix(matvec, made, params=variables.params) + 0.1 * np.eye(12))
    np.testing.assert_allclose(
        matrix(lambda made: lambda v: made.solve(v, 0.1), made, params=variables.params), expected, atol=1e-12
    )


@pytest.mark.parametrize("rows", [2, 30])  # fewer vectors than weights, and more
def test_a_broken_row_is_no_matrix_of_zeros(rows):
    few = ju.Examples(np.where(np.arange(rows)[:, None] == 1, np.nan, ROWS.inputs[:rows]), ROWS.targets[:rows])
    made = jax.jit(curvature.gram(linear_classifier()))(ju.Variables({"w": np.full((4, 3), 0.3)}), few, jnp.ones(rows), KEY)
    assert np.isnan(made.trace())


def test_a_matrix_of_zeros_is_one():
    rows = ju.Examples(np.zeros((12, 4)), np.arange(12) % 3)
    variables = ju.Variables({"w": np.full((4, 3), 0.3)})
    for fit in (curvature.nystrom(partial(curvature.ggn_vp, linear_classifier()), rank=2), curvature.gram(linear_classifier())):
        solved = jax.jit(lambda fit=fit: fit(variables, rows, jnp.ones(12), KEY).solve(variables.params, 0.5))()
        np.testing.assert_allclose(solved["w"], 0.6, rtol=1e-12)


@pytest.mark.parametrize("name", ["diagonal", "dense", "gram", "kfac", "ekfac"])
def test_models_without_a_derivative_at_zero_are_cut_into_chunks(name):
    model, variables = linear_classifier(lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)), np.full((4, 3), 0.3)
    made = [
        getattr(curvature, name)(model, kind="fisher", chunk=chunk)(ju.Variables({"w": variables}), ROWS, jnp.ones(60), KEY)
        for chunk in (None, 7)
    ]
    whole, cut = (x.matvec({"w": np.arange(12.0).reshape(4, 3)})["w"] for x in made)
    np.testing.assert_allclose(cut, whole, atol=1e-13)


@pytest.mark.parametrize("fit", [curvature.dense, curvature.gram, curvature.kfac, curvature.ekfac])
def test_decompositions_are_not_differentiated_by_accident(fit):
    def length(scale):
        variables = VARIABLES._replace(params=jax.tree.map(lambda x: scale * x, VARIABLES.params))
        made = fit(MODEL)(variables, ROWS, jnp.ones(60), KEY)
        return jnp.sum(made.solve(VARIABLES.params, 0.1)["head"])

    jax.eval_shape(length, 1.0)
    with pytest.raises(TypeError, match="use solver='cg'"):
        jax.eval_shape(jax.grad(length), 1.0)
