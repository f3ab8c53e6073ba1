"""Every method with steps runs from rows that are read by their numbers, and gives what it gives in memory."""

import jax
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.problems import OPTIONS, UNLEARNING, asked, blobs, distance, lane, model_of, takes_optimizer, trained

DATA, KEY = blobs(), jax.random.key(7)
STEPS, SIZE = 4, 4
STEPWISE = [name for name in UNLEARNING if takes_optimizer(name)]
ALWAYS = ("finetune", "scrub")  # the others take some seconds each
# why a method cannot: its batches are no rows that lie somewhere
REFUSED = {"representation_unlearning": "view of the data", "unsir": "made of its context", "natmu": "made of its context"}


def unlearner(name):
    model, needed = model_of(name), OPTIONS.get(name, {})
    options = needed(model) if callable(needed) else needed
    return ju.METHODS[name].factory(model, optax.sgd(0.1), **options)


def request_of(name, data):
    return asked(name, lane(ju.from_indices(data, [[3, 4, 5, 30, 31, 59]]), 0))


def data_of(name):
    if "attributes" not in ju.METHODS[name].reads:
        return DATA
    return ju.slots.ATTRIBUTES.put(DATA, np.arange(120).reshape(60, 2) // 3 % 2)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x not in ALWAYS)) for x in STEPWISE if x not in REFUSED]
)
def test_feed_from_rows_equals_iterate(name):
    method, data, variables = unlearner(name), data_of(name), trained(name)
    data = ju.remove(data, lane(ju.from_indices(data, [[12, 33]]), 0))
    request = request_of(name, data)
    inside = jax.jit(ju.iterate(method, STEPS, batch_size=SIZE, damaged_at=np.inf))(variables, data, request, KEY)
    index = ju.sources.index(60)._replace(present=data.present)
    rows = jax.tree.map(np.asarray, data.train)
    source = ju.sources.batches(method, rows, index, request, KEY, num_steps=STEPS, batch_size=SIZE)
    outside = ju.feed(method, variables, source, request, KEY, num_steps=STEPS, data=data, damaged_at=np.inf)
    assert distance(inside.variables, outside.variables) < 2e-4
    assert int(outside.status) == int(inside.status)


@pytest.mark.parametrize("name", REFUSED)
def test_methods_whose_batches_are_no_rows_are_refused(name):
    with pytest.raises(ValueError, match=f"{REFUSED[name]}.*run it with iterate"):
        ju.sources.draw(unlearner(name), DATA, request_of(name, DATA), KEY, num_steps=STEPS, batch_size=SIZE)
