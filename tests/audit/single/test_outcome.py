"""The few numbers of an answer against the audits that they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.audit.single.performance import row_results
from tests.audit.toys import random_network
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


START = random_network()
GROUPS, TEST_GROUPS = np.arange(60) % 3, np.arange(20) % 3
BY_GROUP = jax.jit(
    lambda v, data, request, groups, others: ju.audit.group_outcomes(
        network(), v, data, request, held_out(), groups, others, num_groups=3, chunk=16
    )
)


def of_groups(data, request, groups=GROUPS, others=TEST_GROUPS):
    return BY_GROUP(START, data, request, jnp.asarray(groups), jnp.asarray(others))


def results(data):
    """Right answers and losses of all training rows and test rows, on the host."""
    both = jax.jit(lambda v: [row_results(network(), v, x) for x in (data.train, held_out())])(START)
    return [[np.asarray(x) for x in pair] for pair in both]


def test_groups_are_means_over_their_own_rows():
    data = ju.remove(blobs(), lane(ju.from_indices(blobs(), [[7, 8]]), 0))
    data = data._replace(train=data.train._replace(inputs=data.train.inputs.at[7].set(jnp.nan)))
    asked = np.isin(np.arange(60), [3, 4, 5, 6, 9, 30, 41])
    found = of_groups(data, lane(ju.from_indices(data, [np.flatnonzero(asked)]), 0))
    (right, losses), (test_right, test_losses) = results(data)
    for number in range(3):
        own, others = number == GROUPS, number == TEST_GROUPS
        kept = own & ~asked & (np.asarray(data.present) > 0)
        scores = -losses[own & asked], -test_losses[others]
        area = np.mean((scores[0][:, None] > scores[1]) + 0.5 * (scores[0][:, None] == scores[1]))
        tested = test_right[others].mean()
        expected = right[kept].mean(), right[own & asked].mean(), tested, tested, area
        np.testing.assert_allclose([x[number] for x in found], expected, rtol=1e-6)


def test_a_group_without_rows_is_unknown_and_rows_of_no_group_count_nowhere():
    data = blobs()
    request = lane(ju.from_indices(data, [[3, 4, 5]]), 0)
    everyone = of_groups(data, request, 0 * GROUPS, 0 * TEST_GROUPS)
    (right, _), (test_right, _) = results(data)
    np.testing.assert_allclose([everyone.forget[0], everyone.test[0]], [right[3:6].mean(), test_right.mean()], rtol=1e-6)
    assert all(np.isnan(x[1:]).all() for x in everyone)
    nobody = of_groups(data, request, np.where(GROUPS == 0, -1, GROUPS), TEST_GROUPS)
    assert np.isnan(nobody.retain[0])
    assert np.isfinite(nobody.test[0])


def test_groups_that_are_no_integers_or_of_other_rows_are_refused():
    data, request = blobs(), ju.ForgetRequest(np.array([3]), np.ones(1))
    for groups, got in ((np.ones(60), "float"), (GROUPS[:9], r"\(9,\)")):
        with pytest.raises(ValueError, match=f"expected groups as one integer for each of 60 rows, got .*{got}"):
            ju.audit.group_outcomes(network(), START, data, request, held_out(), groups, TEST_GROUPS, num_groups=3)
