"""The defaults of the vocabulary, and what a loop tells a step."""

import jax
import jax.numpy as jnp
import pytest

import jaxunlearn as ju
from tests.problems import blobs


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (lambda: ju.Data(ju.Examples((), ()), jnp.zeros(0)), ("extra",)),
        (lambda: ju.Outputs(jnp.zeros(1)), ("features",)),
        (lambda: ju.Result(ju.Variables({})), ("stats", "extra")),
    ],
    ids=["Data", "Outputs", "Result"],
)
def test_default_dictionaries_are_nobody_elses(make, fields):
    first, second = make(), make()
    for field in fields:
        assert getattr(first, field) == {}
        getattr(first, field)["mine"] = 1
        assert getattr(second, field) == getattr(make(), field) == {}
    assert len(fields) < 2 or getattr(second, fields[0]) is not getattr(second, fields[1])


def test_what_is_given_is_kept():
    given = {"attributes": jnp.zeros((5, 1), int)}
    assert ju.Data(ju.Examples((), ()), jnp.zeros(0), given).extra is given
    assert ju.Outputs(jnp.zeros(1), {"layer": jnp.ones(1)}, {"mean": 1}).state == {"mean": 1}
    result = ju.Result(ju.Variables({}), jnp.int32(4), {"x": jnp.ones(2)}, {"y": 1})
    assert (int(result.status), list(result.stats), result.extra) == (4, ["x"], {"y": 1})


def test_they_are_trees_of_their_own_kind():
    for value in (blobs(), ju.Outputs(jnp.zeros(2), {"layer": jnp.ones(1)}), ju.Result(ju.Variables({"w": jnp.ones(1)}), 0)):
        again = jax.tree.map(lambda x: x, value)
        assert type(again) is type(value)
        assert type(value._replace(**{value._fields[0]: value[0]})) is type(value)


def test_progress_is_the_part_of_a_run_that_is_over():
    part = ju.Weighted(ju.Examples(jnp.ones((1, 1)), jnp.zeros(1)), jnp.ones(1), jnp.zeros(1, int))
    assert ju.Batch(part, part).progress == 0
    assert float(jax.jit(lambda batch: batch.progress)(ju.Batch(part, part, 3, 12))) == 0.25
