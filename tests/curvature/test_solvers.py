"""Solvers lane by lane, and downdates against matrices of the rows that are left."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxunlearn as ju
from jaxunlearn import curvature
from jaxunlearn.curvature.single_rows import row_factors
from tests.curvature.test_matvecs import KEY, MODEL, ROWS, VARIABLES, matrix, matvec
from tests.problems import distance, lane, network

DAMPING = 0.02


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def ggn(in_float64):
    return matrix(partial(curvature.ggn_vp, MODEL), VARIABLES, ROWS)


@pytest.fixture(scope="module")
def made(in_float64):
    fits = {"dense": curvature.dense(MODEL), "ekfac": curvature.ekfac(MODEL, kind="fisher")}
    return {name: jax.jit(fit)(VARIABLES, ROWS, jnp.ones(60), KEY) for name, fit in fits.items()}


@pytest.fixture(scope="module")
def sides(in_float64, ggn):
    """A vector of zeros, the leading eigenvector and two random vectors, as rows and as trees."""
    random = np.random.default_rng(0).normal(size=(2, 64))
    flat = np.stack([np.zeros(64), np.linalg.eigh(ggn)[1][:, -1], *random])
    return flat, jax.vmap(ravel_pytree(VARIABLES.params)[1])(jnp.asarray(flat))


@pytest.fixture(scope="module")
def columns(in_float64):
    """Vectors of the first five rows whose outer products are their part of the Gauss-Newton matrix."""
    part = jax.tree.map(lambda x: x[:5], ROWS)
    factors = jax.jit(partial(row_factors, "ggn", MODEL))(VARIABLES, part, jnp.zeros(5))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]) / np.sqrt(60), factors)


def flat_of(trees):
    return np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(trees))


def test_every_lane_ends_as_it_does_alone(ggn, sides):
    flat, b = sides
    solve = partial(curvature.cg, curvature.ggn_vp(MODEL, VARIABLES, ROWS), damping=DAMPING, rtol=1e-7, max_steps=200)
    together, alone = jax.jit(jax.vmap(solve))(b), jax.jit(solve)
    np.testing.assert_allclose(flat_of(together.solution), np.linalg.solve(ggn + DAMPING * np.eye(64), flat.T).T, atol=1e-5)
    assert together.converged.all()
    steps = together.num_steps.tolist()
    assert max(steps[:2]) <= 2 < 10 < min(steps[2:])
    for place in range(4):
        single = alone(lane(b, place))
        assert abs(single.num_steps - steps[place]) <= 1  # products of one vector and of four round differently
        assert distance(single.solution, lane(together.solution, place)) < 1e-5
    assert together.residual[0] == 0
    assert not np.any(flat_of(together.solution)[0])


def test_steps_that_run_out_show_in_the_residual(ggn, sides):
    flat, b = sides
    solve = partial(curvature.cg, curvature.ggn_vp(MODEL, VARIABLES, ROWS), damping=DAMPING, rtol=1e-7, max_steps=4)
    solved = jax.jit(jax.vmap(solve))(b)
    rest = flat_of(solved.solution) @ (ggn + DAMPING * np.eye(64)) - flat
    expected = np.linalg.norm(rest, axis=1) / np.maximum(np.linalg.norm(flat, axis=1), 1e-300)
    np.testing.assert_allclose(solved.residual, expected, rtol=1e-6, atol=1e-12)
    assert solved.converged.tolist() == [True, True, False, False]
    assert solved.num_steps.max() <= 4


def test_indefinite_matrices_are_not_solved_in_any_random_lane(sides):
    _, b = sides
    product = curvature.hvp(MODEL, VARIABLES, ROWS)
    solved = jax.jit(jax.vmap(lambda b: curvature.cg(product, b, damping=0.0, rtol=1e-6, max_steps=60)))(b)
    assert solved.converged.tolist()[0]
    assert not solved.converged[2:].any()


@pytest.mark.parametrize(("name", "shift", "steps"), [("dense", None, 3), ("ekfac", 2e-3, 300)])
def test_preconditioners_change_no_solution_and_an_exact_one_leaves_next_to_no_steps(ggn, made, sides, name, shift, steps):
    options = {"damping": 1e-3, "rtol": 1e-8, "preconditioner": made[name], "preconditioner_damping": shift}
    solve = partial(curvature.cg, curvature.ggn_vp(MODEL, VARIABLES, ROWS), max_steps=steps, **options)
    solved = jax.jit(jax.vmap(solve))(sides[1])
    assert solved.converged.all()
    expected = np.linalg.solve(ggn + 1e-3 * np.eye(64), sides[0].T).T
    np.testing.assert_allclose(flat_of(solved.solution), expected, rtol=1e-4, atol=1e-3)


def test_damping_may_be_traced_and_float32_converges():
    with jax.enable_x64(False):
        model = network()
        variables, rows = model.init(KEY), jax.tree.map(lambda x: np.asarray(x, np.asarray(x).dtype), ROWS)
        rows = rows._replace(inputs=rows.inputs.astype(np.float32))
        product = curvature.ggn_vp(model, variables, rows)
        solve = jax.jit(lambda damping: curvature.cg(product, variables.params, damping=damping, rtol=1e-4))
        for damping in (0.1, 1.0):
            solved = solve(damping)
            assert solved.converged
            assert solved.residual.dtype == jnp.float32
            assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(solved.solution))


def test_lissa_takes_the_batch_of_every_step(ggn, sides):
    flat, b = sides
    product = curvature.ggn_vp(MODEL, VARIABLES, ROWS)
    scaled = lambda v, step: jax.tree.map(lambda x: x * (1 + step % 2), product(v))
    solved = jax.jit(lambda b: curvature.lissa(scaled, b, damping=0.5, scale=12.0, num_steps=5, matvec=product))(lane(b, 2))
    h = flat[2]
    for step in range(5):
        h = flat[2] + h - ((1 + step % 2) * ggn @ h + 0.5 * h) / 12
    np.testing.assert_allclose(ravel_pytree(solved.solution)[0], h / 12, atol=1e-12)
    rest = np.linalg.norm((ggn + 0.5 * np.eye(64)) @ h / 12 - flat[2]) / np.linalg.norm(flat[2])
    assert float(solved.residual) == pytest.approx(rest)
    assert solved.num_steps == 5


def test_lissa_solves_at_a_safe_scale_and_reports_that_it_went_apart_at_an_unsafe_one(ggn, sides):
    b, product = lane(sides[1], 2), curvature.ggn_vp(MODEL, VARIABLES, ROWS)
    scale = curvature.safe_scale(product, VARIABLES.params, KEY, damping=0.5)
    largest = np.linalg.eigvalsh(ggn)[-1] + 0.5
    assert 1.5 * largest < scale <= 2.01 * largest
    solve = jax.jit(
        lambda scale: curvature.lissa(lambda v, s: product(v), b, damping=0.5, scale=scale, num_steps=150, matvec=product)
    )
    good, bad = solve(scale), solve(0.45 * largest)
    expected = np.linalg.solve(ggn + 0.5 * np.eye(64), sides[0][2])
    assert good.converged
    np.testing.assert_allclose(ravel_pytree(good.solution)[0], expected, rtol=1e-6, atol=1e-6)
    assert not bad.converged


@pytest.mark.parametrize("num_steps", [200, 20_000])
def test_lissa_below_half_of_the_largest_eigenvalue_ends_nowhere(sides, num_steps):
    product = lambda v: jax.tree.map(lambda x: 3.0 * x, v)
    solve = lambda scale: curvature.lissa(
        lambda v, step: product(v), lane(sides[1], 2), damping=1.0, scale=scale, num_steps=num_steps, matvec=product
    )
    solved = jax.jit(jax.vmap(solve))(jnp.array([1.9, 2.1]))  # the only eigenvalue is 4, damping included
    assert solved.converged.tolist() == [False, True]
    assert not solved.residual[0] < 1


def test_the_safe_scale_of_nothing_is_the_damping():
    scale = curvature.safe_scale(lambda v: jax.tree.map(jnp.zeros_like, v), VARIABLES.params, KEY, damping=0.25)
    assert float(scale) == 0.5


@pytest.mark.parametrize("name", ["dense", "ekfac"])
def test_downdates_are_inverses_of_the_downdated_matrix(made, columns, sides, name):
    flat, b = sides
    v = 0.2 * flat_of(columns)
    small = jax.tree.map(lambda x: 0.2 * x, columns)
    found, blockwise = (
        jax.jit(jax.vmap(lambda b, c=chunk: curvature.woodbury(made[name], small, b, damping=DAMPING, chunk=c)))(b)
        for chunk in (None, 3)
    )
    assert distance(found, blockwise) < 1e-9
    left = matrix(matvec, made[name]) + DAMPING * np.eye(64) - v.T @ v
    np.testing.assert_allclose(flat_of(found.solution), np.linalg.solve(left, flat.T).T, rtol=1e-8, atol=1e-8)
    core = np.eye(len(v)) - v @ np.linalg.solve(left + v.T @ v, v.T)
    np.testing.assert_allclose(found.margin, np.linalg.eigvalsh(core)[0], atol=1e-10)
    assert found.margin.min() > 0


def test_rows_taken_off_leave_the_matrix_of_the_others(made, columns, sides):
    flat, b = sides
    kept = ju.Examples(*(x[5:] for x in ROWS))
    rest = matrix(partial(curvature.ggn_vp, MODEL), VARIABLES, kept)
    found = jax.jit(partial(curvature.woodbury, damping=DAMPING * 55 / 60))(made["dense"], columns, lane(b, 3))
    expected = np.linalg.solve(rest + DAMPING * np.eye(64), flat[3])
    np.testing.assert_allclose(ravel_pytree(found.solution)[0] * 55 / 60, expected, rtol=1e-8, atol=1e-8)


def test_columns_of_zeros_change_nothing(made, columns, sides):
    b = lane(sides[1], 2)
    solve = jax.jit(lambda columns: curvature.woodbury(made["dense"], columns, b, damping=DAMPING))
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros((3, *x.shape[1:]))]), columns)
    assert distance(solve(padded).solution, solve(columns).solution) < 1e-10
    nothing = solve(jax.tree.map(jnp.zeros_like, columns))
    assert distance(nothing.solution, made["dense"].solve(b, DAMPING)) < 1e-12
    assert float(nothing.margin) == 1


def test_the_margin_is_above_zero_only_while_the_matrix_is_positive(made, columns, sides):
    b, explicit, v = lane(sides[1], 2), matrix(matvec, made["dense"]), flat_of(columns)
    scaled = lambda s: jax.tree.map(lambda x: s * x, columns)
    margin = jax.jit(jax.vmap(lambda s: curvature.woodbury(made["dense"], scaled(s), b, damping=DAMPING).margin))
    scales = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
    smallest = [np.linalg.eigvalsh(explicit + DAMPING * np.eye(64) - s**2 * v.T @ v)[0] for s in scales]
    np.testing.assert_array_equal(np.asarray(margin(scales)) > 0, np.array(smallest) > 0)
    assert smallest[0] > 0 > smallest[-1]


@pytest.mark.parametrize("rtol", [0.0, -1e-3, 1.0, float("nan")])
def test_tolerances_out_of_range_are_refused(sides, rtol):
    with pytest.raises(ValueError, match="rtol is a relative residual"):
        curvature.cg(lambda v: v, lane(sides[1], 2), rtol=rtol)


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_numbers_of_steps_out_of_range_are_refused(sides, steps):
    b = lane(sides[1], 2)
    with pytest.raises(ValueError, match="max_steps must be an integer"):
        curvature.cg(lambda v: v, b, max_steps=steps)
    with pytest.raises(ValueError, match="num_steps must be an integer"):
        curvature.lissa(lambda v, step: v, b, damping=0.1, scale=2.0, num_steps=steps, matvec=lambda v: v)


def test_solutions_have_derivatives_of_any_order():
    rng = np.random.default_rng(0)
    root, slope = rng.normal(size=(6, 6)), jnp.arange(1.0, 7)
    base = jnp.asarray(root @ root.T + np.eye(6))
    first = curvature.Diagonal({"w": jnp.diag(base)})

    def by_steps(t):
        def product(v):
            return {"w": base @ v["w"] + t * slope * v["w"]}

        return jnp.sum(curvature.cg(product, {"w": slope * t}, damping=t, rtol=1e-12, preconditioner=first).solution["w"] ** 3)

    def exact(t):
        return jnp.sum(jnp.linalg.solve(base + t * jnp.diag(slope + 1), slope * t) ** 3)

    at = jnp.array([0.3, 0.5])
    for derivative in (jax.grad, jax.hessian, jax.jacfwd):
        found, expected = (jax.jit(jax.vmap(derivative(f)))(at) for f in (by_steps, exact))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_downdate_has_a_derivative_in_its_damping():
    """Columns of zeros, as unused slots have them, all have eigenvalue 1."""
    matrix = curvature.LowRank(jnp.array([1.0, 2.0]), jnp.eye(2), (True,))
    columns = {"w": jnp.zeros((4, 2)).at[0].set(jnp.array([0.5, 0.25]))}
    b = {"w": jnp.array([1.0, -2.0])}

    def found(damping):
        return jnp.sum(curvature.woodbury(matrix, columns, b, damping=damping).solution["w"] ** 2)

    def exact(damping):
        v = columns["w"][0]
        return jnp.sum(jnp.linalg.solve(jnp.diag(jnp.array([1.0, 2.0])) + damping * jnp.eye(2) - jnp.outer(v, v), b["w"]) ** 2)

    np.testing.assert_allclose(jax.jit(jax.grad(found))(0.3), jax.jit(jax.grad(exact))(0.3), rtol=1e-9)
