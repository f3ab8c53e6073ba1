"""Objective perturbation (Guo, Goldstein, Hannun, van der Maaten: Certified data removal from machine learning models, ICML
2020, arXiv 1911.03030).

    W = argmin L(.; D) + <B, .>,  B ~ N(0, sigma^2 I) once and secret;    valid while  sum of bounds <= sigma epsilon / c

with `c = sqrt(2 ln(1.5 / delta))`. The model was trained with the noise, so that a release needs none.
"""

import math
from typing import Literal, NamedTuple

import numpy as np

from jaxunlearn.certificates.calibration import gaussian_scale
from jaxunlearn.certificates.certificate import Assessment, Assumption, Evidence, require_positive


class ObjectivePerturbation(NamedTuple):
    """Guo et al.: the secret of the training objective hides the gradient that removals leave.

    **Theorem.** If a removal leaves a gradient u of norm at most e, its weights are the exact optimum for the secret `B - u`,
    and `sigma = c e / epsilon` gives (epsilon, delta). Bounds of successive removals add.

    **Constants.** The budget is `sigma epsilon / c`, or `sigma mu` with Balle and Wang's exact ratio mu where that is
    smaller, which it is for epsilons above about 8: there c promises too much. The bounds are those of `jaxunlearn.convex`
    (third derivative 1/(6 sqrt 3) for `logistic` where the paper has 1/4, and a factor 1/2). The worst case is proved without
    perturbation; with it the forgotten rows' share of the penalty grows, which a factor `(1 + ||B|| / (2 n))^2` covers.

    **Doubts.** The proof treats u as independent of B and has no Jacobian term; a decision to retrain that depends on a
    data bound depends on B, so that B is no longer Gaussian given that nobody retrained. Both look small, neither is covered.
    `DeleteThenNoise` has neither. In a stream, only what is passed as `spent` is added.

    Args:
        sigma: deviation of the secret, that of `convex.with_perturbation`.
        bound: `quartic`, `data` or `worst_case`; the last reads no data and is loose by orders of magnitude.
        spent: sum of the same bound over earlier removals from this training.
    """

    sigma: float
    bound: Literal["quartic", "data", "worst_case"] = "quartic"
    spent: float = 0.0

    @property
    def stats(self) -> tuple[str, ...]:
        """The bound of the removal."""
        return (f"{self.bound}_bound",)

    def assess(self, evidence: Evidence, epsilon: float, delta: float) -> Assessment:
        """Add the bound to what was spent, and compare with the budget. The sensitivity is their sum, of a gradient."""
        require_positive(self, "sigma")
        if not 0 <= self.spent < math.inf:
            raise ValueError(f"spent of ObjectivePerturbation is a sum of bounds, at least 0 and finite, got {self.spent!r}")
        budget = removal_budget(self.sigma, epsilon, delta)
        entries = np.zeros(0) if evidence.secret is None else evidence.secret
        bound = evidence.stats[f"{self.bound}_bound"]
        if self.bound == "worst_case":
            rows = evidence.num_retain + evidence.num_forget
            bound *= (1 + float(np.linalg.norm(entries)) / (2 * rows)) ** 2 if rows > 0 else math.inf
        bound, residual = bound + evidence.rounding, evidence.residual
        used = self.spent + max(bound, residual + evidence.rounding)
        left = budget - used
        assumptions = (
            Assumption("history of the secret", True, "sigma and what was spent before are as declared", "declared"),
            _secret(entries, evidence.num_params, self.sigma),
            Assumption(
                "residual within its bound",
                math.isfinite(bound) and residual <= bound,
                f"residual {residual:.3g}, {self.bound} bound {bound:.3g}"
                + ("" if math.isfinite(bound) else ": this removal has no such bound; use newton_removal")
                + ("" if residual <= bound else ": these are other weights, rows or another secret than the removal had"),
            ),
            Assumption(
                "budget left",
                used <= budget,
                f"{self.spent:.3g} spent before and {bound:.3g} now, of {budget:.3g}"
                + ("" if used <= budget else ": retrain with a fresh secret"),
            ),
        )
        return Assessment(used, 0.0, left, assumptions)


def removal_budget(sigma: float, epsilon: float, delta: float) -> float:
    """Largest sum of residual bounds that a secret of deviation `sigma` hides: `sigma min(epsilon / c, mu)`.

    `c = sqrt(2 ln(1.5 / delta))`, and mu is the exact ratio of sensitivity and noise for (epsilon, delta).

    Args:
        sigma: deviation of the secret.
        epsilon: positive and finite.
        delta: in (0, 1).

    Returns:
        In the unit of a gradient.

    Raises:
        ValueError: epsilon or delta out of range.

    Example:
        >>> print(f"{jaxunlearn.certificates.removal_budget(1.0, 1.0, 1e-4):.3f}")
        0.228
    """
    published = epsilon / math.sqrt(2 * math.log(1.5 / delta))
    return sigma * min(published, 1 / float(gaussian_scale(1.0, epsilon, delta)))


def _secret(entries: np.ndarray, num_params: int, sigma: float) -> Assumption:
    from scipy.special import chdtr

    name = "secret of the objective"
    if entries.size != num_params or not np.all(np.isfinite(entries)):
        found = f"{entries.size} finite numbers for {num_params} weights" if entries.size else "none"
        return Assumption(name, False, f"data.extra['perturbation'] is {found}: train with convex.with_perturbation")
    deviation = float(np.sqrt(np.mean(entries**2)))
    plausible = float(chdtr(entries.size, entries.size * (deviation / sigma) ** 2)) > 1e-9
    detail = f"{entries.size} numbers of deviation {deviation:.3g}, declared {sigma:.3g}"
    return Assumption(name, plausible, detail + ("" if plausible else ": declare the sigma that it was drawn with"))
