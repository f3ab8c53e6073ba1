"""Convex problems: derivatives, constants, sums, training to machine precision, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import convex
from jaxunlearn.convex import objective

RNG = np.random.default_rng(0)
ROWS = convex.feature_rows(RNG.normal(size=(70, 4)))
LABELS = {
    "ridge": RNG.normal(size=70).astype(np.float32),
    "logistic": RNG.integers(0, 2, 70).astype(np.int32),
    "softmax": RNG.integers(0, 3, 70).astype(np.int32),
}
PROBLEMS = {"ridge": convex.ridge(0.1), "logistic": convex.logistic(0.01), "softmax": convex.softmax(0.02, 3)}
DATA = {name: ju.training_data(ROWS, labels) for name, labels in LABELS.items()}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=list(PROBLEMS))
def problem(request):
    return PROBLEMS[request.param]


def objective_of(problem, kernel, data):
    """The objective in one line, from the model that audits see."""
    outputs = problem.model.forward(ju.Variables({"kernel": kernel}), jnp.asarray(data.train.inputs, jnp.float64))
    counts = data.present.astype(jnp.float64)
    penalty = problem.l2 / 2 * jnp.sum(counts) * jnp.sum(kernel**2)
    return jnp.sum(counts * problem.model.loss(outputs, data.train)) + penalty


def test_derivatives_of_the_loss_are_those_of_autodiff(problem):
    def loss(z, y):
        return problem.loss(z[None], y[None])[0]

    @jax.jit
    def both(scores, targets):
        found = problem.slope(scores, targets), problem.curvature(scores), problem.curvature_root(scores)
        return found, (jax.vmap(jax.grad(loss))(scores, targets), jax.vmap(jax.hessian(loss))(scores, targets))

    scores = RNG.normal(size=(9, problem.num_outputs)) * 3
    (slope, curvature, root), (expected_slope, expected_curvature) = jax.device_get(both(scores, LABELS[problem.name][:9]))
    np.testing.assert_allclose(slope, expected_slope, atol=1e-12)
    np.testing.assert_allclose(curvature, expected_curvature, atol=1e-12)
    np.testing.assert_allclose(root @ root.transpose(0, 2, 1), curvature, atol=1e-12)
    assert np.all(np.linalg.norm(slope, axis=1) <= problem.max_slope)
    assert np.all(np.linalg.norm(curvature, ord=2, axis=(1, 2)) <= problem.max_curvature + 1e-12)


def test_lipschitz_constants_of_the_curvature_hold_and_are_reached():
    for name, scores in (("logistic", [[np.log(2 + 3**0.5)]]), ("softmax", [[np.log(2 + 3**0.5), 0, -40]])):
        problem = PROBLEMS[name]
        slope = jax.jvp(problem.curvature, (jnp.array(scores),), (jnp.array([[1.0, -1, 0][: problem.num_outputs]]),))[1]
        length = 1 if name == "logistic" else 2**0.5
        assert float(jnp.linalg.norm(slope[0], 2)) / length == pytest.approx(problem.curvature_lipschitz, rel=1e-9)
        base = jnp.asarray(RNG.normal(size=(4000, problem.num_outputs)) * 2)
        step = jnp.asarray(RNG.normal(size=base.shape) * 0.3)
        change = jnp.linalg.norm(problem.curvature(base + step) - problem.curvature(base), ord=2, axis=(1, 2))
        assert jnp.all(change <= problem.curvature_lipschitz * jnp.linalg.norm(step, axis=1) + 1e-12)


def test_gradient_and_hessian_are_sums_over_present_rows_in_any_blocks(problem, monkeypatch):
    monkeypatch.setattr(objective, "BLOCK_ELEMENTS", 16 * 5)  # blocks of 16 rows: 70 is no multiple
    present = np.ones(70)
    present[[0, 17, 69]] = 0
    data = DATA[problem.name]._replace(present=jnp.asarray(present))
    poisoned = data.train._replace(inputs=data.train.inputs.at[17].set(jnp.nan))

    @jax.jit
    def both(kernel):
        slope = objective.gradient(problem, kernel, poisoned, data.present, jnp.ones_like(kernel))  # with a secret of ones
        matrix = objective.hessian(problem, kernel, poisoned, data.present)
        dense, iterative = (
            objective.newton_direction(problem, kernel, poisoned, data.present, slope, solver) for solver in ("dense", "cg")
        )
        derivatives = jax.value_and_grad(lambda k: objective_of(problem, k, data))
        return (slope, matrix, dense, iterative), derivatives(kernel)[1], jax.hessian(lambda k: derivatives(k)[0])(kernel)

    kernel = RNG.normal(size=(5, problem.num_outputs))
    (slope, matrix, dense, iterative), expected, hessian = jax.device_get(both(kernel))
    np.testing.assert_allclose(slope, expected + 1, atol=1e-10)
    np.testing.assert_allclose(matrix, hessian.reshape(matrix.shape), atol=1e-10)
    np.testing.assert_allclose(dense, iterative, atol=1e-8)
    np.testing.assert_allclose(dense.ravel(), -np.linalg.solve(matrix, slope.ravel()), atol=1e-9)


def test_training_ends_at_machine_precision_although_float64_was_off(problem):
    with jax.enable_x64(False):
        variables = convex.fit(problem, DATA[problem.name])
    kernel = variables.params["kernel"]
    assert kernel.dtype == jnp.float64
    slope = jax.grad(lambda k: objective_of(problem, k, DATA[problem.name]))(kernel)
    assert jnp.linalg.norm(slope) < 1e-12


def test_ridge_is_the_normal_equations():
    kernel = convex.fit(PROBLEMS["ridge"], DATA["ridge"]).params["kernel"][:, 0]
    rows = ROWS.astype(float)
    expected = np.linalg.solve(rows.T @ rows + 0.1 * 70 * np.eye(5), rows.T @ LABELS["ridge"].astype(float))
    assert np.allclose(kernel, expected, atol=1e-12)


def test_separable_rows_far_from_the_start_converge():
    rows = ju.training_data(ROWS, (ROWS[:, 0] > 0).astype(np.int32))
    kernel = convex.fit(convex.logistic(1e-7), rows).params["kernel"]
    assert jnp.linalg.norm(kernel) > 100
    slope = jax.grad(lambda k: objective_of(convex.logistic(1e-7), k, rows))(kernel)
    assert jnp.linalg.norm(slope) / (1e-7 * 70) < 1e-7 * jnp.linalg.norm(kernel)


def test_the_secret_moves_the_optimum_by_its_own_gradient():
    problem, data = PROBLEMS["logistic"], DATA["logistic"]
    secret = convex.with_perturbation(data, (5, 1), 2.0, jax.random.key(0))
    kernel = convex.fit(problem, secret).params["kernel"]
    slope = jax.grad(lambda k: objective_of(problem, k, data))(kernel)
    assert jnp.allclose(slope, -secret.extra["perturbation"], atol=1e-11)


def test_rows_are_normalised_one_by_one():
    raw = RNG.normal(size=(6, 2, 3)) * 5
    unit = convex.feature_rows(raw)
    assert unit.shape == (6, 7)
    assert unit.dtype == np.float32
    lengths = np.linalg.norm(unit.astype(float), axis=1)
    assert np.all(lengths <= 1)
    assert np.all(lengths > 1 - 1e-5)
    assert np.array_equal(convex.feature_rows(raw[2:3]), unit[2:3])
    short = convex.feature_rows(raw / 1000, intercept=False, norm="clip")
    assert np.allclose(short, raw.reshape(6, 6) / 1000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convex.logistic(0.0), "l2 must be positive"),
        (lambda: convex.softmax(float("nan"), 3), "l2 must be positive"),
        (lambda: convex.softmax(0.1, 1), "num_classes"),
        (lambda: convex.feature_rows(np.array([[1.0, np.nan]])), "1 rows are NaN or inf"),
        (lambda: convex.feature_rows(np.ones((2, 2)), norm="max"), "'unit', 'clip' or None"),
        (lambda: convex.fit(convex.logistic(0.1), DATA["softmax"]), r"labels from 0 to 1, got \[2\]"),
        (lambda: convex.fit(convex.logistic(0.1), ju.training_data(ROWS, 2 * LABELS["logistic"] - 1)), r"\(labels \+ 1\) // 2"),
        (lambda: convex.fit(convex.ridge(0.1), DATA["softmax"]), "real targets"),
        (lambda: convex.fit(convex.logistic(0.1), ju.training_data(5 * ROWS, LABELS["logistic"])), "feature_rows"),
        (lambda: convex.fit(convex.logistic(0.1), ju.training_data(ROWS[:, 0], LABELS["logistic"])), r"rows \[n, d\]"),
        (lambda: convex.fit(convex.logistic(0.1), DATA["logistic"]._replace(present=jnp.zeros(70))), "no row is present"),
        (
            lambda: convex.fit(convex.logistic(0.1), ju.training_data(ROWS * np.inf, LABELS["logistic"])),
            "present rows are NaN or inf",
        ),
        (
            lambda: convex.fit(convex.logistic(0.1), DATA["logistic"]._replace(extra={"perturbation": jnp.ones(3)})),
            "shape of the kernel",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int8, bool])
def test_labels_of_any_integer_type_and_bools_mean_the_same(dtype):
    problem, kernel = PROBLEMS["logistic"], RNG.normal(size=(ROWS.shape[1], 1))
    labels = jnp.asarray(LABELS["logistic"].astype(dtype))
    scores = jnp.asarray(ROWS.astype(np.float64) @ kernel)
    np.testing.assert_array_equal(problem.slope(scores, labels), problem.slope(scores, LABELS["logistic"]))
    np.testing.assert_array_equal(problem.loss(scores, labels), problem.loss(scores, LABELS["logistic"]))
    data = ju.training_data(ROWS, labels)
    convex.check_data(problem, data)
    np.testing.assert_allclose(objective_of(problem, kernel, data), objective_of(problem, kernel, DATA["logistic"]), rtol=1e-14)
