import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.certificates import compose, compose_gaussians, epsilon_of, gaussian_scale, group, with_private_extractor


def test_basic_composition_adds():
    assert compose((1.0, 1e-5), (2.0, 3e-5)) == (3.0, 4e-5)
    assert compose() == (0.0, 0.0)
    assert compose((1.0, 0.7), (1.0, 0.7)).delta == 1.0
    with pytest.raises(ValueError, match="finite epsilon"):
        compose((math.inf, 0.0))
    with pytest.raises(ValueError, match="delta in"):
        compose((1.0, -0.1))


def test_gaussians_compose_to_one_gaussian():
    both = compose_gaussians([3.0, 4.0], [10.0, 10.0], 1e-5)
    np.testing.assert_allclose(both.epsilon, float(epsilon_of(1.0, 0.5, 1e-5)), rtol=1e-12)
    assert compose_gaussians([1.0], [2.0], 1e-5).epsilon >= float(epsilon_of(2.0, 1.0, 1e-5)) * (1 - 1e-15)


@given(st.lists(st.floats(0.05, 5), min_size=2, max_size=5))
@settings(max_examples=15, deadline=None)
def test_gaussian_composition_costs_less_than_the_sum(epsilons):
    delta = 1e-6
    scales = [float(gaussian_scale(1.0, epsilon, delta)) for epsilon in epsilons]
    together = compose_gaussians([1.0] * len(scales), scales, len(scales) * delta)
    assert max(float(epsilon_of(s, 1.0, len(scales) * delta)) for s in scales) <= together.epsilon <= sum(epsilons)


def test_gaussian_composition_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="one noise scale per sensitivity"):
        compose_gaussians([1.0], [], 1e-5)
    with pytest.raises(ValueError, match="noise scales positive"):
        compose_gaussians([1.0], [0.0], 1e-5)


@given(st.floats(0, 30), st.one_of(st.just(0.0), st.floats(1e-300, 1)), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_group_privacy_is_that_of_one_row_after_the_other(epsilon, delta, num_rows):
    together = group(epsilon, delta, num_rows)
    np.testing.assert_allclose(together.epsilon, num_rows * epsilon)
    stepwise = 0.0
    for _ in range(num_rows):  # P_0 <= e^eps P_1 + delta, and so on
        stepwise = min(1.0, math.exp(epsilon) * stepwise + delta)
    np.testing.assert_allclose(together.delta, stepwise, rtol=1e-9, atol=1e-300)
    bound = math.log(num_rows) + (num_rows - 1) * epsilon + (math.log(delta) if delta else -math.inf)
    assert together.delta <= math.exp(min(bound, 0)) * (1 + 1e-9)


def test_group_privacy_of_no_row_is_refused_and_huge_groups_are_void():
    assert group(10.0, 1e-10, 1000) == (10_000.0, 1.0)
    np.testing.assert_allclose(group(700.0, 1e-320, 2).delta, 1e-320 * math.exp(700), rtol=1e-3)
    with pytest.raises(ValueError, match="num_rows"):
        group(1.0, 1e-5, 0)


def test_private_extractor_adds_to_the_head():
    assert with_private_extractor((1.0, 1e-5), (0.5, 1e-5)) == compose((1.0, 1e-5), (0.5, 1e-5))
    three = with_private_extractor((1.0, 1e-5), (0.1, 1e-5), 3)
    np.testing.assert_allclose(three.epsilon, 1.3)
    np.testing.assert_allclose(three.delta, 1e-5 + 1e-5 * (1 + math.exp(0.1) + math.exp(0.2)))
