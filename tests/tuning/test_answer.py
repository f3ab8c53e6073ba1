"""One call for a service: which way it goes, what it says, and that it says what is so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.tuning.answer import _strange
from jaxunlearn.tuning.judging import MEASURES
from tests.problems import blobs, distance, held_out, lane, network

KEY = jax.random.key(0)
DATA, TEST, MODEL = blobs(), held_out(), network()
RECIPE = ju.Recipe(optax.sgd, learning_rate=0.2, num_steps=12, batch_size=8)
TRAINED = jax.jit(RECIPE.retrain(MODEL))(MODEL.init(KEY), DATA, ju.empty_request(16), KEY).variables
ROWS = ju.from_indices(DATA, [[i, i + 1, i + 20] for i in range(6)])
ONE = {"finetune": {"learning_rate": [1.0]}}


def answer(requests=ROWS, recipe=RECIPE, **options):
    options = {"num_steps": 2, "num_proxies": 2, "candidates": ONE, "unseen": TEST, **options}
    return ju.answer(MODEL, TRAINED, DATA, requests, recipe, KEY, **options)


def answer_keys(count):
    """Keys of the answers to so many requests."""
    return jax.random.split(jax.random.split(jax.random.split(KEY)[1])[1], count)


@pytest.fixture(scope="module")
def searched():
    return answer(to_come=100, tolerance=np.inf)


def test_few_requests_are_retrained_since_that_is_cheaper_and_exact():
    found = answer(lane(ROWS, 0))
    assert (found.how, found.passed, found.tuned, found.found) == ("retrained", True, None, None)
    assert found.verdict.startswith("Retrained: that costs 1 retrainings, a search about")
    key = answer_keys(1)[0]
    assert distance(found.result.variables, jax.jit(RECIPE.retrain(MODEL))(TRAINED, DATA, lane(ROWS, 0), key).variables) < 1e-6


def test_many_are_unlearned_by_what_was_best_on_proxies(searched):
    assert (searched.how, searched.passed) == ("finetune", True)
    assert "finetune (learning_rate 1), the best of 1 points: on 2 requests like these it is" in searched.verdict
    assert distance(searched.tuned.proxies.indices, searched.searched.proxies.indices) > 0  # others judge than chose
    assert searched.result.status.tolist() == [ju.Status.OK] * 6
    assert searched.found.auc.shape == (6,)
    assert searched.costs.search >= 8
    by_hand = ju.iterate(ju.finetune(MODEL, RECIPE.scaled(1.0, num_steps=2)), num_steps=2, batch_size=8)
    expected = jax.jit(ju.batched(by_hand))(TRAINED, DATA, ROWS, answer_keys(6))
    assert distance(searched.result.variables, expected.variables) < 1e-6
    look = ju.audit.performance(MODEL, lane(searched.result.variables, 2), DATA, lane(ROWS, 2), TEST).accuracy
    assert searched.found.retain[2] == pytest.approx(float(look.retain))


def test_an_earlier_search_is_used_again(searched):
    again = answer(tuned=searched.tuned, tolerance=np.inf)
    assert (again.how, again.passed, again.costs.search) == ("finetune", True, 0)
    assert distance(again.result.variables, searched.result.variables) == 0


def test_what_does_not_pass_is_retrained_or_said(searched):
    value = searched.tuned.table[0].value
    retrained = answer(tuned=searched.tuned, tolerance=value / 2)
    assert (retrained.how, retrained.passed) == ("retrained", True)
    assert distance(retrained.rejected.variables, searched.result.variables) == 0
    assert f"does not pass, since on 2 requests like these it is {value:.1f} spreads from retrained" in retrained.verdict
    poor = answer(tuned=searched.tuned, tolerance=value / 2, budget=4)
    assert (poor.how, poor.passed) == ("finetune", False)
    assert poor.verdict.startswith("Not good enough: finetune")


def test_answers_that_look_unlike_the_proxies_do_not_pass(searched):
    far = searched.tuned._replace(references=jax.tree.map(lambda x: x - 0.5, searched.tuned.references))
    found = answer(tuned=far, tolerance=np.inf, budget=4)
    assert not found.passed
    assert "result on the retain set is" in found.verdict


def test_a_small_budget_is_kept_and_it_says_that_nothing_was_compared(searched):
    found = answer(budget=4.5)
    assert (found.how, found.passed) == ("finetune", False)
    assert "the budget allows no retrained model to compare with" in found.verdict
    assert found.costs.search + found.costs.unlearning <= 4.5
    for tuned in (None, searched.tuned):
        with pytest.raises(ValueError, match="allows neither 6 of them nor unlearning, that costs 3"):
            answer(budget=2.5, tuned=tuned)
    dear = answer(tuned=searched.tuned, num_steps=50, tolerance=np.inf)  # a request costs more than a retraining
    assert dear.how == "retrained"


def test_a_retraining_that_fails_does_not_pass():
    found = answer(recipe=RECIPE._replace(learning_rate=1e30))
    assert (found.how, found.passed) == ("retrained", False)
    assert "6 of 6 answers say" in found.verdict


def test_a_search_serves_requests_like_its_own_only(searched):
    whole = np.flatnonzero(np.asarray(DATA.train.targets) == 1)
    classes = ju.from_classes(DATA, [[0], [1]], num_classes=3)
    mixed = ju.from_indices(DATA, [[0, 1, 20], whole])
    large = ju.from_indices(DATA, [range(20)])
    for requests, told in ((classes, "whole class"), (mixed, "whole class"), (large, "requests of 20 to 20 rows")):
        found = answer(requests, tuned=searched.tuned, tolerance=np.inf, to_come=100)
        assert found.how == "retrained"
        assert told in found.verdict
    assert "no requests like these to try on" in answer(mixed, to_come=100).verdict


def test_one_answer_that_stands_out_is_noticed():
    references = ju.audit.Outcome(*[np.array([[0.89, 0.9], [0.9, 0.91]])] * 5)
    found = ju.audit.Outcome(*[np.full(20, 0.9)] * 5)
    strange = found._replace(retain=np.where(np.arange(20) == 3, 0.8, 0.9))
    judge = partial(_strange, references=references, spreads=dict.fromkeys(MEASURES, 0.01), sizes=np.full(20, 10), shares=True)
    assert judge(found) == []
    assert judge(strange) == ["1 of 20 answers stand out by their result on the retain set"]
    hard = found._replace(forget=np.where(np.arange(20) == 3, 0.5, 0.9))  # ten rows of which half are hard: chance
    assert judge(hard) == []
    (told,) = judge(found._replace(auc=found.auc - 0.3))
    assert told.startswith("their attack AUC is 0.6")


def test_damage_is_no_success(searched):
    table = [searched.tuned.table[0]._replace(settings={"method": "finetune", "learning_rate": 1e30})]
    broken = searched.tuned._replace(table=table, settings=table[0].settings)
    found = answer(tuned=broken, tolerance=np.inf, budget=4, candidates={"finetune": {"learning_rate": [1e30]}})
    assert not found.passed
    assert "6 of 6 answers say DAMAGED" in found.verdict


def test_real_targets():
    x = DATA.train.inputs
    data = ju.training_data(x, x[:, :1] + 0.1)
    model = ju.Model(
        lambda v, x, **_: ju.Outputs(x @ v.params["w"]),
        ju.losses.squared_error,
        lambda key: ju.Variables({"w": jnp.zeros((4, 1))}),
    )
    trained = jax.jit(RECIPE.retrain(model))(model.init(KEY), data, ju.empty_request(16), KEY).variables
    unseen = ju.Examples(TEST.inputs, TEST.inputs[:, :1] + 0.1)
    found = ju.answer(
        model, trained, data, ROWS, RECIPE, KEY, unseen=unseen, to_come=100, num_steps=2, num_proxies=2, tolerance=np.inf,
        candidates={"gradient_difference": {"learning_rate": [0.5], "alpha": [0.9]}, **ONE},
    )  # fmt: skip
    assert found.how in ("finetune", "gradient_difference")
    assert len(found.searched.table) == 2


def test_a_rate_is_the_mean_of_its_schedule():
    falling = ju.Recipe(optax.sgd, optax.linear_schedule(0.2, 0.0, 100), num_steps=101, batch_size=8)
    assert float(falling.rate()) == pytest.approx(0.1)
    half = falling.scaled(0.5, num_steps=10)
    step, _ = half.update({"w": jnp.ones(())}, half.init({"w": jnp.ones(())}))
    assert float(step["w"]) == pytest.approx(-0.05)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"unseen": jax.tree.map(lambda x: x[:3], TEST)}, "unseen needs at least 4 rows"),
        ({"unseen": TEST._replace(targets=TEST.targets - 1)}, r"unseen has labels \[-1\]"),
        ({"unseen": jax.tree.map(lambda *x: jnp.concatenate([x[0][:9], x[1][:1]]), TEST, DATA.train)}, "members as well"),
        ({"requests": ju.ForgetRequest(np.zeros(3, int), np.zeros(3), np.eye(3)[0] > 0)}, "request 0 names no row"),
        ({"requests": ju.ForgetRequest(np.array([3, 3]), np.ones(2), ())}, "request 0 names rows twice"),
        ({"requests": ju.ForgetRequest(np.array([3, 60]), np.ones(2), ())}, "outside the 60 rows"),
        ({"requests": ju.ForgetRequest(np.array([3, 4]), np.full(2, 0.5), ())}, "weights other than 0 and 1"),
        ({"requests": jax.tree.map(lambda x: x[:0], ROWS)}, "there is no request"),
        ({"recipe": RECIPE._replace(num_steps=0)}, "num_steps"),
        ({"candidates": {"unseen_matching": {"learning_rate": [1.0], "by_class": [True]}}}, "it takes numbers"),
        (
            {"candidates": {"npo": {"learning_rate": [1.0]}, "negative_preference_optimization": {"learning_rate": [1.0]}}},
            "npo",
        ),
        ({"budget": -1}, "budget"),
        ({"candidates": {"ssd": {"learning_rate": [1.0]}}}, "ssd is no method with steps"),
        ({"candidates": {"finetune": {}}}, "needs values of learning_rate"),
        ({"candidates": {"finetune": {"learning_rate": [1.0], "alhpa": [1.0]}}}, "it has no setting alhpa"),
        ({"candidates": {"cf_k": {"learning_rate": [1.0]}}}, "candidate cf_k: it needs layers"),
        ({"candidates": {"unsir": {"learning_rate": [1.0]}}}, "none of the candidates unsir fits"),
        ({"candidates": {"finetnue": {"learning_rate": [1.0]}}}, "finetune"),
    ],
)
def test_bad_input_is_told(options, told):
    with pytest.raises(ValueError, match=told):
        answer(**options)


def test_requests_of_two_kinds_are_refused():
    target = np.zeros((6, 3), bool)
    target[0, 0] = True
    with pytest.raises(ValueError, match="1 of 6 requests are for classes"):
        answer(ROWS._replace(target=target))


def test_a_search_for_other_methods_is_not_taken(searched):
    other = {"gradient_difference": {"learning_rate": [1.0]}}
    with pytest.raises(ValueError, match="none of the candidates: give the candidates of that search"):
        answer(tuned=searched.tuned, candidates=other, budget=4)


def test_classes_are_tried_with_held_out_rows():
    requests = ju.from_classes(DATA, [[0], [1]], num_classes=3)
    candidates = {"unseen_matching": {"learning_rate": [0.01]}}
    found = answer(requests, candidates=candidates, to_come=100, budget=30, tolerance=np.inf, num_proxies=1)
    assert found.tuned.settings == {"method": "unseen_matching", "learning_rate": 0.01}
    assert found.result.status.shape == (2,)
