"""JiT: its gradient in closed form, what holding the perturbed outputs fixed does, and that labels are not read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.problems import blobs, distance, lane, linear_classifier, network

KEY = jax.random.key(0)
DATA = blobs()
REQUEST = lane(ju.from_indices(DATA, [[4]], capacity=1), 0)
LINEAR = ju.Variables({"w": jax.random.normal(jax.random.key(1), (4, 3))})


def run(method, variables, data=DATA, request=REQUEST, key=KEY, num_steps=1, batch_size=1):
    return jax.jit(ju.iterate(method, num_steps, batch_size=batch_size))(variables, data, request, key)


def perturbation(key=KEY):
    """The draw that the first step makes for the one row of the request."""
    _, _, loop_key = jax.random.split(key, 3)
    step_key = jax.random.split(jax.random.fold_in(loop_key, 2), 1)[0]
    return optax.tree.random_like(step_key, DATA.train.inputs[:1], sampler=jax.random.normal)[0]


@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_of_a_linear_model_has_its_closed_form(detach):
    method = ju.just_in_time(linear_classifier(), optax.sgd(1.0), sigma=0.5, num_perturbations=1, detach=detach)
    moved = LINEAR.params["w"] - run(method, LINEAR).variables.params["w"]
    e, x = 0.5 * perturbation(), DATA.train.inputs[4]
    change = e @ LINEAR.params["w"]
    unit = change / jnp.linalg.norm(change)
    expected = jnp.outer(-x if detach else e, unit) / jnp.linalg.norm(e)
    np.testing.assert_allclose(moved, expected, atol=2e-6)


def test_a_model_that_is_flat_stays_as_it_is():
    flat = ju.Variables({"w": jnp.zeros((4, 3))})
    for detach in (True, False):
        result = run(ju.just_in_time(linear_classifier(), optax.sgd(1.0), detach=detach), flat)
        assert distance(result.variables, flat) == 0
        assert int(result.status) == ju.Status.UNCHANGED


def test_perturbations_that_are_clipped_away_count_for_nothing():
    held = ju.just_in_time(linear_classifier(), optax.sgd(1.0), sigma=0.0)
    result = run(held, LINEAR)
    assert distance(result.variables, LINEAR) == 0
    assert float(result.stats["loss"][0]) == 0


def test_small_perturbations_measure_the_jacobian():
    model, variables = network(), network().init(KEY)
    method = ju.just_in_time(model, optax.sgd(0.0), sigma=1e-2, num_perturbations=2000)
    x = DATA.train.inputs[4]
    jacobian = jax.jacobian(lambda x: model.forward(variables, x[None]).logits[0])(x)
    noise = jax.random.normal(jax.random.key(7), (20_000, 4))
    slopes = jnp.linalg.norm(noise @ jacobian.T, axis=1) / jnp.linalg.norm(noise, axis=1)
    found = float(run(method, variables).stats["loss"][0])
    assert found == pytest.approx(float(slopes.mean()), abs=5 * float(slopes.std()) / np.sqrt(2000) + 2e-3)


def test_momentum_of_one_repeats_earlier_steps_as_the_released_code_does():
    request = lane(ju.from_indices(DATA, [[4]], capacity=1), 0)
    eta = 1e-3
    method = ju.just_in_time(linear_classifier(), optax.sgd(eta, momentum=1.0), sigma=0.5, num_perturbations=1)
    plain = ju.just_in_time(linear_classifier(), optax.sgd(eta), sigma=0.5, num_perturbations=1)
    one = run(plain, LINEAR, request=request, num_steps=1)
    first = (LINEAR.params["w"] - one.variables.params["w"]) / eta
    two = run(plain, LINEAR, request=request, num_steps=2)
    second = (one.variables.params["w"] - two.variables.params["w"]) / eta
    repeated = run(method, LINEAR, request=request, num_steps=2).variables.params["w"]
    np.testing.assert_allclose(LINEAR.params["w"] - repeated, eta * (2 * first + second), rtol=1e-3, atol=1e-7)


def test_as_written_it_lowers_its_loss_and_labels_are_not_read():
    model, variables = network(), network().init(KEY)
    request = lane(ju.from_indices(DATA, [range(8)]), 0)
    method = ju.just_in_time(model, optax.sgd(0.02), sigma=0.3, num_perturbations=20, detach=False)
    result = run(method, variables, request=request, num_steps=30, batch_size=8)
    assert float(result.stats["loss"][-1]) < 0.7 * float(result.stats["loss"][0])
    other = DATA._replace(train=DATA.train._replace(targets=(DATA.train.targets + 1) % 3))
    assert distance(run(method, variables, other, request, num_steps=30, batch_size=8).variables, result.variables) == 0


def test_inputs_that_cannot_be_perturbed_are_refused():
    with pytest.raises(TypeError, match="must be floating-point"):
        run(
            ju.just_in_time(linear_classifier(), optax.sgd(0.1)),
            LINEAR,
            DATA._replace(train=DATA.train._replace(inputs=jnp.ones((60, 4), int))),
        )
    with pytest.raises(ValueError, match="sigma"):
        ju.just_in_time(linear_classifier(), optax.sgd(0.1), sigma=-1.0)
