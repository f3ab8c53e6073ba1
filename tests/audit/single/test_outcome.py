"""The few numbers of an answer against the audits that they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from tests.problems import blobs, held_out, lane, linear_regression, network, regression_data

KEY = jax.random.key(0)


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_it_is_what_the_audits_say_one_by_one(kind):
    data, model = (blobs(), network()) if kind == "classes" else (regression_data(), linear_regression())
    test = held_out() if kind == "classes" else ju.Examples(*jax.tree.map(lambda x: x[:20], regression_data(seed=1).train))
    request = lane(ju.from_indices(data, [[3, 4, 5, 30]]), 0)
    data = ju.remove(data, lane(ju.from_indices(data, [[7, 8]]), 0))
    data = data._replace(train=jax.tree.map(lambda x: x.at[7].set(x[9]), data.train))
    variables = model.init(KEY)
    weights = jnp.asarray(np.arange(20) % 2, jnp.float32)
    found = jax.jit(lambda v: ju.audit.outcome(model, v, data, request, test, unseen_weights=weights))(variables)
    known = ju.audit.performance(model, variables, data, request, test)
    sets = known.accuracy if kind == "classes" else known.loss
    np.testing.assert_allclose([found.retain, found.forget, found.test], sets, rtol=1e-6)
    odd = jax.tree.map(lambda x: x[1::2], test)
    among_odd = ju.audit.performance(model, variables, data, request, odd)
    assert float(found.unseen) == pytest.approx(float((among_odd.accuracy or among_odd.loss).test), rel=1e-6)
    assert float(found.auc) == pytest.approx(float(ju.audit.auc(*ju.audit.loss_scores(model, variables, data, request, odd))))
    in_chunks = ju.audit.outcome(model, variables, data, request, odd, unseen=test, unseen_weights=weights, chunk=7)
    np.testing.assert_allclose([in_chunks.unseen, in_chunks.auc], [found.unseen, found.auc], rtol=1e-6)
