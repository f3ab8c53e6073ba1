"""The certificate of Descent-to-Delete (Neel, Roth, Sharifi-Malvajerdi: Descent-to-delete, gradient-based methods for machine
unlearning, ALT 2021, arXiv 2007.02923).

    release = W + N(0, sigma^2 I),    sensitivity = 8 K g^I / (mu n (1 - g^I)),    g = (B - mu) / (B + mu)

for I gradient steps per request, from weights near the optimum. Nothing has to be solved, but the noise is large.
"""

import math
from typing import NamedTuple

from jaxunlearn.certificates.certificate import Assessment, Assumption, Evidence, require_positive


class Neel(NamedTuple):
    """Noise for the distance that a fixed number of gradient steps leaves, from constants and counts alone.

    **Theorem.** A deletion moves the optimum of a mu-strongly convex, B-smooth, K-Lipschitz mean loss by at most
    `4 K / (mu n)`, I steps shrink the distance by `g^I`, and the geometric sum over a stream stays below
    `4 K g^I / (mu n (1 - g^I))` on either side. The noise follows from zero-concentrated privacy,

        sigma = 4 sqrt 2 K g^I / (mu n (1 - g^I) (sqrt(ln(1/delta) + epsilon) - sqrt(ln(1/delta)))).

    In the *perfect* variant the state that is kept is the released one, and

        sigma = 8 K g^I / (mu n (1 - g^I) (sqrt(2 ln(2/delta) + 3 epsilon) - sqrt(2 ln(2/delta) + 2 epsilon)))

    with at least `neel_steps(...)` steps at the i-th update.

    **Constants.** K, B, mu, g and I come from `jaxunlearn.convex.descent_to_delete`; n are the rows before the request, which
    is no more than at the beginning and so errs on the safe side. A request of m rows counts m times.

    **Doubts.** The formulas come from later works that agree, not from the proofs. The theorem needs first weights near the
    optimum, which nobody can see from a result: the distance that is measured must be within the promised one, half of the
    sensitivity, and decides alone. It overstates the true one by up to B / mu, so that a valid removal may need more steps.
    That, in the perfect variant, each update started from the released weights cannot be seen. All releases but one are outside
    of the definition here.

    Args:
        perfect: what is kept is what was released.
        update: number of this update, from 1; for the perfect variant.
        largest_request: rows of the largest request of the stream.
    """

    perfect: bool = False
    update: int = 1
    largest_request: int = 1

    @property
    def stats(self) -> tuple[str, ...]:
        """The constants of the descent."""
        return ("contraction", "descent_steps", "strong_convexity", "lipschitz")

    def assess(self, evidence: Evidence, epsilon: float, delta: float) -> Assessment:
        """Sensitivity and noise from the constants; the measured distance must be within them."""
        require_positive(self, "update", "largest_request")
        stats, rows = evidence.stats, evidence.num_retain + evidence.num_forget
        contraction, steps = stats["contraction"], stats["descent_steps"]
        sensitivity = self.largest_request * neel_sensitivity(
            contraction, steps, stats["lipschitz"], stats["strong_convexity"], rows
        )
        assumptions = [
            Assumption("history of the descent", True, "steps are as the method says, the update is as declared", "declared"),
            Assumption(
                "size of the request",
                evidence.num_forget <= self.largest_request,
                f"{evidence.num_forget} rows, largest_request={self.largest_request}; it scales the noise",
            ),
            Assumption(
                "strong convexity of the descent",
                stats["strong_convexity"] == evidence.l2 and 0 < contraction < 1,
                f"mu {stats['strong_convexity']:.3g}, l2 {evidence.l2:.3g}, contraction {contraction:.6g}",
            ),
            Assumption(
                "distance within the sensitivity",
                sensitivity < math.inf and evidence.distance <= sensitivity / 2,
                f"at most {evidence.distance:.3g} from the retrained optimum, {sensitivity / 2:.3g} promised; train to the "
                "optimum first (convex.fit), or take more steps",
            ),
        ]
        left = sensitivity / 2 - evidence.distance
        if self.perfect:
            needed = neel_steps(contraction, evidence.num_params, self.update, epsilon, delta)
            assumptions.append(
                Assumption("steps of the perfect variant", steps >= needed, f"{steps:.0f} steps, at least {needed:.1f} needed")
            )
            left = steps - needed
        scale = neel_scale(sensitivity, epsilon, delta, perfect=self.perfect)
        return Assessment(sensitivity, scale, left, tuple(assumptions))


def neel_sensitivity(contraction: float, steps: float, lipschitz: float, strong_convexity: float, num_rows: float) -> float:
    """`8 K g^I / (mu n (1 - g^I))`; inf if the steps do not contract.

    Args:
        contraction: g, per step.
        steps: I.
        lipschitz: K, of the loss.
        strong_convexity: mu, of the mean loss.
        num_rows: n, before the request.

    Returns:
        In the unit of the parameters.

    Example:
        >>> print(f"{jaxunlearn.certificates.neel_sensitivity(0.5, 3, 2.0, 0.1, 1000):.4f}")
        0.0229
    """
    if not (0 < contraction < 1 and strong_convexity > 0 and num_rows > 0):
        return math.inf
    left = contraction**steps
    return 8 * lipschitz * left / (strong_convexity * num_rows * (1 - left))


def neel_scale(sensitivity: float, epsilon: float, delta: float, *, perfect: bool = False) -> float:
    """Published noise scale; the formulas of `Neel`, with `8 K g^I / (mu n (1 - g^I))` as the sensitivity.

    Args:
        sensitivity: of `neel_sensitivity`.
        epsilon: positive.
        delta: in (0, 1).
        perfect: what is kept is what was released.

    Returns:
        Deviation of the noise, in the unit of `sensitivity`.

    Example:
        >>> print(f"{jaxunlearn.certificates.neel_scale(1.0, 1.0, 1e-5):.3f}")
        4.901
    """
    if perfect:
        tail = 2 * math.log(2 / delta)
        return sensitivity / (math.sqrt(tail + 3 * epsilon) - math.sqrt(tail + 2 * epsilon))
    tail = math.log(1 / delta)
    return sensitivity / (math.sqrt(2) * (math.sqrt(tail + epsilon) - math.sqrt(tail)))


def neel_steps(contraction: float, num_params: int, update: int, epsilon: float, delta: float) -> float:
    """Fewest steps of the perfect variant at the given update, not rounded; inf if the steps do not contract.

        (ln(sqrt(2 d) / ((1 - g) (sqrt(2 ln(2/delta) + epsilon) - sqrt(2 ln(2/delta))))) + ln ln(4 d i / delta)) / ln(1/g)

    Args:
        contraction: g, per step.
        num_params: d.
        update: i, from 1.
        epsilon: positive.
        delta: in (0, 1).

    Returns:
        A number of steps.

    Example:
        >>> print(f"{jaxunlearn.certificates.neel_steps(0.5, 10, 1, 1.0, 1e-5):.2f}")
        10.41
    """
    if not 0 < contraction < 1:
        return math.inf
    tail = 2 * math.log(2 / delta)
    first = math.log(math.sqrt(2 * num_params) / ((1 - contraction) * (math.sqrt(tail + epsilon) - math.sqrt(tail))))
    return (first + math.log(math.log(4 * num_params * update / delta))) / math.log(1 / contraction)
