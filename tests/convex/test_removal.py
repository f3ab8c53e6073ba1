"""Removals from convex problems against dense solves, their bounds, streams, and what must not certify."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxunlearn as ju
from jaxunlearn import convex
from jaxunlearn.convex import objective
from tests.problems import lane

KEY = jax.random.key(0)
RNG = np.random.default_rng(1)
N, D = 90, 6
ROWS = convex.feature_rows(RNG.normal(size=(N, D - 1)))
DIRECTION = RNG.normal(size=D)
LABELS = {
    "ridge": (ROWS @ DIRECTION + RNG.normal(size=N)).astype(np.float32),
    "logistic": (ROWS @ DIRECTION * 3 + RNG.logistic(size=N) > 0).astype(np.int32),
    "softmax": np.argmax(ROWS[:, :3] * 4 + RNG.gumbel(size=(N, 3)), axis=1).astype(np.int32),
}
PROBLEMS = {"ridge": convex.ridge(0.01), "logistic": convex.logistic(0.01), "softmax": convex.softmax(0.02, 3)}
REQUESTS = [[4], [1, 2, 3], list(range(20, 36))]
KEYS = jax.random.split(KEY, 3)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", params=list(PROBLEMS))
def case(request):
    """A trained problem, its shared factorisation, three requests and the retrained optima."""
    problem, data = PROBLEMS[request.param], ju.training_data(ROWS, LABELS[request.param])
    variables = convex.fit(problem, data)
    shared = jax.jit(convex.prepare(problem))(variables, data, KEY)
    requests = ju.from_indices(data, REQUESTS)
    refitted = answer(ju.refit(problem), variables, shared, requests)
    return problem, variables, shared, requests, refitted.variables.params["kernel"]


def answer(unlearn, variables, data, requests, chunk=3):
    return ju.check(jax.jit(ju.batched(unlearn, chunk=chunk))(variables, data, requests, KEYS[: len(requests.indices)]))


def retained_gradient(problem, kernel, data, rows, secret=0.0):
    keep = data.present.at[jnp.array(rows)].set(0)
    return objective.gradient(problem, kernel, data.train, keep, secret * jnp.ones_like(kernel))


def test_refitting_is_the_optimum_of_the_retained_rows(case):
    problem, _, data, _, refitted = case
    for rows, kernel in zip(REQUESTS, refitted, strict=True):
        assert jnp.linalg.norm(retained_gradient(problem, kernel, data, rows)) < 1e-11


@pytest.mark.parametrize("chunk", [1, 3])
def test_one_step_equals_the_dense_newton_step(case, chunk):
    problem, variables, data, requests, _ = case
    kernel = variables.params["kernel"]
    results = {
        "newton": answer(ju.newton_removal(problem, steps=1), variables, data, requests, chunk),
        "cg": answer(ju.newton_removal(problem, steps=1, solver="cg"), variables, data, requests, chunk),
        "woodbury": answer(ju.woodbury_removal(problem, steps=1), variables, data, requests, chunk),
        "unmeasured": answer(ju.woodbury_removal(problem, steps=1, measure=False), variables, data, requests, chunk),
    }
    for position, rows in enumerate(REQUESTS):
        keep = data.present.at[jnp.array(rows)].set(0)
        matrix = objective.hessian(problem, kernel, data.train, keep)
        slope = retained_gradient(problem, kernel, data, rows)
        expected = kernel - jnp.linalg.solve(matrix, slope.ravel()).reshape(kernel.shape)
        for name, result in results.items():
            error = jnp.max(jnp.abs(result.variables.params["kernel"][position] - expected))
            assert error < (1e-8 if name == "cg" else 1e-10), name
            exact = retained_gradient(problem, result.variables.params["kernel"][position], data, rows)
            if name != "unmeasured":
                assert float(result.stats["residual"][position]) == pytest.approx(float(jnp.linalg.norm(exact)), abs=1e-12)


def test_true_residual_below_quartic_below_data_below_worst_case(case):
    problem, variables, data, requests, _ = case
    rounding = 1e-12
    for unlearn in (ju.newton_removal(problem, steps=1), ju.woodbury_removal(problem, steps=1)):
        stats = answer(unlearn, variables, data, requests).stats
        assert jnp.all(stats["residual"] <= stats["quartic_bound"] + rounding)
        assert jnp.all(stats["quartic_bound"] <= stats["data_bound"] + rounding)
        assert jnp.all(stats["data_bound"] <= stats["worst_case_bound"] + rounding)
    unmeasured = answer(ju.woodbury_removal(problem, steps=1, measure=False), variables, data, requests).stats
    assert jnp.all(jnp.isnan(unmeasured["residual"]))
    assert jnp.all(stats["residual"] <= unmeasured["data_bound"] + rounding)
    assert jnp.all(unmeasured["residual_bound"] == unmeasured["data_bound"])
    if problem.name == "ridge":  # a quadratic: one step is exact for any set of rows
        assert jnp.all(stats["residual"] < rounding)


def test_the_distance_bound_holds_and_a_second_step_is_quadratically_closer(case):
    problem, variables, data, requests, refitted = case
    methods = [ju.newton_removal(problem, steps=1), ju.newton_removal(problem), ju.woodbury_removal(problem)]
    methods += [ju.influence_removal(problem)]
    bounds = []
    for unlearn in methods:
        result = answer(unlearn, variables, data, requests)
        distance = jnp.linalg.norm((result.variables.params["kernel"] - refitted).reshape(3, -1), axis=1)
        assert jnp.all(distance <= result.stats["distance_bound"] + 1e-13)
        bounds.append(result.stats["distance_bound"])
    one, two, chord, influence = bounds
    if problem.name == "ridge":
        assert jnp.all(influence > 1e3 * one)  # the Hessian of all rows is exact for nothing
    else:
        assert jnp.all(two < 10 * one**2 + 1e-13)
        assert jnp.all(chord < one)
        assert jnp.all(influence > one)


def test_the_full_data_hessian_breaks_the_bound_that_is_claimed_for_it():
    rng = np.random.default_rng(0)
    rows = convex.feature_rows(rng.normal(size=(400, 5)))
    labels = (rows @ rng.normal(size=6) * 4 + rng.logistic(size=400) > 0).astype(np.int32)
    problem, data = convex.logistic(0.01), ju.training_data(rows, labels)
    variables = convex.fit(problem, data)
    request = lane(ju.from_indices(data, [range(40)]), 0)
    before = variables.params["kernel"]

    def claimed_and_true(unlearn):
        result = jax.jit(unlearn)(variables, data, request, KEY)
        step = result.variables.params["kernel"] - before
        kept = jnp.asarray(rows[40:], jnp.float64)
        claimed = jnp.linalg.norm(kept, 2) * jnp.linalg.norm((kept @ step) ** 2) / (12 * 3**0.5)
        return float(claimed), float(result.stats["residual"])

    claimed, true = claimed_and_true(ju.influence_removal(problem))
    assert true > 3 * claimed
    claimed, true = claimed_and_true(ju.newton_removal(problem, steps=1))
    assert true <= claimed
    assert np.isinf(jax.jit(ju.influence_removal(problem))(variables, data, request, KEY).stats["quartic_bound"])


def test_the_result_is_the_optimum_for_a_shifted_secret():
    problem, data = PROBLEMS["logistic"], ju.training_data(ROWS, LABELS["logistic"])
    secret = convex.with_perturbation(data, (D, 1), 1.0, jax.random.key(5))
    variables = convex.fit(problem, secret)
    request = lane(ju.from_indices(data, [[7, 8]]), 0)
    result = jax.jit(ju.newton_removal(problem, steps=1))(variables, secret, request, KEY)
    left = retained_gradient(problem, result.variables.params["kernel"], data, [7, 8]) + secret.extra["perturbation"]
    assert float(result.stats["residual"]) == pytest.approx(float(jnp.linalg.norm(left)), rel=1e-9)
    shifted = secret._replace(extra={"perturbation": secret.extra["perturbation"] - left})
    expected = jax.jit(ju.refit(problem))(variables, shifted, request, KEY).variables.params["kernel"]
    assert jnp.allclose(result.variables.params["kernel"], expected, atol=1e-9)


def test_a_row_that_alone_holds_a_direction_is_solved_densely_and_the_others_are_not():
    rows = np.zeros((40, 3), np.float32)
    rows[:, :2] = RNG.normal(size=(40, 2)) / 3
    rows[5] = [0, 0, 1]
    problem, data = convex.ridge(1e-9), ju.training_data(rows, RNG.normal(size=40).astype(np.float32))
    variables = convex.fit(problem, data, row_norm=None)
    shared = jax.jit(convex.prepare(problem))(variables, data, KEY)
    requests = ju.from_indices(data, [[5], [6], [5, 9]])
    for chunk in (1, 3):
        result = jax.jit(ju.batched(ju.woodbury_removal(problem, steps=1), chunk=chunk))(variables, shared, requests, KEYS)
        assert result.stats["leverage"].tolist()[::2] == [1, 1]
        assert 0 < float(result.stats["leverage"][1]) < 0.9
        expected = jax.jit(ju.batched(ju.refit(problem)))(variables, data, requests, KEYS)
        assert jnp.allclose(result.variables.params["kernel"], expected.variables.params["kernel"], atol=1e-9)


def test_a_stream_factorises_anew_when_it_is_full_and_stays_at_the_optimum(case):
    problem, variables, data, _, _ = case
    columns = 3 * problem.num_outputs
    stream_data = jax.jit(convex.prepare(problem, capacity=columns))(variables, data._replace(extra={}), KEY)
    order = np.random.default_rng(3).permutation(N)[:12]
    requests = ju.from_indices(data, [[row] for row in order], capacity=1)
    stream = jax.jit(ju.streamed(ju.woodbury_removal(problem, steps=1, carry=True)))
    result = ju.check(stream(variables, stream_data, requests, jax.random.split(KEY, 12)))
    stats = result.stats
    assert jnp.all(stats["residual"] <= stats["quartic_bound"] + 1e-11)
    assert jnp.all(stats["quartic_bound"] <= stats["data_bound"] + 1e-11)
    assert stats["num_retain"].tolist() == list(range(N - 1, N - 13, -1))
    merged = jax.jit(ju.refit(problem))(variables, data, ju.merge(requests), KEY)
    distance = jnp.linalg.norm(result.variables.params["kernel"] - merged.variables.params["kernel"])
    assert distance <= stats["distance_bound"][-1] + 1e-12
    if problem.name != "ridge":  # residuals of the stream do not add up: each step starts from the true gradient
        assert stats["residual"][-1] < 3 * jnp.max(stats["residual"][:3])
    made = result.extra["factorisation"]
    assert int(made.num_columns) == columns
    assert float(made.num_removed) == 3  # 12 removals, three since the last time
    exact = retained_gradient(problem, result.variables.params["kernel"], data, order)
    assert jnp.allclose(made.gradient, exact, atol=1e-11)


def test_a_stream_without_a_pass_adds_its_bounds_up(case):
    problem, variables, data, _, _ = case
    stream_data = jax.jit(convex.prepare(problem, capacity=4 * problem.num_outputs))(variables, data._replace(extra={}), KEY)
    requests = ju.from_indices(data, [[row] for row in range(6)], capacity=1)
    stream = jax.jit(ju.streamed(ju.woodbury_removal(problem, steps=1, measure=False, carry=True)))
    result = ju.check(stream(variables, stream_data, requests, jax.random.split(KEY, 6)))
    bounds = result.stats["residual_bound"]
    assert jnp.all(jnp.diff(bounds) > -1e-14)
    true = retained_gradient(problem, result.variables.params["kernel"], data, list(range(6)))
    assert jnp.linalg.norm(true) <= bounds[-1] + 1e-12


def test_weights_that_the_factorisation_does_not_belong_to_are_noticed(case):
    problem, variables, data, requests, refitted = case
    moved = jax.tree.map(lambda x: x + 0.3, variables)
    one = lane(requests, 1)
    measured = jax.jit(ju.woodbury_removal(problem, steps=6))(moved, data, one, KEY)
    assert jnp.linalg.norm(measured.variables.params["kernel"] - refitted[1]) <= measured.stats["distance_bound"] + 1e-12
    assert float(measured.stats["distance_bound"]) < 1e-2
    blind = jax.jit(ju.woodbury_removal(problem, steps=1, measure=False))(moved, data, one, KEY)
    assert int(blind.status) == ju.Status.NOT_CONVERGED
    assert np.isinf(blind.stats["distance_bound"])


def test_weights_in_float32_are_measured_as_they_are_stored(case):
    problem, variables, data, requests, refitted = case
    single = jax.tree.map(lambda x: x.astype(jnp.float32), variables)
    result = answer(ju.newton_removal(problem), single, data, requests)
    kernel = result.variables.params["kernel"]
    assert kernel.dtype == jnp.float32
    distance = jnp.linalg.norm((kernel.astype(jnp.float64) - refitted).reshape(3, -1), axis=1)
    assert jnp.all(distance <= result.stats["distance_bound"])
    assert jnp.all(distance > 1e-10)


def test_float64_survives_chunks_meshes_and_a_session_without_it(case):
    problem, variables, data, requests, refitted = case
    expected = answer(ju.woodbury_removal(problem), variables, data, requests).variables.params["kernel"]
    with jax.enable_x64(False):
        calls = [
            jax.jit(ju.batched(ju.woodbury_removal(problem), chunk=2)),
            ju.batched(ju.woodbury_removal(problem), mesh=ju.request_mesh(jax.devices()[:2])),
        ]
        for call in calls:
            result = call(variables, data, requests, KEYS)
            assert result.variables.params["kernel"].dtype == jnp.float64
            assert np.allclose(np.asarray(result.variables.params["kernel"]), np.asarray(expected), atol=1e-12)
            assert result.stats["distance_bound"].dtype == jnp.float64


def test_memory_grows_with_requests_times_features_not_with_their_square():
    d, count = 80, 48
    rows = convex.feature_rows(RNG.normal(size=(300, d)), intercept=False)
    problem, data = convex.logistic(0.01), ju.training_data(rows, RNG.integers(0, 2, 300).astype(np.int32))
    variables = convex.fit(problem, data)
    shared = jax.jit(convex.prepare(problem))(variables, data, KEY)
    requests = ju.from_indices(data, [[row] for row in range(count)], capacity=1)
    program = jax.jit(ju.batched(ju.woodbury_removal(problem), chunk=count))
    memory = program.lower(variables, shared, requests, jax.random.split(KEY, count)).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 8 * count * d * d / 2


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_any_requests_permuted_padded_merged_or_split_give_one_optimum(draw):
    problem, variables, data, removal = trained_logistic()
    rows = draw.draw(st.lists(st.integers(0, N - 1), min_size=2, max_size=16, unique=True))
    cut = draw.draw(st.integers(1, len(rows) - 1))
    whole = ju.from_indices(data, [rows], capacity=16)
    split = ju.from_indices(data, [rows[cut:], rows[:cut]], capacity=16)
    one = removal(variables, data, lane(whole, 0), KEY).variables
    two = removal(variables, data, ju.merge(split, capacity=16), KEY).variables
    first = removal(variables, data, lane(split, 0), KEY)
    three = removal(first.variables, ju.remove(data, lane(split, 0)), lane(split, 1), KEY).variables
    for other in (two, three):
        assert np.max(np.abs(np.asarray(one.params["kernel"]) - np.asarray(other.params["kernel"]))) < 1e-9


@given(rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=64, unique=True))
@settings(max_examples=20, deadline=None)
def test_ridge_equals_the_closed_form_for_every_set(rows):
    problem, variables, data, removal = trained_ridge()
    kernel = removal(variables, data, lane(ju.from_indices(data, [rows], capacity=64), 0), KEY).variables.params["kernel"]
    kept = np.setdiff1d(np.arange(N), rows)
    x, y = ROWS[kept].astype(float), LABELS["ridge"][kept].astype(float)
    expected = np.linalg.solve(x.T @ x + problem.l2 * len(kept) * np.eye(D), x.T @ y)
    assert np.max(np.abs(np.asarray(kernel)[:, 0] - expected)) < 1e-10


def _trained(name, steps, made={}):  # noqa: B006 - one compiled function for all examples
    if name not in made:
        problem, data = PROBLEMS[name], ju.training_data(ROWS, LABELS[name])
        made[name] = problem, convex.fit(problem, data), data, jax.jit(ju.newton_removal(problem, steps=steps))
    return made[name]


def trained_logistic():
    return _trained("logistic", 4)


def trained_ridge():
    return _trained("ridge", 1)


def test_descent_contracts_at_the_promised_rate():
    problem, data = PROBLEMS["logistic"], ju.training_data(ROWS, LABELS["logistic"])
    variables = convex.fit(problem, data)
    request = lane(ju.from_indices(data, [[1, 2, 3]]), 0)
    optimum = jax.jit(ju.refit(problem))(variables, data, request, KEY).variables.params["kernel"]
    start = jnp.linalg.norm(variables.params["kernel"] - optimum)
    for steps in (1, 5, 40):
        result = jax.jit(ju.descent_to_delete(problem, steps=steps))(variables, data, request, KEY)
        distance = jnp.linalg.norm(result.variables.params["kernel"] - optimum)
        assert distance <= result.stats["contraction"] ** steps * start
        assert distance <= result.stats["distance_bound"]
    assert float(result.stats["contraction"]) == pytest.approx(0.25 / 0.27)
    far = jax.tree.map(lambda x: x + 1e4, variables)
    pulled = jax.jit(ju.descent_to_delete(problem, steps=1))(far, data, request, KEY).variables.params["kernel"]
    assert jnp.linalg.norm(pulled) <= 100 + 1e-9  # the ball of radius C / l2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, d: ju.woodbury_removal(p, steps=2, measure=False), "need the gradient after each step"),
        (lambda p, d: ju.newton_removal(p, steps=0), "steps"),
        (lambda p, d: ju.descent_to_delete(convex.ridge(0.1), steps=1), "Lipschitz loss"),
        (lambda p, d: run(ju.woodbury_removal(p), d._replace(extra={})), "convex.prepare"),
        (lambda p, d: run(ju.woodbury_removal(p, carry=True), d), "needs 16 columns, the factorisation keeps 0"),
        (lambda p, d: run(ju.newton_removal(p), d, {"w": jnp.ones((D, 1))}), "as convex.fit makes them"),
        (lambda p, d: run(ju.newton_removal(convex.softmax(0.1, 3)), d), r"'kernel': \[6, 3\]"),
    ],
)
def test_misuse_is_refused(call, message):
    problem, variables, data, _ = trained_logistic()
    shared = jax.jit(convex.prepare(problem))(variables, data, KEY)
    with pytest.raises(ValueError, match=message):
        call(problem, shared)


def run(unlearn, data, params=None):
    params = {"kernel": jnp.ones((D, 1))} if params is None else params
    return unlearn(ju.Variables(params), data, lane(ju.from_indices(data, [[1]]), 0), KEY)


def test_removing_every_row_or_a_whole_class_is_refused_on_the_host_and_reported_in_a_program(case):
    problem, variables, data, requests, _ = case
    everything = lane(ju.from_indices(data, [range(N)]), 0)
    convex.check_request(problem, data, lane(requests, 2))
    with pytest.raises(ValueError, match="all 90 present rows"):
        convex.check_request(problem, data, everything)
    if problem.name != "ridge":
        with pytest.raises(ValueError, match=r"every row of the classes \[1\]"):
            convex.check_request(problem, data, lane(ju.from_classes(data, [[1]]), 0))
    result = jax.jit(ju.newton_removal(problem))(variables, data, everything, KEY)
    assert int(result.status) in (ju.Status.NOTHING_RETAINED, ju.Status.NOT_CONVERGED, ju.Status.NONFINITE)
    assert not np.isfinite(result.stats["distance_bound"])
