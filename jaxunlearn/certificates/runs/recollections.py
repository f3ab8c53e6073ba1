"""How far a sum of recollected vectors is from the model that was trained on the same batches without the rows.

Let d_t bound the distance of both trainings, and e_t the error of the sum, after t steps of rates h_t on batches of b rows, c_t
of which have to go. With gradients of rows bounded by G, Hessians of rows by L and Lipschitz by M, regularizer included,

    d_{t+1} = (1 + h_t L) d_t + h_t c_t G / b
    e_{t+1} = (1 + h_t L) e_t + h_t M d_t^2 / 2 + h_t c_t L d_t / b

where the last term is none for a single row: its vector leaves exactly that row out of every Hessian. Where rows have convex
losses and the regularizer is mu-strongly convex, a step of h_t <= 2 / L stretches no distance by more than
`max(1 - h_t mu, h_t L - 1)`, which stands for `1 + h_t L` then: the bound no longer grows with the length of the training.

**Proof.** With D the difference of the trainings and a^u the vectors, both of sum at most d_t, D moves by the Hessian of the
batch without the rows at w_t, by what is left of Taylor's series, and by the gradients of the rows at w_t. So does the sum, but
for the Hessians of the other rows of the request, which a^u does not leave out. For a quadratic loss, M = 0.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.certificates.calibration import TINY, gaussian_scale
from jaxunlearn.certificates.certificate import Assessment, Assumption
from jaxunlearn.certificates.runs.descents import growth_per_step
from jaxunlearn.certificates.runs.mechanisms import CONSTANTS, UP, Constant, Run, above_rounding
from jaxunlearn.certificates.statements import holds


def recollection_error(
    rates: Sequence[float] | np.ndarray,
    hits: Sequence[int] | np.ndarray,
    batch_size: int,
    *,
    gradient_bound: float,
    smoothness: float,
    hessian_lipschitz: float,
    single: bool = False,
    convexity: float | None = None,
) -> float:
    """Largest distance between `jaxunlearn.hessian_free` and training on the same batches without the rows.

    Args:
        rates: h_t, of every step.
        hits: c_t, rows of the request in every batch.
        batch_size: b.
        gradient_bound: G, of the gradient of a row along both trainings.
        smoothness: L, of the Hessian of a row, regularizer included, and of the regularizer alone.
        hessian_lipschitz: M, of that Hessian.
        single: whether the request is one row.
        convexity: mu of the regularizer where rows have convex losses, 0 without one; None where they are not convex.

    Returns:
        In the unit of the weights; inf beyond float64.

    Raises:
        ValueError: a value out of range, lists of different lengths, or a convex step longer than 2 / L.

    Example:
        >>> from jaxunlearn.certificates import recollection_error
        >>> constants = {"gradient_bound": 1.0, "smoothness": 0.25, "hessian_lipschitz": 0.1}
        >>> print(f"{recollection_error([0.1] * 10, [1] + [0] * 9, 32, single=True, **constants):.2e}")
        5.92e-07
        >>> print(f"{recollection_error([0.1] * 10, [1] + [0] * 9, 32, single=True, convexity=0.01, **constants):.2e}")
        4.34e-07
    """
    if len(rates) != len(hits):
        raise ValueError(f"expected a number of rows per step, got {len(rates)} and {len(hits)}")
    values = (*rates, *hits, gradient_bound, smoothness, hessian_lipschitz)
    if not (batch_size > 0 and all(0 <= x < math.inf for x in values)):
        raise ValueError("recollection_error needs a positive batch_size, and values that are at least 0 and finite")
    far = error = 0.0
    for rate, hit in zip(np.asarray(rates, np.float64), np.asarray(hits, np.float64), strict=True):
        share, growth = rate * hit / batch_size, growth_per_step(rate, smoothness, convexity)
        error = growth * error + rate * hessian_lipschitz / 2 * far * far
        error += 0.0 if single else share * smoothness * far
        far = growth * far + share * gradient_bound
        if not max(far, error) < 1e150:
            return math.inf
    return float(error) * (1 + 1e-12 * (1 + len(rates)))


class HessianFree(NamedTuple):
    """Recollected vectors, noise for what they miss.

    **Theorem.** See the module. The paper's own bound rests on the spectrum of products of Hessians along the training, which
    its code estimates by power iteration at one point; this one rests on constants.

    **Doubts.** Without convexity the bound grows as `(1 + h L)^t`, so that it says something for short trainings and small
    rates; G, L and M of a network hold near the weights that were looked at, if at all.

    Args:
        gradient_bound: G.
        smoothness: L.
        hessian_lipschitz: M.
        convexity: mu of the regularizer where rows have convex losses, 0 without one; None where they are not convex.

    References:
        Qiao, Zhang, Tang, Wei: Hessian-free online certified unlearning, 2025, arXiv 2404.01712.
    """

    gradient_bound: Constant
    smoothness: Constant
    hessian_lipschitz: Constant
    convexity: Constant | None = None

    @property
    def stats(self) -> tuple[str, ...]:
        """What `jaxunlearn.hessian_free` reports."""
        return ("hits", "gone", "rates", "batch_size")

    @property
    def compared_with(self) -> str:
        """See the module."""
        return "retraining: the same batches without the forget set, from the same start, with the same noise"

    @property
    def own_noise(self) -> bool:
        """`publish` adds it."""
        return False

    def assess(self, run: Run, epsilon: float, delta: float) -> Assessment:
        """Sensitivity from constants and from how often the rows were read."""
        known = {
            "gradient bound G": self.gradient_bound,
            "smoothness L": self.smoothness,
            "Lipschitz constant M of the Hessian": self.hessian_lipschitz,
        }
        known |= {"strong convexity mu": self.convexity} if self.convexity is not None else {}
        for name, each in known.items():
            if each.source not in CONSTANTS:
                raise ValueError(f"the source of {name} must be declared, estimated or unproved, got {each.source!r}")
        flags = [Assumption(name, True, f"{name} = {each.value:g}, {each.source}", each.source) for name, each in known.items()]
        hits, rates = np.asarray(run.stats["hits"]), np.asarray(run.stats["rates"], np.float64)
        short = self.convexity is None or bool(np.all(rates * UP * self.smoothness.value <= 2))
        if self.convexity is not None:
            found = f"the longest step is {rates.max(initial=0):g}"
            flags.append(holds("steps at most 2 / L", short, found, "take shorter steps, or leave out convexity"))
        error = math.inf
        if short:
            error = recollection_error(
                rates * UP,
                hits,
                int(run.stats["batch_size"]),
                gradient_bound=self.gradient_bound.value,
                smoothness=self.smoothness.value,
                hessian_lipschitz=self.hessian_lipschitz.value,
                single=int(run.stats["gone"]) <= 1,
                convexity=None if self.convexity is None else self.convexity.value * (1 - 2e-6),
            )
        read = bool(hits.any())
        sensitivity = max(error, TINY) if read else 0.0  # trainings that should meet do so up to rounding only
        scale = float(gaussian_scale(sensitivity, epsilon, delta)) if sensitivity < math.inf else math.inf
        flags += [
            Assumption("history of the training", True, "jaxunlearn.recollect made the vectors on these rows", "declared"),
            above_rounding(scale, run),
        ]
        return Assessment(sensitivity, scale, 0.0, tuple(flags))
