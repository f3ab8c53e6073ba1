"""What a stream of releases costs together: Gaussian releases exactly, all others by their (epsilon, delta) alone.

A Gaussian release of ratio mu_i = sensitivity / noise scale and one that is only known to be (epsilon_j, delta_j) private are
dominated by two laws each, whose privacy losses add up. So with `mu = sqrt(sum_i mu_i^2)`

    delta(epsilon) = 1 - p + p sum_L P[L] delta_mu(epsilon - L),    p = prod_j (1 - delta_j),    L = sum_j +-epsilon_j,

each sign + with probability `e^epsilon_j / (1 + e^epsilon_j)`, and `delta_mu(e) = Phi(mu/2 - e/mu) - e^e Phi(-mu/2 - e/mu)`
for every real e. Nothing better can be said without more knowledge of the mechanisms.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.certificates.accounting import Privacy, compose
from jaxunlearn.service import intents
from jaxunlearn.service.errors import ReleaseError
from jaxunlearn.service.seals import Key, key_of

CELLS = 2**14  # of the grid that losses are rounded up to


class Cost(NamedTuple):
    """What one release costs an observer's ignorance."""

    epsilon: float
    delta: float
    mu: float | None = None  # sensitivity / noise scale, where Gaussian noise hides a sensitivity that holds for certain


def release_costs(directory: str | Path, *, seal_key: Key | None = None) -> tuple[Cost, ...]:
    """Costs of all releases that were ever promised from a directory, interrupted and retracted ones included.

    They are read from what is written before a release and kept ever after, so that a crash, and what is repeated after it,
    changes nothing. Of a ledger it is the folder `releases`.

    Args:
        directory: that was given to `publish`.
        seal_key: the same as for `publish`.

    Returns:
        One `Cost` per release, in their order; for `compose_costs`.

    Raises:
        ReleaseError: no such directory, or that of a ledger itself; it was tampered with, or sealed with another key.

    Example:
        >>> import tempfile
        >>> jaxunlearn.certificates.release_costs(tempfile.mkdtemp())
        ()
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ReleaseError(f"there is no folder {directory}, so nothing is known of its costs: give the one that publish had")
    if not (directory / "private").exists() and (directory / "releases" / "private").exists():
        raise ReleaseError(f"{directory} is no folder of releases, it holds one: give {directory / 'releases'}")
    found = (intent.certificate for intent in intents.read(directory, key_of(seal_key, directory)))
    return tuple(Cost(each["epsilon"], each["delta"], _ratio(each)) for each in found)


def _ratio(promise: dict[str, Any]) -> float | None:
    """Of a Gaussian release; the perfect variant of `Neel` bounds its sensitivity but for a part of delta."""
    likely = promise["mechanism"].startswith("Neel(perfect=True")
    return None if likely or not promise["noise_scale"] > 0 else promise["sensitivity"] / promise["noise_scale"]


def compose_costs(costs: Iterable[Cost], delta: float) -> Privacy:
    """Smallest epsilon of all releases together that follows from their costs.

    Args:
        costs: of releases whose noise was drawn independently, and whose requests did not depend on earlier ones.
        delta: of all together, at least that of those without `mu`.

    Returns:
        `Privacy` with that delta; epsilon is rounded up, by a thousandth of the sum of those without `mu`, and never above the
        sum of all epsilons where `delta` is the sum of all deltas or more.

    Raises:
        ValueError: a cost or delta out of range, or a delta below what releases without `mu` spend.

    References:
        Dong, Roth, Su: Gaussian differential privacy, 2022, arXiv 1905.02383. Kairouz, Oh, Viswanath: The composition theorem
        for differential privacy, 2015, arXiv 1311.0776.

    Example:
        >>> cost = jaxunlearn.certificates.Cost(1.0, 1e-5, 1 / 3.731)
        >>> print(f"{jaxunlearn.certificates.compose_costs([cost] * 100, 1e-5).epsilon:.1f}")  # and not 100
        14.4
    """
    costs = tuple(costs)
    together = compose(*((each.epsilon, each.delta) for each in costs))
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, both excluded, got {delta}")
    if any(each.mu is not None and not 0 <= each.mu < math.inf for each in costs):
        raise ValueError(f"mu must be at least 0 and finite, got {[each.mu for each in costs]}")
    mu = math.hypot(*(each.mu for each in costs if each.mu is not None)) * (1 + 1e-14 * len(costs))
    others = [each for each in costs if each.mu is None]
    lost = -math.expm1(math.fsum(math.log1p(-each.delta) if each.delta < 1 else -math.inf for each in others))
    added = together.epsilon if delta >= together.delta else math.inf
    if lost > delta and added == math.inf:
        raise ValueError(f"releases without mu spend a delta of {lost:.3g} already, more than {delta:.3g}: allow more")
    losses, masses = _signs([each.epsilon for each in others])

    def spent(epsilon: float) -> float:
        found = lost + (1 - lost) * float(masses @ _gaussian_delta(epsilon - losses, mu))
        return found * (1 + 1e-12) + 1e-16 * (mu > 0)

    allowed = float(losses[-1]) + (mu * (math.sqrt(-2 * math.log(delta)) + mu / 2) if mu else 0.0)
    while spent(allowed) > delta:  # what is lost counts on top of the Gaussian
        if allowed > 1e6:
            return Privacy(added, delta)
        allowed = 2 * allowed + 1e-3
    refused = 0.0
    if spent(0.0) <= delta:
        allowed = 0.0
    for _ in range(100):
        middle = (allowed + refused) / 2
        allowed, refused = (middle, refused) if spent(middle) <= delta else (allowed, middle)
    return Privacy(min(allowed * (1 + 1e-12), added), delta)


def _signs(epsilons: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Values and probabilities of a sum of losses, each rounded up to a grid, which dominates it."""
    total = math.fsum(epsilons)
    if total == 0:
        return np.zeros(1), np.ones(1)
    step = total / CELLS
    cells = [math.ceil(each / step) for each in epsilons if each > 0]
    masses = np.zeros(2 * sum(cells) + 1)
    masses[sum(cells)] = 1.0
    for cell in cells:
        up = 1 / (1 + math.exp(-cell * step))
        masses = up * np.roll(masses, cell) + (1 - up) * np.roll(masses, -cell)  # ends are 0 until the last one
    used = masses > 0
    return (step * np.arange(-sum(cells), sum(cells) + 1))[used], masses[used]


def _gaussian_delta(epsilon: np.ndarray, mu: float) -> np.ndarray:
    from scipy.special import log_ndtr, ndtr

    if mu == 0:
        return np.maximum(-np.expm1(np.minimum(epsilon, 0)), 0)
    first, second = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    return np.maximum(ndtr(first) - np.exp(np.minimum(epsilon + log_ndtr(second), 0)), 0)
