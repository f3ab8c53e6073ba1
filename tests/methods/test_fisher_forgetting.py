"""Fisher forgetting: mean and variance of its noise, in the paper's form and in the released one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from tests.curvature.toys import KEPT, explicit, tree_of
from tests.problems import blobs, lane, network

KEY = jax.random.key(0)
DATA, MODEL = blobs(), network()
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


def test_what_is_missing_or_wrong_is_named():
    with pytest.raises(ValueError, match=r"'fisher_diagonal'\] is missing .*jaxunlearn.prepare\(unlearn\)"):
        jax.eval_shape(ju.fisher_forgetting(MODEL), VARIABLES, DATA, REQUEST, KEY)
    for options in ({"form": "mine"}, {"strength": -1.0}, {"damping": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ju.fisher_forgetting(MODEL, **options)
