from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from tests.audit.toys import classifier, on_host, random_network, random_networks, requests_for, scaled
from tests.problems import blobs, held_out, lane, linear_regression, network, regression_data, unpadded

ROWS = [[3, 4, 5, 6, 7, 8, 9], [0, 10, 20, 30, 40, 50, 59], [7]]


report = jax.jit(partial(ju.audit.performance, network()))


def setting():
    return blobs(), held_out(), network(), random_network()


def assert_same(first, second, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), first, second)


def test_hand_worked():
    logits = jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0], [1.0, 3.0], [1.0, 1.0]]))
    data = ju.training_data(logits, jnp.array([0, 1, 1, 1]))  # losses log 4/3, log 4, log 4/3, log 2; the tie goes to class 0
    test = ju.Examples(logits[:1], jnp.array([1]))
    request = ju.ForgetRequest(jnp.array([1, 2]), jnp.ones(2))
    found = jax.jit(partial(ju.audit.performance, classifier()))(scaled(1), data, request, test)
    assert_same(found.accuracy, ju.audit.Sets(retain=0.5, forget=0.5, test=0.0))
    expected = ju.audit.Sets(retain=np.log(8 / 3) / 2, forget=np.log(16 / 3) / 2, test=np.log(4))
    assert_same(found.loss, expected)


@pytest.mark.parametrize("position", range(len(ROWS)))
def test_equals_means_over_chosen_rows(position):
    data, test, model, variables = setting()
    request = lane(requests_for(data, ROWS), position)
    outputs = jax.jit(model.forward)(variables, data.train.inputs)
    losses = np.asarray(jax.jit(model.loss)(outputs, data.train))
    hits = np.argmax(outputs.logits, 1) == np.asarray(data.train.targets)
    forgotten = np.isin(np.arange(60), ROWS[position])
    found = report(variables, data, request, test)
    assert_same((found.loss.forget, found.loss.retain), (losses[forgotten].mean(), losses[~forgotten].mean()))
    assert_same((found.accuracy.forget, found.accuracy.retain), (hits[forgotten].mean(), hits[~forgotten].mean()))


def test_many_models_and_requests_equal_single_unpadded_calls():
    data, test, model, _ = setting()
    requests = requests_for(data, ROWS)
    models = random_networks(2)
    audit = partial(ju.audit.performance, model, data=data, test=test, chunk=16)

    def over_requests(variables):
        return jax.vmap(lambda request: audit(variables, request=request))(requests)

    many = on_host(jax.jit(jax.vmap(over_requests))(models))
    for i, j in ((0, 0), (0, 1), (1, 1)):
        assert_same(lane(lane(many, i), j), report(lane(models, i), data, unpadded(requests, j), test))


def test_rows_pass_through_the_model_once_for_all_requests():
    data, test, model, variables = setting()
    requests = requests_for(data, ROWS)
    program = jax.make_jaxpr(jax.vmap(lambda r: ju.audit.performance(model, variables, data, r, test)))(requests)
    shapes = [e.outvars[0].aval.shape for e in program.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert sorted(shapes) == [(20, 3), (20, 8), (60, 3), (60, 8)]


def test_padding_may_stand_anywhere():
    data, test, model, variables = setting()
    request = lane(requests_for(data, ROWS, capacity=16), 1)
    order = np.random.default_rng(0).permutation(16)
    moved = request._replace(indices=request.indices[order], weights=request.weights[order])
    strays = moved._replace(indices=np.where(moved.weights > 0, moved.indices, 10**6))
    expected = report(variables, data, request, test)
    for other in (moved, strays):
        assert_same(report(variables, data, other, test), expected)


def test_removed_rows_may_hold_nan():
    data, test, model, variables = setting()
    request = lane(requests_for(data, ROWS), 0)
    removed = data._replace(present=data.present.at[33].set(0))
    poisoned = removed._replace(train=data.train._replace(inputs=data.train.inputs.at[33].set(jnp.nan)))
    expected = report(variables, removed, request, test)
    assert_same(report(variables, poisoned, request, test), expected)
    assert_same(expected.loss.forget, report(variables, data, request, test).loss.forget)


def test_empty_sets_are_unknown():
    data, test, model, variables = setting()
    nothing = report(variables, data, ju.empty_request(16), test)
    assert jnp.isnan(nothing.accuracy.forget)
    assert jnp.isnan(nothing.loss.forget)
    assert np.isfinite([nothing.accuracy.retain, nothing.loss.retain, nothing.loss.test]).all()
    few = data._replace(present=jnp.zeros(60).at[:16].set(1))
    everything = report(variables, few, ju.ForgetRequest(jnp.arange(16), jnp.ones(16)), test)
    assert jnp.isnan(everything.loss.retain)
    assert jnp.isfinite(everything.loss.forget)


def test_real_targets_have_no_accuracy():
    data, model, variables = regression_data(), linear_regression(), ju.Variables({"w": jnp.ones(4)})
    request = ju.ForgetRequest(jnp.array([1, 2]), jnp.ones(2))
    found = jax.jit(lambda v: ju.audit.performance(model, v, data, request, data.train, chunk=16))(variables)
    assert found.accuracy is None
    residuals = data.train.inputs @ variables.params["w"] - data.train.targets
    assert_same(found.loss.test, jnp.mean(residuals**2) / 2)
    with pytest.raises(ValueError, match="accuracy is defined for classification"):
        ju.audit.accuracy(jnp.ones((3, 2)), jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match="accuracy is defined for classification"):
        ju.audit.accuracy(jnp.ones((3, 2)), jnp.ones((3, 1), int), jnp.ones(3))


def test_accuracy_of_a_broken_model_is_unknown():
    accuracy = jax.jit(ju.audit.accuracy)
    logits = jnp.array([[1.0, 0.0], [jnp.nan, 0.0]])
    assert jnp.isnan(accuracy(logits, jnp.array([0, 0]), jnp.ones(2)))
    assert accuracy(logits, jnp.array([0, 0]), jnp.array([1.0, 0.0])) == 1.0


def test_gap_is_signed_and_broadcasts():
    data, test, model, variables = setting()
    request = lane(requests_for(data, ROWS), 0)
    own = on_host(report(variables, data, request, test))
    assert_same(ju.audit.gap(own, own), jax.tree.map(np.zeros_like, own))
    still_known = own._replace(accuracy=own.accuracy._replace(forget=own.accuracy.forget + 0.25))
    assert_same(ju.audit.gap(still_known, own).accuracy.forget, 0.25)
    assert_same(ju.audit.gap(own, still_known).accuracy.forget, -0.25)
    stacked = jax.tree.map(lambda x: np.stack([x, x + 1]), own)
    np.testing.assert_allclose(ju.audit.gap(stacked, own).loss.retain, [0, 1], atol=1e-6)
    with pytest.raises(ValueError, match="None"):
        ju.audit.gap(own, own._replace(accuracy=None))
