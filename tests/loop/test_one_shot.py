"""Methods without a loop: how they begin and end."""

import jax
import jax.numpy as jnp
import pytest

import jaxunlearn as ju
from jaxunlearn import status
from tests.loop.runs import DATA, KEY, REQUEST, VARIABLES
from tests.problems import distance


def halve(variables, data, request, key):
    return ju.Result(jax.tree.map(lambda w: w / 2, variables), stats={"norm": jnp.float32(2)}, extra={"user": 1})


def test_what_the_update_returns_is_returned():
    result = ju.one_shot(halve)(VARIABLES, DATA, REQUEST, KEY)
    assert distance(result.variables, jax.tree.map(lambda w: w / 2, VARIABLES)) == 0
    assert (int(result.status), float(result.stats["norm"]), result.extra) == (ju.Status.OK, 2, {"user": 1})


@pytest.mark.parametrize(("on_empty", "same"), [("identity", True), ("finetune", False), ("train", False)])
def test_an_empty_request_gets_what_is_said(on_empty, same):
    unlearn = ju.one_shot(halve, on_empty=on_empty)
    gone = ju.remove(DATA, REQUEST)
    for data, request, code in ((DATA, ju.empty_request(16), "EMPTY_REQUEST"), (gone, REQUEST, "INVALID_ROWS")):
        result = unlearn(VARIABLES, data, request, KEY)
        assert int(result.status) == ju.Status[code]
        assert (distance(result.variables, VARIABLES) == 0) == same


@pytest.mark.parametrize("code", ["NOT_CONVERGED", "STALE"])
def test_the_gravest_status_is_kept(code):
    def reporting(variables, data, request, key):
        return ju.Result(variables, status.combine(**{code: jnp.array(True)}))

    stray = REQUEST._replace(indices=jnp.asarray(REQUEST.indices).at[0].set(10**6))
    assert int(ju.one_shot(reporting)(VARIABLES, DATA, stray, KEY).status) == ju.Status[code]
    broken = jax.tree.map(lambda w: w * jnp.nan, VARIABLES)
    assert int(ju.one_shot(reporting)(broken, DATA, REQUEST, KEY).status) == ju.Status.NONFINITE


def test_updates_of_another_form_are_refused():
    def widened(variables, data, request, key):
        return ju.Result(ju.Variables({**variables.params, "head": jnp.zeros((9, 3))}))

    with pytest.raises(ValueError, match=r"keep the tree, shapes and dtypes.*params/head: float32\[8,3\] became"):
        ju.one_shot(widened)(VARIABLES, DATA, REQUEST, KEY)


def test_keys_of_data_that_are_no_slot_are_refused():
    with pytest.raises(ValueError, match="no slot 'atributes': did you mean 'attributes'"):
        ju.one_shot(halve)(VARIABLES, DATA._replace(extra={"atributes": 1}), REQUEST, KEY)
