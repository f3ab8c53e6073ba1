"""Metrics that compare ensembles of models: closed forms, slow twins, floors, leaks of known size."""

from functools import partial

import jax
import numpy as np
import pytest
from scipy.stats import norm

import jaxunlearn as ju
from experiments.benchmarks import twins

RNG = np.random.default_rng(0)
klom = jax.jit(ju.audit.klom, static_argnames="reference")
quality = jax.jit(ju.audit.forgetting_quality)
u_lira = jax.jit(ju.audit.u_lira)


def gaussians(models, examples, shift=0.0, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return np.float32(shift + scale * rng.normal(size=(models, examples)))


def pair(models, examples, shift=0.0, seed=0):
    return gaussians(models, examples, shift, seed=seed), gaussians(models, examples, seed=seed + 1000)


# KLoM


def test_klom_of_two_hand_made_histograms():
    # Range [0, 20] and 20 bins of width 1: shares (3/4, 1/4) in bins 0 and 19 against (1/4, 3/4).
    candidate, reference = np.array([[0.0], [0.5], [0.5], [19.5]]), np.array([[0.0], [20.0], [19.5], [19.5]])
    np.testing.assert_allclose(klom(candidate, reference), [0.75 * np.log(3) - 0.25 * np.log(3)], rtol=1e-6)


@pytest.mark.parametrize("reference", [False, True])
def test_klom_equals_its_slow_twin(reference):
    margins = pair(50, 300, 0.5)
    expected = twins.klom_loop(*margins, last_edge=not reference)
    np.testing.assert_allclose(klom(*margins, reference=reference), expected, atol=1e-5)
    if not reference:
        np.testing.assert_allclose(twins.klom_vectorised(*margins), expected, atol=1e-6)


def test_klom_of_equal_margins_is_zero_and_of_margins_apart_that_of_the_floor():
    margins = gaussians(10, 3)
    np.testing.assert_allclose(klom(margins, margins), 0, atol=1e-7)
    np.testing.assert_allclose(klom(margins * 0, margins * 0), 0, atol=1e-7)
    # All of p in one bin, where q is raised to 1e-5 and normalised again.
    np.testing.assert_allclose(klom(margins * 0, margins * 0 + 1), np.log((1 + 1e-5) / 1e-5), rtol=1e-5)


def test_klom_in_blocks_is_klom_of_each_example():
    margins = pair(6, 5000, 0.5)
    np.testing.assert_allclose(klom(*margins), twins.klom_vectorised(*margins), atol=1e-5)


def test_klom_cuts_margins_at_the_limit():
    far = np.array([[1e9], [-1e9], [0.0]], np.float32)
    np.testing.assert_allclose(klom(far, far), 0, atol=1e-7)
    np.testing.assert_allclose(klom(far, np.clip(far, -100, 100)), 0, atol=1e-7)


@pytest.mark.parametrize(("models", "floor"), [(100, 0.35), (500, 0.05)])
def test_klom_of_perfect_unlearning_is_the_known_floor(models, floor):
    draws = [np.mean(klom(*pair(models, 2000, seed=seed))) for seed in range(3)]
    assert np.mean(draws) == pytest.approx(floor, rel=0.15)


# Forgetting quality


@pytest.mark.parametrize(("models", "shift"), [(32, 0.0), (32, 1.0), (65, 0.3)])
def test_forgetting_quality_equals_its_slow_twin(models, shift):
    margins = pair(models, 6, shift)
    margins = margins[0] * np.linspace(0.5, 2, 6, dtype=np.float32), margins[1]
    found = quality(*margins)
    score, epsilons = twins.forgetting_quality_loop(*margins)
    np.testing.assert_allclose(found.epsilons, epsilons, atol=1e-5)
    assert float(found.score) == pytest.approx(score)
    np.testing.assert_allclose(twins.forgetting_quality_vectorised(*margins)[1], epsilons, atol=1e-12)


def test_laws_apart_and_laws_that_are_points_have_the_largest_epsilon():
    margins = gaussians(16, 5)
    assert np.all(quality(margins, margins + 20).epsilons == 50)
    assert np.all(quality(margins, margins * 1e-3).epsilons == 50)
    assert quality(margins, margins + 20).score == 0


def test_one_law_for_both_has_all_points_where_ties_leave_no_attack():
    constant = np.zeros((16, 5), np.float32)
    assert np.all(quality(constant, constant).epsilons == 0)
    assert quality(constant, constant).score == 1
    assert np.all(quality(constant, constant + 1).epsilons == 50)


def test_which_ensemble_is_called_unlearned_does_not_matter():
    margins = pair(16, 5, 0.7)
    np.testing.assert_allclose(quality(*margins).epsilons, quality(*margins[::-1]).epsilons, atol=1e-5)


@pytest.mark.parametrize("models", [64, 512])
def test_forgetting_quality_of_perfect_unlearning_is_far_from_one(models):
    draws = [float(quality(*pair(models, 60, seed=seed)).score) for seed in range(3)]
    assert 0.15 * 0.85 <= np.mean(draws) <= 0.25 * 1.15


def test_the_final_score_is_damped_by_lost_accuracy():
    assert float(ju.audit.competition_score(0.4, (0.5, 1.0), (0.6, 0.8))) == pytest.approx(0.4 * 0.5 * 0.75)


# LiRA and U-LiRA


def test_lira_is_the_ratio_of_the_fitted_gaussians():
    members = np.arange(20)[:, None] % 2 == np.arange(3) % 2
    shadows = gaussians(20, 3) + 2 * members
    target = np.array([[0.0, 1, 2], [3, 0, 1]], np.float32)
    seen = [norm(shadows[members[:, e], e].mean(), shadows[members[:, e], e].std(ddof=1)) for e in range(3)]
    unseen = [norm(shadows[~members[:, e], e].mean(), shadows[~members[:, e], e].std(ddof=1)) for e in range(3)]
    online = [[seen[e].logpdf(row[e]) - unseen[e].logpdf(row[e]) for e in range(3)] for row in target]
    np.testing.assert_allclose(ju.audit.lira(target, shadows, members), online, rtol=1e-3, atol=1e-4)
    tail = [[-unseen[e].logsf(row[e]) for e in range(3)] for row in target]
    np.testing.assert_allclose(ju.audit.lira(target, shadows, members, score="tail"), tail, rtol=1e-3)
    density = [[-unseen[e].logpdf(row[e]) for e in range(3)] for row in target]
    np.testing.assert_allclose(ju.audit.lira(target, shadows, members, score="density"), density, rtol=1e-3)


def test_confident_members_keep_different_offline_scores():
    shadows, members = gaussians(20, 200), np.zeros((20, 200), bool)
    target = np.linspace(8, 30, 200).astype(np.float32)
    scores = jax.jit(partial(ju.audit.lira, score="tail"))(target, shadows, members)
    unseen = ju.audit.lira(gaussians(1, 200, seed=1)[0], shadows, members, score="tail")
    assert len(np.unique(scores)) == 200
    assert float(ju.audit.tpr_at_fpr(scores, np.ones(200), unseen, np.ones(200), 0.01).tpr.estimate) == 1


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_margins_are_refused_and_stay_unknown_where_traced(value):
    margins, other = pair(16, 5)
    margins[3, 2] = value
    for metric in (ju.audit.u_lira, ju.audit.forgetting_quality):
        with pytest.raises(ValueError, match="candidate margins hold infinite values"):
            metric(margins, other)
    with pytest.raises(ValueError, match="shadow margins hold infinite values"):
        ju.audit.lira(np.zeros(5), margins, np.arange(16)[:, None] % 2 == np.zeros(5))
    assert np.isnan(u_lira(margins, other).by_example).tolist() == [False, False, True, False, False]
    assert np.isnan(quality(margins, other).epsilons).tolist() == [False, False, True, False, False]


def test_rmia_of_rows_that_no_model_gives_any_probability():
    target, references = np.array([0.0, 0.5], np.float32), np.array([[0.0, 0.5], [0.0, 0.25]], np.float32)
    population, others = np.array([0.5, 0.0, 0.2], np.float32), np.array([[0.6, 0.0, 0.1], [0.6, 0.0, 0.3]], np.float32)
    found = ju.audit.rmia(target, references, population, others, a=1.0)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1], 1.0)  # above both that are known


def test_pooled_variance_is_the_mean_within_rows():
    members = np.arange(8)[:, None] % 2 == np.zeros(2)
    shadows = gaussians(8, 2)
    spread = np.sqrt(np.mean([shadows[members[:, e], e].var(ddof=1) for e in range(2)]))
    other = np.sqrt(np.mean([shadows[~members[:, e], e].var(ddof=1) for e in range(2)]))
    expected = [
        norm(shadows[members[:, e], e].mean(), spread).logpdf(0) - norm(shadows[~members[:, e], e].mean(), other).logpdf(0)
        for e in range(2)
    ]
    np.testing.assert_allclose(ju.audit.lira(np.zeros(2), shadows, members, variance="pooled"), expected, rtol=1e-3, atol=1e-5)


def test_u_lira_finds_nothing_between_equal_laws_and_the_overlap_of_others():
    same = u_lira(*pair(64, 2000))
    assert float(same.accuracy.estimate) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(128 * 2000))
    # The best guess between N(0, 1) and N(2, 1) is right with probability Phi(1); fitted Gaussians do a little worse.
    apart = u_lira(*pair(200, 500, 2.0))
    assert norm.cdf(1) - 0.01 < float(apart.accuracy.estimate) < norm.cdf(1) + 0.005


def test_u_lira_of_constant_margins_guesses():
    constant = np.zeros((8, 3), np.float32)
    np.testing.assert_allclose(u_lira(constant, constant).by_example, 0.5)


# RMIA


def rmia_case(rows=200, population=300, references=4, seed=0):
    rng = np.random.default_rng(seed)
    return [np.float32(rng.uniform(size=shape)) for shape in (rows, (references, rows), population, (references, population))]


def test_rmia_equals_its_slow_twin():
    target, references, z, z_references = rmia_case()
    expected = twins.rmia_loop(target, references, z, z_references, 0.3)
    np.testing.assert_allclose(ju.audit.rmia(target, references, z, z_references, a=0.3), expected, atol=1e-6)
    np.testing.assert_allclose(twins.rmia_vectorised(target, references, z, z_references, 0.3), expected, atol=1e-12)


def test_rmia_online_averages_both_kinds_of_references():
    target, z, z_references = np.array([0.6]), np.array([0.2, 0.5, 0.9]), np.array([[0.5] * 3, [0.5] * 3])
    # Pr(x) = (0.9 + 0.3) / 2 = 0.6, r(x) = 1; Pr(z) = (1 + a) / 2 * 0.5 + (1 - a) / 2 = 0.5 for a = 1, r(z) = 0.4, 1, 1.8.
    found = ju.audit.rmia(target, np.array([[0.9], [0.3]]), z, z_references, members=np.array([[True], [False]]), a=1.0)
    np.testing.assert_allclose(found, [1 / 3])


def test_tuned_rmia_has_the_largest_area_on_the_grid():
    target, references, z, z_references = rmia_case(60)
    members = np.arange(60) < 30
    target = np.where(members, np.sqrt(target), target)
    tuned = ju.audit.tune_rmia(target, members, references, z, z_references)
    areas = []
    for a in np.linspace(0, 1, 11):
        scores = twins.rmia_loop(target, references, z, z_references, a)
        above = scores[members][:, None] - scores[~members]
        areas.append(np.mean((above > 0) + 0.5 * (above == 0)))
    np.testing.assert_allclose(tuned.auc, areas, atol=2e-3)
    assert tuned.a == pytest.approx(np.argmax(tuned.auc) / 10)


# Memorisation


def test_memorisation_is_the_difference_of_means_with_its_error():
    members = RNG.random((12, 4)) < 0.5
    members[:2], members[2:4] = True, False
    values = RNG.random((12, 4))
    found = ju.audit.memorisation(values, members)
    for row in range(4):
        seen, unseen = values[members[:, row], row], values[~members[:, row], row]
        assert float(found.estimate[row]) == pytest.approx(seen.mean() - unseen.mean(), abs=1e-6)
        error = np.sqrt(seen.var(ddof=1) / len(seen) + unseen.var(ddof=1) / len(unseen))
        assert float(found.standard_error[row]) == pytest.approx(error, rel=1e-5)


def test_memorisation_of_rows_that_all_models_saw_is_unknown():
    members = np.array([[1, 1], [1, 1], [0, 1], [0, 1]], bool)
    found = ju.audit.memorisation(np.ones((4, 2)), members)
    assert np.isnan(found.estimate).tolist() == [False, True]


# All of them


METRICS = {
    "klom": lambda margins: float(np.mean(klom(*margins))),
    "forgetting quality": lambda margins: -float(quality(*margins).score),
    "u_lira": lambda margins: float(u_lira(*margins).accuracy.estimate),
}


@pytest.mark.parametrize("metric", METRICS)
def test_larger_leaks_are_ranked_higher(metric):
    values = [METRICS[metric](pair(64, 60, shift)) for shift in (0.0, 0.25, 0.5, 1.0)]
    assert values == sorted(values)


@pytest.mark.parametrize("metric", METRICS)
def test_order_of_examples_does_not_matter(metric):
    margins = pair(16, 5, 0.5)
    order = RNG.permutation(5)
    assert METRICS[metric](margins) == pytest.approx(METRICS[metric]([x[:, order] for x in margins]), rel=1e-5)


@pytest.mark.parametrize(
    "plain", [ju.audit.klom, lambda *x: ju.audit.forgetting_quality(*x).epsilons], ids=["klom", "forgetting quality"]
)
def test_order_of_models_does_not_matter_and_vmap_is_a_loop(plain):
    margins, function = pair(16, 5, 0.5), jax.jit(plain)
    order = RNG.permutation(16)
    np.testing.assert_allclose(function(margins[0][order], margins[1][order[::-1]]), function(*margins), atol=1e-6)
    stacked = [np.stack([x, x + 1]) for x in margins]
    np.testing.assert_allclose(jax.jit(jax.vmap(plain))(*stacked)[0], function(*margins), atol=1e-5)


MARGIN_METRICS = {
    "klom": ju.audit.klom,
    "forgetting_quality": ju.audit.forgetting_quality,
    "u_lira": ju.audit.u_lira,
}


@pytest.mark.parametrize("name", MARGIN_METRICS)
def test_bad_margins_are_refused_by_name(name):
    metric, margins = MARGIN_METRICS[name], gaussians(8, 3)
    with pytest.raises(ValueError, match=f"{name} needs at least"):
        metric(margins[:1], margins)
    with pytest.raises(ValueError, match=f"{name}: candidate and reference hold 3 and 2 examples"):
        metric(margins, margins[:, :2])
    with pytest.raises(ValueError, match=f"{name}: expected margins"):
        metric(margins[0], margins[0])
    with pytest.raises(ValueError, match=f"{name}: candidate margins hold NaN"):
        metric(np.where(np.arange(8)[:, None] == 2, np.nan, margins), margins)


def test_nan_stays_in_its_example_under_jit():
    candidate, reference = pair(16, 5)
    candidate[2, 1] = np.nan
    for values in (klom(candidate, reference), quality(candidate, reference).epsilons):
        assert np.isnan(values).tolist() == [False, True, False, False, False]


def test_other_bad_input_is_refused_by_name():
    target, references, z, z_references = rmia_case(5, 4)
    with pytest.raises(ValueError, match="rmia: expected probabilities"):
        ju.audit.rmia(target, references[:, :4], z, z_references)
    with pytest.raises(ValueError, match=r"target must lie in \[0, 1\]"):
        ju.audit.rmia(target + 1, references, z, z_references)
    with pytest.raises(ValueError, match="rmia: 5 rows were seen by all or by none"):
        ju.audit.rmia(target, references, z, z_references, members=np.ones((4, 5), bool))
    with pytest.raises(ValueError, match="some members and some non-members"):
        ju.audit.tune_rmia(target, np.ones(5, bool), references, z, z_references)
    with pytest.raises(ValueError, match="lira needs at least 2 models"):
        ju.audit.lira(np.zeros(2), np.zeros((4, 2)), np.ones((4, 2), bool))
    with pytest.raises(ValueError, match="variance must be"):
        ju.audit.lira(np.zeros(2), np.zeros((4, 2)), np.arange(4)[:, None] < [2, 2], variance="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memorisation needs at least 2 models"):
        ju.audit.memorisation(np.ones((3, 2)), np.ones((3, 2), bool))
    with pytest.raises(ValueError, match="0 < floor < 1"):
        ju.audit.klom(np.ones((3, 2)), np.ones((3, 2)), floor=0.0)


# Sides of rows


def test_rows_are_on_either_side_as_often_as_chance_or_shifts_say():
    candidate, reference = pair(39, 400)
    sides = jax.jit(ju.audit.row_sides)
    by_chance = sides(candidate, reference, reference + 5)
    assert float(by_chance.under) < 0.05 > float(by_chance.over)
    shift = np.where(np.arange(400) < 100, 3, np.where(np.arange(400) < 150, -3, 0)).astype(np.float32)
    found = sides(candidate + shift, reference, reference + 5)
    np.testing.assert_array_equal(found.by_row[:150], np.sign(shift[:150]))
    assert float(found.under) == pytest.approx(0.25, abs=0.03)
    assert float(found.over) == pytest.approx(0.125, abs=0.03)
    turned = sides(candidate + shift, reference, reference - 5)  # the original lies on the other side
    np.testing.assert_array_equal(turned.by_row, -np.asarray(found.by_row))
