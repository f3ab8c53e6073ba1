"""What `answer` is asked for: requests that are some, of one kind, and candidates that can answer them."""

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Int

from jaxunlearn.catalogue import METHODS, method_of
from jaxunlearn.tuning.calls import Settings
from jaxunlearn.tuning.proxies import Proxies
from jaxunlearn.types import Data, ForgetRequest

Candidates: TypeAlias = Mapping[str, Mapping[str, Sequence[float]]]

UNLIKE = 4  # times as many rows, or as few, are another size


def sizes_of(requests: ForgetRequest) -> Int[np.ndarray, " r"]:
    """Rows of stacked requests."""
    return np.sum(np.asarray(requests.weights) > 0, axis=1)


def require_requests(requests: ForgetRequest, data: Data) -> None:
    """ValueError unless stacked requests name present rows, each once, with weights 0 and 1."""
    if not len(requests.indices):
        raise ValueError("there is no request: indices have shape [0, k]")
    present = np.asarray(data.present)
    for place, (rows, weights) in enumerate(zip(np.asarray(requests.indices), np.asarray(requests.weights), strict=True)):
        own = rows[weights > 0]
        if not own.size:
            raise ValueError(f"request {place} names no row")
        if not np.isin(weights, (0, 1)).all():
            raise ValueError(f"request {place} has weights other than 0 and 1")
        known = own[(own >= 0) & (own < len(present))]
        if known.size < own.size or np.unique(own).size < own.size or not np.all(present[known] > 0):
            raise ValueError(
                f"request {place} names rows twice, or rows that are outside the {len(present)} rows or gone already"
            )


def require_one_kind(requests: ForgetRequest) -> bool:
    """Whether stacked requests are for classes; ValueError if some are and others are not."""
    if not jax.tree.leaves(requests.target):
        return False
    named = np.any(np.asarray(requests.target), axis=1)
    if named.any() and not named.all():
        raise ValueError(f"{named.sum()} of {len(named)} requests are for classes and the others for rows: answer them apart")
    return bool(named.any())


def untried(asked: Proxies, tried: Proxies) -> str | None:
    """Why requests are not like those that a search tried, None if they are."""
    if {bool(x) for x in asked.gone > 0} != {bool(x) for x in tried.gone > 0}:
        return "some requests take a whole class with them and what was tried does not, or the other way round"
    own, theirs = sizes_of(asked.requests), sizes_of(tried.requests)
    if own.max() > UNLIKE * theirs.max() or UNLIKE * own.min() < theirs.min():
        return f"requests of {own.min()} to {own.max()} rows are not like those tried, of {theirs.min()} to {theirs.max()}"
    return None


def proxies_there_are(request: ForgetRequest, labels: np.ndarray, wanted: int) -> int:
    """How many of the proxies that are wanted a request for classes can have."""
    gone = np.asarray(request.target, bool)
    held = np.unique(labels)
    others, together = np.setdiff1d(held, np.flatnonzero(gone)), np.intersect1d(np.flatnonzero(gone), held).size
    return min(wanted, math.comb(len(others), together)) if len(others) > together else 0


def typical(requests: ForgetRequest) -> ForgetRequest:
    """The request of median size."""
    place = int(np.argsort(sizes_of(requests))[len(requests.indices) // 2])
    return jax.tree.map(lambda x: x[place], requests)


def fitting(candidates: Candidates, *, classifier: bool, for_classes: bool) -> Candidates:
    """The candidates that can answer, by their names in the catalogue.

    Raises:
        ValueError: settings that a candidate does not have or that are no numbers, one that is missing, or none that fits.
    """
    found: dict[str, Mapping[str, Sequence[float]]] = {}
    for name, settings in candidates.items():
        card = METHODS[method := method_of(name)]
        takes = inspect.signature(card.factory).parameters
        if method in found:
            raise ValueError(f"candidate {name} is {method}, which is named already")
        if card.takes != "model" or "optimizer" not in takes:
            raise ValueError(f"{name} is no method with steps for a model, so a multiple of a learning rate says nothing to it")
        needs = [x for x, p in list(takes.items())[2:] if p.default is p.empty and x not in {*settings, "held_out"}]
        wrong = [x for x in settings if x not in {*takes, "learning_rate"}]
        values = [x for some in settings.values() for x in some]
        numbers = all(isinstance(x, int | float | np.number) and not isinstance(x, bool) for x in values)
        if needs or wrong or not settings.get("learning_rate") or not numbers:
            said = f"needs {', '.join(needs)}" if needs else f"has no setting {', '.join(wrong)}" if wrong else ""
            said = said or ("takes numbers" if not numbers else "")
            raise ValueError(
                f"candidate {name}: it {said or 'needs values of learning_rate, multiples of that of the training'}"
            )
        if (classifier or card.targets == "any") and (card.requests == "rows" or (card.requests == "classes" and for_classes)):
            found[method] = settings
    if not found:
        raise ValueError(f"none of the candidates {', '.join(candidates)} fits these targets and requests")
    return found


def points_of(methods: Candidates) -> list[Settings]:
    """All points of all methods; what is no setting of one is 0 there, since points must name the same settings."""
    every = dict.fromkeys([name for settings in methods.values() for name in settings], 0.0)
    return [
        {"method": method, **every, **dict(zip(settings, map(float, values), strict=True))}
        for method, settings in methods.items()
        for values in itertools.product(*settings.values())
    ]
