"""What a certificate says, how it is written down, and what every mechanism of certification has in common."""

import json
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import numpy as np

from jaxunlearn.certificates import strict

FORMAT = "jaxunlearn certificate"
NUMBERS = ("epsilon", "delta", "sensitivity", "noise_scale", "budget_left", "residual", "distance")

# checked: by the library, on rows and weights; declared: by the user, and believed; assumed: neither, it limits what is said;
# enforced: by the update itself, whatever rows and loss are; estimated: a constant that was measured, and may be larger;
# unproved: a constant that was given, and nobody has shown. `publish` wants the last two to be accepted by their names
Source: TypeAlias = Literal["checked", "declared", "assumed", "enforced", "estimated", "unproved"]
SOURCES: tuple[str, ...] = get_args(Source)
TO_ACCEPT = ("estimated", "unproved")
OWN_NOISE = "noise of the run"  # name of the assumption of models whose noise came from a caller's key


def version_of(sources: Iterable[str]) -> int:
    """The version of a document: 1 knows the first three sources only, and whatever can be said in it is."""
    return 1 if set(sources) <= set(SOURCES[:3]) else 2


class Assumption(NamedTuple):
    """One thing that has to be true for a certificate to mean anything."""

    name: str
    holds: bool
    detail: str  # what was found, and what to do where it does not hold; goes out with a release unless it was checked
    source: Source = "checked"  # who says that it holds


class Subject(NamedTuple):
    """What a certificate is about: SHA-256 digests, and the problem in words."""

    weights: str  # params before the noise
    retained_rows: str  # inputs and targets, in their order
    secret: str  # of an objective perturbation; empty if there is none
    problem: str  # e.g. "softmax with 10 outputs, l2 0.01"
    request: str = ""  # the numbers of the rows that had to go


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

    @property
    def has_own_noise(self) -> bool:
        """Whether the noise was part of the run, from a key that somebody gave."""
        return any(each.name == OWN_NOISE for each in self.assumptions)

    def to_json(self) -> str:
        """The certificate as JSON, with all digits; `from_json` gives it back.

        The text has the fields of the certificate, and

            format    "jaxunlearn certificate"
            version   1, or 2 where an assumption is enforced, estimated or unproved; whatever is added, removed or changes its
                      meaning gets the next number

        Numbers that are not finite are the words "inf", "-inf" and "nan". It is for auditors, not for the public: what was
        measured depends on the rows, and digests confirm a guess of weights or requests. `publish` writes what may be public.

        Returns:
            ASCII text, its fields in the order in which they are declared.

        Example:
            >>> from jaxunlearn.certificates.certificate import Certificate, Subject
            >>> subject = Subject("0" * 64, "1" * 64, "", "logistic with 1 outputs, l2 0.05", "2" * 64)
            >>> one = Certificate(1.0, 1e-5, 1e-3, 3.7e-3, 9e-4, True, (), "DeleteThenNoise", 1e-9, 1e-8, subject)
            >>> Certificate.from_json(one.to_json()) == one
            True
        """
        body = {
            "format": FORMAT,
            "version": version_of(each.source for each in self.assumptions),
            **{name: strict.plain(getattr(self, name)) for name in NUMBERS},
            "valid": bool(self.valid),
            "assumptions": [{**each._asdict(), "holds": bool(each.holds)} for each in self.assumptions],
            "mechanism": self.mechanism,
            "subject": self.subject._asdict(),
        }
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Certificate":
        """Read what `to_json` wrote.

        Nothing says that the text is genuine: `recheck` compares it with weights, rows and request.

        Args:
            text: JSON.

        Returns:
            The certificate.

        Raises:
            ValueError: no JSON, another format or version, a field that is missing, unknown or twice there, a value of another
                type or out of range, or a certificate that calls itself valid against its assumptions. The message names it.
            TypeError: neither text nor bytes.

        Example:
            >>> from jaxunlearn.certificates.certificate import Certificate
            >>> Certificate.from_json('{"epsilon": 1.0}')
            Traceback (most recent call last):
            ValueError: the certificate has no format 'jaxunlearn certificate' of version 1 or 2: got None of version None
        """
        if not isinstance(text, str | bytes):
            raise TypeError(f"expected the text of a certificate, got {type(text).__name__}")
        value, version = strict.versioned(strict.parse(text, "the certificate"), FORMAT, (1, 2), cls._fields, "the certificate")
        numbers = {name: strict.number(value[name], name, words=True) for name in NUMBERS}
        strict.budget(numbers["epsilon"], numbers["delta"], "the certificate")
        assumptions = tuple(map(_assumption, strict.items(value["assumptions"], "assumptions")))
        strict.same_version(version, version_of(each.source for each in assumptions), "the certificate")
        valid = strict.truth(value["valid"], "valid")
        failed = [each.name for each in assumptions if not each.holds]
        if valid == bool(failed):
            raise ValueError(f"the certificate says valid={valid}, but the assumptions that failed are {failed}")
        mechanism = strict.text(value["mechanism"], "mechanism")
        return cls(**numbers, valid=valid, assumptions=assumptions, mechanism=mechanism, subject=_subject(value["subject"]))


def _assumption(value: Any) -> Assumption:
    value = strict.fields(value, Assumption._fields, "an assumption")
    return Assumption(
        strict.text(value["name"], "name of an assumption"),
        strict.truth(value["holds"], "holds"),
        strict.text(value["detail"], "detail", empty=True),
        strict.one_of(value["source"], SOURCES, "source"),
    )


def _subject(value: Any) -> Subject:
    value = strict.fields(value, Subject._fields, "subject")
    digests = {name: strict.digest(value[name], name) for name in ("weights", "retained_rows", "request")}
    secret = strict.digest(value["secret"], "secret", empty=True)
    return Subject(**digests, secret=secret, problem=strict.text(value["problem"], "problem"))


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
