"""Methods made of methods."""

import jax
import jax.numpy as jnp
import pytest

import jaxunlearn as ju
from tests.loop.runs import DATA, FINETUNE, KEY, MODEL, REQUEST, VARIABLES
from tests.problems import distance, lane, nudge

NUDGE = nudge()


def test_then_starts_the_second_from_the_first():
    repair = ju.iterate(FINETUNE, num_steps=3, batch_size=4)
    both = jax.jit(ju.then(NUDGE, repair))(VARIABLES, DATA, REQUEST, KEY)
    keys = jax.random.split(KEY)
    one = jax.jit(NUDGE)(VARIABLES, DATA, REQUEST, keys[0])
    two = jax.jit(repair)(one.variables, DATA, REQUEST, keys[1])
    assert distance(both.variables, two.variables) < 1e-6
    assert distance(both.stats["first/shift"], one.stats["shift"]) < 1e-6
    assert both.stats["second/loss"].shape == (3,)


def test_then_hands_on_what_the_first_carries():
    def first(variables, data, request, key):
        return ju.Result(variables, jnp.int32(5), {}, {"user": {"count": jnp.int32(5)}})

    def second(variables, data, request, key):
        return ju.Result(variables, jnp.int32(0), {"seen": ju.slots.USER.get(data)["count"]})

    result = ju.then(first, second)(VARIABLES, DATA, REQUEST, KEY)
    assert int(result.status) == ju.Status.NOT_CONVERGED
    assert int(result.stats["second/seen"]) == int(result.extra["user"]["count"]) == 5
    assert DATA.extra == {}


@pytest.mark.parametrize("codes", [(2, 6), (6, 2), (0, 5), (4, 0)])
def test_then_never_hides_the_graver_status(codes):
    one, two = (lambda v, d, r, k, code=code: ju.Result(v, jnp.int32(code)) for code in codes)
    assert int(ju.then(one, two)(VARIABLES, DATA, REQUEST, KEY).status) == max(codes)


def test_filtered_narrows_the_request():
    narrowed = ju.filtered(lambda v, data, request, key: request.indices != 30, NUDGE)
    result = jax.jit(narrowed)(VARIABLES, DATA, REQUEST, KEY)
    smaller = lane(ju.from_indices(DATA, [[3, 4, 5]]), 0)
    expected = jax.jit(NUDGE)(VARIABLES, DATA, smaller, jax.random.split(KEY)[1])
    assert distance(result.variables, expected.variables) < 1e-6
    assert result.stats["skipped"].tolist() == [0, 0, 0, 1] + [0] * 12


def test_methods_that_are_not_finished_are_refused():
    for compose in (
        lambda: ju.then(FINETUNE, NUDGE),
        lambda: ju.then(NUDGE, FINETUNE),
        lambda: ju.filtered(lambda v, d, r, k: r.weights, FINETUNE),
    ):
        with pytest.raises(
            TypeError, match=r"(then|filtered) takes a finished method.*write \1\(jaxunlearn\.iterate\(unlearner"
        ):
            compose()
    with pytest.raises(TypeError, match=r"then takes a function \(variables, data, request, key\) -> Result, got Model"):
        ju.then(NUDGE, MODEL)
