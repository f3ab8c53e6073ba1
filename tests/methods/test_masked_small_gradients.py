"""Which weights are drawn anew, how fast the others learn, and what it is at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import sampling
from tests.methods.runs import DATA, KEY, MODEL, REQUEST, ROWS, VARIABLES, answer, batch_of, one_step, sweep_equals_single_runs
from tests.problems import blobs, distance, lane, network, normalized_network

FRESH = MODEL.init(jax.random.key(99))


def from_fresh(key):
    return FRESH


GIVEN = MODEL._replace(init=from_fresh)  # fresh weights that are known
NAME = "masked_small_gradients"


@jax.jit
def begun(data, request):
    """Speeds and parameters at the start, and the rows of the retain set that were drawn."""
    method = ju.masked_small_gradients(GIVEN, optax.sgd(0.1), fraction=0.25, held=0.1)
    speeds, state = method.init(VARIABLES, data, request, KEY)
    order_key, draw_key, *_ = jax.random.split(KEY, 4)
    drawn = sampling.draw_retain(sampling.split(data, request, order_key), draw_key, request.indices.shape[0])
    return speeds, state.variables.params, drawn.slots


def test_the_smallest_differences_of_gradients_are_drawn_anew():
    speeds, params, drawn = jax.device_get(begun(DATA, REQUEST))

    def slope(rows):
        def total(params):
            examples = jax.tree.map(lambda x: x[np.asarray(rows)], DATA.train)
            return jnp.sum(ju.losses.cross_entropy(MODEL.forward(ju.Variables(params), examples.inputs), examples))

        return jax.jit(jax.grad(total))(VARIABLES.params)

    pull = jax.tree.map(lambda up, down: np.abs(up - down), slope(drawn[: len(ROWS)]), slope(ROWS))
    assert not set(drawn[: len(ROWS)]) & set(ROWS)
    for name in params:
        count = pull[name].size // 4
        anew = np.zeros(pull[name].size, bool)
        anew[np.argsort(pull[name], axis=None)[:count]] = True
        anew = anew.reshape(pull[name].shape)
        np.testing.assert_array_equal(params[name], np.where(anew, FRESH.params[name], VARIABLES.params[name]))
        np.testing.assert_allclose(speeds[name], np.where(anew, 1, 0.1))


def test_a_step_follows_the_gradient_of_the_retain_set_at_two_speeds():
    method = ju.masked_small_gradients(GIVEN, optax.sgd(0.1), fraction=0.25, held=0.3)
    speeds = batch_of(method)[0]
    nudged = jax.tree.map(lambda x: x + 0.2, VARIABLES)
    params, batch, stats = one_step(method, nudged)
    retain = batch.retain.examples

    def loss(params):
        return jnp.mean(ju.losses.cross_entropy(MODEL.forward(ju.Variables(params), retain.inputs), retain))

    slope = jax.jit(jax.grad(loss))(nudged.params)
    assert distance(params, jax.tree.map(lambda p, g, s: p - 0.1 * s * g, nudged.params, slope, speeds)) < 1e-6
    assert {0.3, 1.0} == {round(float(x), 6) for x in np.unique(speeds["body"])}
    assert float(stats["loss"]) == pytest.approx(float(loss(nudged.params)), rel=1e-5)


def test_with_nothing_drawn_anew_or_held_back_it_is_finetuning():
    plain = answer("finetune").variables
    assert distance(answer(NAME, static={"fraction": 0.0}, held=1.0).variables, plain) == 0
    still = answer(NAME, static={"fraction": 0.0}, held=0.0)
    assert distance(still.variables, VARIABLES) == 0
    assert int(still.status) == ju.Status.UNCHANGED


@pytest.mark.slow
def test_with_everything_drawn_anew_it_is_retraining():
    static = {"model": GIVEN}
    own = answer(NAME, static={**static, "fraction": 1.0}, held=0.1).variables
    assert distance(own, answer("retrain", static=static).variables) < 1e-6


@pytest.mark.slow
def test_named_layers_alone_are_drawn_anew():
    method = ju.masked_small_gradients(GIVEN, optax.sgd(0.1), fraction=0.5, layers="head")
    speeds, state = jax.jit(method.init)(VARIABLES, DATA, REQUEST, KEY)
    after = state.variables.params
    assert distance([after["body"], after["bias"]], [VARIABLES.params["body"], VARIABLES.params["bias"]]) == 0
    assert float(jnp.mean(after["head"] == VARIABLES.params["head"])) == 0.5
    assert float(speeds["body"]) == float(speeds["bias"]) == 1
    with pytest.raises(ValueError, match="names no parameter; there are bias, body, head"):
        jax.eval_shape(ju.masked_small_gradients(GIVEN, optax.sgd(0.1), layers="conv").init, VARIABLES, DATA, REQUEST, KEY)


@pytest.mark.slow
def test_vectors_and_state_stay_as_they_are():
    """Kernels have two axes or more; biases, scales and running statistics are no kernels."""
    model = normalized_network()
    used = model.init(KEY)
    used = used._replace(
        params={"nested": ({"w": used.params["w"]}, jnp.ones(3))}, state={"mean": used.state["mean"] + 5, "count": jnp.int32(9)}
    )

    def predict(variables, inputs, **options):
        kernel, shift = variables.params["nested"]
        outputs = model.forward(variables._replace(params=kernel), inputs, **options)
        return outputs._replace(logits=outputs.logits + shift)

    def start(key):
        made = model.init(key)
        return made._replace(params={"nested": (made.params, jnp.zeros(3))})

    wrapped = model._replace(forward=predict, init=start)
    method = ju.masked_small_gradients(wrapped, optax.sgd(0.1), fraction=1.0)
    _, state = jax.jit(method.init)(used, DATA, REQUEST, KEY)
    kernel, shift = state.variables.params["nested"]
    assert shift.tolist() == [1, 1, 1]
    assert bool(jnp.all(kernel["w"] != used.params["nested"][0]["w"]))
    assert distance(state.variables.state, used.state) == 0


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs(NAME, held=[0.1, 0.5])


@pytest.mark.slow
def test_a_request_for_everything_and_one_for_a_single_row_run():
    data = blobs()
    run = jax.jit(ju.iterate(ju.masked_small_gradients(network(), optax.sgd(0.1)), 3, batch_size=4))
    for rows, status in ((range(60), ju.Status.NOTHING_RETAINED), ([7], ju.Status.OK)):
        result = run(VARIABLES, data, lane(ju.from_indices(data, [rows], capacity=64), 0), KEY)
        assert int(result.status) == status
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(result.variables))


def test_what_to_do_is_said():
    with pytest.raises(ValueError, match="draws weights anew: pass Model"):
        ju.masked_small_gradients(MODEL._replace(init=None), optax.sgd(0.1))
    for name in ("fraction", "held"):
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            ju.masked_small_gradients(MODEL, optax.sgd(0.1), **{name: 1.5})
