"""Prepared values and the weights they belong to: what carries them on, what leaves them right, and what refuses them.

That every method notices other weights and other rows, request by request, is in `contract/test_methods.py`; here is what
depends on layers, kinds, edits of the head, maps and options.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature, heads, slots
from tests.problems import PROBLEM, blobs, distance, fitted, headed, lane, method, network

KEY, DATA = jax.random.key(0), blobs()
HEADED = headed()
VARIABLES = HEADED.init(jax.random.key(1))
REQUESTS = ju.from_indices(DATA, [[3, 4, 5], [20, 21, 22], [7, 8, 9]], capacity=3)
KEYS = jax.random.split(KEY, 3)
STALE = int(ju.Status.STALE)


def moved(variables):
    return jax.tree.map(lambda x: x * 1.25 + 0.01, variables)


# Other layers and other kinds


def two_layers():
    """`headed`, whose features of layer "first" are as wide as those of "penultimate"."""

    def forward(variables, inputs, *, train=False, key=None):
        outputs = HEADED.forward(variables, inputs)
        return outputs._replace(features={**outputs.features, "first": jnp.sin(outputs.features["penultimate"])})

    return HEADED._replace(forward=forward)


ON_FEATURES = (
    *("concept_erasure", "nullspace_projection", "prototype_erasure"),
    *("affine_representation_unlearning", "representation_unlearning"),
)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_features_and_moments_of_another_layer_are_refused(name):
    model = two_layers()
    prepared = jax.eval_shape(heads.prepare(model, layer="first"), VARIABLES, DATA, KEY)
    call = VARIABLES, prepared, lane(REQUESTS, 0), KEY
    with pytest.raises(ValueError, match="holds layer 'first', and layer 'penultimate' is needed"):
        jax.eval_shape(method(name, model), *call)
    jax.eval_shape(method(name, model, layer="first"), *call)
    if name != "representation_unlearning":  # which reads no moments
        extra = {"moments": prepared.extra["moments"]}
        with pytest.raises(ValueError, match=r"'moments'\] holds layer 'first'"):
            jax.eval_shape(method(name, model), VARIABLES, prepared._replace(extra=extra), *call[2:])


@pytest.mark.parametrize("how", ["", "the diagonal of the empirical Fisher matrix"])
def test_a_diagonal_of_another_matrix_is_refused(how):
    model = network()
    prepare = curvature.prepare(curvature.diagonal(model, kind="empirical"), slots.FISHER_DIAGONAL, how=how)
    prepared = jax.eval_shape(prepare, model.init(KEY), DATA, KEY)
    with pytest.raises(ValueError, match="the diagonal of the true Fisher matrix is needed: prepare it anew"):
        jax.eval_shape(ju.fisher_forgetting(model, form="paper"), model.init(KEY), prepared, lane(REQUESTS, 0), KEY)


def test_a_stale_preconditioner_changes_no_solution_and_so_no_status():
    model = network()
    variables = model.init(KEY)
    unlearn = ju.newton(model, damping=1.0, solver="cg", rtol=1e-6, fit=curvature.diagonal(model))
    prepare, request = ju.prepare(unlearn), lane(REQUESTS, 0)

    def run(prepared_at):
        return unlearn(variables, prepare(prepared_at, DATA, KEY), request, KEY)

    results = jax.jit(jax.vmap(run))(jax.tree.map(lambda x: jnp.stack([x, 1.25 * x + 0.01]), variables))
    assert results.status.tolist() == [0, 0]
    assert distance(lane(results.variables, 0), lane(results.variables, 1)) < 1e-4


# Edits that leave prepared values right


@pytest.mark.parametrize("widths", [None, (), (4,)], ids=["folded into the head", "affine map", "deep map"])
def test_features_in_front_of_the_head_stay_right_whatever_becomes_of_head_and_map(widths):
    model, variables = (HEADED, VARIABLES) if widths is None else ju.insert_map(HEADED, VARIABLES, widths, KEY)
    unlearn = method("representation_unlearning", model, optax.sgd(0.1), num_steps=1, batch_size=2)
    ready = jax.jit(ju.prepare(unlearn))(variables, DATA, KEY)
    result = jax.jit(ju.streamed(unlearn))(variables, ready, REQUESTS, KEYS)
    assert distance(result.variables, variables) > 0
    assert result.status.tolist() == [0, 0, 0]


def test_features_behind_a_map_go_stale_with_it():
    model, variables = ju.insert_map(HEADED, VARIABLES, (), KEY)
    (layer,) = variables.params.map
    other = variables._replace(params=variables.params._replace(map=[{**layer, "bias": layer["bias"] + 1}]))
    for name, expected in (("penultimate", False), ("mapped", True)):

        def stale(at, name=name):
            data = heads.prepare(model, layer=name)(variables, DATA, KEY)
            return heads.moments.features_of_rows(model, at, data, name)[1]

        assert [bool(jax.jit(stale)(at)) for at in (variables, other)] == [False, expected]


# Streams


@pytest.mark.parametrize("carry", [False, True])
def test_moments_go_stale_in_a_stream_unless_they_are_carried_on(carry):
    unlearn = ju.affine_representation_unlearning(HEADED, beta=0.1, carry=carry)
    ready = jax.jit(ju.prepare(unlearn))(VARIABLES, DATA, KEY)
    result = jax.jit(ju.streamed(unlearn))(VARIABLES, ready, REQUESTS, KEYS)
    assert result.status.tolist() == ([0, 0, 0] if carry else [0, STALE, STALE])
    if carry:
        left = ju.remove(ready, ju.merge(REQUESTS))
        fresh = jax.jit(ju.prepare(unlearn))(result.variables, left, KEY)
        found = [slots.MOMENTS.get(x) for x in (left._replace(extra=result.extra), fresh)]
        np.testing.assert_allclose(found[0].value, found[1].value, atol=1e-4)
        assert jnp.array_equal(found[0].weights, found[1].weights)
        assert jnp.array_equal(found[0].present, found[1].present)


def test_a_factorisation_that_is_carried_on_is_right_for_the_next_request_and_for_no_other_weights():
    unlearn = ju.convex.woodbury_removal(PROBLEM, carry=30)
    ready = jax.jit(ju.prepare(unlearn))(fitted(), DATA, KEY)
    result, left = ju.end_of_stream(jax.jit(ju.streamed(unlearn))(fitted(), ready, REQUESTS, KEYS), ready)
    with jax.enable_x64(True):
        read = jax.jit(lambda v: slots.FACTORISATION.read(left, at=(v, PROBLEM.l2))[1])
        assert [bool(read(v)) for v in (result.variables, moved(result.variables))] == [False, True]
