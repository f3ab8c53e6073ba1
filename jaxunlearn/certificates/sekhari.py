"""Sekhari's certificate (Sekhari, Acharya, Kamath, Suresh: Remember what you want to forget, algorithms for machine unlearning,
NeurIPS 2021, arXiv 2103.03279).

    release = W + N(0, sigma^2 I),    ||W - argmin F(.; D')|| <= 2 M K^2 m^2 / (mu^3 n^2)

for one Newton step with the retained Hessian from the exact optimum over n rows, m of which are forgotten.
"""

import math
from typing import NamedTuple

from jaxunlearn.certificates.calibration import gaussian_scale
from jaxunlearn.certificates.certificate import Assessment, Assumption, Evidence, require_positive


class Sekhari(NamedTuple):
    """Worst-case distance of a Newton step, from counts and constants alone: the noise scale does not depend on the rows.

    **Theorem.** With losses (penalty included) that are mu-strongly convex, K-Lipschitz and have an M-Lipschitz Hessian, the
    removed weights are within `2 M K^2 m^2 / (mu^3 n^2)` of the retrained optimum; mu is `l2` here.

    **Constants.** On the ball of radius `max_slope / l2`, which holds every optimum, rows of norm 1 have `K = 2 max_slope`:
    2 for `logistic`, 2 sqrt 2 for `softmax`; M is `curvature_lipschitz`: 0.0963 and 0.2722. The published noise is
    `sensitivity sqrt(2 ln(1.25 / delta)) / epsilon`, proved for epsilon < 1; here it is Balle and Wang's, which is smaller
    there and right beyond.

    **Doubts.** The paper compares with its own mechanism on D' and an empty request, which is the optimum with the same noise.
    Our derivation of the constant needs `m <= n / 2`, which is checked. In a stream the start is no exact optimum;
    the measured distance has to stay within the sensitivity, which covers that.

    Args:
        lipschitz: K.
        hessian_lipschitz: M.
    """

    lipschitz: float
    hessian_lipschitz: float

    @property
    def stats(self) -> tuple[str, ...]:
        """Nothing of what the removal says of itself."""
        return ()

    def assess(self, evidence: Evidence, epsilon: float, delta: float) -> Assessment:
        """The sensitivity follows from counts; the measured distance must not contradict it."""
        require_positive(self, "lipschitz", "hessian_lipschitz")
        rows, forgotten = evidence.num_retain + evidence.num_forget, evidence.num_forget
        half = Assumption(
            "at most half of the rows forgotten", forgotten <= rows / 2, f"{forgotten} of {rows} rows; else retrain"
        )
        sensitivity = sekhari_sensitivity(self.lipschitz, self.hessian_lipschitz, evidence.l2, rows, forgotten)
        known = sensitivity < math.inf
        near = Assumption(
            "distance within the sensitivity",
            known and evidence.distance <= sensitivity,
            f"at most {evidence.distance:.3g} from the retrained optimum, theorem {sensitivity:.3g}",
        )
        scale = float(gaussian_scale(sensitivity, epsilon, delta)) if known else math.inf
        constants = Assumption("constants of the loss", True, "lipschitz and hessian_lipschitz are as declared", "declared")
        return Assessment(sensitivity, scale, sensitivity - evidence.distance, (constants, half, near))


def sekhari_sensitivity(lipschitz: float, hessian_lipschitz: float, l2: float, num_rows: float, num_forget: float) -> float:
    """`2 M K^2 m^2 / (l2^3 n^2)`; inf without strong convexity or rows.

    Args:
        lipschitz: K, of the loss.
        hessian_lipschitz: M, of its Hessian.
        l2: strong convexity of the loss.
        num_rows: n, before the request.
        num_forget: m.

    Returns:
        In the unit of the parameters.

    Example:
        >>> print(f"{jaxunlearn.certificates.sekhari_sensitivity(2.0, 0.5, 0.1, 1000, 10):.2f}")
        0.40
    """
    if not (l2 > 0 and num_rows > 0):
        return math.inf
    return 2 * hessian_lipschitz * lipschitz**2 * num_forget**2 / (l2**3 * num_rows**2)
