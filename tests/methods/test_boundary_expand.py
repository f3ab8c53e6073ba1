"""Boundary Expanding: a class that is not in the model, the gradient that it leaves there, and what is left at the end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import DATA, KEY, REQUEST, ROWS, answer
from tests.problems import distance, headed, lane, network, normalized_network

MODEL, SGD = headed(), optax.sgd(1.0)
VARIABLES = MODEL.init(jax.random.key(1))
FORGET = jax.tree.map(lambda x: x[jnp.array(ROWS)], DATA.train)


def run(**settings):
    return answer("boundary_expand", VARIABLES, static={"model": MODEL}, **settings)


def test_widening_and_pruning_change_nothing():
    still, moved = run(steps=0).variables, run().variables
    assert distance(still, VARIABLES) == 0
    for after in (still, moved):
        assert jax.tree.structure(after) == jax.tree.structure(VARIABLES)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, VARIABLES)
    assert MODEL.forward(moved, DATA.train.inputs).logits.shape == (60, 3)


def test_a_step_pushes_logits_down_in_proportion_to_their_probability():
    method = ju.boundary_expand(MODEL, SGD)
    context, state = method.init(VARIABLES, DATA, REQUEST, KEY)
    part = ju.Weighted(FORGET, jnp.ones(4), jnp.arange(4))
    after, stats = jax.jit(method.step)(state, context, ju.Batch(part, part), KEY)
    before, after = state.variables.params, after.variables.params
    outputs = MODEL.forward(VARIABLES, FORGET.inputs)
    features = outputs.features["penultimate"]
    shadow = features @ before.shadow.kernel + before.shadow.bias
    p = jax.nn.softmax(jnp.concatenate([outputs.logits, shadow[:, None]], axis=1))
    errors = p - jax.nn.one_hot(jnp.full(4, 3), 4)
    kernel, bias = features.T @ errors / 4, jnp.mean(errors, axis=0)
    np.testing.assert_allclose(before.model["head"] - after.model["head"], kernel[:, :3], atol=1e-6)
    np.testing.assert_allclose(before.model["shift"] - after.model["shift"], bias[:3], atol=1e-6)
    np.testing.assert_allclose(before.shadow.kernel - after.shadow.kernel, kernel[:, 3], atol=1e-6)
    assert float(before.shadow.bias - after.shadow.bias) == pytest.approx(float(bias[3]), abs=1e-6)
    assert float(stats["loss"]) == pytest.approx(float(-jnp.mean(jnp.log(p[:, 3]))), rel=1e-5)
    assert distance(after.model["body"], before.model["body"]) > 1e-3


def test_the_shadow_starts_as_a_row_of_a_wider_head():
    width = 20_000
    head = MODEL.head._replace(get=lambda variables: (jnp.zeros((width, 3), jnp.bfloat16), jnp.zeros(3)))
    method = ju.boundary_expand(MODEL._replace(head=head), SGD)
    shadow = method.init(VARIABLES, DATA, REQUEST, KEY)[1].variables.params.shadow
    assert shadow.kernel.dtype == jnp.bfloat16
    drawn = np.std(np.asarray(shadow.kernel, np.float32))
    assert drawn == pytest.approx(np.sqrt(2 / (width + 4)), rel=5 / np.sqrt(2 * width))
    assert float(shadow.bias) == 0


def test_labels_are_not_read():
    other = DATA._replace(train=DATA.train._replace(targets=(DATA.train.targets + 1) % 3))
    assert distance(run(data=other).variables, run().variables) == 0


@pytest.mark.parametrize(("options", "moves"), [({}, False), pytest.param({"bn": "all"}, True, marks=pytest.mark.slow)])
def test_the_forget_set_moves_no_running_statistics_unless_asked(options, moves):
    inner = normalized_network()

    def forward(variables, inputs, **options):
        outputs = inner.forward(variables, inputs, **options)
        return ju.Outputs(outputs.logits, {"penultimate": inputs}, outputs.state)

    head = ju.Head(lambda v, z: z @ v.params["w"], lambda v: (v.params["w"], jnp.zeros(3)), lambda v, kernel, bias: v)
    model, variables = inner._replace(forward=forward, head=head), inner.init(KEY)
    unlearn = ju.iterate(ju.boundary_expand(model, SGD, **options), 2, batch_size=4)
    result = jax.jit(unlearn)(variables, DATA, REQUEST, KEY)
    assert (distance(result.variables.state, variables.state) > 0) == moves
    assert distance(result.variables.params, variables.params) > 0


def test_models_without_what_it_needs_are_refused():
    def tried(model=MODEL, **settings):
        method = ju.iterate(ju.boundary_expand(model, SGD, **settings), 1, batch_size=4)
        return jax.eval_shape(method, VARIABLES, DATA, REQUEST, KEY)

    with pytest.raises(ValueError, match="boundary_expand puts a class beside the others in the head: give the model"):
        tried(network())
    with pytest.raises(ValueError, match="forward returns no features 'logits'"):
        tried(layer="logits")
    narrow = MODEL._replace(forward=lambda v, x, **options: MODEL.forward(v, x)._replace(features={"penultimate": x}))
    with pytest.raises(ValueError, match="the head takes 8 features, the layer has 4"):
        tried(narrow)
    one = MODEL._replace(forward=lambda v, x, **options: MODEL.forward(v, x)._replace(logits=x[:, :1]))
    with pytest.raises(ValueError, match="boundary_expand compares classes"):
        tried(one)


@pytest.mark.slow
def test_a_model_with_a_map_keeps_its_form():
    model, variables = ju.insert_map(MODEL, VARIABLES, (6,), KEY)
    unlearn = ju.iterate(ju.boundary_expand(model, optax.sgd(0.1), layer="mapped"), 6, batch_size=4)
    result = jax.jit(unlearn)(variables, DATA, REQUEST, KEY)
    assert jax.tree.structure(result.variables) == jax.tree.structure(variables)
    assert distance(result.variables.params.model, run().variables.params) < 1e-6  # the map is not in use


@pytest.mark.slow
def test_requests_side_by_side_have_their_own_shadows():
    requests, keys = ju.from_indices(DATA, [ROWS, ROWS]), jax.random.split(KEY)
    unlearn = ju.iterate(ju.boundary_expand(MODEL, optax.sgd(0.1)), 6, batch_size=4)
    both = jax.jit(jax.vmap(unlearn, (None, None, 0, 0)))(VARIABLES, DATA, requests, keys).variables
    assert distance(lane(both, 0), lane(both, 1)) > 1e-3
    assert distance(lane(both, 1), run(key=keys[1]).variables) < 1e-6
