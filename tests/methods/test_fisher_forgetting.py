"""Fisher forgetting: mean and variance of its noise, in the paper's form and in the released one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.fisher_forgetting import _released
from tests.curvature.toys import KEPT, explicit, tree_of
from tests.problems import blobs, lane, network

KEY = jax.random.key(0)
HEAD = ju.Head(
    lambda variables, features: features @ variables.params["head"],
    lambda variables: (variables.params["head"], jnp.zeros(3)),
    lambda variables, kernel, bias: variables._replace(params={**variables.params, "head": kernel}),
)
DATA, MODEL = blobs(), network()._replace(head=HEAD)
VARIABLES = MODEL.init(jax.random.key(1))
REQUEST = lane(ju.from_indices(DATA, [[3, 8, 21, 40]]), 0)
FISHER = jax.tree.map(lambda x: np.asarray(x, np.float32), tree_of(np.diag(explicit("fisher", KEPT))))  # of the retain set
DRAWS = 4000


@pytest.fixture(scope="module")
def prepared():
    return jax.jit(ju.prepare(ju.fisher_forgetting(MODEL)))(VARIABLES, DATA, KEY)


def spread(form, data, requests, **options):
    """Mean and variance of every weight over many draws, for every request."""
    unlearn = ju.fisher_forgetting(MODEL, form=form, **options)

    def moments(request):
        params = jax.vmap(lambda key: unlearn(VARIABLES, data, request, key).variables.params)(keys)
        return jax.tree.map(lambda x: (jnp.mean(x, axis=0), jnp.var(x, axis=0)), params)

    keys = jax.random.split(jax.random.key(2), DRAWS)
    return jax.jit(jax.vmap(moments))(requests)


def stacked(*requests):
    return jax.tree.map(lambda *x: jnp.stack(x), *requests)


def test_the_papers_noise_has_the_variance_of_the_inverse_root(prepared):
    found = lane(spread("paper", prepared, stacked(REQUEST), strength=1e-6, damping=1e-4), 0)
    for name, fisher in FISHER.items():
        mean, variance = found[name]
        expected = np.sqrt(1e-6 / (fisher + 1e-4))
        np.testing.assert_allclose(variance, expected, rtol=0.15)
        np.testing.assert_allclose(mean, VARIABLES.params[name], atol=5 * float(np.sqrt(expected.max() / DRAWS)))


def test_the_released_noise_follows_its_steps_classes_included(prepared):
    targets = np.array([[False, False, False], [False, True, False]])
    requests = stacked(*(REQUEST._replace(target=jnp.asarray(target)) for target in targets))
    both = spread("released", prepared, requests, strength=1e-4)
    for place, target in enumerate(targets):
        found = lane(both, place)
        body = np.minimum(1 / (FISHER["body"] + 1e-8), 1e3) * 1e-4
        np.testing.assert_allclose(found["body"][1], np.broadcast_to(body.mean(axis=0), (4, 8)), rtol=0.15)
        head = np.minimum(1 / (FISHER["head"] + 1e-8), 1e2) * 1e-4
        head = np.broadcast_to(head.mean(axis=0), (8, 3)) * 10
        head, mean = np.where(target, 1e-3, head), np.where(target, 0, VARIABLES.params["head"])
        np.testing.assert_allclose(found["head"][1], head, rtol=0.15)
        np.testing.assert_allclose(found["head"][0], mean, atol=5 * np.sqrt(head.max() / DRAWS))


def transposed_model():
    """Weights [out, in] as Equinox keeps them, and a hidden layer as wide as there are classes."""

    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(jnp.tanh(inputs @ variables.params["body"].T) @ variables.params["head"].T)

    head = ju.Head(
        lambda variables, features: features @ variables.params["head"].T,
        lambda variables: (variables.params["head"].T, jnp.zeros(3)),
        lambda variables, kernel, bias: variables._replace(params={**variables.params, "head": kernel.T}),
    )
    return ju.Model(forward, ju.losses.cross_entropy, head=head)


def test_the_head_is_the_models_and_not_what_looks_like_one():
    weights = {"body": jax.random.normal(KEY, (3, 4)), "head": jax.random.normal(jax.random.key(1), (3, 3))}
    model, variables = transposed_model(), ju.Variables(weights)
    request = REQUEST._replace(target=jnp.array([False, True, False]))
    unlearn = ju.fisher_forgetting(model, strength=1e-9, input_axis=1)
    data = jax.jit(ju.prepare(unlearn))(variables, DATA, KEY)
    after = jax.jit(unlearn)(variables, data, request, KEY).variables.params
    np.testing.assert_allclose(after["body"], weights["body"], atol=0.01)
    np.testing.assert_allclose(after["head"][jnp.array([0, 2])], weights["head"][jnp.array([0, 2])], atol=0.01)
    assert 0 < jnp.max(jnp.abs(after["head"][1])) < 0.15  # five standard deviations


def test_means_are_over_inputs_wherever_they_lie():
    model, fisher = transposed_model(), {"body": jnp.arange(1.0, 13).reshape(3, 4), "head": jnp.ones((3, 3))}
    found = [_released(model.head, ju.Variables(fisher), fisher, (), 1.0, 0.0, axis)[1]["body"] for axis in (1, -2)]
    np.testing.assert_allclose(found[0], np.mean(1 / fisher["body"], axis=1, keepdims=True) * np.ones(4), rtol=1e-6)
    np.testing.assert_allclose(found[1], np.mean(1 / fisher["body"], axis=0, keepdims=True) * np.ones((3, 1)), rtol=1e-6)


def test_what_is_missing_or_wrong_is_named():
    with pytest.raises(ValueError, match=r"form='released' treats the last layer apart.* head=jaxunlearn.Head"):
        ju.fisher_forgetting(network())
    with pytest.raises(ValueError, match=r"'fisher_diagonal'\] is missing .*jaxunlearn.prepare\(unlearn\)"):
        jax.eval_shape(ju.fisher_forgetting(MODEL), VARIABLES, DATA, REQUEST, KEY)
    for options in ({"form": "mine"}, {"strength": -1.0}, {"damping": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ju.fisher_forgetting(MODEL, **options)
