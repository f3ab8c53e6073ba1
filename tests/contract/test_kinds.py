"""Mechanics that methods share, tested on one method of every kind.

A kind is a way in which a method reaches the code of `iterate`, `one_shot` and `batched`. What is tested here is that code, so
a second method of a kind would run the same lines again; the representatives are quick to compile among those of their kind.
What a method's own code can get wrong is tested on every method, in `test_methods.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.contract.harness import Case
from tests.problems import asked, blobs, distance, lane, network, nudge

KINDS = {
    "gradient_difference": "steps that descend on an objective",
    "scrub": "steps of two kinds in turns, with a context",
    "representation_unlearning": "steps on a view instead of the training rows",
    "output_perturbation": "no steps, draws at random",
    "ssd": "no steps, reads a prepared slot",
    "prototype_erasure": "no steps, reads a prepared slot, float64",
    "woodbury_removal": "a convex problem, float64, reads a prepared slot, a batching rule of its own",
}


@pytest.fixture(scope="module", params=KINDS, ids=lambda name: f"{name}: {KINDS[name]}")
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def together(case):
    """Results of one `vmap` whose requests share weights and rows."""
    return jax.jit(ju.batched(case.unlearn, chunk=3))(case.variables, case.ready, case.requests, jnp.stack(case.keys))


def test_jit_equals_no_jit(case, together):
    plain = case.unlearn(case.variables, case.ready, lane(case.requests, 0), case.keys[0])
    assert distance(plain.variables, lane(together.variables, 0)) < 1e-6
    assert int(plain.status) == int(together.status[0]) == ju.Status.OK
    for name, value in plain.stats.items():
        np.testing.assert_allclose(value, together.stats[name][0], rtol=1e-3, atol=1e-5)


def test_chunks_change_nothing(case, together):
    result = jax.jit(ju.batched(case.unlearn, chunk=2))(case.variables, case.ready, case.requests, jnp.stack(case.keys))
    assert distance(result.variables, together.variables) < 1e-6
    assert result.status.tolist() == together.status.tolist() == [0, 0, 0]


def test_one_trace_serves_requests_of_equal_capacity_one_by_one(case, together):
    traces = []

    def counted(*arguments):
        traces.append(1)
        return case.unlearn(*arguments)

    answer = jax.jit(ju.batched(counted, chunk=1))
    for rows in ([[1], [2], [3]], [[5, 6, 7], [50], [2]], [[9, 8], list(range(8)), [4]]):
        requests = asked(case.name, ju.from_indices(case.fresh, rows, capacity=8))
        answer(case.variables, case.ready, requests, jnp.stack(case.keys))
    result = answer(case.variables, case.ready, case.requests, jnp.stack(case.keys))
    assert distance(result.variables, together.variables) < 1e-6
    assert len(traces) == 1


def test_mesh_changes_nothing(case, together):
    result = ju.batched(case.unlearn, mesh=ju.request_mesh())(case.variables, case.ready, case.requests, jnp.stack(case.keys))
    assert distance(result.variables, together.variables) < 1e-6
    assert result.status.tolist() == [0, 0, 0]


BROKEN = [
    (lambda v, d, r, k: (v._replace(params={**v.params, "steps": jnp.int32(3)}), d, r, k), "floating-point leaves only"),
    (lambda v, d, r, k: (v._replace(params={"w": jnp.ones(2) * 1j}), d, r, k), "floating-point leaves only"),
    (lambda v, d, r, k: (v._replace(params={}), d, r, k), "has no leaves"),
    (lambda v, d, r, k: (v.params, d, r, k), "expected Variables"),
    (lambda v, d, r, k: (v, d._replace(present=jnp.ones(7)), r, k), "one entry per training row"),
    (lambda v, d, r, k: (v, d._replace(train=d.train._replace(targets=jnp.zeros(7, int))), r, k), "same leading axis"),
    (lambda v, d, r, k: (v, d._replace(extra={**d.extra, "importance": 1}), r, k), "no slot 'importance'.*'importances'"),
    (lambda v, d, r, k: (v, d._replace(extra={**d.extra, "zzz": 1}), r, k), "no slot 'zzz'.*there are curvature, "),
    (lambda v, d, r, k: (v, d, r._replace(indices=r.indices * 1.0), k), "must be integers"),
    (lambda v, d, r, k: (v, d, r._replace(weights=r.weights[:2]), k), "differ in shape"),
    (lambda v, d, r, k: (v, d, jax.tree.map(lambda x: x[None], r), k), "use batched"),
    (lambda v, d, r, k: (v, d, r, jax.random.split(k)), "expected one key"),
    (lambda v, d, r, k: (v, d, r, jnp.zeros(2, jnp.uint32)), "typed key"),
    (lambda v, d, r, k: (v, d, r, jax.random.key(0, impl="rbg")), "rbg"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_bad_input_gets_a_clear_error(case, broken, message):
    arguments = (case.variables, case.ready, lane(case.requests, 0), case.keys[0])
    with pytest.raises((ValueError, TypeError), match=message):
        jax.eval_shape(case.unlearn, *broken(*arguments))


def test_training_data_refuses_keys_that_are_no_slot():
    rows = blobs().train
    with pytest.raises(ValueError, match="no slot 'curvatures': did you mean 'curvature'"):
        ju.training_data(*rows, extra={"curvatures": 1})


@pytest.mark.parametrize(
    ("caller", "call"),
    {
        "batched": ju.batched,
        "streamed": ju.streamed,
        "then": lambda method: ju.then(method, nudge()),
        "then, second": lambda method: ju.then(nudge(), method),
        "filtered": lambda method: ju.filtered(lambda v, d, request, k: request.weights, method),
        "rum": lambda method: ju.rum([None, method], jnp.zeros(60)),
    }.items(),
)
def test_an_unlearner_is_told_from_a_finished_method(caller, call):
    message = rf"{caller.split(',')[0]} takes a finished method.*write {caller.split(',')[0]}\(jaxunlearn.iterate"
    with pytest.raises(TypeError, match=message):
        call(ju.gradient_difference(network(), optax.sgd(0.1)))


@pytest.mark.parametrize(
    "call",
    [
        lambda method: ju.iterate(method, num_steps=1, batch_size=1),
        lambda method: ju.feed(method, None, None, None, None, num_steps=1),
    ],
    ids=["iterate", "feed"],
)
def test_a_finished_method_is_told_from_an_unlearner(call):
    with pytest.raises(TypeError, match=r"takes an Unlearner such as .* finished method"):
        call(nudge())
