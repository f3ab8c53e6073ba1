"""Composition: the privacy budget of several releases together, of a private extractor, and of several rows at once.

A certificate holds for one observed release. Whoever sees more of them learns more: these functions bound how much.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.certificates.calibration import epsilon_of


class Privacy(NamedTuple):
    """An (epsilon, delta) pair."""

    epsilon: float
    delta: float


def compose(*parts: tuple[float, float]) -> Privacy:
    """Basic composition: epsilons and deltas of releases add, whatever their mechanisms.

    Args:
        parts: (epsilon, delta) of each release, its noise drawn independently.

    Returns:
        `Privacy` of all releases together.

    Raises:
        ValueError: an epsilon below 0 or a delta outside [0, 1].

    References:
        Dwork, Roth: The algorithmic foundations of differential privacy, 2014, theorem 3.16.

    Example:
        >>> jaxunlearn.certificates.compose((1.0, 1e-5), (0.5, 1e-5))
        Privacy(epsilon=1.5, delta=2e-05)
    """
    for epsilon, delta in parts:
        _check(epsilon, delta)
    return Privacy(math.fsum(epsilon for epsilon, _ in parts), min(1.0, math.fsum(delta for _, delta in parts)))


def compose_gaussians(sensitivities: Sequence[float], noise_scales: Sequence[float], delta: float) -> Privacy:
    """Exact composition of Gaussian releases, for `DeleteThenNoise` and `Sekhari`.

    Releases with ratios `mu_i = sensitivity_i / sigma_i` are together one Gaussian release of ratio `sqrt(sum_i mu_i^2)`, and
    never more costly than basic composition at the same delta says.

    Args:
        sensitivities: of each release.
        noise_scales: deviation of each release's noise, drawn independently.
        delta: of all releases together.

    Returns:
        `Privacy` of all releases together.

    Raises:
        ValueError: lists of different lengths, empty lists, or a value out of range.

    References:
        Dong, Roth, Su: Gaussian differential privacy, 2022, arXiv 1905.02383, corollary 3.3.

    Example:
        >>> both = jaxunlearn.certificates.compose_gaussians([1.0, 1.0], [4.0, 4.0], 1e-5)
        >>> print(f"{both.epsilon:.2f}")
        1.36
    """
    if len(sensitivities) != len(noise_scales) or not len(sensitivities):
        raise ValueError(f"expected one noise scale per sensitivity, got {len(sensitivities)} and {len(noise_scales)}")
    shifts, scales = np.asarray(sensitivities, np.float64), np.asarray(noise_scales, np.float64)
    if not (np.all((shifts >= 0) & (shifts < np.inf)) and np.all((scales > 0) & (scales < np.inf))):
        raise ValueError(f"sensitivities must be at least 0 and noise scales positive, got {sensitivities} and {noise_scales}")
    ratio = math.hypot(*(shifts / scales)) * (1 + 1e-15 * len(shifts))
    return Privacy(float(epsilon_of(1.0, ratio, delta)), float(delta))


def group(epsilon: float, delta: float, num_rows: int) -> Privacy:
    """Group privacy: what a guarantee for one row says of several.

        (T epsilon, delta sum_{t < T} e^{t epsilon}),    at most (T epsilon, delta T e^{(T - 1) epsilon})

    Args:
        epsilon: for one row.
        delta: for one row.
        num_rows: T, at least 1.

    Returns:
        `Privacy` for T rows.

    Raises:
        ValueError: a value out of range.

    References:
        Dwork, Roth: The algorithmic foundations of differential privacy, 2014, theorem 2.2 (and its extension to delta > 0).

    Example:
        >>> print(f"{jaxunlearn.certificates.group(0.1, 1e-6, 3).delta:.3e}")
        3.327e-06
    """
    _check(epsilon, delta)
    if num_rows < 1:
        raise ValueError(f"num_rows must be at least 1, got {num_rows}")
    if delta == 0:
        return Privacy(num_rows * epsilon, 0.0)
    if num_rows == 1:
        return Privacy(epsilon, delta)
    log_sum = math.log(num_rows)
    if epsilon > 0:
        log_sum = (num_rows - 1) * epsilon + math.log(math.expm1(-num_rows * epsilon) / math.expm1(-epsilon))
    return Privacy(num_rows * epsilon, math.exp(min(0.0, math.log(delta) + log_sum)))


def with_private_extractor(head: tuple[float, float], extractor: tuple[float, float], num_rows: int = 1) -> Privacy:
    """A certified head on an extractor that was trained with differential privacy on the rows to be forgotten.

    The extractor keeps what it learned of the rows, up to the group privacy of its training; epsilons and deltas add to those
    of the head. `certify` refuses such an extractor, since it speaks of the head alone: this is the statement for both.

    Args:
        head: (epsilon, delta) of a certificate for the head.
        extractor: (epsilon, delta) of the extractor's training, for one row.
        num_rows: rows removed since the extractor was trained, all requests together.

    Returns:
        `Privacy` of head and extractor together.

    Raises:
        ValueError: a value out of range.

    References:
        Guo, Goldstein, Hannun, van der Maaten: Certified data removal from machine learning models, 2020, arXiv 1911.03030.

    Example:
        >>> print(f"{jaxunlearn.certificates.with_private_extractor((1.0, 1e-5), (0.1, 1e-5), 2).epsilon:.1f}")
        1.2
    """
    return compose(head, group(*extractor, num_rows))


def _check(epsilon: float, delta: float) -> None:
    if not (0 <= epsilon < math.inf and 0 <= delta <= 1):
        raise ValueError(f"expected a finite epsilon of at least 0 and a delta in [0, 1], got ({epsilon}, {delta})")
