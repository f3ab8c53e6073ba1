"""Rewinding goes where a descent came from, and never farther from retraining than its bound."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates, convex
from tests.problems import blobs, distance, lane, network

KEY, NOTHING = jax.random.key(0), ju.empty_request()
RATE, STEPS, GONE = 0.5, 12, [0, 5, 9, 17]
PROBLEM = convex.logistic(0.05)


def rows():
    rng = np.random.default_rng(0)
    inputs = convex.feature_rows(rng.normal(size=(40, 3)))
    return inputs, (inputs[:, 0] > 0).astype(np.int32)


def descent(kept, start, steps):
    """Weights of every step of full-batch descent on the mean logistic loss."""
    inputs, labels = rows()
    inputs, labels, path = inputs[kept].astype(float), labels[kept], [start]
    for _ in range(steps):
        w = path[-1]
        slope = 1 / (1 + np.exp(-inputs @ w)) - labels
        path.append(w - RATE * (inputs.T @ slope / len(inputs) + 0.05 * w))
    return path


def test_drift_never_exceeds_its_bound_and_is_none_for_a_whole_rewind():
    everything, kept, start = np.arange(40), np.setdiff1d(np.arange(40), GONE), np.zeros(4)
    learned, retrained = descent(everything, start, STEPS), descent(kept, start, STEPS)
    for convexity in (None, 0.0, 0.05):
        growth = certificates.growth_per_step(RATE, 0.25 + 0.05, convexity)
        found = []
        for after in range(STEPS + 1):
            far = np.linalg.norm(descent(kept, learned[STEPS - after], after)[-1] - retrained[-1])
            bound = certificates.rewind_sensitivity(
                len(GONE), 40, 1.0, growth, RATE, steps_before=STEPS - after, steps_after=after
            )
            assert far <= bound + 1e-12
            found.append((far, bound))
        assert found[-1] == (0, 0)
        assert all(late[0] < early[0] for early, late in pairwise(found))  # a convex loss forgets with every step


def test_the_method_is_that_descent_from_a_stored_checkpoint():
    inputs, labels = rows()
    data = ju.training_data(inputs, labels)
    learned = descent(np.arange(40), np.zeros(4), STEPS)
    past, trained = ({"kernel": jnp.asarray(w[:, None], jnp.float32)} for w in (learned[8], learned[STEPS]))
    trained = ju.Variables(trained)
    ready = ju.slots.CHECKPOINT.put(data, past, at=trained)
    request = lane(ju.from_indices(data, [GONE]), 0)
    unlearn = jax.jit(ju.rewind_to_delete(PROBLEM.model, step_size=RATE, steps=4))
    result = unlearn(trained, ready, request, KEY)
    expected = descent(np.setdiff1d(np.arange(40), GONE), learned[8], 4)[-1]
    assert np.abs(np.asarray(result.variables.params["kernel"])[:, 0] - expected).max() < 1e-6
    assert result.status == ju.Status.OK
    assert unlearn(ju.Variables(past), ready, request, KEY).status == ju.Status.STALE
    # a stream rewinds to the same weights again, without the rows of both
    later = ju.remove(ready, request)
    later = later._replace(extra={**later.extra, **result.extra})
    second = unlearn(result.variables, later, lane(ju.from_indices(data, [[1, 2]]), 0), KEY)
    expected = descent(np.setdiff1d(np.arange(40), [*GONE, 1, 2]), learned[8], 4)[-1]
    assert second.status == ju.Status.OK
    assert np.abs(np.asarray(second.variables.params["kernel"])[:, 0] - expected).max() < 1e-6


@pytest.mark.parametrize("chunk", [None, 7])
def test_undone_steps_lead_back_through_a_network(chunk):
    model, data = network(), blobs()
    learn = ju.rewind_to_delete(model, step_size=0.05, steps=3, undo=False, chunk=chunk)
    past = learn(model.init(KEY), data, NOTHING, KEY).variables
    trained = learn(past, data, NOTHING, KEY).variables
    request = lane(ju.from_indices(data, [[3, 4]]), 0)
    unlearn = ju.rewind_to_delete(model, step_size=0.05, steps=3, iterations=25, chunk=chunk)
    found, stored = (
        unlearn(trained, start, request, KEY) for start in (data, ju.slots.CHECKPOINT.put(data, past.params, at=trained))
    )
    assert found.stats["undone_steps"] == 3
    assert found.stats["undo_residual"] < 1e-6
    assert distance(found.variables, stored.variables) < 1e-5 < distance(trained, stored.variables)


def test_sizes_and_rates_that_are_none_are_refused():
    with pytest.raises(ValueError, match="step_size must lie in"):
        ju.rewind_to_delete(network(), step_size=0.0)
    with pytest.raises(ValueError, match="steps must be an integer"):
        ju.rewind_to_delete(network(), step_size=0.1, steps=0)
    with pytest.raises(ValueError, match="chunk must be an integer"):
        ju.rewind_to_delete(network(), step_size=0.1, chunk=0)
