"""The difference attack: what theory says of exact pairs, and what certificates promise of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import audit, certificates, convex
from tests.certificates.toys import PROBLEM, certified, toy
from tests.problems import lane, linear_regression, network, regression_data

DRAWS, ROWS, UNSEEN, L2 = 400, 60, 40, 0.5


def pairs(width, rng, rows=ROWS):
    """Ridge on normal rows, with and without the first row, for many draws of the rows."""
    x, y = rng.normal(size=(DRAWS, rows, width)), rng.normal(size=(DRAWS, rows))
    hessian = np.einsum("tni,tnj->tij", x, x) + L2 * np.eye(width)
    with_row = np.linalg.solve(hessian, np.einsum("tni,tn->ti", x, y)[..., None])[..., 0]
    left = hessian - x[:, 0, :, None] * x[:, 0, None]
    without = np.linalg.solve(left, np.einsum("tni,tn->ti", x[:, 1:], y[:, 1:])[..., None])[..., 0]
    return x[:, 0], y[:, 0], hessian, left, with_row, without


def mean_area(members, others):
    """Mean over draws of the share of unseen rows that score below the removed row, and its standard error."""
    share = np.mean(members[:, None] > others, axis=1)
    return share.mean(), share.std() / np.sqrt(len(share))


@pytest.mark.parametrize("width", [1, 2, 5])
def test_an_exactly_retrained_pair_leaks_as_theory_says(width):
    rng = np.random.default_rng(width)
    row, _, hessian, left, before, after = pairs(width, rng)
    unseen = rng.normal(size=(DRAWS, UNSEEN, width))
    change = before - after
    area, error = mean_area(np.abs(np.sum(row * change, 1)), np.abs(np.einsum("tni,ti->tn", unseen, change)))
    exact = np.asarray(jax.vmap(audit.row_update_auc, (0, 0, None))(row, hessian, np.eye(width)))
    np.testing.assert_allclose(exact, jax.vmap(audit.row_update_auc, (0, 0, None))(row, left, np.eye(width)), atol=1e-4)
    assert abs(area - exact.mean()) < 4 * error
    # many rows, in closed form; what is left is of the order of width / ROWS
    assert abs(area - audit.linear_update_auc(width)) < 4 * error + width / ROWS


def test_a_mean_leaks_with_its_sign():
    rng, width = np.random.default_rng(0), 3
    x = rng.normal(size=(DRAWS, ROWS, width))
    before, after = x.mean(axis=1), x[:, 1:].mean(axis=1)
    unseen = rng.normal(size=(DRAWS, UNSEEN, width))
    change = before - after
    area, error = mean_area(np.sum(x[:, 0] * change, axis=1), np.einsum("tni,ti->tn", unseen, change))
    assert abs(area - audit.linear_update_auc(width, signed=True)) < 4 * error + 1 / ROWS
    assert audit.linear_update_auc(width) == pytest.approx(2 * audit.linear_update_auc(width, signed=True) - 1)


def test_scores_are_what_moved():
    data, model = regression_data(), linear_regression()
    request = ju.ForgetRequest(jnp.array([3, 3, 5, 99]), jnp.array([1.0, 1.0, 1.0, 1.0]))
    test = ju.Examples(jnp.ones((4, 4)), jnp.zeros(4))
    before, after = (ju.Variables({"w": jnp.array(w)}) for w in ([1.0, 0, 0, 0], [0.0, 0, 0, 2]))
    scores = audit.difference_scores(model, before, after, data, request, test)
    np.testing.assert_array_equal(scores.member_weights, [1, 0, 1, 0])
    moved = np.abs(np.asarray(data.train.inputs) @ np.array([-1, 0, 0, 2.0]))
    np.testing.assert_allclose(np.asarray(scores.members)[[0, 2]], moved[[3, 5]], rtol=1e-5)
    np.testing.assert_allclose(scores.nonmembers, 1.0, rtol=1e-6)
    chunked = audit.difference_scores(model, before, after, data, request, test, chunk=3)
    np.testing.assert_allclose(scores.members, chunked.members, rtol=1e-6)
    rise = lambda first, second, targets: second - first
    signed = audit.difference_scores(model, before, after, data, request, test, score=rise)
    np.testing.assert_allclose(signed.nonmembers, 1.0, rtol=1e-6)
    with pytest.raises(ValueError, match="one value per row"):
        audit.difference_scores(model, before, after, data, request, test, score=lambda a, b, c: jnp.sum(b - a))
    with pytest.raises(ValueError, match="members as well"):
        audit.difference_scores(model, before, after, data, request, jax.tree.map(lambda x: x[:2], data.train))


def test_features_of_an_update():
    before, after = jax.random.normal(jax.random.key(0), (2, 5, 3))
    first, second = jax.nn.softmax(before), jax.nn.softmax(after)
    distance = audit.update_features(before, after, "distance")[:, 0]
    for kind in ("difference", "sorted difference"):  # sorting moves nothing out of a norm
        np.testing.assert_allclose(jnp.linalg.norm(audit.update_features(before, after, kind), axis=1), distance, rtol=1e-5)
    both = audit.update_features(before, after, "sorted concatenation")
    assert np.all(np.diff(both[:, :3], axis=1) <= 0)
    np.testing.assert_allclose(jnp.sort(both[:, 3:]), jnp.sort(second), rtol=1e-6)
    np.testing.assert_allclose(audit.update_features(before, after, "concatenation"), jnp.concatenate([first, second], 1))
    classes = jnp.array([2, 0, 1])  # the names of the classes do not matter once they are sorted
    renamed = audit.update_features(before[:, classes], after[:, classes], "sorted concatenation")
    np.testing.assert_allclose(renamed, both, rtol=1e-6)
    with pytest.raises(ValueError, match="kind"):
        audit.update_features(before, after, "quotient")
    one = network()  # half precision keeps its dtype, and its scores can be ranked
    assert audit.update_features(before.astype(jnp.bfloat16), after, "difference").shape == (5, 3)
    assert one.head is None


def test_a_trained_attacker_finds_what_shadows_taught_it():
    rng = np.random.default_rng(0)
    removed, unseen = rng.normal(size=(2, 300, 4)), rng.normal(size=(2, 300, 4))
    removed[:, :, 2] += 1.0  # normal scores one deviation apart: area Phi(1 / sqrt 2)
    found = audit.difference_attack(removed[0], unseen[0], removed[1], unseen[1])
    assert found.low < 0.7602 < found.high
    nothing = audit.difference_attack(unseen[0], unseen[1], removed[1][:, [0, 1, 3, 3]], unseen[1][:, [0, 1, 3, 3]])
    assert nothing.low < 0.5 < nothing.high
    with pytest.raises(ValueError, match="one f"):
        audit.difference_attack(removed[0], unseen[0], removed[1][:, :2], unseen[1])


def test_bounds_are_those_of_the_trade_off_curve():
    for epsilon, delta in ((0.0, 0.0), (1.0, 0.0), (0.5, 0.1), (3.0, 1e-5), (800.0, 0.0)):
        fpr = np.linspace(0, 1, 20_001)
        with np.errstate(over="ignore"):
            steep = np.exp(min(epsilon, 700)) * fpr + delta
        tpr = np.minimum(np.minimum(steep, 1 - np.exp(-epsilon) * (1 - delta - fpr)), 1)
        assert audit.most_advantage(epsilon, delta) == pytest.approx(np.max(tpr - fpr), abs=1e-3)
        assert audit.largest_auc(epsilon, delta) == pytest.approx(np.trapezoid(tpr, fpr), abs=1e-3)


RELEASES = 50_000


def released(kernel, noise_scale, seed):
    rng = np.random.default_rng(seed)
    return np.asarray(kernel, np.float64)[:, 0] + noise_scale * rng.normal(size=(RELEASES, len(kernel)))


def advantage(first, second):
    """The largest TPR - FPR of a threshold, either way round: chosen on one half, counted on the other."""
    half = RELEASES // 2
    order = np.sort(np.concatenate([first[:half], second[:half]]))[:: RELEASES // 200]
    gaps = [np.mean(first[:half] >= t) - np.mean(second[:half] >= t) for t in order]
    place = int(np.argmax(np.abs(gaps)))
    return abs(np.mean(first[half:] >= order[place]) - np.mean(second[half:] >= order[place]))


def test_after_publish_the_attack_is_within_epsilon_and_delta(tmp_path):
    """An attacker who saw the model before cannot tell the published removal from published retraining any better."""
    epsilon, delta = 1.0, 1e-2
    data, original, request, result = toy()
    mechanism = certificates.DeleteThenNoise(1e-2)
    certificate = certified(epsilon=epsilon, delta=delta, mechanism=mechanism)
    release = certificates.publish(result, certificate, tmp_path, key=jax.random.key(0))
    noise = np.asarray(release.variables.params["kernel"]) - np.asarray(result.variables.params["kernel"])
    assert 0 < np.abs(noise).max() < 6 * certificate.noise_scale  # releases below have the law of this one
    row = np.asarray(data.train.inputs, np.float64)[3]
    direction = row / np.linalg.norm(row)
    retrained = np.asarray(result.variables.params["kernel"], np.float64)
    worst = retrained + certificate.sensitivity * direction[:, None]  # a removal as bad as was certified, where it shows most
    before = np.asarray(original.params["kernel"], np.float64)[:, 0]
    scores = [
        (before - released(kernel, certificate.noise_scale, seed)) @ row for seed, kernel in enumerate((worst, retrained))
    ]
    allowed = audit.most_advantage(epsilon, delta)
    error = 4 * np.sqrt(0.5 / RELEASES)
    assert 0.4 * allowed < advantage(*scores) <= allowed + error  # Gaussian noise does not reach the bound of all mechanisms
    assert audit.epsilon_lower_bound(*map(jnp.float32, scores), delta=delta, level=0.999) <= epsilon


def test_a_certificate_hides_no_row_from_whoever_saw_the_model_before():
    data, original, request, result = toy()
    request = lane(ju.from_indices(data, [[3]]), 0)
    result = jax.jit(convex.newton_removal(PROBLEM))(original, data, request, jax.random.key(0))
    certificate = certified(result=result, request=request)
    assert certificate.valid
    before = np.asarray(original.params["kernel"], np.float64)[:, 0]
    rows = np.asarray(data.train.inputs, np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    unseen = np.asarray(convex.feature_rows(np.random.default_rng(5).normal(size=(RELEASES, 2))), np.float64)
    unseen /= np.linalg.norm(unseen, axis=1, keepdims=True)

    def area(noise_scale):
        moved = before - released(result.variables.params["kernel"], noise_scale, 7)
        member, other = np.abs(moved @ rows[3]), np.abs(np.sum(moved * unseen, axis=1))
        return float(audit.auc(jnp.float32(member), jnp.ones(RELEASES), jnp.float32(other), jnp.ones(RELEASES)))

    # noise for what a removal may be off leaves most of the change
    assert area(0.0) - 0.05 < area(certificate.noise_scale)
    assert area(certificate.noise_scale) > audit.largest_auc(1.0, 1e-5) + 0.1  # which was promised of something else
    # noise for the whole change, as if nothing had been done, leaves no more than two bounds of it
    untouched = ju.Result(original, stats=result.stats)
    whole = certified(result=untouched, request=request, mechanism=certificates.DeleteThenNoise(0.5), epsilon=0.5, delta=1e-2)
    assert whole.valid
    assert whole.noise_scale > 100 * certificate.noise_scale
    assert area(whole.noise_scale) <= audit.largest_auc(1.0, (1 + np.exp(0.5)) * 1e-2)
    assert area(whole.noise_scale) == pytest.approx(0.5, abs=0.06)
