"""What methods want to have computed once, found through whatever they are put into."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.status import combine
from tests.loop.runs import DATA, FINETUNE, KEY, MODEL, REQUEST, VARIABLES
from tests.problems import distance, nudge

NUDGE = nudge()


def reading(slot, value):
    """A method that reads one slot, and says whether it is stale."""

    def update(variables, data, request, key):
        held, stale = slot.read(data, at=variables)
        return ju.Result(variables, combine(STALE=stale), {"read": held})

    def prepared(variables, data, key):
        return slot.put(data, value + jax.random.uniform(key), at=variables)

    return ju.one_shot(update, prepare=prepared)


def test_a_method_that_needs_nothing_gives_the_data_back():
    for method in (
        NUDGE,
        FINETUNE,
        ju.iterate(FINETUNE, 1, batch_size=1),
        ju.then(NUDGE, NUDGE),
        ju.rum([None], jnp.zeros(60)),
    ):
        assert ju.prepare(method)(VARIABLES, DATA, KEY) is DATA


@pytest.mark.parametrize(
    "put",
    [
        lambda method: method,
        lambda method: ju.then(NUDGE, method),
        lambda method: ju.filtered(lambda v, d, r, k: r.weights, method),
        lambda method: ju.rum([None, method], jnp.zeros(60)),
    ],
    ids=["alone", "then", "filtered", "rum"],
)
def test_preparations_are_found_inside(put):
    method = reading(ju.slots.CURVATURE, 3.0)
    ready = ju.prepare(put(method))(VARIABLES, DATA, KEY)
    assert distance(ready.extra, ju.prepare(method)(VARIABLES, DATA, KEY).extra) == 0


def test_all_preparations_run_in_turn_with_keys_of_their_own():
    both = ju.then(reading(ju.slots.CURVATURE, 0.0), reading(ju.slots.IMPORTANCES, 0.0))
    ready = ju.prepare(both)(VARIABLES, DATA, KEY)
    assert list(ready.extra) == ["curvature", "importances"]
    first, second = (ju.slots.SLOTS[name].get(ready).value for name in ready.extra)
    assert float(first) != float(second)
    assert int(both(VARIABLES, ready, REQUEST, KEY).status) == ju.Status.UNCHANGED


def test_what_the_first_method_moves_is_stale_for_the_second():
    both = ju.then(NUDGE, reading(ju.slots.CURVATURE, 3.0))
    ready = ju.prepare(both)(VARIABLES, DATA, KEY)
    assert int(both(VARIABLES, ready, REQUEST, KEY).status) == ju.Status.STALE


def test_iterate_passes_on_what_its_unlearner_wants():
    def prepared(variables, data, key):
        return ju.slots.USER.put(data, jnp.ones(2))

    unlearn = ju.iterate(FINETUNE._replace(prepare=prepared), 1, batch_size=1)
    assert list(ju.prepare(unlearn)(VARIABLES, DATA, KEY).extra) == ["user"]


def test_what_is_no_method_is_refused():
    with pytest.raises(TypeError, match="prepare takes a method"):
        ju.prepare("scrub")
    assert callable(ju.prepare(ju.finetune(MODEL, optax.sgd(0.1))))
