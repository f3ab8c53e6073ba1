"""Costs of a stream of releases against dp_accounting and closed forms."""

import math

import numpy as np
import pytest
from dp_accounting.pld import common, privacy_loss_distribution

from jaxunlearn.certificates import (
    Cost,
    compose,
    compose_costs,
    compose_gaussians,
)

PURE, MIXED = Cost(0.5, 0.0), Cost(0.3, 1e-6)


def gaussian(sensitivity, scale):
    return Cost(1.0, 1e-5, sensitivity / scale)


@pytest.mark.parametrize(
    ("ratios", "others"),
    [([0.3] * 5, []), ([], [(0.2, 0.0)] * 6), ([0.5, 0.1, 0.9], [(0.5, 0.0), (0.3, 1e-6)]), ([0.05], [(1.0, 1e-7)] * 3)],
)
def test_a_stream_of_releases_costs_what_privacy_loss_distributions_say(ratios, others):
    step = 1e-4
    parts = [privacy_loss_distribution.from_gaussian_mechanism(1 / mu, value_discretization_interval=step) for mu in ratios] + [
        privacy_loss_distribution.from_privacy_parameters(
            common.DifferentialPrivacyParameters(*pair), value_discretization_interval=step
        )
        for pair in others
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    costs = [Cost(10.0, 1e-3, mu) for mu in ratios] + [Cost(*pair) for pair in others]
    for delta in (1e-5, 1e-3):
        found, theirs = compose_costs(costs, delta).epsilon, whole.get_epsilon_for_delta(delta)
        rounded = step * len(parts) + 1e-3 * sum(epsilon for epsilon, _ in others)
        assert theirs - step * len(parts) - 1e-6 < found < theirs + rounded  # both round up


def test_gaussians_alone_and_bounds_alone_are_their_own_composition():
    costs = [gaussian(3.0, 10.0), gaussian(4.0, 10.0)]
    np.testing.assert_allclose(compose_costs(costs, 1e-5).epsilon, compose_gaussians([3, 4], [10, 10], 1e-5).epsilon, rtol=1e-9)
    assert compose_costs([PURE], 1e-9).epsilon == pytest.approx(0.5, rel=1e-6)
    assert compose_costs([PURE, MIXED], 1e-6 + 1e-15).epsilon == pytest.approx(0.8, rel=1e-6)
    assert compose_costs([], 1e-5) == (0.0, 1e-5)
    assert compose_costs([Cost(0.5, 0.6)], 0.6).epsilon == pytest.approx(0.5)


def test_never_above_the_sum_and_it_grows_with_every_release():
    costs, before = [], 0.0
    for each in (PURE, gaussian(1.0, 3.731), MIXED, gaussian(1.0, 3.731), gaussian(0.0, 1.0), Cost(0.0, 0.0)):
        costs.append(each)
        delta = max(compose(*((x.epsilon, x.delta) for x in costs)).delta, 1e-9)
        found = compose_costs(costs, 1e-4).epsilon
        assert before <= found * (1 + 1e-6)
        before = found
        assert compose_costs(costs, delta).epsilon <= math.fsum(x.epsilon for x in costs) * (1 + 1e-12)


def test_misuse_is_refused():
    for costs, delta, message in (
        ([PURE], 0.0, "delta must lie"),
        ([Cost(1.0, 1e-5, math.inf)], 1e-5, "mu must be"),
        ([Cost(-1.0, 0.0)], 1e-5, "finite epsilon"),
        ([MIXED, MIXED], 1e-6, "allow more"),
    ):
        with pytest.raises(ValueError, match=message):
            compose_costs(costs, delta)
