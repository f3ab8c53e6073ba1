"""Probes of features against independent implementations."""

from functools import partial

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
ALL = np.ones(120)


@jax.jit
def probe(features, labels, test_features, test_labels, weights=ALL):
    options = {"num_classes": 3, "weights": weights, "l2": 1e-2}
    return linear_probe(features, labels, test_features, test_labels, **options)


def twin(features, labels):
    """Ridge logistic regression on standardised features; with what standardises others."""
    centre, scale = features.mean(axis=0), features.std(axis=0)
    model = LogisticRegression(C=1 / (1e-2 * len(labels)), tol=1e-8, max_iter=1000).fit((features - centre) / scale, labels)
    return model, lambda others: (others - centre) / scale


def test_the_probe_is_ridge_logistic_regression_on_standardised_features():
    found = probe(Z[TRAIN], LABELS[TRAIN], Z[TEST], LABELS[TEST])
    model, standardised = twin(Z[TRAIN], LABELS[TRAIN])
    np.testing.assert_allclose(found.kernel, model.coef_.T, atol=2e-3)
    predicted = model.predict(standardised(Z[TEST]))
    assert float(found.accuracy) == pytest.approx(np.mean(predicted == LABELS[TEST]))
    recall = [np.mean(predicted[LABELS[TEST] == c] == c) for c in range(3)]
    np.testing.assert_allclose(found.recall, recall, rtol=1e-6)
    assert float(found.gradient_norm) < 1e-4


def test_rows_that_do_not_count_and_units_that_never_change_say_nothing():
    weights = np.arange(120) % 4 > 0
    broken = np.where(weights[:, None], Z[TRAIN], np.nan)
    found = probe(broken, LABELS[TRAIN], Z[TEST], LABELS[TEST], weights * 1.0)
    np.testing.assert_allclose(found.kernel, twin(Z[TRAIN][weights], LABELS[TRAIN][weights])[0].coef_.T, atol=2e-3)
    narrow, test = Z[TRAIN].copy(), Z[TEST].copy()
    narrow[:, -1], test[:, -1] = 7.0, 9.0
    dead = probe(narrow, LABELS[TRAIN], test, LABELS[TEST])
    assert not dead.kernel[-1].any()
    model, standardised = twin(Z[TRAIN, :-1], LABELS[TRAIN])
    np.testing.assert_allclose(dead.kernel[:-1], model.coef_.T, atol=2e-3)
    assert float(dead.accuracy) == pytest.approx(np.mean(model.predict(standardised(Z[TEST, :-1])) == LABELS[TEST]))


def test_no_weights_are_all_ones_and_a_class_without_test_rows_has_no_recall():
    plain = jax.jit(partial(linear_probe, num_classes=3, l2=1e-2))
    found = plain(Z[TRAIN], LABELS[TRAIN], Z[TEST], np.zeros(80, int))
    assert np.isnan(found.recall).tolist() == [False, True, True]
    np.testing.assert_allclose(found.kernel, probe(Z[TRAIN], LABELS[TRAIN], Z[TEST], LABELS[TEST]).kernel, atol=1e-4)


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
