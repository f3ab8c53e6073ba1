from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import jaxunlearn as ju
from jaxunlearn import audit
from jaxunlearn.audit import Scores, loss_attack
from tests.audit.toys import loss_reader, losses_as_data, on_host, random_networks, requests_for, shifted
from tests.problems import blobs, held_out, lane, network, unpadded

auc, tpr_at_fpr, roc_curve = jax.jit(audit.auc), jax.jit(audit.tpr_at_fpr), jax.jit(audit.roc_curve)
clopper_pearson, auc_interval = jax.jit(audit.clopper_pearson), jax.jit(audit.auc_interval)
attack = jax.jit(partial(loss_attack, loss_reader(), shifted(0), fpr=0.25, chunk=3))


def tied_scores(seed, k=13, m=17, weights="mixed"):
    """Scores with many ties; weights 0, 1 and fractions, or 0 and 1."""
    rng = np.random.default_rng(seed)
    choices = {"mixed": [0.0, 0.3, 1.0, 2.0], "binary": [0.0, 1.0]}[weights]
    drawn = rng.integers(0, 6, k) + 1.0, rng.choice(choices, k), rng.integers(0, 6, m) * 1.0, rng.choice(choices, m)
    return Scores(*(x.astype(np.float32) for x in drawn))


def auc_by_pairs(scores):
    won = total = 0.0
    for s, w in zip(scores.members, scores.member_weights, strict=True):
        for t, v in zip(scores.nonmembers, scores.nonmember_weights, strict=True):
            won += float(w) * float(v) * (float(s > t) + 0.5 * float(s == t))
            total += float(w) * float(v)
    return won / total


def rates_above(scores, threshold, strict=True):
    def share(values, weights):
        return weights[values > threshold if strict else values >= threshold].sum() / weights.sum()

    nonmembers = share(scores.nonmembers, scores.nonmember_weights)
    return nonmembers, share(scores.members, scores.member_weights)


def tpr_by_thresholds(scores, fpr):
    used = scores.nonmembers[scores.nonmember_weights > 0]
    points = [rates_above(scores, threshold) for threshold in [-np.inf, *used]]
    return max(tpr for rate, tpr in points if rate <= fpr + 1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_auc_with_ties_and_weights(seed):
    scores = tied_scores(seed)
    area = auc(*scores)
    np.testing.assert_allclose(area, auc_by_pairs(scores), rtol=1e-6)
    labels = np.r_[np.ones(13), np.zeros(17)]
    pooled, weights = np.r_[scores.members, scores.nonmembers], np.r_[scores.member_weights, scores.nonmember_weights]
    np.testing.assert_allclose(area, roc_auc_score(labels, pooled, sample_weight=weights), rtol=1e-6)


def test_auc_of_special_scores():
    one = jnp.ones(1)
    assert auc(jnp.array([-0.0]), one, jnp.array([0.0]), one) == 0.5
    assert auc(jnp.array([0.0]), one, jnp.array([-0.0]), one) == 0.5
    assert auc(jnp.array([jnp.inf]), one, jnp.array([jnp.inf]), one) == 0.5
    assert auc(jnp.array([-jnp.inf]), one, jnp.array([3.0]), one) == 0.0
    assert auc(jnp.array([3.0]), one, jnp.array([-jnp.inf]), one) == 1.0


def test_swapping_sides_and_turning_scores_round_mirror_the_area():
    scores = tied_scores(1)
    np.testing.assert_allclose(auc(*scores[2:], *scores[:2]), 1 - auc(*scores), rtol=1e-6)
    turned = auc(-scores.members, scores.member_weights, -scores.nonmembers, scores.nonmember_weights)
    np.testing.assert_allclose(turned, 1 - auc(*scores), rtol=1e-6)


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.1, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_tpr_equals_a_search_over_thresholds(seed, fpr):
    scores = tied_scores(seed, weights="binary")
    found = tpr_at_fpr(*scores, fpr)
    np.testing.assert_allclose(found.tpr.estimate, tpr_by_thresholds(scores, fpr), rtol=1e-6)
    trials = scores.member_weights.sum()
    expected = clopper_pearson(round(float(found.tpr.estimate) * trials), trials)
    np.testing.assert_allclose(np.stack(found.tpr), np.stack(expected), rtol=1e-5)
    at_least = [np.sum(w[s >= found.threshold]) / np.sum(w) for s, w in (scores[:2], scores[2:])]
    np.testing.assert_allclose(at_least, [found.tpr.estimate, found.fpr], rtol=1e-5, atol=1e-7)
    assert found.fpr <= fpr + 1e-6


def test_tpr_at_rates_that_are_met_exactly():
    scores = jnp.arange(100.0)
    rates = np.arange(101) / 100
    found = jax.vmap(lambda fpr: tpr_at_fpr(scores, jnp.ones(100), scores, jnp.ones(100), fpr).tpr.estimate)(rates)
    np.testing.assert_allclose(found, rates, atol=1e-6)


def test_tpr_at_rate_zero_must_beat_every_nonmember():
    members, nonmembers = jnp.array([5.0, 4.0, 4.0, 1.0]), jnp.array([4.0, 0.0])
    assert tpr_at_fpr(members, jnp.ones(4), nonmembers, jnp.ones(2)).tpr.estimate == 0.25
    assert tpr_at_fpr(members, jnp.ones(4), nonmembers, jnp.ones(2), fpr=1.0).tpr.estimate == 1.0
    with pytest.raises(ValueError, match="fpr must lie in"):
        audit.tpr_at_fpr(members, jnp.ones(4), nonmembers, jnp.ones(2), fpr=1.5)


@pytest.mark.parametrize("seed", range(3))
def test_curve_holds_every_threshold_and_bounds_the_area(seed):
    scores = tied_scores(seed)
    curve = roc_curve(*scores)
    assert curve.fpr.shape == curve.tpr.shape == curve.thresholds.shape == (31,)
    assert (curve.fpr[0], curve.tpr[0]) == (0, 0)
    np.testing.assert_allclose((curve.fpr[-1], curve.tpr[-1]), 1)
    assert (np.diff(curve.fpr) >= 0).all()
    assert (np.diff(curve.tpr) >= 0).all()
    expected = [rates_above(scores, threshold, strict=False) for threshold in curve.thresholds]
    np.testing.assert_allclose(np.stack([curve.fpr, curve.tpr], 1), expected, atol=1e-6)
    np.testing.assert_allclose(np.trapezoid(curve.tpr, curve.fpr), auc(*scores), rtol=1e-5)


def test_unused_rows_may_hold_nan_and_used_ones_poison_the_figure():
    scores = tied_scores(0)
    poisoned = scores._replace(
        members=np.where(scores.member_weights > 0, scores.members, np.nan),
        nonmembers=np.where(scores.nonmember_weights > 0, scores.nonmembers, np.nan),
    )
    for figure in (auc, tpr_at_fpr, roc_curve):
        jax.tree.map(np.testing.assert_array_equal, figure(*poisoned), figure(*scores))
    everywhere = poisoned._replace(nonmember_weights=np.ones(17, np.float32))
    assert jnp.isnan(auc(*everywhere))
    assert jnp.isnan(jnp.stack(jax.tree.leaves(tpr_at_fpr(*everywhere)))).all()
    assert jnp.isnan(roc_curve(*everywhere).fpr).all()


def test_one_empty_side_is_undefined():
    scores = tied_scores(0)
    no_members = scores._replace(member_weights=np.zeros(13, np.float32))
    no_nonmembers = scores._replace(nonmember_weights=np.zeros(17, np.float32))
    assert jnp.isnan(auc(*no_members))
    assert jnp.isnan(auc(*no_nonmembers))
    unknown = tpr_at_fpr(*no_members).tpr
    assert jnp.isnan(unknown.estimate)
    assert (unknown.low, unknown.high) == (0, 1)
    assert jnp.isnan(jnp.stack(jax.tree.leaves(tpr_at_fpr(*no_nonmembers)))).all()


def request_for(*slots, used=None):
    """A request of 8 slots."""
    indices = jnp.array([*slots, *[0] * (8 - len(slots))])
    weights = [1.0] * len(slots) if used is None else used
    return ju.ForgetRequest(indices, jnp.array([*weights, *[0.0] * (8 - len(weights))]))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="scores and weights must be of one shape"):
        auc(jnp.ones(3), jnp.ones(2), jnp.ones(3), jnp.ones(3))


def test_attack_by_hand():
    data = losses_as_data([0.1, 0.2, 5.0, 9.0, 1.0])
    test = losses_as_data([0.15, 2.0, 1.0, 3.0]).train
    found = attack(data, request_for(0, 4, 0, 2, used=[1, 1, 0, 1]), test)
    pairs = 4 + 2.5 + 0  # rows of loss 0.1, 1.0 (one tie) and 5.0
    np.testing.assert_allclose(found.auc.estimate, pairs / 12, rtol=1e-6)
    np.testing.assert_allclose(found.tpr.estimate, 1 / 3, rtol=1e-6)
    assert (found.num_members, found.num_nonmembers) == (3, 4)
    expected = auc_interval(pairs / 12, 3, 4)
    np.testing.assert_allclose(np.stack(found.auc), np.stack(expected), rtol=1e-6)


def test_attack_tells_memorised_from_forgotten_too_much():
    data = losses_as_data([0.0, 0.0, 0.0, 9.0, 9.0])
    test = losses_as_data([1.0, 2.0, 3.0, 4.0]).train
    memorised, overdone = attack(data, request_for(0, 1, 2), test), attack(data, request_for(3, 4), test)
    assert (memorised.auc.estimate, memorised.tpr.estimate, memorised.auc.high) == (1, 1, 1)
    assert (overdone.auc.estimate, overdone.tpr.estimate, overdone.auc.low) == (0, 0, 0)


def test_padding_strays_and_removed_rows_do_not_count():
    data = losses_as_data([1.0, 0.5, 2.0, 4.0, 0.1])
    test = losses_as_data([1.0, 2.0, 3.0, 0.4]).train
    plain = attack(data, request_for(1, 2), test)
    removed = data._replace(present=data.present.at[4].set(0))
    removed = removed._replace(train=data.train._replace(inputs=data.train.inputs.at[4].set(jnp.nan)))
    untidy = request_for(0, 2, 4, 1, 99, 2, -1, 3, used=[0, 1, 1, 1, 1, 1, 1, 0])
    jax.tree.map(np.testing.assert_array_equal, attack(removed, untidy, test), plain)


def test_an_empty_request_is_undefined_not_zero():
    data, test = losses_as_data([1.0, 2.0, 3.0, 4.0, 5.0]), losses_as_data([1.0, 3.0, 4.0, 5.0]).train
    found = attack(data, ju.empty_request(8), test)
    assert jnp.isnan(jnp.stack(found.auc)).all()
    assert jnp.isnan(found.tpr.estimate)
    assert (found.tpr.low, found.tpr.high, found.num_members) == (0, 1, 0)


def test_many_models_and_requests_equal_single_unpadded_calls():
    data, model = blobs(), network()
    requests = requests_for(data, [[0, 10, 20, 30, 40, 50, 59], [3, 4, 5, 6, 7, 8, 9]])
    models = random_networks(2)

    def one(variables, request):
        return loss_attack(model, variables, data, request, held_out(), fpr=0.1)

    many = on_host(jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(models, requests))
    single = jax.jit(one)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        expected = single(lane(models, i), unpadded(requests, j))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), lane(lane(many, i), j), expected)
