"""The loop that suppresses: a toy generator whose answers are known, verifiers that err, another distribution of prompts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import guards
from tests.problems import lane

FORGOTTEN, REFUSED = 0, -1
INFEASIBLE = guards.Budget(jnp.inf, np.bool(False), 6, 5, 0.9)


def tokens(mass):
    """Logits of ten tokens, the forgotten one with this probability."""
    others = jnp.broadcast_to(jnp.log((1 - jnp.asarray(mass)) / 9)[..., None], (*jnp.shape(mass), 9))
    return jnp.concatenate([jnp.log(jnp.asarray(mass))[..., None], others], axis=-1)


def draw(prompt, state, key):
    return jax.random.categorical(key, prompt), state


def is_other(prompt, token):
    return token != FORGOTTEN


def guard(budget, verifier=is_other, **options):
    return guards.guarded(draw, verifier=verifier, budget=budget, refusal=REFUSED, **options)


def ask(guard, mass, count, seed):
    """Answers to `count` prompts."""
    prompts = tokens(jnp.broadcast_to(jnp.asarray(mass, jnp.float32), (count,)))
    return jax.jit(jax.vmap(guard))(prompts, jax.random.split(jax.random.key(seed), count))


def test_a_toy_generator_gets_the_quantile_of_its_geometric_times():
    slow = ask(guard(20), 0.6, 1999, 0)
    tries = np.asarray(slow.stopping_time)
    assert abs(tries[np.isfinite(tries)].mean() - 2.5) < 0.2
    budget = guards.calibrate(slow.stopping_time, alpha=0.1)
    assert budget.budget == 5  # 1 - 0.6^5 = 0.92, 1 - 0.6^4 = 0.87
    found = ask(guard(budget), 0.6, 4000, 1)
    assert not np.any(found.output == FORGOTTEN)
    np.testing.assert_array_equal(found.output == REFUSED, ~np.asarray(found.accepted))
    assert abs(np.mean(found.accepted) - (1 - 0.6**5)) < 4 * np.sqrt(0.92 * 0.08 / 4000)
    assert found.tries.max() == 5


def test_the_answer_is_the_first_that_the_verifier_accepts():
    key = jax.random.key(7)
    drawn = [int(draw(tokens(0.6), (), jax.random.fold_in(key, t))[0]) for t in range(20)]
    first = next(t for t, token in enumerate(drawn) if token != FORGOTTEN)
    found = guard(20)(tokens(0.6), key)
    assert (int(found.output), bool(found.accepted), int(found.tries)) == (drawn[first], True, first + 1)
    assert guard(first)(tokens(0.6), key).output == REFUSED


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_violations_of_a_wrong_verifier_stay_under_the_bound(rate):
    """It errs on one forgotten token in so many, whichever they are: another variable decides."""

    def generator(prompt, state, key):
        token, luck = jax.random.split(key)
        return (jax.random.categorical(token, prompt), jax.random.uniform(luck)), state

    def verifier(prompt, output):
        return (output[0] != FORGOTTEN) | (output[1] < rate)

    def of(budget):
        return guards.guarded(generator, verifier=verifier, budget=budget, refusal=(REFUSED, 0.0))

    budget = guards.calibrate(ask(of(20), 0.6, 999, 0).stopping_time, alpha=0.1)
    labelled = ask(of(budget), 0.6, 1000, 1)
    wrong = int(np.sum(labelled.output[0] == FORGOTTEN))
    beta = guards.verifier_error_bound(wrong, 1000, confidence=0.99)
    found = ask(of(budget), 0.6, 8000, 2)
    violations = np.mean(found.output[0] == FORGOTTEN)
    # exactly: every try is wrongly accepted with 0.6 rate, and the run goes on with 0.6 (1 - rate)
    q, on = int(budget.budget), 0.6 * (1 - rate)
    expected = 0.6 * rate * (1 - on**q) / (1 - on)
    assert abs(violations - expected) < 4 * np.sqrt(expected / 8000)
    assert 0 < violations <= beta <= guards.verifier_error_bound(600 * rate, 1000, confidence=0.99, tries=q)
    right = np.mean(found.accepted) - violations
    assert right >= guards.satisfied_bound(budget, beta)


def test_coverage_fails_where_prompts_come_from_elsewhere():
    budget = guards.calibrate(ask(guard(20), 0.3, 999, 0).stopping_time, alpha=0.1)
    same, harder = (np.mean(ask(guard(budget), mass, 2000, 1).accepted) for mass in (0.3, 0.9))
    assert same >= 0.9
    assert harder < 0.4  # the promise was for prompts like those of the calibration


def test_refinement_carries_its_state():
    def generator(prompt, state, key):
        last, tried = state
        return last + 1, (last + 1, tried.at[last].set(True))

    guard = guards.guarded(
        generator, verifier=lambda prompt, x: x >= prompt, budget=6, refusal=REFUSED, initial=(0, jnp.zeros(8, bool))
    )
    found = jax.vmap(guard, in_axes=(0, None))(jnp.array([1, 4, 6, 7]), jax.random.key(0))
    np.testing.assert_array_equal(found.output, [1, 4, 6, REFUSED])
    np.testing.assert_array_equal(found.stopping_time, [1, 4, 6, np.inf])


@pytest.mark.parametrize("candidates", [1, 4])
def test_rounds_of_candidates_have_the_same_promise(candidates):
    slow = ask(guard(20, candidates=candidates), 0.6, 999, 0)
    budget = guards.calibrate(slow.stopping_time, alpha=0.1)
    assert budget.budget == {1: 5, 4: 2}[candidates]  # a round of four fails with 0.6^4 = 0.13
    found = ask(guard(budget, candidates=candidates), 0.6, 2000, 1)
    assert np.mean(found.accepted) >= 0.9
    assert not np.any(found.output == FORGOTTEN)


def test_candidates_keep_states_of_their_own():
    def generator(prompt, state, key):
        state = state + jax.random.bernoulli(key).astype(int)
        return state, state

    guard = guards.guarded(generator, verifier=lambda prompt, x: x >= 3, budget=3, refusal=REFUSED, initial=0, candidates=64)
    found = guard((), jax.random.key(0))
    assert (int(found.output), int(found.tries)) == (3, 3)  # one in eight gets there in three rounds


def test_one_of_many_equals_one_alone_and_traced_budgets_equal_numbers():
    mass = jnp.linspace(0.1, 0.9, 8)
    keys = jax.random.split(jax.random.key(3), 8)
    together = jax.jit(jax.vmap(lambda x, key, most: guard(most)(x, key)))(tokens(mass), keys, jnp.arange(8))
    for place in range(8):
        chex.assert_trees_all_equal(lane(together, place), guard(place)(tokens(mass[place]), keys[place]))
    assert together.tries[0] == 0
    assert together.output[0] == REFUSED


def test_sixteen_requests_are_calibrated_and_answered_in_one_call():
    mass = jnp.linspace(0.05, 0.95, 16)

    def request(mass, key):
        first, second = jax.random.split(key)
        times = jax.vmap(guard(20))(tokens(jnp.full(200, mass)), jax.random.split(first, 200)).stopping_time
        budget = guards.calibrate(times, alpha=0.1)
        return budget, jax.vmap(guard(budget))(tokens(jnp.full(100, mass)), jax.random.split(second, 100))

    keys = jax.random.split(jax.random.key(5), 16)
    budgets, answers = jax.jit(jax.vmap(request))(mass, keys)
    single = jax.jit(request)
    for place in (0, 9, 15):
        chex.assert_trees_all_equal(lane((budgets, answers), place), single(mass[place], keys[place]))
    assert budgets.feasible.tolist() == [True] * 14 + [False] * 2  # 0.89^20 is a tenth
    assert not np.any(answers.tries[~budgets.feasible])  # refused without a try


def test_refusals_are_outputs_of_any_structure():
    def generator(prompt, state, key):
        return {"text": jnp.zeros((2, 3), jnp.bfloat16), "length": jnp.int32(3)}, state

    guard = guards.guarded(generator, verifier=lambda x, y: y["length"] < 0, budget=1, refusal={"text": 1, "length": 0})
    found = guard((), jax.random.key(0))
    assert found.output["text"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.output["text"], jnp.ones((2, 3)))


def test_on_the_host():
    budget = guards.calibrate(jnp.full(99, 3.0), alpha=0.1)
    said = []

    def generator(prompt, state):
        said.append(state)
        return f"{prompt}{state}", state + 1

    ask = guards.guarded_host(generator, verifier=lambda prompt, x: x == "b1", budget=budget, refusal="no", initial=0)
    assert tuple(ask("b")) == ("b1", True, 2)
    assert tuple(ask("a")) == ("no", False, 3)
    assert said == [0, 1, 0, 1, 2]
    assert [float(ask(x).stopping_time) for x in "ab"] == [np.inf, 2]
    with pytest.raises(ValueError, match="the budget is infeasible"):
        guards.guarded_host(generator, verifier=bool, budget=guards.calibrate(jnp.ones(5), alpha=0.1), refusal="")
    with pytest.raises(TypeError, match="cannot be traced"):
        jax.jit(lambda most: guards.guarded_host(generator, verifier=bool, budget=most, refusal="")("a"))(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"budget": guards.Budget(jnp.inf, jnp.bool(False), jnp.int32(6), jnp.int32(5), jnp.float32(0.9))},
            "is infeasible: no finite",
        ),
        ({"budget": jnp.inf}, "budget must lie in"),
        ({"budget": -1}, "budget must lie in"),
        ({"budget": jnp.ones(2)}, "inside of jax.vmap"),
        ({"candidates": 0}, "candidates must be an integer"),
        ({"verifier": lambda x, y: y}, "one boolean"),
        ({"verifier": lambda x, y: jnp.ones(2, bool)}, "one boolean"),
        ({"verifier": lambda x, y: jnp.ones(2, bool), "candidates": 2}, "one boolean"),
        ({"refusal": (1, 2)}, "structure of an output"),
        ({"refusal": jnp.ones(3)}, "must fit an output"),
        ({"initial": jnp.zeros(2), "generator": lambda x, s, key: (jnp.int32(0), s[:1])}, "must keep its form"),
    ],
)
def test_bad_input_is_told(change, words):
    options = {"generator": draw, "verifier": is_other, "budget": 3, "refusal": REFUSED, **change}
    with pytest.raises(ValueError, match=words):
        guards.guarded(options.pop("generator"), **options)(tokens(0.5), jax.random.key(0))


def test_its_card_promises_no_removal():
    card = ju.METHODS["guarded"]
    assert card.reconstruction
    assert card.guarantee == "none"
    assert not card.reads
    assert "removes nothing" in card.summary
    assert all("nothing" in text for text in (guards.__doc__, guards.guarded.__doc__))
