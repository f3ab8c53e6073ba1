"""One call for a service: answer requests with what a search on proxies finds, or retrain where that is the better answer."""

import inspect
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.audit.single.outcome import Outcome, outcome
from jaxunlearn.batching import batched
from jaxunlearn.catalogue import METHODS, method_of
from jaxunlearn.loop.damage import classes_of
from jaxunlearn.loop.iterate import iterate
from jaxunlearn.loop.preparation import prepare
from jaxunlearn.status import Status, check
from jaxunlearn.tuning.calls import COMPARED, Settings
from jaxunlearn.tuning.judging import LEAST_SPREAD, MEASURES
from jaxunlearn.tuning.proxies import described
from jaxunlearn.tuning.recipe import Recipe
from jaxunlearn.tuning.tune import Point, Tuned, tune
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Result, UnlearnFn, Variables

Candidates: TypeAlias = Mapping[str, Mapping[str, Sequence[float]]]

NAMES = {
    "retain": "result on the retain set",
    "forget": "result on the forget set",
    "test": "result on unseen rows",
    "auc": "attack AUC",
}
FAR = 4.0  # standard deviations between retrained models of the proxies
PASSES = 3  # a step of unlearning looks at two or three batches where one of training looks at one
CANDIDATES: Candidates = MappingProxyType({  # learning rates are multiples of the training's
    "unseen_matching": {"learning_rate": (0.5, 1.0)},
    "gradient_difference": {"learning_rate": (0.5, 2.0), "alpha": (0.95, 0.99)},
    "finetune": {"learning_rate": (1.0, 4.0)},
})  # fmt: skip


class Costs(NamedTuple):
    """In retrainings: estimates, but for a search that took place."""

    retraining: float  # all requests
    unlearning: float  # all requests
    search: float  # with its references; 0 if an earlier one was given, NaN without references


class Answer(NamedTuple):
    """What `answer` returns."""

    result: Result  # [R], or of one request if one was given
    how: str  # "retrained", or the name of a method
    passed: bool  # retrained, or like retrained models as far as could be told
    verdict: str  # the same in words, with what was chosen and why
    costs: Costs
    seconds: float  # wall time, compilation included
    tuned: Tuned | None = None  # the search, to be given to the next call
    gaps: Mapping[str, float] = MappingProxyType({})  # of its best point on proxies, in spreads of one retrained model
    found: Outcome | None = None  # what the answers know, [R]; None if they were retrained


def answer(
    model: Model,
    variables: Variables,
    data: Data,
    requests: ForgetRequest,
    recipe: Recipe,
    key: PRNGKeyArray,
    *,
    unseen: Examples,
    budget: float = math.inf,
    to_come: int = 0,
    tuned: Tuned | None = None,
    candidates: Candidates = CANDIDATES,
    num_steps: int = 50,
    num_proxies: int = 4,
    num_references: int = 2,
    tolerance: float = 2.0,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    directory: str | Path | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Answer:
    """Answer requests of one kind without any setting: by retraining, or by a method chosen on requests like them.

    Costs are counted in retrainings. Retraining for R requests costs R of them and is exact. A search retrains for
    `num_proxies * num_references` proxies and tries all candidates; then a request costs a fraction of a retraining. The
    cheaper way is gone; where it is the search and its best point is further than `tolerance` spreads from retrained models,
    or the answers do not look like retrained models of the proxies, all requests are retrained if the budget allows that.

    Args:
        model: with `init`, since retraining starts there.
        variables, data: the trained model.
        requests: stacked [R, k], or one; all for whole classes or all for rows.
        recipe: how the model was trained.
        key: one typed key.
        unseen: rows that training never saw, at least 4: every other one is held out for methods that read such rows and the
            others judge. No report should use them.
        budget: retrainings that may be spent, at least 0.
        to_come: requests of this kind that will follow, which a search serves as well.
        tuned: of an earlier answer, in place of a search; for the same model, data and recipe.
        candidates: methods by name, with values of their settings; each takes an optimizer.
        num_steps: of unlearning; rows of a step are those of the recipe.
        num_proxies, num_references: see `tune`.
        tolerance: worst gap that passes, in spreads of one retrained model.
        chunk, mesh, directory, progress: see `tune`.

    Returns:
        `Answer`.

    Raises:
        ValueError: requests of two kinds, no candidate that fits, too few unseen rows, or what `tune` refuses.
        UnlearningError: a request with rows that are none, see `jaxunlearn.check`.

    Example:
        >>> recipe = jaxunlearn.Recipe(optax.adam, learning_rate=0.01, num_steps=20, batch_size=16)
        >>> found = jaxunlearn.answer(model, variables, data, request, recipe, key, unseen=test)
        >>> found.how, found.passed
        ('retrained', True)
    """
    started = time.perf_counter()
    checks.check_range("budget", budget, low=0)
    for name, value, least in (("to_come", to_come, 0), ("num_steps", num_steps, 1)):
        checks.require_count(name, value, least=least)
    checks.require_rows_like("unseen", unseen, data.train)
    if (rows := len(jax.tree.leaves(unseen)[0])) < 4:
        raise ValueError(f"unseen needs at least 4 rows, half of them to judge by, got {rows}")
    held_out, judging = (jax.tree.map(lambda x, first=first: x[first::2], unseen) for first in (0, 1))
    single = np.ndim(requests.indices) == 1
    stacked = jax.tree.map(lambda x: np.asarray(x)[None] if single else np.asarray(x), requests)
    count, classes = len(stacked.indices), classes_of(model, variables, data)
    methods = _fitting(candidates, classes is not None, _for_classes(stacked))
    space = _points(methods)
    tune_key, answer_key = jax.random.split(key)

    def make(method: str, learning_rate: Any, **settings: Any) -> UnlearnFn:
        factory = METHODS[method].factory
        given = {name: value for name, value in settings.items() if name in methods[method]}
        if "held_out" in inspect.signature(factory).parameters:
            given["held_out"] = held_out
        optimizer = recipe.scaled(learning_rate, num_steps=num_steps)
        return iterate(factory(model, optimizer, **given), num_steps=num_steps, batch_size=recipe.batch_size)

    def run(unlearn: UnlearnFn) -> Result:
        ready = jax.jit(prepare(unlearn))(variables, data, answer_key)
        call: Any = batched(unlearn, chunk=chunk, mesh=mesh)
        keys = jax.random.split(answer_key, count)
        return check((call if mesh is not None else jax.jit(call))(variables, ready, stacked, keys), allow=COMPARED)

    each, half = PASSES * num_steps / recipe.num_steps, num_proxies // 2
    tries = len(space) * max(1, half) + math.ceil(len(space) / 3) * (num_proxies - max(1, half))
    costs = Costs(count, count * each, 0.0 if tuned is not None else num_proxies * num_references + tries * each)

    def done(result: Result, how: str, passed: bool, verdict: str, **more: Any) -> Answer:
        result = jax.tree.map(lambda x: x[0], result) if single else result
        return Answer(result, how, passed, verdict, costs, time.perf_counter() - started, **more)

    def retrained(why: str, **more: Any) -> Answer:
        return done(run(recipe.retrain(model)), "retrained", True, f"Retrained: {why}.", **more)

    times = (count + to_come) / count  # what a search serves
    searched = costs.search + costs.unlearning <= budget
    if count <= budget and not (searched and costs.search + times * costs.unlearning < times * count):
        return retrained(
            f"that costs {count} retrainings, a search about {costs.search:.0f} and the answers after it {costs.unlearning:.1f}"
        )
    if tuned is None:
        tuned = tune(
            model, make, recipe.retrain(model) if searched else None, variables, data, _typical(stacked), tune_key,
            space=space if searched else space[:1], test=judging, num_proxies=num_proxies, num_references=num_references,
            chunk=chunk, mesh=mesh, directory=directory, progress=progress,
        )  # fmt: skip
        costs = costs._replace(search=tuned.retrainings)
    affordable = count <= budget - costs.unlearning - np.nan_to_num(costs.search)
    if tuned.settings is None or tuned.settings["method"] not in methods:
        why = "no candidate was left on the proxies: all diverged, or a search for other candidates was given"
        if affordable:
            return retrained(why, tuned=tuned)
        raise ValueError(f"{why}; {count} retrainings are beyond the budget of {budget:g}")
    best = next(point for point in tuned.table if point.settings == tuned.settings)
    result = run(make(**tuned.settings))
    found = _known(model, result, data, stacked, judging, described(stacked, data, judging, classes=classes).alike)
    name = tuned.settings["method"]
    numbers = ", ".join(f"{setting} {best.settings[setting]:g}" for setting in methods[name])
    chosen = f"{name} ({numbers}), the best of {len(tuned.table)} points on {best.proxies} requests like these"
    more = {"tuned": tuned, "gaps": {measure: gap / tuned.spreads[measure] for measure, gap in best.gaps.items()}}
    doubts = _doubts(best, result, found, tuned, tolerance)
    if not doubts:
        told = f"Unlearned by {chosen}: there at most {best.value:.1f} spreads from retrained models."
        return done(result, name, True, told, found=found, **more)
    if affordable:
        return retrained(f"{chosen}, does not pass, since {'; '.join(doubts)}", **more)
    told = f"Not good enough: {chosen}; but {'; '.join(doubts)}. Retrain, or allow a larger budget."
    return done(result, name, False, told, found=found, **more)


def _for_classes(requests: ForgetRequest) -> bool:
    if not jax.tree.leaves(requests.target):
        return False
    named = np.any(np.asarray(requests.target), axis=1)
    if named.any() and not named.all():
        raise ValueError(f"{named.sum()} of {len(named)} requests are for classes and the others for rows: answer them apart")
    return bool(named.any())


def _fitting(candidates: Candidates, is_classifier: bool, for_classes: bool) -> Candidates:
    """The candidates that can answer, by their names in the catalogue."""
    found = {}
    for name, settings in candidates.items():
        card = METHODS[method := method_of(name)]
        takes = inspect.signature(card.factory).parameters
        if card.takes != "model" or "optimizer" not in takes:
            raise ValueError(f"{name} is no method with steps for a model, so a multiple of a learning rate says nothing to it")
        needs = [x for x, p in list(takes.items())[2:] if p.default is p.empty and x not in {*settings, "held_out"}]
        unknown = [x for x in settings if x not in {*takes, "learning_rate"}]
        if needs or unknown or not settings.get("learning_rate"):
            said = f"needs {', '.join(needs)}" if needs else f"has no setting {', '.join(unknown)}" if unknown else ""
            raise ValueError(
                f"candidate {name}: it {said or 'needs values of learning_rate, multiples of that of the training'}"
            )
        if (is_classifier or card.targets == "any") and (
            card.requests == "rows" or (card.requests == "classes" and for_classes)
        ):
            found[method] = settings
    if not found:
        raise ValueError(f"none of the candidates {', '.join(candidates)} fits these targets and requests")
    return found


def _points(methods: Candidates) -> list[Settings]:
    """All points of all methods; what is no setting of one is 0 there, since points must name the same settings."""
    every = dict.fromkeys([name for settings in methods.values() for name in settings], 0.0)
    return [
        {"method": method, **every, **dict(zip(settings, map(float, values), strict=True))}
        for method, settings in methods.items()
        for values in itertools.product(*settings.values())
    ]


def _typical(requests: ForgetRequest) -> ForgetRequest:
    """The request of median size."""
    sizes = np.sum(np.asarray(requests.weights) > 0, axis=1)
    place = int(np.argsort(sizes)[len(sizes) // 2])
    return jax.tree.map(lambda x: x[place], requests)


def _known(model: Model, result: Result, data: Data, requests: ForgetRequest, judging: Examples, alike: Any) -> Outcome:
    """What every answer knows, [R]."""
    plain = Data(data.train, data.present, {})

    def one(asked: Any) -> Outcome:
        variables, request, weights = asked
        return outcome(model, variables, plain, request, judging, unseen_weights=weights)

    return jax.tree.map(np.asarray, jax.jit(lambda asked: jax.lax.map(one, asked))((result.variables, requests, alike)))


def _doubts(best: Point, result: Result, found: Outcome, tuned: Tuned, tolerance: float) -> list[str]:
    """Why answers do not pass."""
    doubts = []
    if tuned.reference != "retrained models":
        doubts.append("the budget allows no retrained model to compare with")
    if not best.value <= tolerance:
        doubts.append(f"it is {best.value:.1f} spreads from {tuned.reference} there, and {tolerance:g} are allowed")
    status = np.asarray(result.status)
    doubts += [
        f"{np.sum(status == code)} of {len(status)} answers say {Status(int(code)).name}"
        for code in np.unique(status)
        if code != Status.OK
    ]
    for measure in MEASURES:
        own, known = (np.asarray(getattr(x, measure), np.float64) for x in (found, tuned.references))
        unit = max(float(np.std(known)), tuned.spreads[measure], LEAST_SPREAD * abs(float(np.mean(known))))
        if not abs(np.mean(own) - np.mean(known)) <= FAR * unit:
            doubts.append(
                f"their {NAMES[measure]} is {np.mean(own):.3g}, that of {tuned.reference} of the proxies {np.mean(known):.3g}"
            )
    return doubts
