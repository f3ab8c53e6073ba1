"""In plain NumPy: metrics as the published evaluators loop (`*_loop`) and with whole arrays (`*_vectorised`); a Newton step.

They are what the benchmarks compare with and what the tests believe.
"""

import math

import numpy as np
from scipy.stats import entropy

CAP, PER_UNIT, BUFFER, DELTA = 50.0, 100, 2.0, 1e-5
PLACES = int(2 * BUFFER * PER_UNIT)


def klom_loop(candidate: np.ndarray, reference: np.ndarray, *, num_bins: int = 20, last_edge: bool = True) -> np.ndarray:
    """KLoM, example by example; without `last_edge` the largest margin is in no bin."""
    found = []
    for first, second in zip(candidate.T.astype(float), reference.T.astype(float), strict=True):
        low, high = min(first.min(), second.min()), max(first.max(), second.max())
        edges = np.linspace(low, high if low < high else low + 1, num_bins + 1)
        shares = []
        for margins in (first, second):
            bins = np.digitize(margins, edges)
            if last_edge:
                bins = np.minimum(bins, num_bins)
            counts = np.array([np.sum(bins == place) for place in range(1, num_bins + 1)])
            shares.append(counts / max(counts.sum(), 1))
        p, q = shares
        found.append(entropy(p, np.where(p > 0, np.maximum(q, 1e-5), q)))
    return np.array(found)


def klom_vectorised(candidate: np.ndarray, reference: np.ndarray, *, num_bins: int = 20) -> np.ndarray:
    """KLoM for all examples at once, counts by `bincount`."""
    low = np.minimum(candidate.min(0), reference.min(0)).astype(float)
    width = np.maximum(candidate.max(0), reference.max(0)).astype(float) - low
    examples = candidate.shape[1]
    shares = []
    for margins in (candidate, reference):
        bins = np.minimum((margins - low) / np.where(width > 0, width, 1) * num_bins, num_bins - 1).astype(np.int64)
        counts = np.bincount((bins + num_bins * np.arange(examples)).ravel(), minlength=num_bins * examples)
        shares.append(counts.reshape(examples, num_bins) / len(margins))
    p, q = shares
    q = np.where(p > 0, np.maximum(q, 1e-5), q)
    q /= q.sum(axis=1, keepdims=True)
    return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / np.where(p > 0, q, 1)), 0), axis=1)


def _thresholds(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    low, high = min(positive.min(), negative.min()), max(positive.max(), negative.max())
    return np.linspace(low, high, int(np.ceil((high - low) * PER_UNIT)))


def _interval_ends(narrow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right ends, and the left ends of all pairs `[r, l]`, in steps that are the same for both and exact."""
    offsets = np.arange(2 * PLACES) * (2 * BUFFER / (PLACES - 1))
    left = narrow.min() - 2 * BUFFER + offsets
    left[PLACES - 1] = narrow.min()
    return narrow.max() - BUFFER + offsets[:PLACES], left


def _worth(fpr: np.ndarray, fnr: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.fmax(np.log(1 - DELTA - fpr) - np.log(fnr), np.log(1 - DELTA - fnr) - np.log(fpr))
    worth = np.where((fpr == 0) & (fnr == 0), np.inf, np.where((fpr == 0) | (fnr == 0), np.nan, np.maximum(both, 0)))
    return np.clip(worth, 0, CAP)


def forgetting_quality_loop(candidate: np.ndarray, reference: np.ndarray) -> tuple[float, np.ndarray]:
    """F and epsilons: every margin is compared with every threshold, example by example, as the published evaluator does."""
    epsilons = []
    for first, second in zip(candidate.T.astype(float), reference.T.astype(float), strict=True):
        spans = np.ptp(first), np.ptp(second)
        if min(spans) / max(spans) < 0.01:
            epsilons.append(CAP)
            continue
        positive, negative = (second, first) if np.median(second) > np.median(first) else (first, second)
        thresholds = _thresholds(positive, negative)
        fnr = [np.mean(positive[:, None] < thresholds, axis=0)]
        fpr = [np.mean(negative[:, None] >= thresholds, axis=0)]
        narrow, other = (first, second) if np.ptp(first) < np.ptp(second) else (second, first)
        right, left = _interval_ends(narrow)
        for place, end in enumerate(right):
            ends = left[place : place + PLACES]
            fnr.append(1 - np.mean((narrow[:, None] >= ends) & (narrow <= end)[:, None], axis=0))
            fpr.append(np.mean((other[:, None] >= ends) & (other <= end)[:, None], axis=0))
        # Rates are fractions of counts: what rounding leaves of 1 - 1 is 0.
        rates = [np.round(np.concatenate(rate) * len(narrow)) / len(narrow) for rate in (fpr, fnr)]
        epsilons.append(np.nanmax(_worth(*rates), initial=0))
    return _score(np.array(epsilons), len(candidate))


def forgetting_quality_vectorised(candidate: np.ndarray, reference: np.ndarray) -> tuple[float, np.ndarray]:
    """The same from sorted margins: counts by `searchsorted`, all pairs of interval ends as one array an example."""
    epsilons = []
    pairs = np.arange(PLACES)[:, None] + np.arange(PLACES)
    for first, second in zip(candidate.T.astype(float), reference.T.astype(float), strict=True):
        first, second = np.sort(first), np.sort(second)
        spans = first[-1] - first[0], second[-1] - second[0]
        if min(spans) / max(spans) < 0.01:
            epsilons.append(CAP)
            continue
        positive, negative = (second, first) if np.median(second) > np.median(first) else (first, second)
        thresholds, n = _thresholds(positive, negative), len(first)
        missed, alarms = np.searchsorted(positive, thresholds), n - np.searchsorted(negative, thresholds)
        narrow, other = (first, second) if spans[0] < spans[1] else (second, first)
        right, left = _interval_ends(narrow)
        claimed = [
            np.maximum(np.searchsorted(law, right, "right")[:, None] - np.searchsorted(law, left)[pairs], 0).ravel()
            for law in (narrow, other)
        ]
        fnr = np.concatenate([missed, n - claimed[0]]) / n
        fpr = np.concatenate([alarms, claimed[1]]) / n
        epsilons.append(np.nanmax(_worth(fpr, fnr), initial=0))
    return _score(np.array(epsilons), len(candidate))


def _score(epsilons: np.ndarray, models: int) -> tuple[float, np.ndarray]:
    largest, points = math.ceil(math.log(models - 1)), np.zeros(len(epsilons))
    for row, epsilon in enumerate(epsilons):
        start, worth = 0.0, 1.0
        while start + 0.5 <= largest:
            if epsilon < start + 0.5:
                points[row] = worth
                break
            start, worth = start + 0.5, worth / 2
    return float(points.mean()), epsilons


def rmia_loop(
    target: np.ndarray, reference: np.ndarray, population_target: np.ndarray, population_reference: np.ndarray, a: float
) -> np.ndarray:
    """Offline RMIA with gamma 1, a row at a time against the whole population."""
    mean, mean_z = ((1 + a) / 2 * x + (1 - a) / 2 for x in (reference.mean(axis=0), population_reference.mean(axis=0)))
    ratios_z = population_target / mean_z
    return np.array([np.mean((p / m) / ratios_z > 1) for p, m in zip(target, mean, strict=True)])


def rmia_vectorised(
    target: np.ndarray, reference: np.ndarray, population_target: np.ndarray, population_reference: np.ndarray, a: float
) -> np.ndarray:
    """The same by one sort and one search."""
    mean, mean_z = ((1 + a) / 2 * x + (1 - a) / 2 for x in (reference.mean(axis=0), population_reference.mean(axis=0)))
    return np.searchsorted(np.sort(population_target / mean_z), target / mean) / len(mean_z)


def newton_step(inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray, gone: list[int], l2: float) -> np.ndarray:
    """One Newton step of logistic regression on the retained rows: rebuild the Hessian, solve."""
    kept = np.ones(len(inputs), bool)
    kept[gone] = False
    rows, signs = inputs[kept], 2.0 * labels[kept] - 1
    right = 1 / (1 + np.exp(-signs * (rows @ weights)))
    slope = ((right - 1) * signs) @ rows + l2 * len(rows) * weights
    matrix = (rows * (right * (1 - right))[:, None]).T @ rows + l2 * len(rows) * np.eye(rows.shape[1])
    return weights - np.linalg.solve(matrix, slope)
