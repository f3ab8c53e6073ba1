"""Accountants of runs: exact where a closed form, dp-accounting or quadrature knows the answer, and never below it."""

import itertools
import math

import jax
import numpy as np
import pytest
import scipy.integrate
from dp_accounting.pld import privacy_loss_distribution
from scipy.stats import norm

from jaxunlearn import certificates as c

# noisy steps with clipped gradients


def test_without_drift_it_is_the_gaussian_that_it_is():
    mu = float(c.gaussian_mu(2.0, 0.9, 0.0, 1.0, num_steps=20))
    rho = (2 * 0.9**20) ** 2 * (1 - 0.9**2) / (2 * (1 - 0.9**40))
    assert mu**2 / 2 == pytest.approx(rho, rel=1e-9)
    assert rho == pytest.approx(0.005701, abs=1e-6)


def test_the_shift_of_clipped_gradients_is_a_geometric_sum():
    c_, d, start, sigma, steps = 0.97, 0.02, 0.5, 0.3, 12
    shift = start * c_**steps + d * sum(c_**i for i in range(steps))
    spread = sigma * math.sqrt(sum(c_ ** (2 * i) for i in range(steps)))
    each = [float(c.gaussian_mu(start, c_, d, sigma, num_steps=t)) for t in (1, 6, steps)]
    assert each[-1] == pytest.approx(shift / spread, rel=1e-9)
    assert each == sorted(each, reverse=True)


def test_more_steps_never_tell_more():
    """Without decay mu is least at T = C0 / (g C1), where it is 4 sqrt(C0 g C1) / sigma; later steps are free."""
    start, drift, sigma = 2 * 1.0, 2 * 0.1, 3.0
    best = float(c.gaussian_mu(start, 1.0, drift, sigma, num_steps=10))
    assert best == pytest.approx(4 * math.sqrt(1.0 * 0.1) / sigma, rel=1e-9)
    assert float(c.gaussian_mu(start, 1.0, drift, sigma, num_steps=50)) == pytest.approx(best, rel=1e-12)


def test_one_step_without_drift_is_output_perturbation():
    sigma = float(c.step_noise(2.0, 1.0, 0.0, 1.0, 1e-5, num_steps=1))
    assert sigma == pytest.approx(float(c.gaussian_scale(2.0, 1.0, 1e-5)), rel=1e-9)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (1.0, 1e-5), (4.0, 1e-3)])
def test_noise_agrees_with_dp_accounting(epsilon, delta):
    """mu of two or more steps is the composition that dp-accounting finds for their Gaussians."""
    sigma = float(c.step_noise(2.0, 0.9, 0.1, epsilon, delta, num_steps=4))
    mu = float(c.gaussian_mu(2.0, 0.9, 0.1, sigma, num_steps=4))
    whole = privacy_loss_distribution.from_gaussian_mechanism(1 / mu)
    assert whole.get_epsilon_for_delta(delta) == pytest.approx(epsilon, abs=2e-3)
    parts = privacy_loss_distribution.from_gaussian_mechanism(math.sqrt(4) / mu).self_compose(4)
    assert parts.get_epsilon_for_delta(delta) == pytest.approx(epsilon, abs=2e-3)
    assert whole.get_delta_for_epsilon(epsilon) <= delta * 1.01


def test_decreasing_noise_gives_each_step_an_equal_part():
    """With deviation s / sqrt(2 e T) in the last step, rho is e where no earlier step is better."""
    contraction, steps, e = 0.8, 6, 0.3
    profile = np.asarray(c.decreasing(contraction, num_steps=steps))
    shift = 2.0 * contraction**steps
    last = shift / math.sqrt(2 * e * steps)
    mu = float(c.gaussian_mu(2.0, contraction, 0.0, last * profile, num_steps=steps))
    assert mu**2 / 2 == pytest.approx(e, rel=1e-9)
    assert np.ptp(profile * contraction ** np.arange(steps - 1, -1, -1)) < 1e-12


def test_a_push_away_from_the_middle_is_never_worse_than_the_bound():
    """Drift that follows the sign of the state makes the law no Gaussian: quadrature over two steps, noise small at the end."""
    start, drift = 0.5, 0.6
    for first, last in ((1.0, 0.3), (0.3, 1.0), (0.6, 0.6)):
        mu = float(c.gaussian_mu(2 * start, 1.0, 2 * drift, np.array([first, last]), num_steps=2))
        x = np.linspace(-8, 8, 2001)

        def law(sign, x=x, first=first, last=last):
            middle = norm.pdf(x, sign * (start + drift), first)
            weight = middle * (x[1] - x[0])
            means = x + drift * np.sign(x)
            return lambda y: norm.pdf(y[:, None], means, last) @ weight

        grid = np.linspace(-9, 9, 601)
        p, q = law(1)(grid), law(-1)(grid)
        for epsilon in (0.0, 0.5, 2.0):
            exact = scipy.integrate.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), grid)
            assert exact <= float(c.delta_of(1.0, mu, epsilon)) + 1e-4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: c.gaussian_mu(-1.0, 1.0, 0.0, 1.0, num_steps=1), "start must lie in"),
        (lambda: c.gaussian_mu(1.0, 1.0, math.inf, 1.0, num_steps=1), "drift must lie in"),
        (lambda: c.gaussian_mu(1.0, 1.0, 0.0, 1.0, num_steps=0), "num_steps must be an integer of at least 1"),
        (lambda: c.decreasing(0.0, num_steps=3), "contraction must lie in"),
        (lambda: c.projected_delta(1.0, -1.0, num_steps=1), "epsilon must lie in"),
        (lambda: c.projected_ratio(1.0, 0.0), "sigma must lie in"),
        (lambda: c.growth_per_step(3.0, 1.0, 0.5), "learning_rate <= 2 / smoothness"),
        (lambda: c.rewind_sensitivity(1, 0, 1.0, 1.1, 0.1, steps_before=1, steps_after=1), "num_rows must be positive"),
        (lambda: c.langevin_mu(1, 10, 1.0, 0.0, 0.1, 1.0), "that are positive"),
        (lambda: c.langevin_mu(1, 10, 1.0, 0.5, 3.0, 1.0), "at most 1 / L"),
        (lambda: c.unlearned_mu([1.0], [], 0.1, 0.1), "a number of steps per request"),
    ],
)
def test_what_is_out_of_range_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_without_noise_there_is_no_bound_and_without_distance_no_need_of_one():
    assert float(c.gaussian_mu(1.0, 1.0, 0.0, 0.0, num_steps=2)) == math.inf
    assert float(c.gaussian_mu(0.0, 1.0, 0.0, 0.0, num_steps=2)) == 0
    traced = jax.jit(lambda s: c.gaussian_mu(s, 0.9, 0.1, 1.0, num_steps=3))
    assert np.isnan(traced(-1.0))
    assert float(traced(1.0)) == pytest.approx(float(c.gaussian_mu(1.0, 0.9, 0.1, 1.0, num_steps=3)), rel=1e-6)


# projections


def test_projections_reach_the_published_numbers_of_steps():
    for ratio, steps in ((1.0, 3), (2.0, 6)):
        before, after = (float(c.projected_delta(ratio, 1.0, num_steps=t)) for t in (steps - 1, steps))
        assert after <= 1e-5 < before


def test_one_projection_is_the_gaussian_mechanism_and_delta_falls_from_there():
    assert float(c.projected_delta(1.5, 1.0, num_steps=1)) == pytest.approx(float(c.delta_of(1.0, 1.5, 1.0)), rel=1e-9)
    falling = [float(c.projected_delta(1.5, 0.5, num_steps=t)) for t in range(1, 5)]
    assert all(late < early for early, late in itertools.pairwise(falling))
    assert float(c.projected_delta(1.5, 1.0, num_steps=0, start_ratio=0.7)) == pytest.approx(float(c.delta_of(1.0, 0.7, 1.0)))
    begun = float(c.projected_delta(1.5, 1.0, num_steps=1, start_ratio=0.7))
    assert begun < float(c.projected_delta(1.5, 1.0, num_steps=1))


@pytest.mark.parametrize("noise_first", [False, True])
def test_projected_steps_in_one_dimension_stay_below_their_bound(noise_first):
    """Quadrature of two steps that push away from the middle as hard as they may, from the two ends of the ball."""
    radius, sigma, rate, bound = 1.0, 1.3, 0.5, 0.8
    x = np.linspace(-9, 9, 1201)

    def step(mass, atoms):
        """Law after a step, as masses on the grid (with the ends of the ball as atoms where the projection comes last)."""
        push = rate * bound * np.sign(x)
        means = x + push if noise_first else np.clip(x + push, -radius, radius)
        means = np.concatenate([means, [-radius - rate * bound, radius + rate * bound] if noise_first else [-radius, radius]])
        weights = np.concatenate([mass, atoms])
        used = weights > 1e-12
        density = np.exp(-((x[:, None] - means[used]) ** 2) / (2 * sigma**2)) @ weights[used]
        found = density / density.sum()
        if not noise_first:
            return found, np.zeros(2)
        ends = np.array([found[x <= -radius].sum(), found[x >= radius].sum()])
        return np.where(np.abs(x) < radius, found, 0), ends

    laws = []
    for side in (0, 1):
        mass, atoms = np.zeros_like(x), np.eye(2)[side]
        for _ in range(2):
            mass, atoms = step(mass, atoms)
        laws.append(np.concatenate([mass, atoms]))
    ratio = c.projected_ratio(radius, sigma, learning_rate=rate * noise_first, gradient_norm=bound * noise_first)
    for epsilon in (0.0, 0.5, 1.0):
        exact = np.maximum(laws[0] - math.exp(epsilon) * laws[1], 0).sum()
        assert 0 < exact <= float(c.projected_delta(ratio, epsilon, num_steps=2)) + 1e-4


def test_noise_and_epsilon_of_projections_undo_delta():
    sigma = float(c.projected_noise(1.0, 1.0, 1e-5, num_steps=3))
    ratio = 2 / sigma
    assert float(c.projected_delta(ratio, 1.0, num_steps=3)) == pytest.approx(1e-5, rel=1e-6)
    assert float(c.projected_epsilon(ratio, 1e-5, num_steps=3)) == pytest.approx(1.0, rel=1e-6)
    one = float(c.projected_noise(1.0, 1.0, 1e-5, num_steps=1))
    assert one == pytest.approx(float(c.gaussian_scale(2.0, 1.0, 1e-5)), rel=1e-6)
    first = float(c.projected_noise(1.0, 1.0, 1e-5, num_steps=3, learning_rate=0.5, gradient_norm=1.0))
    assert first == pytest.approx(1.5 * sigma, rel=1e-9)


# rewound and noisy descents


def test_rewinding_everything_needs_no_noise_and_steps_add_up():
    assert c.rewind_sensitivity(3, 100, 1.0, 1.2, 0.1, steps_before=0, steps_after=20) == 0
    h, growth = 0.1, 1 + 0.1 * 2.0
    closed = 2 * 3 * 1.0 / (2.0 * 100) * (growth**7 - 1) * growth**5  # 2 m G / (L n) ((1 + h L)^(T-K) - 1) (1 + h L)^K
    assert c.rewind_sensitivity(3, 100, 1.0, growth, h, steps_before=7, steps_after=5) == pytest.approx(closed, rel=1e-9)
    flat = c.rewind_sensitivity(3, 100, 1.0, 1.0, h, steps_before=7, steps_after=5)
    assert flat == pytest.approx(h * 7 * 6 / 100, rel=1e-9)
    assert c.rewind_sensitivity(1, 10, 1.0, 2.0, 1.0, steps_before=2000, steps_after=2000) == math.inf


def test_langevin_is_exact_for_a_quadratic_loss():
    """`w <- (1 - h mu) w - h g + noise`: laws are Gaussians whose means differ by the drift of all steps."""
    m, n, bound, mu, h, sigma, steps = 2, 50, 1.5, 0.2, 0.8, 0.1, 7
    contraction, drift, spread = 1 - h * mu, 2 * h * m * bound / n, math.sqrt(2 * h) * sigma
    shift, variance = 0.0, 0.0
    for _ in range(2000):
        shift, variance = contraction * shift + drift, contraction**2 * variance + spread**2
    learned = c.langevin_mu(m, n, bound, mu, h, sigma)
    assert learned == pytest.approx(shift / math.sqrt(variance), rel=1e-9)
    for _ in range(steps):
        shift, variance = contraction * shift, contraction**2 * variance + spread**2
    assert c.unlearned_mu([learned], [steps], mu, h) == pytest.approx(shift / math.sqrt(variance), rel=1e-9)
    assert c.published_langevin_epsilon(learned, steps, mu, h, 1e-5) > float(c.epsilon_of(1.0, learned, 1e-5))


def test_batches_in_turn_are_exact_for_a_quadratic_loss_at_the_worst_place():
    m, rows, batches, bound, mu, h, sigma, epochs = 1, 5, 4, 1.0, 0.3, 0.5, 0.2, 3
    contraction, drift, spread = 1 - h * mu, 2 * h * m * bound / rows, math.sqrt(2 * h) * sigma
    shift, variance = 0.0, 0.0
    for step in range(400):
        shift = contraction * shift + drift * (step % batches == batches - 1)
        variance = contraction**2 * variance + spread**2
    for _ in range(epochs * batches):
        shift, variance = contraction * shift, contraction**2 * variance + spread**2
    learned = c.langevin_mu(m, rows * batches, bound, mu, h, sigma, num_batches=batches, smallest_batch=rows)
    found = c.unlearned_mu([learned], [epochs * batches], mu, h)
    assert found == pytest.approx(shift / math.sqrt(variance), rel=1e-9)
    assert learned < c.langevin_mu(m, rows, bound, mu, h, sigma)  # a fixed place hides more than a batch that is all there is
    # published: alpha Z^2 c^(2 K B) / (2 h sigma^2)
    z = drift / (1 - contraction**batches)
    assert z**2 * contraction ** (2 * epochs * batches) / spread**2 > found**2 / 2


def test_requests_one_after_another_add_up():
    mu = c.unlearned_mu([0.3, 0.3, 0.1], [2, 3, 1], 0.1, 1.0)
    assert mu == pytest.approx(((0.3 * 0.9**2 + 0.3) * 0.9**3 + 0.1) * 0.9, rel=1e-9)
