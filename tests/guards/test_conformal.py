"""Ranks in exact arithmetic, coverage against theory and simulation, groups, padding and many requests at once."""

from decimal import Decimal
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxunlearn import guards
from jaxunlearn.guards.conformal import ranks
from tests.problems import lane

calibrate = jax.jit(guards.calibrate, static_argnames=("alpha", "num_groups", "confidence"))


def calibrated(alpha=0.1, **options):
    return jax.jit(jax.vmap(lambda scores: guards.calibrate(scores, alpha=alpha, **options)))


def covered(scores, budgets):
    """Share of new scores within the budget of their own repetition."""
    return np.asarray(scores <= budgets[:, None]).mean(axis=1)


def test_a_prompt_of_ten_is_refused():
    assert ranks(99, 0.1)[99] == 90  # 100 * (1 - 0.1) is 90.00000000000001 with some orders of rounding
    scores = jnp.arange(1.0, 100.0)
    found = guards.calibrate(scores, alpha=0.1)
    assert (found.budget, found.rank, found.num_prompts, found.feasible) == (90, 90, 99, True)
    np.testing.assert_allclose(found.level, 0.9)


@pytest.mark.parametrize("alpha", ["0.01", "0.05", "0.1", "0.15", "0.2", "0.29", "0.3", "0.57", "0.7", "0.9"])
def test_ranks_are_those_of_decimals(alpha):
    n = np.arange(1001)
    kept = 100 - int(Decimal(alpha) * 100)
    expected = (kept * (n + 1) + 99) // 100
    for given in (float(alpha), np.float32(alpha), jnp.float32(float(alpha)), Fraction(alpha)):
        np.testing.assert_array_equal(ranks(1000, given), expected)


def test_rounding_would_have_decided():
    n, alphas = np.arange(300), [round(0.01 * i, 2) for i in range(1, 100)]
    wrong = [np.sum(np.ceil((n + 1) * (1 - alpha)) != ranks(299, alpha)) for alpha in alphas]
    assert sum(wrong) > 50
    assert ranks(2, Fraction(1, 3))[2] == 2
    assert ranks(2, 1 / 3)[2] == 3  # a decimal a little below a third: the safe side


def test_coverage_is_exact_without_ties_and_better_with_them():
    key, test = jax.random.split(jax.random.key(0))
    smooth = jax.random.uniform(key, (4000, 99)), jax.random.uniform(test, (4000, 100))
    tied = tuple(jnp.ceil(jnp.log(x) / jnp.log(0.6)) for x in smooth)  # Geometric(0.4)
    exact = covered(smooth[1], calibrated()(smooth[0]).budget)
    assert abs(exact.mean() - 0.9) < 0.01
    # it follows Beta(90, 10), seen through 100 new prompts
    assert abs(exact.var() - (stats.beta(90, 10).var() * 99 / 100 + 0.9 * 0.1 / 100)) < 1e-4
    assert covered(tied[1], calibrated()(tied[0]).budget).mean() >= 0.9


def test_there_is_no_finite_budget_where_none_is_justified():
    few = calibrate(jnp.ones(5), alpha=0.1)
    assert not few.feasible
    assert jnp.isinf(few.budget)
    assert [bool(calibrate(jnp.ones(n), alpha=0.1).feasible) for n in (8, 9)] == [False, True]
    scores = jnp.ones(99).at[:10].set(jnp.inf)  # more than a tenth was never accepted
    assert [bool(calibrate(x, alpha=0.1).feasible) for x in (scores, scores.at[0].set(1))] == [False, True]
    assert not calibrate(scores.at[:10].set(jnp.nan), alpha=0.1).feasible
    none = calibrate(jnp.zeros(0), alpha=0.1)
    assert (bool(none.feasible), float(none.budget)) == (False, np.inf)
    assert all(np.isnan(x) for x in guards.coverage(few))
    assert guards.satisfied_bound(few, 0.0) == 0


def test_more_refusals_need_no_more_tries_and_order_does_not_matter():
    scores = jnp.ceil(jax.random.exponential(jax.random.key(1), (60,)) * 5)
    budgets = [float(calibrate(scores, alpha=alpha).budget) for alpha in np.linspace(0.02, 0.98, 12)]
    assert budgets == sorted(budgets, reverse=True)
    shuffled = calibrate(jax.random.permutation(jax.random.key(2), scores), alpha=0.1)
    assert jax.tree.map(float, shuffled) == jax.tree.map(float, calibrate(scores, alpha=0.1))


@pytest.mark.parametrize(("alpha", "confidence"), [(0.1, 0.9), (0.05, 0.5), (0.3, 0.99), (0.5, 0.75)])
def test_confident_ranks_are_the_smallest_that_will_do(alpha, confidence):
    found = ranks(120, alpha, confidence)
    for n in (1, 2, 7, 28, 29, 59, 99, 120):
        chances = stats.beta.sf(1 - alpha, np.arange(1, n + 1), n + 1 - np.arange(1, n + 1))
        enough = np.flatnonzero(chances >= confidence - 1e-12)
        assert found[n] == (enough[0] + 1 if len(enough) else n + 1)
    assert (found >= np.arange(121) * (1 - alpha) - 1).all()


def test_equality_is_enough_and_rounding_does_not_decide():
    # of n prompts the largest covers at least 1 - alpha with probability 1 - (1 - alpha)^n
    assert ranks(2, 0.3, 0.51)[2] == 2
    assert ranks(2, 0.3, 0.5100000000000001)[2] == 3
    assert ranks(1, 0.1, 0.1)[1] == 1


def test_confidence_holds_for_as_many_calibrations_as_it_says():
    key, confidence = jax.random.key(3), 0.9
    found = calibrated(confidence=confidence)(jax.random.uniform(key, (4000, 99)))
    share = np.mean(found.budget >= 0.9)  # of uniform scores the budget is the coverage
    exact = stats.beta.sf(0.9, found.rank[0], 100 - found.rank[0])
    assert exact >= confidence
    assert abs(share - exact) < 4 * np.sqrt(exact * (1 - exact) / 4000)
    in_the_mean = np.mean(calibrated()(jax.random.uniform(key, (4000, 99))).budget >= 0.9)
    assert in_the_mean < 0.6  # without confidence every other calibration covers less
    assert not calibrate(jnp.ones(20), alpha=0.1, confidence=0.9).feasible  # needs log(0.1) / log(0.9) = 22
    assert calibrate(jnp.ones(22), alpha=0.1, confidence=0.9).feasible


def test_spread_of_the_coverage():
    spread = guards.coverage(calibrate(jnp.arange(99.0), alpha=0.1), level=0.9)
    np.testing.assert_allclose(spread, [0.9, *stats.beta.ppf([0.05, 0.95], 90, 10)], atol=1e-4)
    with pytest.raises(ValueError, match="level is a fraction"):
        guards.coverage(calibrate(jnp.arange(99.0), alpha=0.1), level=1.0)


@pytest.mark.parametrize("confidence", [None, 0.8])
def test_groups_are_calibrated_one_by_one(confidence):
    generator = np.random.default_rng(4)
    groups = generator.choice(4, 200, p=[0.5, 0.3, 0.18, 0.02])
    scores = np.ceil(generator.exponential(1 + groups)).astype(np.float32)
    scores[(groups == 1) & (np.arange(200) % 3 == 0)] = np.inf
    found = calibrate(scores, alpha=0.1, groups=groups, num_groups=5, confidence=confidence)
    for group in range(5):
        alone = np.sort(scores[groups == group])
        rank = ranks(200, 0.1, confidence)[len(alone)]
        expected = alone[rank - 1] if rank <= len(alone) else np.inf
        assert (found.num_prompts[group], found.rank[group], found.budget[group]) == (len(alone), rank, expected)
    np.testing.assert_array_equal(found.feasible, np.isfinite(found.budget))
    assert found.feasible.tolist()[:2] == [True, False]


def test_padding_counts_for_nothing():
    scores = jnp.ceil(jax.random.exponential(jax.random.key(5), (40,)) * 5)
    padded = jnp.concatenate([jnp.full(30, -1e9), scores, jnp.full(30, jnp.nan)])
    present = (jnp.arange(100) >= 30) & (jnp.arange(100) < 70)
    found = calibrate(padded, alpha=0.2, present=present)
    assert jax.tree.map(float, found) == jax.tree.map(float, calibrate(scores, alpha=0.2))
    assert not calibrate(scores, alpha=0.2, present=jnp.zeros(40)).feasible


def requests():
    key = jax.random.key(6)
    scores = jnp.ceil(jax.random.exponential(key, (16, 400)) * jnp.linspace(1, 9, 16)[:, None])
    present = jnp.arange(400) < jnp.linspace(5, 400, 16).astype(int)[:, None]
    return scores, present, jax.random.randint(key, (16, 400), 0, 2)


def test_sixteen_requests_in_one_call_equal_single_ones():
    def one(scores, present, groups):
        return guards.calibrate(scores, alpha=0.1, present=present, groups=groups, num_groups=2)

    together = jax.jit(jax.vmap(one))(*requests())
    assert set(np.ravel(together.feasible)) == {False, True}
    single = jax.jit(one)
    for place in range(16):
        chex.assert_trees_all_equal(lane(together, place), single(*lane(requests(), place)))


def test_first_accepted_tries():
    accepts = np.array([[[0, 1, 1], [0, 0, 0]], [[1, 0, 0], [0, 0, 1]]])
    np.testing.assert_array_equal(guards.stopping_times(accepts), [[2, np.inf], [1, 3]])
    np.testing.assert_array_equal(guards.stopping_times(jnp.zeros((2, 0))), [np.inf, np.inf])


@pytest.mark.parametrize(("wrong", "trials"), [(0, 50), (3, 200), (20, 20)])
def test_the_verifiers_error_is_bounded_by_the_exact_one_sided_test(wrong, trials):
    found = guards.verifier_error_bound(wrong, trials, confidence=0.9)
    expected = 1.0 if wrong == trials else stats.beta.ppf(0.9, wrong + 1, trials - wrong)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(
        guards.verifier_error_bound(wrong, trials, confidence=0.9, tries=5), min(5 * expected, 1), atol=1e-3
    )


def test_what_is_satisfied_in_the_end():
    budget = calibrate(jnp.arange(99.0), alpha=0.1)
    np.testing.assert_allclose(guards.satisfied_bound(budget, jnp.array([0.0, 0.05, 1.0])), [0.9, 0.85, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: guards.calibrate(jnp.ones(9), alpha=0.0), ValueError, "alpha must lie between 0 and 1"),
        (lambda: guards.calibrate(jnp.ones(9), alpha=1), ValueError, "alpha must lie between 0 and 1"),
        (lambda: guards.calibrate(jnp.ones(9), alpha="some"), TypeError, "alpha must be one number"),
        (lambda: guards.calibrate(jnp.ones(9), alpha=0.1, confidence=1.5), ValueError, "confidence must lie"),
        (lambda: jax.jit(lambda x: guards.calibrate(jnp.ones(9), alpha=x))(0.1), TypeError, "cannot be traced"),
        (lambda: guards.calibrate(jnp.ones((2, 9)), alpha=0.1), ValueError, "jax.vmap it over requests"),
        (lambda: guards.calibrate(jnp.ones(9), alpha=0.1, present=jnp.ones(8)), ValueError, "present has shape"),
        (lambda: guards.calibrate(jnp.ones(9), alpha=0.1, groups=jnp.zeros(9, int)), ValueError, "groups needs num_groups"),
        (lambda: guards.calibrate(jnp.ones(9), alpha=0.1, num_groups=2), ValueError, "goes with groups"),
        (lambda: guards.calibrate(jnp.ones(9), alpha=0.1, groups=jnp.ones(9), num_groups=2), ValueError, "must be integers"),
        (
            lambda: guards.calibrate(jnp.ones(2), alpha=0.1, groups=jnp.array([0, 2]), num_groups=2),
            ValueError,
            "groups must lie in 0 to 1",
        ),
        (lambda: guards.verifier_error_bound(3, 2), ValueError, "0 <= false_accepts <= trials"),
        (lambda: guards.verifier_error_bound(0, 2, confidence=0.4), ValueError, "between 1/2 and 1"),
        (lambda: guards.stopping_times(True), ValueError, "needs an axis of tries"),
    ],
)
def test_bad_input_is_told(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
