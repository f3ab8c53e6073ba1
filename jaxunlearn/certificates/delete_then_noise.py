"""Delete, then noise: remove rows as exactly as possible, add noise for a distance that was fixed before.

    release = W + N(0, sigma^2 I),    ||W - argmin L(.; D')|| <= ||grad L(W; D')|| / (l2 n') <= sensitivity

The reference is `argmin L(.; D') + N(0, sigma^2 I)`: training without the forgotten rows, with the same noise.
"""

from typing import NamedTuple

from jaxunlearn.certificates.calibration import gaussian_scale
from jaxunlearn.certificates.certificate import Assessment, Assumption, Evidence, require_positive


class DeleteThenNoise(NamedTuple):
    """Fixed sensitivity, measured distance, Gaussian noise: the default.

    **Theorem.** L is strongly convex with the constant `l2 n'`, so a gradient of norm r proves a distance of at most
    `r / (l2 n')` to the optimum, wherever W came from: a stream, a rounding, a step that failed. Two Gaussians with means at
    most `sensitivity` apart are (epsilon, delta) close if sigma is Balle and Wang's scale, for any epsilon > 0.

    **Constants.** `sensitivity` is chosen before anything is measured, so that the noise scale does not depend on the
    rows. Newton steps square the distance, so that small values serve; if a removal exceeds it, the certificate is void and
    one more step is due. The distance includes what rounding can do to the residual.

    **Doubts.** Nobody published it under this name: it is the noise of Sekhari et al. and of Neel et al. with a measured
    distance in place of a worst case. Floating-point noise is not exactly Gaussian. An observer who saw the model before is
    outside of the definition.

    Args:
        sensitivity: largest distance that counts as deleted, in the unit of the weights.

    References:
        Balle, Wang: Improving the Gaussian mechanism for differential privacy, 2018, arXiv 1805.06530.
        Neel, Roth, Sharifi-Malvajerdi: Descent-to-delete, 2021, arXiv 2007.02923.
        Sekhari, Acharya, Kamath, Suresh: Remember what you want to forget, 2021, arXiv 2103.03279.
    """

    sensitivity: float = 1e-3

    @property
    def stats(self) -> tuple[str, ...]:
        """Nothing of what the removal says of itself."""
        return ()

    def assess(self, evidence: Evidence, epsilon: float, delta: float) -> Assessment:
        """Compare the measured distance with the sensitivity; the budget is what is left of it."""
        require_positive(self, "sensitivity")
        left = self.sensitivity - evidence.distance
        near = Assumption(
            "distance within the sensitivity",
            evidence.distance <= self.sensitivity,
            f"at most {evidence.distance:.3g} from the retrained optimum, {self.sensitivity:.3g} allowed"
            + (
                ""
                if evidence.distance <= self.sensitivity
                else ": take more steps, do not raise the sensitivity after the fact"
            ),
        )
        return Assessment(self.sensitivity, float(gaussian_scale(self.sensitivity, epsilon, delta)), left, (near,))
