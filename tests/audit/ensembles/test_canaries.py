"""Bounds from canaries against jax_privacy 2.0.0, against counts by hand, and where nothing leaks.

With `auditor = jax_privacy.auditing.CanaryScoreAuditor(included, excluded)` and significance 0.05, `rates` is
`auditor.epsilon_clopper_pearson`, `one run` is `epsilon_one_run`, `gaussian` is `epsilon_from_gdp`; `frontier` is the default
`Bonferroni()`, 1.0 is `Explicit(1.0)`, `split` is `Split(0.5, seed=7)`.
"""

from functools import cache, partial

import jax
import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from jaxunlearn import audit
from jaxunlearn.certificates import epsilon_of
from jaxunlearn.proportions import upper_limit

CASES = {0: (1.5, False), 1: (3.0, True), 2: (0.0, False)}  # by seed: shift, and whether scores are rounded to a digit
THEIRS = {  # at delta 1e-5, and at 1e-3
    ("rates", "frontier"): ([1.4472361999, 1.814600488, 0], [1.4439479613, 1.8132590947, 0]),
    ("rates", 1.0): ([0.8306289369, 1.4630426072, 0], [0.8289799211, 1.4619900715, 0]),
    ("rates", "split"): ([0.7116328207, 1.8249168172, 0], [0.7095772146, 1.8237030422, 0]),
    ("one run", "frontier"): ([2.2139404536, 2.4458596822, 0.0389258447], [0, 0, 0]),
    ("one run", 1.0): ([1.3444300794, 1.9097049042, 0], [1.2510337061, 1.8054785597, 0]),
    ("one run", "split"): ([2.0997364736, 2.3184330944, 0], [1.2212525431, 2.0026522276, 0]),
    # of the two equal worlds it says 8.775 and 4.509, the absolute value of a negative mu
    ("gaussian", "frontier"): ([5.0450567113, 11.0364202102, 0], [3.6527875265, 8.4253234458, 0]),
}


@cache
def scores(seed, permuted):
    shift, rounded = CASES[seed]
    rng = np.random.default_rng(seed)
    both = [rng.normal(shift, 1, 120), rng.normal(0, 1, 80)]
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
    for place, delta in enumerate((1e-5, 1e-3)):
        for seed in CASES:
            with jax.enable_x64(True):  # scores in float32 would move ranks
                found = program(method, threshold)(*scores(seed, threshold == "split"), delta=delta)
            np.testing.assert_allclose(float(found.epsilon), THEIRS[method, threshold][place][seed], rtol=1e-6, atol=2e-6)


def test_a_test_of_every_score_counts_every_hypothesis():
    every = [float(program("rates", kind)(*scores(1, False), delta=1e-5).epsilon) for kind in ("all", "frontier")]
    assert 0.5 < every[0] < every[1]


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
    for method in ("one run", "gaussian"):
        bound = partial(audit.canary_epsilon, delta=1e-3, method=method, level=0.8)
        exceeded = np.asarray(jax.jit(jax.vmap(bound))(*worlds).epsilon) > 1e-9  # nothing leaks
        assert np.mean(exceeded) < 0.2 + 3 * np.sqrt(0.16 / 60), method


COVERED, LEVEL = 400, 0.8  # repetitions


@pytest.mark.parametrize("method", ["rates", "one run", "gaussian"])
def test_bounds_cover_the_epsilon_of_randomised_response(method):
    """A coin of heads e / (1 + e) that tells the truth has epsilon 1, whatever delta; at delta 1e-3 less is claimed."""
    heads, delta = 1 / (1 + np.exp(-1.0)), 1e-3
    rng = np.random.default_rng(2)
    ins, outs = (rng.random((2, COVERED, 200)) < np.array([heads, 1 - heads])[:, None, None]).astype(np.float32)
    true = np.log((heads - delta) / (1 - heads))  # where 1 - b - delta and a meet
    if method == "gaussian":
        true = float(epsilon_of(1.0, 2 * norm.ppf(heads), delta))  # two normal worlds with the same two rates
    bound = partial(audit.canary_epsilon, delta=delta, method=method, level=LEVEL, threshold=0.5)
    found = np.asarray(jax.jit(jax.vmap(bound))(ins, outs).epsilon)
    assert np.mean(found > true) <= 1 - LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / COVERED)
    assert np.median(found) > (0.3 if method == "one run" else 0.6 * true)  # and it is no empty promise


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, "split"])
def test_bounds_cover_the_epsilon_of_normal_worlds(threshold):
    """Scores of mean 1 and 0 are as far apart as mu = 1: no threshold shows more than its epsilon."""
    runs = COVERED if threshold == 0.5 else 100
    ins, outs = np.random.default_rng(3).normal(size=(2, runs, 100)) + np.array([1.0, 0.0])[:, None, None]
    true = float(epsilon_of(1.0, 1.0, 1e-2))
    for method in ("rates", "gaussian"):
        bound = partial(audit.canary_epsilon, delta=1e-2, method=method, level=LEVEL, threshold=threshold)
        found = np.asarray(jax.jit(jax.vmap(bound))(ins, outs).epsilon)
        assert np.mean(found > true) <= 1 - LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / runs), method
        assert np.mean(found > 0.1) > 0.5, method


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
