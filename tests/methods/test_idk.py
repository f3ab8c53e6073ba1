"""The objective by hand, and refusals from a function or from a slot."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import DATA, KEY, MODEL, REQUEST, ROWS, VARIABLES, descended, one_step
from tests.problems import NUM_ROWS, distance, other_label


def mean_loss(params, examples):
    return jnp.mean(ju.losses.cross_entropy(MODEL.forward(ju.Variables(params), examples.inputs), examples))


@cache
def program(refusals):
    return jax.jit(ju.iterate(ju.idk(MODEL, optax.sgd(0.1), refusals=refusals), 3, batch_size=4))


def run(refusals, data, request=REQUEST):
    return program(refusals)(VARIABLES, data, request, KEY)


def test_a_step_descends_on_the_refusals_and_on_the_retain_set():
    params, batch, stats = one_step(ju.idk(MODEL, optax.sgd(0.1), refusals=other_label, retain_weight=2.0))
    refused = other_label(batch.forget.examples, KEY)

    def loss(params):
        return mean_loss(params, refused) + 2 * mean_loss(params, batch.retain.examples)

    assert distance(params, descended(VARIABLES.params, loss)) < 1e-6
    assert float(stats["loss"]) == pytest.approx(float(loss(VARIABLES.params)), rel=1e-5)
    assert float(stats["refusal_loss"]) == pytest.approx(float(mean_loss(VARIABLES.params, refused)), rel=1e-5)


def stored(*shifts):
    """Answers of every row: its own inputs and other labels."""
    inputs = jnp.stack([DATA.train.inputs] * len(shifts), axis=1)
    return ju.slots.REFUSALS.put(DATA, ju.Examples(inputs, jnp.stack([(DATA.train.targets + x) % 3 for x in shifts], axis=1)))


def test_answers_from_a_slot_are_those_of_a_function():
    assert distance(run(ju.slots.REFUSALS, stored(1, 1)).variables, run(other_label, DATA).variables) < 1e-6


def test_one_of_several_answers_of_the_row_itself_is_drawn():
    kept = stored(1, 2)
    others = np.setdiff1d(np.arange(NUM_ROWS), ROWS)
    answers = kept.extra["refusals"]
    spoilt = answers._replace(inputs=answers.inputs.at[others].set(jnp.nan))  # of rows that the request does not ask for
    found = run(ju.slots.REFUSALS, ju.slots.REFUSALS.put(DATA, spoilt))
    assert found.status == ju.Status.OK
    assert distance(found.variables, run(ju.slots.REFUSALS, kept).variables) == 0
    assert min(distance(found.variables, run(ju.slots.REFUSALS, stored(x, x)).variables) for x in (1, 2)) > 1e-4


def test_without_a_request_nothing_moves():
    nothing = REQUEST._replace(weights=jnp.zeros_like(REQUEST.weights))
    assert run(ju.slots.REFUSALS, stored(1, 1), nothing).status == ju.Status.EMPTY_REQUEST


@pytest.mark.parametrize(
    ("refusals", "data", "error", "message"),
    [
        (None, DATA, TypeError, "must be a function"),
        (ju.slots.REFUSALS, DATA, ValueError, r"fill it with slots\.REFUSALS\.put"),
        (ju.slots.REFUSALS, ju.slots.REFUSALS.put(DATA, DATA.train), ValueError, r"must hold m answers"),
        (
            ju.slots.REFUSALS,
            ju.slots.REFUSALS.put(DATA, ju.Examples(jnp.ones((3, 1, 4)), jnp.ones((3, 1), int))),
            ValueError,
            "answers of 3 rows, and there are 60 training rows",
        ),
        (lambda rows, key: rows._replace(targets=rows.targets * 1.0), DATA, ValueError, "rows of refusals have the form"),
        (lambda rows, key: jax.tree.map(lambda x: x[:1], rows), DATA, ValueError, "one row for each row"),
        (lambda rows, key: rows.targets, DATA, TypeError, "refusals must be Examples"),
    ],
)
def test_refusals_that_do_not_fit_say_what_to_do(refusals, data, error, message):
    with pytest.raises(error, match=message):
        run(refusals, data)
