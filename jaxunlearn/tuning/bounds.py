"""Learn then Test (Angelopoulos, Bates, Candes, Jordan, Lei, 2021, arXiv 2110.01052): p-values for risks of bounded losses."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def hoeffding_bentkus(losses: Float[np.ndarray, " n"], risk: float) -> float:
    """p-value of "the expected loss is above `risk`", valid for every number of losses.

        p = min(exp(-n h(min(mean, risk), risk)), e P[Bin(n, risk) <= ceil(n mean)]),
        h(a, b) = a ln(a / b) + (1 - a) ln((1 - a) / (1 - b))

    Args:
        losses: independent draws in [0, 1].
        risk: in (0, 1).

    Returns:
        In (0, 1].

    Raises:
        ValueError: no losses, or losses or a risk outside their range.

    Example:
        >>> from jaxunlearn.tuning.bounds import hoeffding_bentkus
        >>> round(hoeffding_bentkus(np.full(40, 0.01), 0.1), 4)
        0.0577
    """
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 1 or not losses.size or not np.all((losses >= 0) & (losses <= 1)):
        raise ValueError("losses must be a list of numbers in [0, 1]")
    if not 0 < risk < 1:
        raise ValueError(f"risk must be in (0, 1), got {risk}")
    from scipy.stats import binom

    count, mean = len(losses), min(float(losses.mean()), risk)
    tail = math.e * float(binom.cdf(math.ceil(count * float(losses.mean()) - 1e-9), count, risk))
    return min(1.0, math.exp(-count * _divergence(mean, risk)), tail)


def _divergence(a: float, b: float) -> float:
    first = a * math.log(a / b) if a > 0 else 0.0
    return first + ((1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0)


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses are rejected so that with probability `1 - alpha` none of them is true (Holm, 1979).

    Args:
        p_values: one for each hypothesis.
        alpha: in (0, 1).

    Returns:
        One answer for each of them.

    Example:
        >>> from jaxunlearn.tuning.bounds import holm
        >>> holm([0.01, 0.04, 0.03], 0.05)
        [True, False, False]
    """
    rejected = [False] * len(p_values)
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > alpha / (len(p_values) - place):
            break
        rejected[index] = True
    return rejected
