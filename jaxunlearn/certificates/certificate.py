"""What a certificate says, and what every mechanism of certification has in common."""

from typing import NamedTuple, Protocol

from jaxunlearn.types import Data


class Assumption(NamedTuple):
    """One thing that has to be true for a certificate to mean anything."""

    name: str
    holds: bool
    detail: str  # what was found, and what to do where it does not hold


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


class Evidence(NamedTuple):
    """What a removal left behind, as host numbers."""

    stats: dict[str, float]
    data: Data
    num_params: int

    @property
    def num_forget(self) -> float:
        """Rows that the request removed."""
        return self.stats["num_forget"]

    @property
    def num_retain(self) -> float:
        """Rows that are left."""
        return self.stats["num_retain"]

    @property
    def rounding(self) -> float:
        """Bound of what float64 can do to the residual: sums over n' rows of norm <= 1 and slopes <= sqrt 2."""
        return 1.5 * 2.0**-53 * self.num_retain**2

    @property
    def distance(self) -> float:
        """Bound of the distance to the retrained optimum, rounding included."""
        curvature = self.stats["l2"] * self.num_retain
        return self.stats["distance_bound"] + self.rounding / curvature if curvature > 0 else float("inf")


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
