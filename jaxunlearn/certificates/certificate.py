"""What a certificate says, and what every mechanism of certification has in common."""

from typing import NamedTuple, Protocol

import numpy as np


class Assumption(NamedTuple):
    """One thing that has to be true for a certificate to mean anything."""

    name: str
    holds: bool
    detail: str  # what was found, and what to do where it does not hold


class Subject(NamedTuple):
    """What a certificate is about: SHA-256 digests, and the problem in words."""

    weights: str  # params before the noise
    retained_rows: str  # inputs and targets, in their order
    secret: str  # of an objective perturbation; empty if there is none
    problem: str  # e.g. "softmax with 10 outputs, l2 0.01"


class Certificate(NamedTuple):
    """An (epsilon, delta) statement about one released model; void unless `valid`.

    For every set T of models, with M the released model and A the same mechanism on a model trained without the forgotten rows,

        P[M in T] <= e^epsilon P[A in T] + delta    and    P[A in T] <= e^epsilon P[M in T] + delta.
    """

    epsilon: float
    delta: float
    sensitivity: float  # what the noise has to hide; its unit is the mechanism's
    noise_scale: float  # deviation of the Gaussian noise that the release still needs, a parameter
    budget_left: float  # of the mechanism's budget, after this removal; negative if overdrawn
    valid: bool  # whether every assumption holds
    assumptions: tuple[Assumption, ...]
    mechanism: str
    residual: float  # norm of the retained objective's gradient at the weights, rounding included
    distance: float  # to the optimum on the retain set, at most
    subject: Subject


class Evidence(NamedTuple):
    """What was found at the weights, as host numbers; nothing in it is what a method says of itself, except for `stats`."""

    residual: float  # norm of the gradient of the retained objective, in its sum form
    rounding: float  # what float64 can have done to it, at most
    l2: float
    row_norm: float  # largest norm of a row of the retain set
    num_retain: int
    num_forget: int
    num_unknown: int  # indices of the request that name no row
    num_params: int
    secret: np.ndarray | None  # of an objective perturbation
    stats: dict[str, float]  # statistics of the removal that the mechanism reads; no bound of the distance rests on them

    @property
    def distance(self) -> float:
        """Bound of the distance to the optimum on the retain set, rounding included."""
        curvature = self.l2 * self.num_retain
        return (self.residual + self.rounding) / curvature * (1 + 1e-12) if curvature > 0 else float("inf")


class Assessment(NamedTuple):
    """What a mechanism makes of the evidence."""

    sensitivity: float
    noise_scale: float
    budget_left: float
    assumptions: tuple[Assumption, ...]


class Mechanism(Protocol):
    """A theorem that turns a removal into a certificate. Its parameters are checked when it is used."""

    @property
    def stats(self) -> tuple[str, ...]:
        """Statistics that it reads besides those that all do."""
        ...

    def assess(self, evidence: Evidence, epsilon: float, delta: float) -> Assessment:
        """Apply the theorem; ValueError for parameters out of range, nothing is raised for what was measured."""
        ...


def require_positive(mechanism: NamedTuple, *names: str) -> None:
    """ValueError unless the named parameters of a mechanism are positive and finite numbers."""
    for name in names:
        value = getattr(mechanism, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{name} of {type(mechanism).__name__} must be a positive finite number, got {value!r}")
