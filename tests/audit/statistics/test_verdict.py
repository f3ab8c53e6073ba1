"""Floors, verdicts, intervals and false positives, where the right answer is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju

KEY = jax.random.key(0)


def gap(candidate, reference):
    return jnp.mean(candidate) - jnp.mean(reference)


def distance(candidate, reference):
    return jnp.abs(gap(candidate, reference))


judge_gap = jax.jit(partial(ju.audit.judge, gap))
judge_distance = jax.jit(partial(ju.audit.judge, distance, shift=gap))


def models(shift, count=40, seed=0):
    return np.float32(np.random.default_rng(seed).normal(size=count) + shift)


@pytest.mark.parametrize("judge", [judge_gap, judge_distance], ids=["gap", "distance"])
@pytest.mark.parametrize(
    ("shift", "verdict", "sign"), [(0.0, "INSIDE", None), (2.0, "UNDER", 1), (-2.0, "OVER", -1)], ids=["none", "under", "over"]
)
def test_verdicts_have_the_sign_of_the_shift(judge, shift, verdict, sign):
    found = judge(models(shift), models(0, seed=1), models(3, seed=2), KEY, held_out=models(0, seed=3))
    assert ju.audit.Verdict(int(found.verdict)).name == verdict
    if sign is not None:
        assert int(found.sign) == sign


def test_the_original_on_the_other_side_turns_the_verdict_round():
    found = judge_gap(models(2), models(0, seed=1), models(-3, seed=2), KEY)
    assert int(found.verdict) == ju.audit.Verdict.OVER


def test_value_floor_and_ceiling_are_what_they_say():
    candidate, reference, original = models(1), models(0, seed=1), models(3, seed=2)
    found = judge_gap(candidate, reference, original, KEY, held_out=models(0, seed=3))
    assert float(found.value.estimate) == pytest.approx(candidate.mean() - reference.mean(), abs=1e-6)
    assert float(found.ceiling) == pytest.approx(original.mean() - reference.mean(), abs=1e-6)
    # Differences of two means of 40 draws of unit variance.
    assert float(found.floor.high - found.floor.low) == pytest.approx(2 * 1.96 * np.sqrt(2 / 40), rel=0.25)
    assert float(found.value.high - found.value.low) == pytest.approx(2 * 1.96 * np.sqrt(2 / 40), rel=0.25)
    assert found.value.low < found.value.estimate < found.value.high


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_test_has_its_level_at_any_number_of_models(two_sided):
    draws = jnp.asarray(np.random.default_rng(0).exponential(size=(400, 12)), jnp.float32)

    def told(sample, key):
        options = {"num_permutations": 39, "two_sided": two_sided}
        return ju.audit.permutation_p_value(gap, sample[:3], sample[3:], key, **options) <= 0.05

    rate = float(jnp.mean(jax.jit(jax.vmap(told))(draws, jax.random.split(KEY, 400))))
    assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_intervals_over_rows_and_models_have_the_spread_of_fresh_rows_and_models():
    rng = np.random.default_rng(0)
    models, rows = 40, 30

    def draw():
        ease = rng.normal(0, 1.0, rows)  # what a row has in common in all models of both kinds
        moved = rng.normal(0.5, 0.5, rows)  # how far unlearning moves it
        return [np.float32(a + ease + rng.normal(size=(models, 1)) + rng.normal(size=(models, rows))) for a in (moved, 0)]

    gap = lambda a, b: jnp.mean(a["x"]) - jnp.mean(b["x"])
    crossed = jax.jit(lambda a, b: ju.audit.crossed_bootstrap(gap, {"x": a}, {"x": b}, KEY))
    found = [crossed(*draw()) for _ in range(60)]
    width = np.mean([x.high - x.low for x in found]) / (2 * 1.96)
    truth = np.sqrt(0.25 / rows + 2 / models + 2 / (models * rows))
    assert width == pytest.approx(truth, rel=0.15)
    assert np.mean([x.low < 0.5 < x.high for x in found]) > 0.85
    with pytest.raises(ValueError, match="same groups and examples"):
        ju.audit.crossed_bootstrap(gap, {"x": np.ones((4, 3))}, {"x": np.ones((4, 2))}, KEY)
    with pytest.raises(ValueError, match="leading axes"):
        ju.audit.crossed_bootstrap(gap, {"x": np.ones(4)}, {"x": np.ones(4)}, KEY)


def test_one_model_is_ranked_among_all():
    p = partial(ju.audit.permutation_p_value, gap, reference=jnp.arange(99.0), key=KEY)
    assert float(p(jnp.array([200.0]))) == pytest.approx(1 / 100)
    assert float(p(jnp.array([96.5]))) == pytest.approx(3 / 100)
    assert float(p(jnp.array([96.5]), two_sided=True)) == pytest.approx(6 / 100)


def test_false_positives_of_held_out_models_are_rare_and_those_of_others_are_not():
    rate = jax.jit(partial(ju.audit.false_positive_rate, gap, two_sided=True))
    same = rate(models(0, 50), models(0, 100, seed=1), KEY)
    assert float(same.low) <= 0.05
    assert float(same.estimate) <= 0.15
    assert float(rate(models(5, 50), models(0, 100, seed=1), KEY).estimate) > 0.9
    sets = jax.jit(partial(ju.audit.false_positive_rate, distance, size=10))(models(0, 50), models(0, 100, seed=1), KEY)
    assert float(sets.low) <= 0.05


def test_a_broken_statistic_has_no_verdict():
    found = judge_gap(models(0) * np.nan, models(0), models(3), KEY)
    assert int(found.verdict) == -1
    assert np.isnan(found.p_value)


def test_levels_that_cannot_be_reached_say_what_is_needed():
    with pytest.raises(ValueError, match="needs at least 39 permutations, got 19"):
        ju.audit.judge(gap, models(0), models(0), models(0), KEY, num_permutations=19)
    with pytest.raises(ValueError, match="needs at least 39 retrained models, got 20"):
        ju.audit.judge(gap, models(0, 1), models(0, 20), models(0), KEY)
    with pytest.raises(ValueError, match=r"held out.* needs at least 40 models"):
        ju.audit.judge(gap, models(0), models(0), models(0), KEY, held_out=models(0, 10))
    with pytest.raises(ValueError, match="candidates of 60 models need as many held-out ones, got 50"):
        ju.audit.false_positive_rate(gap, models(0, 50), models(0), KEY, size=60)
    with pytest.raises(ValueError, match="floor_of needs at least 4"):
        ju.audit.floor_of(gap, models(0, 3), KEY)
    with pytest.raises(ValueError, match="alpha is a level"):
        ju.audit.judge(gap, models(0), models(0), models(0), KEY, alpha=1.5)


def test_rows_off_on_both_sides_are_on_none():
    """Two rows are left and two driven out by as much: which side the mean lies on is a coin toss, and said to be one."""

    def row_distance(candidate, reference):
        return jnp.sum(jnp.abs(jnp.mean(candidate, axis=0) - jnp.mean(reference, axis=0)))

    judge = jax.jit(partial(ju.audit.judge, row_distance, shift=gap))
    rng = np.random.default_rng(0)
    off = np.array([2.0, 2.0, -2.0, -2.0], np.float32)
    found = []
    for place in range(20):
        draws = rng.normal(size=(4, 20, 4)).astype(np.float32)
        found.append(judge(draws[0] + off, draws[1], draws[2] + 3, jax.random.key(place)))
    verdicts = np.array([int(x.verdict) for x in found])
    assert np.sum(verdicts == ju.audit.Verdict.MIXED) >= 17
    assert all(float(x.p_value) <= 0.05 for x in found)
    told = judge(draws[0] + 2, draws[1], draws[2] + 3, KEY)
    assert int(told.verdict) == ju.audit.Verdict.UNDER
    assert float(told.side_p_value) <= 0.05


@pytest.mark.parametrize(("few", "many"), [(3, 39), (5, 39), (5, 5), (39, 39)])
def test_bootstrap_intervals_cover(few, many):
    repeats = 600
    draws = np.random.default_rng(few * many).normal(size=(repeats, few + many)).astype(np.float32)

    def covers(values, key):
        found = ju.audit.bootstrap(gap, values[:few], values[few:], key)
        return (found.low <= 0) & (found.high >= 0)

    covered = jax.jit(jax.vmap(covers))(draws, jax.random.split(KEY, repeats)).mean()
    assert 0.95 - 2 * np.sqrt(0.05 * 0.95 / repeats) <= covered
