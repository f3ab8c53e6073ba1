"""Bounds from canaries against jax_privacy 2.0.0, against counts by hand, and where nothing leaks.

Values of jax_privacy, `auditor = jax_privacy.auditing.CanaryScoreAuditor(included, excluded)`, significance 0.05: `rates` is
`epsilon_clopper_pearson`, `one run` is `epsilon_one_run`, `gaussian` is `epsilon_from_gdp`, with its default `Bonferroni()`,
`at 1` with `Explicit(1.0)`, `split` with `Split(0.5, seed=7)`.
"""

from functools import cache, partial

import jax
import numpy as np
import pytest
from scipy.stats import beta, binom

from jaxunlearn import audit
from jaxunlearn.proportions import upper_limit

CASES = {  # seed: canaries, shift, whether scores are rounded to a digit
    0: ((60, 60), 1.5, False),
    1: ((200, 150), 2.5, False),
    2: ((300, 300), 0.0, False),
    3: ((120, 80), 3.0, True),
    4: ((40, 40), 9.0, False),
}
THEIRS = {  # delta 1e-5, and 1e-2
    ("rates", "frontier"): ([0.6847204981, 2.4035170256, 0, 2.0372616977, 2.0624211003],
                            [0.6436723533, 2.3864764334, 0, 2.0190453218, 2.0510969244]),
    ("one run", "frontier"): ([1.1147253509, 2.8754292679, 0, 2.6871354171, 2.2237254984], [0, 0, 0, 0, 0]),
    ("gaussian", "frontier"): ([3.4479747119, 11.2206963650, None, 8.1845052046, 12.6989099350],
                               [1.7556014800, 6.8437590386, None, 4.7696935764, 7.8816088696]),
    ("rates", 1.0): ([0.5633754416, 1.8764439509, 0, 1.1374003354, 1.0231487602],
                     [0.5456279702, 1.8650958798, 0, 1.1263055988, 1.0121330734]),
    ("one run", 1.0): ([0.6848630734, 2.2371914504, 0, 1.5701336186, 1.0370242313], [0, 0, 0, 0, 0]),
    ("rates", "split"): ([0.3278326390, 1.9327052311, 0, 1.8002996042, 1.3048919645],
                         [0.3149298108, 1.9170388181, 0, 1.7813829680, 1.2886758713]),
    ("one run", "split"): ([0.7868341851, 2.4330129282, 0, 2.5511272085, 1.6453398251], [0, 0, 0, 0, 0]),
}  # fmt: skip


@cache
def scores(seed, permuted):
    (m, n), shift, rounded = CASES[seed]
    rng = np.random.default_rng(seed)
    both = [rng.normal(shift, 1, m), rng.normal(0, 1, n)]
    both = [np.round(x, 1) for x in both] if rounded else both
    if permuted:  # the order that its split takes
        order = np.random.default_rng(7)
        both = [x[order.permutation(len(x))] for x in both]
    return both


@cache
def program(method, threshold):
    return jax.jit(partial(audit.canary_epsilon, method=method, threshold=threshold))


@pytest.mark.parametrize(("method", "threshold"), list(THEIRS))
def test_values_are_those_of_jax_privacy(method, threshold):
    seeds = [1, 3] if threshold != "frontier" else list(CASES)  # each shape compiles
    for place, delta in enumerate((1e-5, 1e-2)):
        for seed in seeds:
            with jax.enable_x64(True):  # scores in float32 would move ranks
                found = program(method, threshold)(*scores(seed, threshold == "split"), delta=delta)
            expected = THEIRS[method, threshold][place][seed]
            # None: equal worlds, for which its absolute value claims 2.41 and 1.15
            np.testing.assert_allclose(float(found.epsilon), expected or 0, rtol=1e-6, atol=2e-6)


def test_a_test_of_every_score_counts_every_hypothesis():
    every = [float(program("rates", kind)(*scores(1, False), delta=1e-5).epsilon) for kind in ("all", "frontier")]
    assert 1 < every[0] < every[1]


def test_one_run_by_hand():
    """Ten of ten right, delta 0: P[B = 10] = q^10 = 0.05."""
    ins, outs = np.full(10, 2.0), np.zeros(10)
    share = 0.05 ** (1 / 10)
    found = program("one run", 1.0)(ins, outs, delta=0.0)
    np.testing.assert_allclose(float(found.epsilon), np.log(share / (1 - share)), rtol=1e-9)
    small = program("one run", 1.0)(np.r_[ins, 0.0], np.r_[outs, 2.0], delta=1e-4)  # one of eleven is wrong
    assert small.epsilon < found.epsilon
    q = 1 / (1 + np.exp(-float(small.epsilon)))
    tail = binom.sf(np.arange(-1, 11), 11, q)  # P[B >= v]
    spread = max((tail[10 - i] - tail[10]) / i for i in range(1, 11))
    np.testing.assert_allclose(tail[10] + 2 * 22 * 1e-4 * spread, 0.05, rtol=1e-9)


def test_upper_limits_are_those_of_clopper_and_pearson():
    k, n = np.array([0, 1, 7, 30, 31]), 31
    for doubt in (0.4, 0.05, 1e-9):
        expected = np.where(k < n, beta.ppf(1 - doubt, k + 1, np.maximum(n - k, 1)), 1)
        np.testing.assert_allclose(upper_limit(k, n, doubt), expected, rtol=1e-9)


def test_bounds_hold_in_the_promised_share_of_repetitions():
    worlds = np.random.default_rng(1).normal(size=(2, 60, 40))
    for method, threshold in (("rates", "split"), ("gaussian", "split"), ("one run", "split"), ("gaussian", "all")):
        bound = partial(audit.canary_epsilon, delta=1e-3, method=method, threshold=threshold, level=0.8)
        exceeded = np.asarray(jax.jit(jax.vmap(bound))(*worlds).epsilon) > 1e-9  # nothing leaks
        assert np.mean(exceeded) < 0.2 + 3 * np.sqrt(0.16 / 60), method


def test_unknown_scores_and_misuse():
    ins, outs = scores(0, False)
    assert np.isnan(program("rates", "all")(np.r_[ins[1:], np.nan], outs, delta=1e-5).epsilon)
    for options, message in (
        ({"method": "two runs"}, "method must be one of 'rates'"),
        ({"threshold": "best"}, "threshold must be a number"),
        ({"method": "gaussian", "delta": 0.0}, "delta"),
        ({"level": 1.0}, "level is a fraction"),
    ):
        with pytest.raises(ValueError, match=message):
            audit.canary_epsilon(ins, outs, **{"delta": 1e-5, **options})
    with pytest.raises(ValueError, match="two vectors"):
        audit.canary_epsilon(ins[:3], outs, delta=1e-5)
