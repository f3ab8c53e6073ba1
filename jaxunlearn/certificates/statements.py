"""What every certificate says in the same words, whatever it speaks of."""

from typing import Any

import numpy as np

from jaxunlearn import checks
from jaxunlearn.certificates.certificate import Assumption, Source
from jaxunlearn.status import MESSAGES, Status
from jaxunlearn.types import Result

EXTRACTORS = ("none", "public", "trained on other data")
ONE_RELEASE = Assumption(
    "one observed release",
    True,
    "speaks of one release, to somebody who did not see the model before; add further ones with compose",
    "assumed",
)


def holds(name: str, true: bool, found: str, remedy: str, source: Source = "checked") -> Assumption:
    """An assumption, with a remedy where it fails."""
    return Assumption(name, bool(true), found if true else f"{found}: {remedy}", source)


def number(name: str, value: Any, below: float, expected: str) -> float:
    """A number of the host in (0, below)."""
    if not checks.is_concrete(value):
        raise TypeError(f"{name} is needed on the host, so it cannot be traced")
    kind = np.asarray(value)
    if kind.ndim or kind.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 < float(kind) < below:
        raise ValueError(f"{name} must be {expected}, got {value}")
    return float(kind)


def status_ok(result: Result) -> Assumption:
    """Whether the method itself found nothing wrong."""
    code = Status(int(np.asarray(result.status)))
    return Assumption("status ok", code == Status.OK, MESSAGES[code] if code == Status.OK else f"{code.name}: {MESSAGES[code]}")


def extractor_of(extractor: Any) -> Assumption:
    """Where features, or frozen parts of a model, came from."""
    known = isinstance(extractor, str) and extractor in EXTRACTORS
    remedy = f"say one of {', '.join(map(repr, EXTRACTORS))}; features learned from forgotten rows keep them"
    found = "not declared" if extractor is None else f"declared as {extractor!r}"
    return holds("extractor", known, found, remedy, "declared")


def not_adaptive(adaptive: Any) -> Assumption:
    """Whether requests were made without a look at releases."""
    found = "not declared" if adaptive is None else f"declared adaptive={adaptive!r}"
    remedy = "adaptive=False says that no request depended on a release; nothing else is covered"
    return holds("requests not adaptive", isinstance(adaptive, bool | np.bool_) and not adaptive, found, remedy, "declared")
