"""Proxy requests are like the real one and share nothing with it; p-values against what they promise."""

import itertools
import math

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.tuning.bounds import hoeffding_bentkus, holm
from jaxunlearn.tuning.proxies import described
from tests.problems import blobs, lane, regression_data

KEY = jax.random.key(0)
DATA = blobs()
LABELS = np.asarray(DATA.train.targets)


def rows_of(requests):
    return [
        sorted(rows[weights > 0].tolist()) for rows, weights in zip(*map(np.asarray, requests[:2]), strict=True)
    ]  # fmt: skip


def counts(rows):
    return sorted(np.unique(LABELS[rows], return_counts=True)[1].tolist())


@pytest.mark.parametrize("size", [1, 7, 20])
def test_rows_have_the_sizes_and_the_mixture_of_the_request(size):
    rows = np.random.default_rng(size).permutation(60)[:size]
    request = lane(ju.from_indices(DATA, [rows]), 0)
    proxies = ju.proxy_requests(DATA, request, 5, KEY)
    for found in rows_of(proxies):
        assert len(set(found)) == size
        assert not set(found) & set(rows.tolist())
        if size < 20:  # or the classes do not hold enough
            assert counts(found) == counts(rows)
    assert len({tuple(found) for found in rows_of(proxies)}) > 1
    assert rows_of(proxies) == rows_of(ju.proxy_requests(DATA, request, 5, KEY))
    assert rows_of(proxies) != rows_of(ju.proxy_requests(DATA, request, 5, jax.random.key(1)))
    assert proxies.indices.shape[1] == request.indices.shape[0]


def test_a_part_of_a_class_is_like_a_part_of_another():
    rows = np.flatnonzero(LABELS == 1)[:-1]
    for found in rows_of(ju.proxy_requests(DATA, lane(ju.from_indices(DATA, [rows]), 0), 4, KEY)):
        assert len(found) == len(rows)
        assert len(np.unique(LABELS[found])) <= 2  # filled up where another class is smaller


def test_classes_are_like_other_classes():
    labels = np.arange(60) % 6
    data = ju.training_data(DATA.train.inputs, labels)
    request = lane(ju.from_classes(data, [[1, 4]], num_classes=7), 0)
    proxies = ju.proxy_requests(data, request, 6, KEY)
    found = [tuple(np.flatnonzero(x)) for x in np.asarray(proxies.target)]
    assert sorted(found) == sorted(itertools.combinations([0, 2, 3, 5], 2))
    for rows, classes in zip(rows_of(proxies), found, strict=True):
        assert rows == np.flatnonzero(np.isin(labels, classes)).tolist()
    with pytest.raises(ValueError, match="only 6 ways are left to choose 2 other classes, fewer than the 7 proxies"):
        ju.proxy_requests(data, request, 7, KEY)
    uneven = ju.training_data(DATA.train.inputs, np.minimum(np.arange(60) // 5, 3))
    with pytest.raises(ValueError, match="2 other classes are left, and proxies of 2 must leave some"):
        ju.proxy_requests(uneven, lane(ju.from_classes(uneven, [[0, 1]]), 0), 1, KEY)


def test_groups_are_like_groups_of_their_size():
    people = np.repeat(np.arange(12), [2, 3, 3, 4, 4, 4, 5, 5, 6, 7, 8, 9])
    request = lane(ju.from_groups(DATA, people, [[3]]), 0)
    proxies = ju.proxy_requests(DATA, request, 3, KEY, groups=people)
    sizes = [len(rows) for rows in rows_of(proxies)]
    assert sorted(sizes)[-2:] in ([4, 4], [4, 5])  # two others have four rows, the next three or five
    for rows in rows_of(proxies):
        assert len(set(people[rows])) == 1
        assert 3 not in people[rows]


def test_classes_that_hold_no_row_any_more_are_not_counted():
    labels = np.arange(60) % 6
    data = ju.training_data(DATA.train.inputs, labels)
    data = ju.remove(data, lane(ju.from_classes(data, [[1]]), 0))
    request = lane(ju.from_classes(ju.training_data(DATA.train.inputs, labels), [[0, 1]]), 0)
    assert [len(rows) for rows in rows_of(ju.proxy_requests(data, request, 3, KEY))] == [10, 10, 10]


def test_test_rows_are_weighted_like_the_classes_of_a_request():
    test = ju.Examples(np.zeros((8, 4)), np.array([0, 0, 0, 0, 1, 1, 2, 2]))
    whole, part = np.flatnonzero(LABELS == 0), np.flatnonzero(LABELS == 1)[:3]
    asked = ju.from_indices(DATA, [whole, part, [*whole[:6], *part]])
    found = described(asked, DATA, test, classes=3)
    assert found.gone.tolist() == [1, 0, 0]
    assert found.gone_of_test.tolist() == [0.5, 0, 0]
    shares = [[row[test.targets == y].sum() / row.sum() for y in range(3)] for row in found.alike]
    np.testing.assert_allclose(shares, [[1, 0, 0], [0, 1, 0], [6 / 9, 3 / 9, 0]], rtol=1e-6)
    with pytest.raises(ValueError, match="no row of the classes of request 0"):
        described(asked, DATA, jax.tree.map(lambda x: x[4:], test), classes=3)


def test_real_targets_have_proxies_and_removed_rows_are_none():
    data = regression_data()
    gone = ju.remove(data, lane(ju.from_indices(data, [range(20)]), 0))
    request = lane(ju.from_indices(gone, [range(20, 32)]), 0)
    for rows in rows_of(ju.proxy_requests(gone, request, 4, KEY)):
        assert len(rows) == 12
        assert min(rows) >= 32


def test_proxies_that_cannot_be_are_refused():
    request = lane(ju.from_indices(DATA, [range(30)]), 0)
    with pytest.raises(ValueError, match="leaves 30 rows, too few for proxies of its 30 rows"):
        ju.proxy_requests(DATA, request, 2, KEY)
    with pytest.raises(ValueError, match="holds no present row"):
        ju.proxy_requests(DATA, ju.empty_request(), 2, KEY)
    with pytest.raises(ValueError, match="takes one request"):
        ju.proxy_requests(DATA, ju.from_indices(DATA, [[1], [2]]), 2, KEY)
    with pytest.raises(ValueError, match="2 groups hold no requested row, fewer than the 3 proxies"):
        ju.proxy_requests(DATA, lane(ju.from_indices(DATA, [[0]]), 0), 3, KEY, groups=np.arange(60) % 3)
    with pytest.raises(ValueError, match="count must be an integer of at least 1"):
        ju.proxy_requests(DATA, lane(ju.from_indices(DATA, [[0]]), 0), 0, KEY)


@pytest.mark.parametrize(("count", "risk"), [(6, 0.2), (20, 0.1), (50, 0.3)])
def test_p_values_of_a_risk_at_its_limit_are_rarely_small(count, risk):
    rng = np.random.default_rng(count)
    coins = (rng.random((4000, count)) < risk).astype(float)
    steady = np.full((1, count), risk)
    for losses in (coins, steady, np.clip(rng.gamma(1.0, risk, (2000, count)), 0, 1)):
        p = np.array([hoeffding_bentkus(row, risk) for row in losses])
        for level in (0.01, 0.05, 0.2):
            assert np.mean(p <= level) <= level + 3 * math.sqrt(level / len(losses))


def test_p_values_fall_with_the_losses_and_the_number_of_them():
    values = [hoeffding_bentkus(np.full(count, loss), 0.1) for count, loss in ((10, 0.02), (33, 0.02), (33, 0.0))]
    assert values[0] > values[1] > values[2]
    assert hoeffding_bentkus(np.full(19, 0.01), 0.15) < 0.1 < hoeffding_bentkus(np.full(18, 0.01), 0.15)  # as `tune` says
    assert hoeffding_bentkus(np.full(33, 0.01), 0.1) < 0.1
    assert hoeffding_bentkus(np.ones(5), 0.1) == 1
    for losses in (np.array([1.5]), np.array([]), np.array([np.nan])):
        with pytest.raises(ValueError, match="losses must be"):
            hoeffding_bentkus(losses, 0.1)


def test_holm_is_closed_testing():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.random(5) ** 3
        subsets = [part for size in range(1, 6) for part in itertools.combinations(range(5), size)]
        rejected = [all(min(p[list(s)]) <= 0.1 / len(s) for s in subsets if i in s) for i in range(5)]
        assert holm(p.tolist(), 0.1) == rejected
