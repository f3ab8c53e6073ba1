"""A search against the same search by hand, its refusals, and what it does without retrained models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.tuning.judging import LEAST_SPREAD, MEASURES, spreads_of
from jaxunlearn.tuning.proxies import described
from tests.problems import blobs, distance, held_out, lane, network

KEY = jax.random.key(0)
DATA, TEST, MODEL = blobs(), held_out(), network()
RETRAIN = ju.iterate(ju.retrain(MODEL, optax.sgd(0.2)), num_steps=12, batch_size=8)
REQUEST = lane(ju.from_indices(DATA, [range(6)]), 0)
TRAINED = jax.jit(RETRAIN)(MODEL.init(KEY), DATA, ju.empty_request(16), KEY).variables
RATES = [0.001, 0.1, 1e38]


def make(rate):
    return ju.iterate(ju.gradient_ascent(MODEL, optax.sgd(rate)), num_steps=3, batch_size=4)


def search(request=REQUEST, space=None, made=make, **options):
    retrain = options.pop("retrain", RETRAIN)
    space = {"rate": RATES} if space is None else space
    return ju.tune(MODEL, made, retrain, TRAINED, DATA, request, KEY, space=space, test=TEST, **options)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return search(directory=tmp_path_factory.getbasetemp() / "tune", num_proxies=3, halving=None)


def test_it_is_the_search_that_one_would_do_by_hand(found):
    proxies = ju.proxy_requests(DATA, REQUEST, 3, jax.random.split(KEY, 3)[0])
    assert distance(proxies.indices, found.proxies.indices) == 0
    measured = ju.remove(DATA, REQUEST)  # rows of the real request are not looked at
    alike = described(proxies, DATA, TEST, classes=3).alike
    look = jax.jit(lambda v, r, w: ju.audit.outcome(MODEL, v, measured, r, TEST, unseen_weights=w))
    retrain, keys = jax.jit(RETRAIN), jax.random.split(jax.random.split(KEY, 3)[1], 6)
    reference = [
        [
            look(retrain(TRAINED, DATA, lane(proxies, p), keys[3 * s + p]).variables, lane(proxies, p), alike[p])
            for p in range(3)
        ]
        for s in range(2)
    ]
    unlearn = jax.jit(make(0.1))
    unlearning = jax.random.split(jax.random.split(KEY, 3)[2], 3)
    answers = [unlearn(TRAINED, DATA, lane(proxies, p), unlearning[p]).variables for p in range(3)]
    own = [look(answer, lane(proxies, p), alike[p]) for p, answer in enumerate(answers)]
    point = next(point for point in found.table if point.settings == {"rate": 0.1})
    worst = []
    for name in MEASURES:
        values = np.array([[float(getattr(x, name)) for x in row] for row in reference])
        gaps = np.array([float(getattr(x, name)) for x in own]) - values.mean(axis=0)
        spread = max(np.sqrt(values.var(axis=0, ddof=1).mean()), LEAST_SPREAD)
        assert point.gaps[name] == pytest.approx(gaps.mean(), abs=1e-6)
        assert found.spreads[name] == pytest.approx(spread, abs=1e-6)
        worst.append(np.sqrt(np.mean(gaps**2)) / spread)
    assert point.value == pytest.approx(max(worst), rel=1e-5)
    assert ju.worst_gap(*map(stacked, (own, reference)), found.spreads) == pytest.approx(point.value, rel=1e-6)


def stacked(outcomes):
    if isinstance(outcomes[0], list):
        outcomes = [stacked(row) for row in outcomes]
    return jax.tree.map(lambda *x: np.stack(x), *outcomes)


def test_the_best_point_is_chosen_and_those_that_diverged_are_not(found):
    values = {point.settings["rate"]: point.value for point in found.table}
    assert found.settings == {"rate": min(values, key=values.__getitem__)}
    assert values[1e38] == np.inf
    assert found.table[-1].statuses == ("NONFINITE",)
    assert [point.proxies for point in found.table] == [3, 3, 3]
    assert found.reference == "retrained models"
    assert found.retrainings > 6
    assert 0 < found.seconds["compiling"] < found.seconds["references"] + found.seconds["points"]


def test_a_search_that_was_cut_off_goes_on(found, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "tune"
    files = {path: path.read_text() for path in folder.iterdir()}
    assert all(path.suffix == ".json" for path in files)
    again = search(directory=folder, num_proxies=3, halving=None)
    assert {path: path.read_text() for path in folder.iterdir()} == files
    assert repr(again.table) == repr(found.table)
    other = search(directory=folder, num_proxies=3, halving=None, space={"rate": [0.2]})  # other values are other files
    assert len(list(folder.iterdir())) == len(files) + 1
    assert other.spreads == found.spreads


def test_only_the_best_go_on_and_other_settings_make_programs_of_their_own():
    def made(rate, steps):
        return ju.iterate(ju.gradient_ascent(MODEL, optax.sgd(rate)), num_steps=steps, batch_size=4)

    told = []
    space = {"rate": [0.01, 0.1, 0.3], "steps": [1, 2]}
    found = search(space=space, made=made, progress=lambda doing, done: told.append(doing))
    assert [point.proxies for point in found.table] == [2, 2, 1, 1, 1, 1]
    assert found.settings == found.table[0].settings
    assert set(found.settings) == {"rate", "steps"}
    assert {"retraining", "trying 3 points"} <= set(told)


def test_without_retraining_the_forget_set_is_to_look_unseen():
    found = search(retrain=None, space={"rate": [0.001, 0.1]}, num_proxies=1)
    assert found.reference == "held-out rows"
    assert np.isnan(found.retrainings)
    before = ju.audit.outcome(MODEL, TRAINED, DATA, lane(found.proxies, 0), TEST)
    predicted, labels = jnp.argmax(ju.audit.predict(MODEL, TRAINED, TEST), axis=-1), np.asarray(TEST.targets)
    taken = np.asarray(DATA.train.targets)[np.asarray(found.proxies.indices[0])[np.asarray(found.proxies.weights[0]) > 0]]
    unseen = np.mean([np.mean(np.asarray(predicted)[labels == y] == y) for y in taken])
    assert found.spreads["forget"] == pytest.approx(np.sqrt(unseen * (1 - unseen) / 6), rel=1e-5)
    still = next(point for point in found.table if point.settings == {"rate": 0.001})
    assert still.gaps["forget"] == pytest.approx(float(before.forget) - unseen, abs=1e-2)
    assert still.gaps["test"] == pytest.approx(0, abs=1e-2)


def test_forgotten_classes_are_to_be_unknown():
    request = lane(ju.from_classes(DATA, [[0]], num_classes=3), 0)
    found = search(request, retrain=None, space={"rate": [1e-6]}, num_proxies=2, halving=None)
    names = [int(np.argmax(x)) for x in found.proxies.target]
    assert sorted(names) == [1, 2]
    accuracies = []
    predicted = jnp.argmax(ju.audit.predict(MODEL, TRAINED, TEST), axis=-1)
    for name in names:
        own = np.asarray(TEST.targets) == name
        accuracies.append(float(np.mean(np.asarray(predicted == TEST.targets) & own)))
    assert found.table[0].gaps["test"] == pytest.approx(np.mean(accuracies), abs=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_value_that_is_no_number_is_the_worst(measure):
    reference = ju.audit.Outcome(*[np.full((2, 3), 0.5)] * 5)
    spreads = dict.fromkeys(MEASURES, 0.1)
    fine = ju.audit.Outcome(*[np.full(3, 0.6)] * 5)
    assert ju.worst_gap(fine, reference, spreads) == pytest.approx(1)
    assert ju.worst_gap(fine._replace(**{measure: np.array([0.6, np.nan, 0.6])}), reference, spreads) == np.inf
    broken = reference._replace(**{measure: np.full((2, 3), np.nan)})
    with pytest.raises(ValueError, match=f"references have no {measure}"):
        spreads_of(broken, shares=True)


def test_counts_are_compared_by_their_loss():
    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["w"])

    model = ju.Model(forward, lambda outputs, rows: jnp.exp(outputs.logits) - rows.targets * outputs.logits)
    variables = ju.Variables({"w": jnp.array([0.1, -0.2, 0.0, 0.1])})
    data = ju.training_data(DATA.train.inputs, jnp.arange(60) % 5)
    test = ju.Examples(TEST.inputs, jnp.arange(20) % 2)
    look = partial(ju.audit.outcome, model, data=data, request=REQUEST, test=test)
    for found in (look(variables), jax.jit(look)(variables)):
        assert float(found.test) == pytest.approx(float(jnp.mean(model.loss(forward(variables, test.inputs), test))), rel=1e-5)
    with pytest.raises(ValueError, match="takes a classifier and retrain="):
        ju.tune(model, make, RETRAIN, variables, data, REQUEST, KEY, space={"rate": [0.1]}, test=test, risk=0.1, num_proxies=3)


def test_settings_of_other_types_are_other_programs():
    seen = []

    def made(shape, rate):
        seen.append((shape, type(rate)))
        return ju.iterate(ju.gradient_ascent(MODEL, optax.sgd(rate)), num_steps=2 if shape == (1,) else 1, batch_size=4)

    space = [{"shape": (1,), "rate": 0.1}, {"shape": (True,), "rate": 0.1}, {"shape": [0.0], "rate": 0.1}]
    search(space=space, made=made, num_proxies=1, static=["rate"])
    assert {(repr(shape), kind) for shape, kind in seen} == {("(1,)", float), ("(True,)", float), ("[0.0]", float)}


def test_a_risk_is_tested_on_proxies_that_did_not_choose():
    still = search(space={"rate": [1e-6]}, num_proxies=9, num_references=2, risk=0.45, confidence=0.8)
    (point,) = still.table
    assert point.p_value is not None
    assert (still.settings is not None) == (point.p_value <= 0.2)
    strict = search(space={"rate": [1e-6]}, num_proxies=3, risk=0.01)
    assert strict.settings is None
    assert strict.table[0].p_value > 0.1


def test_searches_that_cannot_be_are_refused():
    for change, message in [
        ({"space": {}}, None),
        ({"space": []}, "space holds no point"),
        ({"space": [{"rate": 0.1}, {"alpha": 0.1}]}, "the same settings"),
        ({"space": {"rate": 0.1}}, "a list of values for every setting, got 0.1 for rate"),
        ({"halving": 1.0}, "above 1, or None"),
        ({"num_references": 1}, "num_references must be an integer of at least 2"),
        ({"risk": 2.0, "num_proxies": 3}, r"fractions in \(0, 1\)"),
        ({"risk": 0.1}, "num_proxies=2 is too few"),
        ({"risk": 0.1, "num_proxies": 3, "retrain": None}, "takes a classifier and retrain="),
        ({"proxies": lambda data, request, count, key: ju.from_indices(data, [[5, 7], [9]])}, "proxy 0 shares 1 rows"),
        ({"proxies": lambda data, request, count, key: ju.from_indices(data, [[7]])}, "must return 2 stacked requests"),
    ]:
        if message is not None:
            with pytest.raises(ValueError, match=message):
                search(**change)
    with pytest.raises(ValueError, match="non-members are members as well"):
        ju.tune(MODEL, make, RETRAIN, TRAINED, DATA, REQUEST, KEY, space={"rate": [0.1]}, test=DATA.train)
    with pytest.raises(TypeError, match="write tune"):
        search(made=lambda rate: ju.gradient_ascent(MODEL, optax.sgd(rate)))
