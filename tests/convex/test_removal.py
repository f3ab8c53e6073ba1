"""Removals from convex problems against dense solves, their bounds, streams, and what must not certify."""

from functools import cache, partial

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
METHODS = {
    "refit": convex.refit,
    "newton, one step": partial(convex.newton_removal, steps=1),
    "newton, one step, cg": partial(convex.newton_removal, steps=1, solver="cg"),
    "newton": convex.newton_removal,
    "woodbury, one step": partial(convex.woodbury_removal, steps=1),
    "woodbury, one step, unmeasured": partial(convex.woodbury_removal, steps=1, measure=False),
    "woodbury": convex.woodbury_removal,
    "influence": convex.influence_removal,
}


@pytest.fixture(autouse=True, scope="module")
def in_float64():
    with jax.enable_x64(True):
        yield


class Case:
    """A trained problem, its shared factorisation, three requests, and what every method answers; one program per method."""

    def __init__(self, name):
        self.name, self.problem = name, PROBLEMS[name]
        self.plain = ju.training_data(ROWS, LABELS[name])
        self.variables = convex.fit(self.problem, self.plain)
        self.kernel = self.variables.params["kernel"]
        self.data = jax.jit(convex.prepare(self.problem))(self.variables, self.plain, KEY)
        self.requests = ju.from_indices(self.data, REQUESTS)
        self._programs, self._answers = {}, {}

    def program(self, method):
        if method not in self._programs:
            self._programs[method] = jax.jit(ju.batched(METHODS[method](self.problem), chunk=3))
        return self._programs[method]

    def run(self, method):
        if method not in self._answers:
            self._answers[method] = ju.check(self.program(method)(self.variables, self.data, self.requests, KEYS))
        return self._answers[method]

    @property
    def refitted(self):
        return self.run("refit").variables.params["kernel"]

    def gradient(self, kernel, rows):
        """Of the retained objective."""
        keep = self.data.present.at[jnp.array(rows)].set(0)
        return np.asarray(_gradient(self.name)(kernel, keep))


@cache
def _gradient(name):
    rows = ju.training_data(ROWS, LABELS[name]).train
    return jax.jit(lambda kernel, keep: objective.gradient(PROBLEMS[name], kernel, rows, keep, jnp.zeros_like(kernel)))


@cache
def case_of(name):
    return Case(name)


@pytest.fixture(params=list(PROBLEMS))
def case(request, in_float64):
    return case_of(request.param)


def test_refitting_is_the_optimum_of_the_retain_set(case):
    for rows, kernel in zip(REQUESTS, case.refitted, strict=True):
        assert np.linalg.norm(case.gradient(kernel, rows)) < 1e-11


def test_one_step_equals_the_dense_newton_step(case):
    methods = [name for name in METHODS if "one step" in name]
    hessian = jax.jit(lambda kernel, keep: objective.hessian(case.problem, kernel, case.data.train, keep))
    for position, rows in enumerate(REQUESTS):
        keep = case.data.present.at[jnp.array(rows)].set(0)
        matrix = np.asarray(hessian(case.kernel, keep))
        step = np.linalg.solve(matrix, case.gradient(case.kernel, rows).ravel()).reshape(case.kernel.shape)
        for name in methods:
            result = lane(case.run(name), position)
            error = np.max(np.abs(result.variables.params["kernel"] - (case.kernel - step)))
            assert error < (1e-8 if "cg" in name else 1e-10), name
            if "unmeasured" not in name:
                exact = np.linalg.norm(case.gradient(result.variables.params["kernel"], rows))
                assert float(result.stats["residual"]) == pytest.approx(float(exact), abs=1e-12)


def test_true_residual_below_quartic_below_data_below_worst_case(case):
    rounding = 1e-12
    for name in ("newton, one step", "woodbury, one step"):
        stats = case.run(name).stats
        assert np.all(stats["residual"] <= stats["quartic_bound"] + rounding)
        assert np.all(stats["quartic_bound"] <= stats["data_bound"] + rounding)
        assert np.all(stats["data_bound"] <= stats["worst_case_bound"] + rounding)
    unmeasured = case.run("woodbury, one step, unmeasured").stats
    assert np.all(np.isnan(unmeasured["residual"]))
    assert np.all(stats["residual"] <= unmeasured["data_bound"] + rounding)
    assert np.all(unmeasured["residual_bound"] == unmeasured["data_bound"])
    if case.name == "ridge":  # a quadratic: one step is exact for any set of rows
        assert np.all(stats["residual"] < rounding)


def test_the_distance_bound_holds_and_a_second_step_is_quadratically_closer(case):
    bounds = []
    for name in ("newton, one step", "newton", "woodbury", "influence"):
        result = case.run(name)
        distance = np.linalg.norm((result.variables.params["kernel"] - case.refitted).reshape(3, -1), axis=1)
        assert np.all(distance <= result.stats["distance_bound"] + 1e-13)
        bounds.append(np.asarray(result.stats["distance_bound"]))
    one, two, chord, influence = bounds
    if case.name == "ridge":
        assert np.all(influence > 1e3 * one)  # the Hessian of all rows is exact for nothing
    else:
        assert np.all(two < 10 * one**2 + 1e-13)
        assert np.all(chord < one)
        assert np.all(influence > one)


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
        return float(claimed), float(result.stats["residual"]), float(result.stats["quartic_bound"])

    claimed, true, bound = claimed_and_true(convex.influence_removal(problem))
    assert true > 3 * claimed
    assert np.isinf(bound)
    claimed, true, bound = claimed_and_true(convex.newton_removal(problem, steps=1))
    assert true <= min(claimed, bound)


def test_the_result_is_the_optimum_for_a_shifted_secret():
    case = case_of("logistic")
    problem, data = case.problem, case.plain
    secret = convex.with_perturbation(data, (D, 1), 1.0, jax.random.key(5))
    variables = convex.fit(problem, secret)
    request = lane(ju.from_indices(data, [[7, 8]]), 0)
    result = jax.jit(convex.newton_removal(problem, steps=1))(variables, secret, request, KEY)
    left = case.gradient(result.variables.params["kernel"], [7, 8]) + secret.extra["perturbation"]
    assert float(result.stats["residual"]) == pytest.approx(float(jnp.linalg.norm(left)), rel=1e-9)
    shifted = secret._replace(extra={"perturbation": secret.extra["perturbation"] - left})
    expected = jax.jit(convex.refit(problem))(variables, shifted, request, KEY).variables.params["kernel"]
    assert jnp.allclose(result.variables.params["kernel"], expected, atol=1e-9)


def test_a_row_that_alone_holds_a_direction_is_solved_densely_and_the_others_are_not():
    rows = np.zeros((40, 3), np.float32)
    rows[:, :2] = RNG.normal(size=(40, 2)) / 3
    rows[5] = [0, 0, 1]
    problem, data = convex.ridge(1e-9), ju.training_data(rows, RNG.normal(size=40).astype(np.float32))
    variables = convex.fit(problem, data, row_norm=None)
    shared = jax.jit(convex.prepare(problem))(variables, data, KEY)
    requests = ju.from_indices(data, [[5], [6], [5, 9]])
    expected = jax.jit(ju.batched(convex.refit(problem)))(variables, data, requests, KEYS)
    for chunk in (1, 3):
        result = jax.jit(ju.batched(convex.woodbury_removal(problem, steps=1), chunk=chunk))(variables, shared, requests, KEYS)
        assert result.stats["leverage"].tolist()[::2] == [1, 1]
        assert 0 < float(result.stats["leverage"][1]) < 0.9
        np.testing.assert_allclose(result.variables.params["kernel"], expected.variables.params["kernel"], rtol=0, atol=1e-9)


def test_a_stream_factorises_anew_when_it_is_full_and_stays_at_the_optimum(case):
    columns = 3 * case.problem.num_outputs
    unlearn = convex.woodbury_removal(case.problem, steps=1, carry=columns)
    ready = jax.jit(ju.prepare(unlearn))(case.variables, case.plain, KEY)
    order = np.random.default_rng(3).permutation(N)[:12]
    requests = ju.from_indices(ready, [[row] for row in order], capacity=1)
    result = ju.check(jax.jit(ju.streamed(unlearn))(case.variables, ready, requests, jax.random.split(KEY, 12)))
    stats, kernel = jax.device_get((result.stats, result.variables.params["kernel"]))
    assert np.all(stats["residual"] <= stats["quartic_bound"] + 1e-11)
    assert np.all(stats["quartic_bound"] <= stats["data_bound"] + 1e-11)
    assert stats["num_retain"].tolist() == list(range(N - 1, N - 13, -1))
    merged = convex.fit(case.problem, ju.remove(case.plain, ju.merge(requests)))
    assert np.linalg.norm(kernel - merged.params["kernel"]) <= stats["distance_bound"][-1] + 1e-12
    if case.name == "ridge":  # one step is exact whatever left before it, also between factorisations
        assert np.max(stats["residual"]) < 1e-12
    else:  # residuals of the stream do not add up: each step starts from the true gradient
        assert stats["residual"][-1] < 3 * np.max(stats["residual"][:3])
    made = result.extra["factorisation"].value
    assert int(made.num_columns) == columns
    assert float(made.num_removed) == 3  # 12 removals, three since the last time
    np.testing.assert_allclose(made.gradient, case.gradient(kernel, order), atol=1e-11)


def test_a_stream_without_a_pass_adds_its_bounds_up(case):
    unlearn = convex.woodbury_removal(case.problem, steps=1, measure=False, carry=4 * case.problem.num_outputs)
    ready = jax.jit(ju.prepare(unlearn))(case.variables, case.plain, KEY)
    requests = ju.from_indices(ready, [[row] for row in range(6)], capacity=1)
    result = ju.check(jax.jit(ju.streamed(unlearn))(case.variables, ready, requests, jax.random.split(KEY, 6)))
    bounds = np.asarray(result.stats["residual_bound"])
    assert np.all(np.diff(bounds) > -1e-14)
    assert np.linalg.norm(case.gradient(result.variables.params["kernel"], list(range(6)))) <= bounds[-1] + 1e-12


def test_a_factorisation_of_other_weights_or_rows_is_noticed_and_the_gradient_taken_afresh(case):
    """With measured steps the answer is right all the same, and nothing but the status of a blind step says otherwise."""
    moved = jax.tree.map(lambda x: x + 0.3, case.variables)
    fewer = case.data._replace(present=case.data.present.at[jnp.array([50, 51])].set(0))
    retrained = convex.fit(case.problem, ju.remove(case.plain, lane(ju.from_indices(case.plain, [[1, 2, 3, 50, 51]]), 0)))
    six_steps = jax.jit(convex.woodbury_removal(case.problem, steps=6))
    blind = jax.jit(ju.batched(convex.woodbury_removal(case.problem, steps=1, measure=False), chunk=3))
    for variables, data, optimum in (
        (moved, case.data, case.refitted[1]),
        (case.variables, fewer, retrained.params["kernel"]),
        (moved, fewer, retrained.params["kernel"]),
    ):
        result = six_steps(variables, data, lane(case.requests, 1), KEY)
        assert int(result.status) == ju.Status.OK
        assert np.linalg.norm(result.variables.params["kernel"] - optimum) <= result.stats["distance_bound"] + 1e-12
        assert float(result.stats["distance_bound"]) < 1e-2
        unseen = blind(variables, data, case.requests, KEYS)
        assert unseen.status.tolist() == [ju.Status.NOT_CONVERGED] * 3
        assert np.isinf(unseen.stats["distance_bound"]).all()


def test_weights_in_float32_are_measured_as_they_are_stored(case):
    single = jax.tree.map(lambda x: x.astype(jnp.float32), case.variables)
    result = ju.check(case.program("newton")(single, case.plain, case.requests, KEYS))
    kernel = result.variables.params["kernel"]
    assert kernel.dtype == jnp.float32
    distance = np.linalg.norm((np.asarray(kernel, np.float64) - case.refitted).reshape(3, -1), axis=1)
    assert np.all(distance <= result.stats["distance_bound"])
    assert np.all(distance > 1e-10)


def test_float64_survives_chunks_meshes_and_a_session_without_it():
    case = case_of("softmax")
    expected = np.asarray(case.run("woodbury").variables.params["kernel"])
    unlearn = convex.woodbury_removal(case.problem)
    with jax.enable_x64(False):
        for call in (jax.jit(ju.batched(unlearn, chunk=2)), ju.batched(unlearn, mesh=ju.request_mesh(jax.devices()[:2]))):
            result = call(case.variables, case.data, case.requests, KEYS)
            assert result.variables.params["kernel"].dtype == jnp.float64
            np.testing.assert_allclose(result.variables.params["kernel"], expected, rtol=0, atol=1e-12)
            assert result.stats["distance_bound"].dtype == jnp.float64


def test_memory_grows_with_requests_times_features_not_with_their_square():
    d, count = 80, 48
    rows = convex.feature_rows(RNG.normal(size=(300, d)), intercept=False)
    problem, data = convex.logistic(0.01), ju.training_data(rows, RNG.integers(0, 2, 300).astype(np.int32))
    variables = convex.fit(problem, data)
    shared = jax.jit(convex.prepare(problem))(variables, data, KEY)
    requests = ju.from_indices(data, [[row] for row in range(count)], capacity=1)
    program = jax.jit(ju.batched(convex.woodbury_removal(problem), chunk=count))
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


@cache
def trained_logistic():
    case = case_of("logistic")
    return case.problem, case.variables, case.plain, jax.jit(convex.newton_removal(case.problem, steps=4))


@cache
def trained_ridge():
    case = case_of("ridge")
    return case.problem, case.variables, case.plain, jax.jit(convex.newton_removal(case.problem, steps=1))


def test_descent_contracts_at_the_promised_rate():
    case = case_of("logistic")
    request, optimum = lane(case.requests, 1), case.refitted[1]
    start = np.linalg.norm(case.kernel - optimum)
    for steps in (1, 40):
        unlearn = jax.jit(convex.descent_to_delete(case.problem, steps=steps))
        result = unlearn(case.variables, case.plain, request, KEY)
        distance = np.linalg.norm(result.variables.params["kernel"] - optimum)
        assert distance <= result.stats["contraction"] ** steps * start
        assert distance <= result.stats["distance_bound"]
        if steps == 1:
            far = jax.tree.map(lambda x: x + 1e4, case.variables)
            pulled = unlearn(far, case.plain, request, KEY).variables.params["kernel"]
            assert np.linalg.norm(pulled) <= 100 + 1e-9  # the ball of radius C / l2
    assert float(result.stats["contraction"]) == pytest.approx(0.25 / 0.27)


def test_the_projective_residual_is_the_projected_way_to_the_retrained_model():
    case, rows = case_of("ridge"), [3, 8]
    unlearn = convex.projective_residual(case.problem)
    request = lane(ju.from_indices(case.plain, [rows], capacity=4), 0)
    result = ju.check(jax.jit(unlearn)(case.variables, case.data, request, KEY))
    way = np.asarray(convex.fit(case.problem, ju.remove(case.plain, request)).params["kernel"] - case.kernel)
    x = ROWS[rows].astype(float)
    expected = x.T @ np.linalg.solve(x @ x.T, x @ way)
    np.testing.assert_allclose(result.variables.params["kernel"] - case.kernel, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, d: convex.woodbury_removal(p, steps=2, measure=False), "need the gradient after each step"),
        (lambda p, d: convex.newton_removal(p, steps=0), "steps"),
        (lambda p, d: convex.descent_to_delete(convex.ridge(0.1), steps=1), "Lipschitz loss"),
        (lambda p, d: traced(convex.woodbury_removal(p), d._replace(extra={})), "'factorisation'.* is missing"),
        (lambda p, d: traced(convex.projective_residual(p), d._replace(extra={})), "'factorisation'.* is missing"),
        (lambda p, d: traced(convex.woodbury_removal(p, carry=16), d), "needs 16 columns, the factorisation keeps 0"),
        (lambda p, d: traced(convex.newton_removal(p), d, {"w": jnp.ones((D, 1))}), "as convex.fit makes them"),
        (lambda p, d: traced(convex.newton_removal(convex.softmax(0.1, 3)), d), r"'kernel': \[6, 3\]"),
    ],
)
def test_misuse_is_refused(call, message):
    case = case_of("logistic")
    with pytest.raises(ValueError, match=message):
        call(case.problem, case.data)


def traced(unlearn, data, params=None):
    params = {"kernel": jnp.ones((D, 1))} if params is None else params
    return jax.eval_shape(unlearn, ju.Variables(params), data, lane(case_of("logistic").requests, 0), KEY)


def test_removing_every_row_or_a_whole_class_is_refused_on_the_host_and_reported_in_a_program(case):
    everything = lane(ju.from_indices(case.plain, [range(N)]), 0)
    convex.check_request(case.problem, case.plain, lane(case.requests, 2))
    with pytest.raises(ValueError, match="all 90 present rows"):
        convex.check_request(case.problem, case.plain, everything)
    if case.name != "ridge":
        with pytest.raises(ValueError, match=r"every row of the classes \[1\]"):
            convex.check_request(case.problem, case.plain, lane(ju.from_classes(case.plain, [[1]]), 0))
    few = case.data._replace(present=jnp.zeros(N).at[jnp.array(REQUESTS[2])].set(1))
    result = lane(case.program("newton")(case.variables, few, case.requests, KEYS), 2)
    assert int(result.status) in (ju.Status.NOTHING_RETAINED, ju.Status.NOT_CONVERGED, ju.Status.NONFINITE)
    assert not np.isfinite(result.stats["distance_bound"])
