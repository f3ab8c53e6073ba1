"""Settings for a new model: tried on proxy requests, for which the right answer is known.

Nobody knows the right answer to the real request without retraining for it. Requests like it, for rows that stay, cost a
retraining each once, and serve all points of a search; answers to the real request and rows of its report are not looked at.
"""

import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxunlearn import checks, sampling
from jaxunlearn.audit.single.outcome import Outcome
from jaxunlearn.audit.statistics.checks import require_disjoint
from jaxunlearn.loop.damage import classes_of
from jaxunlearn.requests import remove
from jaxunlearn.status import Status
from jaxunlearn.tuning.bounds import hoeffding_bentkus, holm
from jaxunlearn.tuning.calls import Bench, Found, Settings, before, retrained, tried
from jaxunlearn.tuning.judging import Objective, Spreads, expected, gap_losses, gaps_to, spreads_of, worst_gap
from jaxunlearn.tuning.proxies import described, proxy_requests
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, UnlearnFn, Variables

Requests: TypeAlias = Callable[[Data, ForgetRequest, int, PRNGKeyArray], ForgetRequest]


class Point(NamedTuple):
    """What one point of the search got."""

    settings: Settings
    value: float  # of the objective, over the proxies that it was tried on; infinite if a model diverged
    gaps: dict[str, float]  # mean over proxies, unlearned minus retrained
    proxies: int  # that it was tried on
    statuses: tuple[str, ...]  # other than OK
    p_value: float | None  # of "the risk is too high"


class Tuned(NamedTuple):
    """What `tune` returns."""

    settings: Settings | None  # the best point that was tried on most proxies; None if all diverged, or none passes `risk`
    table: list[Point]  # all of them, those tried on most proxies first, then by value
    reference: str  # "retrained models", or "held-out rows" if there were none
    references: Outcome  # what those know, [models, proxies]
    spreads: Spreads  # standard deviation of one retrained model at a fixed request
    proxies: ForgetRequest
    seconds: dict[str, float]  # wall time: "references", "points", and the part of both that was no running: "compiling"
    retrainings: (
        float  # the time of running, in retrainings of the references; NaN without any, or where some were found on disk
    )


def tune(
    model: Model,
    make: Callable[..., UnlearnFn],
    retrain: UnlearnFn | None,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    key: PRNGKeyArray,
    *,
    space: Mapping[str, Sequence[Any]] | Sequence[Settings],
    test: Examples,
    proxies: Requests = proxy_requests,
    num_proxies: int = 2,
    num_references: int = 2,
    halving: float | None = 3.0,
    static: Collection[str] = (),
    objective: Objective = worst_gap,
    risk: float | None = None,
    confidence: float = 0.9,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    directory: str | Path | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Tuned:
    """Choose the settings of a method for one request, or for requests like it, on others for rows that stay.

    Answers to the real request are never made, and its rows are not looked at; in what the proxies retrain they stay.

    Proxies are requests like the real one for rows that stay. For each of them some models are retrained from scratch, all in
    one compiled call; then all points are tried on half of the proxies, the best third of them on the others. Floats in
    `space` are traced, so that one program serves them all; every other value makes a program of its own.

    With `risk` the first third of the proxies chooses which points go on, and the others test them (Learn then Test,
    Angelopoulos et al., 2021): with probability `confidence` no point is accepted whose expected gap, the larger one of forget
    and retain accuracy, is above `risk`. It holds for requests drawn as the proxies are, and needs many: gaps
    of 1 % on average pass a risk of 15 % at 90 % from 29 proxies on, one of 10 % from 50 on.

    Args:
        model: a classifier, or any whose loss is one value per row; then losses stand in for accuracies.
        make: `(**settings) -> method`, e.g. `lambda rate: iterate(finetune(model, optax.adam(rate)), num_steps=50,
            batch_size=64)`. What it reads in `Data.extra` is prepared with every point's own settings.
        retrain: the training procedure, from fresh weights, see `jaxunlearn.retrain`. None where that cannot be had: then
            the forget set is to look like held-out rows of `test`, forgotten classes as unknown, and the rest as before.
        variables, data: the trained model.
        request: one request.
        key: one typed key, for everything.
        space: values of every setting, all combinations of which are tried, or a list of points.
        test: rows that training never saw; not those of a report.
        proxies: `(data, request, count, key) -> ForgetRequest[count, k]`.
        num_proxies: how many.
        num_references: retrained models for each proxy, at least 2, because their spread is the unit.
        halving: one in so many points goes on from the first proxies to the others; None tries all on all.
        static: settings whose floats are not to be traced, such as `fraction` of `jaxunlearn.salun`. Traced ones are float32.
        objective: `(found, reference, spreads) -> float`, the smaller the better, see `worst_gap`.
        risk: largest gap that is accepted in expectation, a fraction in (0, 1); for classifiers with `retrain`. Proxies of
            groups are those of the nearest sizes and no random draw.
        confidence: of the test, in (0, 1).
        chunk, mesh: see `jaxunlearn.batched`.
        directory: what was computed is kept there and found again, so that a search that was cut off goes on.
        progress: called with what is being made and how many models are done.

    Returns:
        `Tuned`.

    Raises:
        ValueError: no point, points of different settings, proxies that share rows with the request or leave nothing, test
            rows that are training rows, too few proxies for `risk`, or `risk` without classes or references.
        TypeError: `make` returns no finished method.

    Example:
        >>> def make(rate):
        ...     return jaxunlearn.iterate(jaxunlearn.finetune(model, optax.sgd(rate)), num_steps=3, batch_size=8)
        >>> recipe = jaxunlearn.iterate(jaxunlearn.retrain(model, optax.sgd(0.1)), num_steps=3, batch_size=8)
        >>> space = {"rate": [0.01, 0.1]}
        >>> found = jaxunlearn.tune(model, make, recipe, variables, data, request, key, space=space, test=test)
        >>> result = jax.jit(make(**found.settings))(variables, data, request, key)
        >>> len(found.table), found.reference
        (2, 'retrained models')
    """
    points = _points(space)
    first = _first(num_proxies, halving, risk)
    for name, value, least in (("num_proxies", num_proxies, 1), ("num_references", num_references, 2)):
        checks.require_count(name, value, least=least)
    if not 0 < confidence < 1 or (risk is not None and not 0 < risk < 1):
        raise ValueError(f"risk and confidence are fractions in (0, 1), got {risk} and {confidence}")
    checks.require_rows_like("test", test, data.train)
    proxy_key, reference_key, point_key = jax.random.split(key, 3)
    requests = jax.tree.map(np.asarray, proxies(data, request, num_proxies, proxy_key))
    _check_proxies(data, request, requests, num_proxies)
    present = np.flatnonzero(np.asarray(data.present) > 0)
    require_disjoint("tune", members=jax.tree.map(lambda x: np.asarray(x)[present], data.train), nonmembers=test)
    classes = classes_of(model, variables, data)
    if risk is not None and (classes is None or retrain is None):
        raise ValueError("risk bounds gaps in accuracy to retrained models: it takes a classifier and retrain=")
    asked, keys = described(requests, data, test, classes=classes), jax.random.split(point_key, num_proxies)
    folder, tell = None if directory is None else Path(directory), progress or (lambda doing, done: None)
    bench = Bench(model, variables, data, remove(data, request).present, test, chunk, mesh, folder, tell, [], {})

    started = time.perf_counter()
    if retrain is None:
        reference, spreads = expected(before(bench, asked), asked, shares=classes is not None)
    else:
        reference = retrained(bench, retrain, asked, num_references, reference_key)
        spreads = spreads_of(reference, shares=classes is not None)
    choosing = spreads if risk is None else spreads_of(_of(reference, first), shares=True)
    one, known = sum(bench.running) / (num_proxies * num_references), time.perf_counter()

    def judged(found: Found, unit: Spreads) -> float:
        broken = np.any(found[1] == Status.NONFINITE)
        value = math.nan if broken else objective(found[0], _of(reference, len(found[1])), unit)
        return math.inf if math.isnan(value) else float(value)

    def try_on(chosen: Sequence[int], part: slice) -> dict[int, Found]:
        some = jax.tree.map(lambda x: x[part], asked)
        return tried(bench, make, {place: points[place] for place in chosen}, some, keys[part], block, static)

    going_on = len(points) if halving is None else math.ceil(len(points) / halving)
    block = min(len(points) * first, going_on * (num_proxies - first) or len(points) * first)
    found = try_on(range(len(points)), slice(first))
    kept = sorted(found, key=lambda place: judged(found[place], choosing))[:going_on]
    if first < num_proxies:
        for place, more in try_on(kept, slice(first, num_proxies)).items():
            found[place] = jax.tree.map(lambda *x: np.concatenate(x), found[place], more)
    done = time.perf_counter()

    p_values: dict[int, float] = {}
    if risk is not None:
        tested = range(first, num_proxies)
        p_values = {i: hoeffding_bentkus(gap_losses(found[i][0], reference, tested), risk) for i in kept}
        kept = [i for i, good in zip(kept, holm([p_values[i] for i in kept], 1 - confidence), strict=True) if good]
    table = [_point(points[i], found[i], reference, judged(found[i], spreads), p_values.get(i)) for i in range(len(points))]
    ranked = sorted(range(len(points)), key=lambda i: (-table[i].proxies, table[i].value))
    good = [i for i in ranked if math.isfinite(table[i].value) and (risk is None or i in kept)]
    running = float(np.nansum(bench.running))
    return Tuned(
        settings=points[good[0]] if good else None,
        table=[table[i] for i in ranked],
        reference="held-out rows" if retrain is None else "retrained models",
        references=reference,
        spreads=spreads,
        proxies=requests,
        seconds={"references": known - started, "points": done - known, "compiling": done - started - running},
        retrainings=sum(bench.running) / one if retrain is not None else math.nan,
    )


def _points(space: Mapping[str, Sequence[Any]] | Sequence[Settings]) -> list[Settings]:
    if isinstance(space, Mapping):
        for name, values in space.items():
            if isinstance(values, str) or not hasattr(values, "__len__"):
                raise ValueError(f"space takes a list of values for every setting, got {values!r} for {name}")
        points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    else:
        points = [dict(point) for point in space]
    if not points or any(set(point) != set(points[0]) for point in points):
        raise ValueError("space holds no point" if not points else "all points of space must name the same settings")
    return points


def _check_proxies(data: Data, request: ForgetRequest, asked: ForgetRequest, count: int) -> None:
    if np.ndim(asked.indices) != 2 or len(asked.indices) != count:
        raise ValueError(f"proxies must return {count} stacked requests, got indices {np.shape(asked.indices)}")
    left = np.asarray(sampling.retain_weights(data, request)) > 0
    wanted = np.asarray(data.present) > 0
    for place, (rows, weights) in enumerate(zip(asked.indices, asked.weights, strict=True)):
        own = np.unique(rows[weights > 0])
        if shared := int(np.sum(wanted[own] & ~left[own])):
            raise ValueError(f"proxy {place} shares {shared} rows with the request: nothing may be chosen by looking at them")
        if not own.size or not np.all(left[own]) or own.size == left.sum():
            raise ValueError(f"proxy {place} names {own.size} rows of {left.sum()}, or some that are gone; it must leave some")


def _first(count: int, halving: float | None, risk: float | None) -> int:
    """How many proxies all points are tried on; the others are for those that go on."""
    if halving is not None and not halving > 1:
        raise ValueError(f"halving keeps one point in so many, so it is above 1, or None; got {halving}")
    if risk is not None:
        if count < 3:
            raise ValueError(f"risk chooses by a third of the proxies and tests on the others: num_proxies={count} is too few")
        return count // 3
    return count if halving is None else max(1, count // 2)


def _of(reference: Outcome, count: int) -> Outcome:
    """References of the first proxies."""
    return jax.tree.map(lambda x: x[:, :count], reference)


def _point(settings: Settings, found: Found, reference: Outcome, value: float, p_value: float | None) -> Point:
    gaps = {name: float(np.mean(gap)) for name, gap in gaps_to(found[0], _of(reference, len(found[1]))).items()}
    statuses = tuple(sorted({Status(int(status)).name for status in found[1] if status != Status.OK}))
    return Point(settings, value, gaps, len(found[1]), statuses, p_value)
