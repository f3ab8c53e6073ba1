"""Where rows lie, what that costs, and what shards predict together."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import sisa
from tests.problems import NUM_FEATURES, blobs, linear_regression, network

KEY = jax.random.key(0)


def rows(count):
    return ju.training_data(np.zeros((count, 1), np.float32), np.zeros(count, np.int32))


def trainer(epochs=20):
    return sisa.trainer(network(), optax.sgd(0.1), epochs=epochs, batch_size=4)


@pytest.mark.parametrize(("count", "shards", "slices"), [(61, 3, 4), (60, 3, 4), (7, 7, 1), (1, 1, 1), (23, 2, 11)])
def test_every_row_has_one_place_and_sizes_differ_by_one(count, shards, slices):
    found = sisa.random_partition(rows(count), KEY, shards=shards, slices=slices)
    held = np.asarray(found.rows)
    assert sorted(held[held >= 0].tolist()) == list(range(count))
    np.testing.assert_array_equal((held >= 0).sum(2), found.sizes)
    assert np.ptp(found.left) <= 1
    assert np.ptp(np.asarray(found.sizes), axis=1).max() <= 1
    assert np.all((held >= 0) == (np.arange(held.shape[2]) < np.asarray(found.sizes)[..., None]))


def test_a_partition_does_not_look_at_who_is_there():
    data = blobs(61)
    again = sisa.random_partition(ju.remove(data, ju.merge(ju.from_indices(data, [[1, 2]]))), KEY, shards=3, slices=4)
    np.testing.assert_array_equal(again.rows, sisa.random_partition(data, KEY, shards=3, slices=4).rows)
    with pytest.raises(ValueError, match="61 rows do not fill 31 shards of 2 slices"):
        sisa.random_partition(data, KEY, shards=31, slices=2)
    with pytest.raises(ValueError, match="shards must be an integer"):
        sisa.random_partition(data, KEY, shards=0, slices=2)


def test_rates_make_removals_cheaper():
    rates = np.random.default_rng(0).pareto(1.0, 1000)
    data = rows(1000)
    by_rate = sisa.partition_by_rate(rates, KEY, shards=8, slices=1, least_rows=1)
    held = np.asarray(by_rate.rows)
    assert sorted(held[held >= 0].tolist()) == list(range(1000))
    share = rates / rates.sum()
    least = np.sum(np.sqrt(share)) ** 2 / 8  # rows to train on again, in the limit of many rows
    random = sisa.random_partition(data, KEY, shards=8, slices=1)
    cost = [sisa.expected_cost(trainer(1), each, rates=rates).expected + 1 for each in (by_rate, random)]
    assert cost[0] == pytest.approx(least, rel=0.1)
    assert cost[1] == pytest.approx(125, rel=0.01)
    assert cost[0] < 0.3 * cost[1]
    # late slices hold the likeliest rows
    sliced = sisa.partition_by_rate(rates, KEY, shards=4, slices=3)
    means = np.where(np.asarray(sliced.rows) >= 0, rates[np.asarray(sliced.rows)], 0).sum(2) / np.asarray(sliced.sizes)
    assert np.all(np.diff(means, axis=1) > 0)
    assert np.all(np.asarray(sliced.left) >= 125)  # half of an even share


def test_extreme_rates_still_fill_every_slice():
    spike = np.zeros(60)
    spike[7] = 1.0
    for shards, slices in ((4, 3), (20, 3), (1, 1)):
        found = sisa.partition_by_rate(spike, KEY, shards=shards, slices=slices)
        assert np.asarray(found.sizes).min() >= 1
        assert np.asarray(found.rows)[-1, -1, np.asarray(found.sizes)[-1, -1] - 1] == 7
    even = sisa.partition_by_rate(np.ones(60), KEY, shards=4, slices=3)
    assert np.asarray(even.left).tolist() == [15] * 4
    assert not np.array_equal(np.asarray(even.rows).ravel(), np.arange(60))
    for wrong, match in ((-spike, "at least 0"), (0 * spike, "not all"), (spike + np.nan, "finite"), (spike[None], "each row")):
        with pytest.raises(ValueError, match=match):
            sisa.partition_by_rate(wrong, KEY, shards=4, slices=3)
    with pytest.raises(ValueError, match="lower least_rows or shards"):
        sisa.partition_by_rate(np.ones(60), KEY, shards=4, slices=3, least_rows=16)


def test_cost_is_that_of_the_paper():
    """Shares of a training for one row: (2/3 + 1/(3 R)) / S; sums over requests, for R = 1."""
    for slices in (1, 2, 8, 32):
        partition = sisa.random_partition(rows(6400), KEY, shards=4, slices=slices)
        share = sisa.expected_cost(trainer(2000), partition).share
        assert share == pytest.approx((2 / 3 + 1 / (3 * slices)) / 4, rel=2e-3)
    count, shards, asked = 1000, 10, 7
    partition = sisa.random_partition(rows(count), KEY, shards=shards, slices=1)
    together = sisa.expected_cost(trainer(1), partition, requests=asked)
    assert together.training == count
    assert together.expected == pytest.approx(count * (1 - (1 - 1 / shards) ** asked) - asked, rel=1e-3)
    rng, spent = np.random.default_rng(0), []
    for _ in range(200):
        held, total = np.asarray(partition.rows), 0
        for row in rng.choice(count, asked, replace=False):
            total += sisa.visits_of(trainer(1), partition._replace(rows=held), [row]).sum()
            held = np.where(held == row, -1, held)
        spent.append(total)
    formula = (count / shards + 1 / (2 * shards) - 1) * asked - asked**2 / (2 * shards)
    assert formula == pytest.approx(690.9)
    assert np.mean(spent) == pytest.approx(formula, abs=4 * np.std(spent) / 200**0.5)


def test_expected_is_the_mean_over_all_rows():
    partition = sisa.random_partition(rows(61), KEY, shards=3, slices=4)
    rates = np.random.default_rng(0).uniform(size=61)
    single = np.array([sisa.visits_of(trainer(7), partition, [row]).sum() for row in range(61)])
    assert sisa.expected_cost(trainer(7), partition).expected == pytest.approx(single.mean())
    weighted = sisa.expected_cost(trainer(7), partition, rates=rates)
    assert weighted.expected == pytest.approx(single @ rates / rates.sum())
    pairs = np.array([[sisa.visits_of(trainer(7), partition, [i, j]).sum() for i in range(61)] for j in range(61)])
    assert sisa.expected_cost(trainer(7), partition, requests=2).expected == pytest.approx(pairs.mean())
    with pytest.raises(ValueError, match="each of the 61 rows"):
        sisa.expected_cost(trainer(7), partition, rates=rates[:5])


def test_no_request_costs_more_than_the_attack():
    task, partition = trainer(5), sisa.random_partition(rows(14), KEY, shards=3, slices=2)
    epochs = task.slice_epochs(2).sum()
    for size in (1, 2, 3):
        attack = sisa.slow_down_attack(task, partition, size)
        bound = sisa.expected_cost(task, partition, requests=size).bound
        worst = max(sisa.visits_of(task, partition, each).sum() for each in combinations(range(14), size))
        assert sisa.visits_of(task, partition, attack).sum() == worst == bound - size * epochs
    training = sisa.expected_cost(task, partition, requests=9)
    assert training.bound == training.training
    with pytest.raises(ValueError, match="3 shards at most"):
        sisa.slow_down_attack(task, partition, 4)


def test_the_attack_finds_shards_whose_first_slice_is_empty():
    task, partition = trainer(5), sisa.random_partition(rows(14), KEY, shards=3, slices=2)
    partition = partition._replace(rows=partition.rows.at[0, 0].set(-1).at[2].set(-1))
    worst = max(sisa.visits_of(task, partition, [row]).sum() for row in range(14))
    assert sisa.visits_of(task, partition, sisa.slow_down_attack(task, partition, 1)).sum() == worst
    attack = sisa.slow_down_attack(task, partition, 3)
    assert len(attack) == 2  # nothing is left of the last shard
    assert set(attack.tolist()) <= set(np.asarray(partition.rows).ravel().tolist())


def shards_of(logits, left):
    """An ensemble whose shard s answers logits[s] to every row."""
    count = len(left)
    held = np.where(np.arange(max(left)) < np.asarray(left)[:, None], 0, -1)[:, None]
    partition = sisa.Partition(jnp.asarray(held), jnp.asarray(left)[:, None])
    state = sisa.Shards((), partition, jax.random.split(KEY, count), ())
    return ju.Variables({"w": jnp.asarray(logits, jnp.float32)}, state)


def answer(logits, left, **options):
    model = ju.Model(
        lambda variables, inputs, **_: ju.Outputs(jnp.broadcast_to(variables.params["w"], (2, *variables.params["w"].shape))),
        ju.losses.cross_entropy,
    )
    return np.asarray(sisa.ensemble(model, **options).forward(shards_of(logits, left), jnp.zeros((2, 1))).logits[0])


def test_shards_predict_together():
    logits = np.array([[0.0, 3.0, 1.0], [2.0, 0.0, 0.0], [0.0, 0.0, np.nan]])
    assert answer(logits[:1], [4]).argmax() == 1
    shares = np.exp(answer(logits, [4, 4, 0]))  # the last shard lost all its rows
    np.testing.assert_allclose(shares, [0.5, 0.5, 0], atol=1e-6)
    assert answer(logits, [4, 4, 0]).argmax() == 0  # the lowest of equals
    probabilities = np.exp(answer(logits, [4, 4, 0], by="probabilities"))
    np.testing.assert_allclose(probabilities, np.asarray(jax.nn.softmax(logits[:2])).mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.exp(answer(logits[:2], [3, 1], weights="rows")), [0.25, 0.75, 0], atol=1e-6)
    np.testing.assert_allclose(
        np.exp(answer(logits, [4, 4, 4], weights=jnp.array([1.0, 3.0, 0.0]))), [0.75, 0.25, 0], atol=1e-6
    )
    np.testing.assert_allclose(answer(logits, [4, 4, 0], by="outputs"), logits[:2].mean(0), rtol=1e-6)
    assert np.all(np.isfinite(answer(logits[:2], [0, 0])))  # nothing is left anywhere
    with pytest.raises(ValueError, match="each of the 3 shards"):
        answer(logits, [4, 4, 4], weights=jnp.ones(2))
    with pytest.raises(ValueError, match="use by='outputs'"):
        answer(logits[:, 0], [4, 4, 4])
    with pytest.raises(ValueError, match="by must be one of votes"):
        sisa.ensemble(network(), by="mean")
    for wrong in ([1.0, -1.0], [1.0, np.nan], [1.0, np.inf]):
        with pytest.raises(ValueError, match="weights must lie in"):
            sisa.ensemble(network(), weights=np.array(wrong))
    with pytest.raises(ValueError, match="no training mode"):
        sisa.ensemble(network()).forward(shards_of(logits, [1, 1, 1]), jnp.zeros((2, 1)), train=True)


@pytest.mark.slow
def test_real_targets_and_a_single_shard():
    """One shard of one slice is a model trained once on all rows."""
    data = ju.training_data(blobs(30).train.inputs, blobs(30).train.inputs @ jnp.arange(1.0, 1 + NUM_FEATURES))
    model = linear_regression()
    whole = sisa.trainer(model, optax.sgd(0.05), epochs=40, batch_size=30)
    fitted = jax.jit(lambda data: sisa.fit(whole, data, sisa.random_partition(data, KEY, shards=1, slices=1), KEY))(data)
    inputs, targets = map(np.asarray, data.train)
    weights = np.asarray(fitted.state.starts.variables.params["w"])[0, 0]
    for _ in range(40):
        weights = weights - 0.05 * inputs.T @ (inputs @ weights - targets) / 30
    np.testing.assert_allclose(fitted.params["w"][0], weights, rtol=1e-4)
    logits = sisa.ensemble(model, by="outputs").forward(fitted, data.train.inputs).logits
    np.testing.assert_allclose(logits, inputs @ weights, rtol=1e-3, atol=1e-4)
