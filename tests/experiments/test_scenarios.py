"""What scenarios promise about rows, labels and seeds; a model is trained only where memorisation is estimated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import scenarios, study
from experiments.common.data import load
from experiments.common.outcome import outcome

SEEDS = {"seed": 0, "request_seed": 0, "audit_seed": 0}


@pytest.fixture(scope="module")
def clean():
    return study.overfitted(num_rows=300, label_noise=0, num_steps=1)


def rows_of(requests):
    """The rows of every request, as sets."""
    flat = requests.indices.reshape(-1, requests.indices.shape[-1]), requests.weights.reshape(-1, requests.weights.shape[-1])
    return [set(np.asarray(i)[np.asarray(w) > 0].tolist()) for i, w in zip(*flat, strict=True)]


def labels(setting):
    return np.asarray(setting.data.train.targets)


def test_streams_ask_for_the_rows_of_the_whole_one_after_another(clean):
    scenario = scenarios.sequential(clean, num_streams=2, num_requests=3, size=5, request_seed=1)
    assert scenario.stream.indices.shape[:2] == (2, 3)
    steps, whole = rows_of(scenario.stream), rows_of(scenario.requests)
    for stream in range(2):
        parts = steps[3 * stream : 3 * stream + 3]
        assert set.union(*parts) == whole[stream]
        assert sum(map(len, parts)) == len(whole[stream]) == 15


def test_memorisation_tells_rows_that_can_only_be_known_by_heart():
    noisy = study.overfitted(num_rows=60, label_noise=0.2, num_steps=60)
    wrong = labels(noisy) != labels(study.overfitted(num_rows=60, label_noise=0, num_steps=1))
    values = scenarios.memorisation(noisy, num_models=12, seed=0)
    assert values[wrong].mean() > 0.8 > 0.5 > values[~wrong].mean()
    assert np.all(np.abs(values) <= 1)
    with pytest.raises(ValueError, match=r"0\.7 of 1 models is 1"):
        scenarios.memorisation(noisy, num_models=1, seed=0)


def test_thirds_are_ordered_and_of_one_size(clean):
    values = np.random.default_rng(0).integers(0, 20, 300) / 20  # with ties
    thirds = scenarios.memorised_rows(clean, values, num_requests=3, size=10, request_seed=0)
    assert [third.name for third in thirds] == list(scenarios.NAMES["memorised"])
    reached = []
    for third in thirds:
        sets = rows_of(third.requests)
        assert {len(rows) for rows in sets} == {10}
        reached.append(values[sorted(set.union(*sets))])
    assert reached[0].max() <= reached[1].min()
    assert reached[1].max() <= reached[2].min()
    with pytest.raises(ValueError, match="a third of 300 rows holds no request of size=101"):
        scenarios.memorised_rows(clean, values, size=101, request_seed=0)
    with pytest.raises(ValueError, match="one memorisation value for each of 300 rows"):
        scenarios.memorised_rows(clean, values[1:], request_seed=0)


@pytest.mark.parametrize("together", [1, 2])
def test_classes_are_whole_and_no_two_requests_alike(clean, together):
    scenario = scenarios.classes(clean, num_requests=4, together=together, request_seed=0)
    targets = np.asarray(scenario.requests.target)
    assert np.unique(targets, axis=0).shape == (4, 10)
    for rows, target, weights in zip(rows_of(scenario.requests), targets, scenario.unseen_weights, strict=True):
        assert target.sum() == together
        assert rows == set(np.flatnonzero(target[labels(clean)]))
        np.testing.assert_array_equal(weights > 0, target[np.asarray(clean.test.targets)])


def test_clusters_are_whole_kinds_within_a_class(clean):
    scenario = scenarios.subclass(clean, num_requests=40, clusters=2, seed=0, request_seed=0)
    sets = rows_of(scenario.requests)
    assert sum(map(len, sets)) == len(set.union(*sets))  # clusters do not overlap
    truth = np.asarray(clean.test.targets)
    for rows, weights in zip(sets, scenario.unseen_weights, strict=True):
        (label,) = np.unique(labels(clean)[sorted(rows)])
        assert set(truth[np.asarray(weights) > 0]) == {label}
        assert min(len(rows), weights.sum()) >= scenarios.FEWEST_UNSEEN
        assert len(rows) < (labels(clean) == label).sum()


def test_groups_are_whole_and_test_rows_are_of_other_persons(clean):
    scenario = scenarios.group(clean, num_requests=6, num_persons=6, **SEEDS)
    sets = rows_of(scenario.requests)
    assert set.union(*sets) == set(range(300))
    assert {len(rows) for rows in sets} == {50}
    added = np.asarray(scenario.study.data.train.inputs - clean.data.train.inputs)
    styles = []
    for rows in sets:
        mine = added[sorted(rows)]
        np.testing.assert_allclose(mine, np.broadcast_to(mine[0], mine.shape), atol=1e-6)
        styles.append(mine[0])
    unseen = np.asarray(scenario.study.test.inputs - clean.test.inputs)
    assert min(np.abs(unseen - style).max(axis=(1, 2, 3)).min() for style in styles) > 0.1
    with pytest.raises(ValueError, match="need as many persons"):
        scenarios.group(clean, num_requests=7, num_persons=6, **SEEDS)


def test_labels_are_swapped_within_pairs_only(clean):
    scenario = scenarios.confusion(clean, num_pairs=3, fraction=0.5, seed=0)
    before, after, sets = labels(clean), labels(scenario.study), rows_of(scenario.requests)
    assert set.union(*sets) == set(np.flatnonzero(before != after))
    seen = set()
    for rows, weights in zip(sets, np.asarray(scenario.unseen_weights) > 0, strict=True):
        rows = sorted(rows)
        pair = set(before[rows])
        assert len(pair) == 2
        assert not pair & seen
        seen |= pair
        np.testing.assert_array_equal(before[rows] + after[rows], sum(pair))  # each has the other's label
        assert len(rows) == sum(round(0.5 * (before == label).sum()) for label in pair)
        assert set(np.asarray(clean.test.targets)[weights]) == pair
        total = np.asarray(clean.test.targets)[weights] + np.asarray(scenario.unseen.targets)[weights]
        np.testing.assert_array_equal(total, sum(pair))
    np.testing.assert_array_equal(scenario.study.data.train.inputs, clean.data.train.inputs)


def test_poisoned_rows_carry_trigger_and_label(clean):
    scenario = scenarios.backdoor(clean, num_attackers=4, fraction=0.04, size=2, value=1.5, seed=0)
    inputs, before, after = np.asarray(scenario.study.data.train.inputs), labels(clean), labels(scenario.study)
    sets, spots = rows_of(scenario.requests), []
    assert {len(rows) for rows in sets} == {12}
    untouched = sorted(set(range(300)) - set.union(*sets))
    np.testing.assert_array_equal(inputs[untouched], clean.data.train.inputs[np.array(untouched)])
    np.testing.assert_array_equal(after[untouched], before[untouched])
    truth, triggered = np.asarray(clean.test.targets), np.asarray(scenario.unseen.inputs)
    for rows, weights in zip(sets, np.asarray(scenario.unseen_weights) > 0, strict=True):
        rows = sorted(rows)
        (target,) = np.unique(after[rows])
        assert target not in before[rows]
        spot = inputs[rows[0]] == 1.5
        assert spot.sum() == 4
        assert (inputs[rows][:, spot] == 1.5).all()
        spots.append(spot)
        assert weights.sum() == (truth != target).sum()  # rows of the target class cannot be led astray
        assert (triggered[weights][:, spot] == 1.5).all()
        assert set(np.asarray(scenario.unseen.targets)[weights]) == {target}
    assert np.sum(spots, axis=0).max() == 1  # a corner each
    np.testing.assert_array_equal(scenario.study.test.inputs, clean.test.inputs)
    with pytest.raises(ValueError, match="1 to 4 attackers"):
        scenarios.backdoor(clean, num_attackers=5, seed=0)


def test_seeds_are_separate(clean):
    values = np.zeros(300)

    def built(name, **seeds):
        return scenarios.build(name, clean, clean, num_requests=3, values=lambda: values, **{**SEEDS, **seeds})

    for name in scenarios.NAMES:
        base, again = built(name), built(name)
        assert [one.name for one in base] == list(scenarios.NAMES[name])
        other_requests, other_audit = built(name, request_seed=1), built(name, audit_seed=1)
        for one, same, moved, judged in zip(base, again, other_requests, other_audit, strict=True):
            assert rows_of(one.requests) == rows_of(same.requests) == rows_of(judged.requests)
            for other in (moved, judged):  # neither moves the training set
                for x, y in zip(one.study.data.train, other.study.data.train, strict=True):
                    np.testing.assert_array_equal(x, y)
            if name not in ("confusion", "backdoor"):  # which ask for all spoilt rows
                assert rows_of(one.requests) != rows_of(moved.requests)
    test_rows = [built("group", audit_seed=seed)[0].study.test.inputs for seed in (0, 1)]
    assert not np.array_equal(*test_rows)


def test_equal_seeds_for_rows_and_requests_draw_nothing_alike():
    noisy = study.overfitted(num_rows=300, label_noise=0.2, num_steps=1)
    wrong = set(np.flatnonzero(labels(noisy) != labels(study.overfitted(num_rows=300, label_noise=0, num_steps=1))))
    asked = rows_of(scenarios.sequential(noisy, num_streams=1, num_requests=5, size=12, request_seed=0).requests)[0]
    assert len(wrong & asked) == pytest.approx(12, abs=10)  # hypergeometric: standard deviation 2.8


def test_tables_come_standardised_and_fit_some_scenarios():
    cancer, diabetes = load("breast_cancer"), load("diabetes")
    assert (cancer.train.inputs.shape, cancer.test.inputs.shape, cancer.num_classes) == ((455, 30), (114, 30), 2)
    assert (diabetes.train.inputs.shape, diabetes.train.targets.shape, diabetes.num_classes) == ((353, 10), (353, 1), 0)
    for values in (cancer.train.inputs, diabetes.train.inputs, diabetes.train.targets):
        np.testing.assert_allclose(
            (values.mean(axis=0), values.std(axis=0)), np.broadcast_to([[0], [1]], (2, values.shape[1])), atol=1e-4
        )

    def fitting(dataset):
        return {n for n in scenarios.NAMES if scenarios.why_not(n, dataset.num_classes, dataset.train.inputs.shape[1:]) is None}

    assert fitting(cancer) == {"random", "memorised", "subclass", "group", "confusion", "sequential"}
    assert fitting(diabetes) == {"random", "group", "sequential"}
    assert fitting(load("digits")) == set(scenarios.NAMES)
    for dataset, num_requests in (("breast_cancer", 1), ("diabetes", 4)):
        setting = study.overfitted(dataset, num_rows=300, label_noise=0, num_steps=1)
        assert scenarios.group(setting, num_requests=4, **SEEDS).requests.indices.shape[0] == 4
        if setting.num_classes:
            assert scenarios.confusion(setting, seed=0).requests.indices.shape[0] == num_requests
    with pytest.raises(ValueError, match="memorisation needs at least 2 classes, this study has 0"):
        scenarios.memorisation(setting, seed=0)
    with pytest.raises(ValueError, match="set label_noise=0"):
        study.overfitted("diabetes", num_rows=10)


def test_real_targets_are_judged_by_root_mean_squares():
    setting = study.overfitted("diabetes", num_rows=100, label_noise=0, num_steps=1)
    scenario = scenarios.random_rows(setting, num_requests=2, sizes=(5, 9), request_seed=0)
    zero = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), setting.model.init(jax.random.key(0)))

    def audit(variables, request, unseen_weights):
        return outcome(setting.model, variables, setting.data, setting.test, request, scenario.unseen, unseen_weights)[0]

    found = jax.jit(jax.vmap(audit))(zero, scenario.requests, scenario.unseen_weights)
    targets = np.asarray(setting.data.train.targets)[:, 0]
    for lane, rows in enumerate(rows_of(scenario.requests)):
        assert found.forget[lane] == pytest.approx(np.sqrt(np.mean(targets[sorted(rows)] ** 2)), rel=1e-5)
    np.testing.assert_allclose(found.unseen, found.test, rtol=1e-5)
    np.testing.assert_allclose(found.test, np.sqrt(np.mean(np.asarray(setting.test.targets) ** 2)), rtol=1e-5)
