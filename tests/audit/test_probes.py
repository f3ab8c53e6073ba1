"""Probes of features against independent implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from jaxunlearn.audit import cluster_scores, knn_accuracy, linear_probe
from tests.problems import blobs

DATA = blobs(200)
Z, LABELS = np.asarray(DATA.train.inputs), np.asarray(DATA.train.targets)
TRAIN, TEST = slice(0, 120), slice(120, 200)


def test_the_probe_is_ridge_logistic_regression_on_standardised_features():
    found = jax.jit(lambda: linear_probe(Z[TRAIN], LABELS[TRAIN], Z[TEST], LABELS[TEST], num_classes=3, l2=1e-2))()
    centre, scale = Z[TRAIN].mean(axis=0), Z[TRAIN].std(axis=0)
    twin = LogisticRegression(C=1 / (1e-2 * 120), tol=1e-8, max_iter=1000).fit((Z[TRAIN] - centre) / scale, LABELS[TRAIN])
    np.testing.assert_allclose(found.kernel, twin.coef_.T, atol=2e-3)
    predicted = twin.predict((Z[TEST] - centre) / scale)
    assert float(found.accuracy) == pytest.approx(np.mean(predicted == LABELS[TEST]))
    recall = [np.mean(predicted[LABELS[TEST] == c] == c) for c in range(3)]
    np.testing.assert_allclose(found.recall, recall, rtol=1e-6)
    assert float(found.gradient_norm) < 1e-4


def test_rows_that_do_not_count_and_units_that_never_change_say_nothing():
    weights = np.arange(120) % 4 > 0
    broken = np.where(weights[:, None], Z[TRAIN], np.nan)
    probe = jax.jit(lambda z, y, w, e: linear_probe(z, y, e, LABELS[TEST], num_classes=3, weights=w))
    found = probe(broken, LABELS[TRAIN], weights, Z[TEST])
    alone = probe(Z[TRAIN][weights], LABELS[TRAIN][weights], np.ones(weights.sum()), Z[TEST])
    np.testing.assert_allclose(found.kernel, alone.kernel, atol=1e-3)
    wide, test = np.c_[Z[TRAIN], np.full(120, 7.0)], np.c_[Z[TEST], np.full(80, 9.0)]
    dead = probe(wide, LABELS[TRAIN], weights, test)
    assert not dead.kernel[-1].any()
    assert float(dead.accuracy) == pytest.approx(float(found.accuracy))


def test_a_class_without_test_rows_has_no_recall():
    found = linear_probe(Z[TRAIN], LABELS[TRAIN], Z[TEST], np.zeros(80, int), num_classes=3, num_steps=2)
    assert np.isnan(found.recall).tolist() == [False, True, True]


@pytest.mark.parametrize("chunk", [None, 7])
def test_neighbours_vote_as_in_scikit_learn(chunk):
    twin = KNeighborsClassifier(5, metric="cosine").fit(Z[TRAIN], LABELS[TRAIN])
    noisy = np.roll(LABELS, 3)
    twin_noisy = KNeighborsClassifier(5, metric="cosine").fit(Z[TRAIN], noisy[TRAIN])
    for model, labels in ((twin, LABELS), (twin_noisy, noisy)):
        found = knn_accuracy(Z[TRAIN], labels[TRAIN], Z[TEST], labels[TEST], num_classes=3, chunk=chunk)
        assert float(found) == pytest.approx(model.score(Z[TEST], labels[TEST]))


def test_neighbours_that_do_not_count_do_not_vote():
    weights, asked = np.arange(120) % 2, np.arange(80) % 3 == 0
    bank = np.where(weights[:, None] > 0, Z[TRAIN], np.nan)
    queries = np.where(asked[:, None], Z[TEST], np.nan)
    found = knn_accuracy(
        bank, LABELS[TRAIN], queries, LABELS[TEST], num_classes=3, bank_weights=weights, query_weights=asked * 1.0
    )  # fmt: skip
    twin = KNeighborsClassifier(5, metric="cosine").fit(Z[TRAIN][weights > 0], LABELS[TRAIN][weights > 0])
    assert float(found) == pytest.approx(twin.score(Z[TEST][asked], LABELS[TEST][asked]))
    few = knn_accuracy(Z[:5], LABELS[:5], Z[:1], LABELS[:1], num_classes=3, bank_weights=np.array([1.0, 0, 0, 0, 0]))
    assert float(few) == 1  # the only one that may vote is the row itself


def test_clusters_of_separate_classes_are_found_and_those_of_one_class_are_not():
    apart = np.eye(3)[LABELS] + 0.01 * np.random.default_rng(0).normal(size=(200, 3))
    assert cluster_scores(apart, LABELS, num_clusters=3) == pytest.approx((1, 1))
    noise = cluster_scores(np.random.default_rng(0).normal(size=(200, 3)), LABELS, num_clusters=3)
    assert noise.nmi < 0.1
    # two classes in one cluster: a third of all pairs of the cluster are right in expectation of equal sizes
    labels = np.repeat([0, 1, 2], 4)
    merged = cluster_scores(np.eye(2)[np.minimum(labels, 1)], labels, num_clusters=2)
    assert merged.pairwise_f1 == pytest.approx(2 * 18 / (2 * 18 + 16))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="features and labels"):
        linear_probe(Z[TRAIN], LABELS, Z[TEST], LABELS[TEST], num_classes=3)
    with pytest.raises(ValueError, match="num_classes"):
        linear_probe(Z[TRAIN], LABELS[TRAIN], Z[TEST], LABELS[TEST], num_classes=1)
    with pytest.raises(ValueError, match="5 neighbours need"):
        knn_accuracy(Z[:3], LABELS[:3], Z[:1], LABELS[:1], num_classes=3)
    assert jnp.isnan(knn_accuracy(Z[:9], LABELS[:9], Z[:1], LABELS[:1], num_classes=3, query_weights=np.zeros(1)))
