"""One call for a service: answer requests with what a search on proxies finds, or retrain where that is the better answer."""

import inspect
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.audit.single.outcome import Outcome
from jaxunlearn.audit.statistics.checks import require_disjoint
from jaxunlearn.batching import batched
from jaxunlearn.catalogue import METHODS
from jaxunlearn.loop.damage import classes_of
from jaxunlearn.loop.iterate import iterate
from jaxunlearn.loop.preparation import prepare
from jaxunlearn.status import Status, check
from jaxunlearn.tuning import asked
from jaxunlearn.tuning.asked import Candidates
from jaxunlearn.tuning.calls import COMPARED, Settings, known_by
from jaxunlearn.tuning.judging import LEAST_SPREAD, MEASURES, Spreads
from jaxunlearn.tuning.plan import Costs, estimated, planned
from jaxunlearn.tuning.proxies import Proxies, described
from jaxunlearn.tuning.recipe import Recipe
from jaxunlearn.tuning.tune import Point, Tuned, tune
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Result, UnlearnFn, Variables

NAMES = {
    "retain": "result on the retain set",
    "forget": "result on the forget set",
    "test": "result on unseen rows",
    "auc": "attack AUC",
}
FAR, VERY_FAR = 4.0, 6.0  # standard deviations between the references: of answers together, of a single one
PASSES = 3  # a step of unlearning looks at two or three batches where one of training looks at one
CANDIDATES: Candidates = MappingProxyType({  # learning rates are multiples of the training's
    "unseen_matching": {"learning_rate": (0.5, 1.0)},
    "gradient_difference": {"learning_rate": (0.5, 2.0), "alpha": (0.95, 0.99)},
    "finetune": {"learning_rate": (1.0, 4.0)},
})  # fmt: skip


class Answer(NamedTuple):
    """What `answer` returns."""

    result: Result  # [R], or of one request if one was given
    how: str  # "retrained", or the name of a method
    passed: bool  # retrained without a fault, or like retrained models as far as could be told
    verdict: str  # the same in words, with what was chosen and why
    costs: Costs
    seconds: float = 0.0  # wall time, compilation included
    searched: Tuned | None = None  # the search
    tuned: Tuned | None = None  # its best point on other proxies, by which it is judged; to be given to the next call
    gaps: Mapping[str, float] = MappingProxyType({})  # of that point there, in spreads of one retrained model
    found: Outcome | None = None  # what unlearned answers know, [R], also those that did not pass; None if there are none
    rejected: Result | None = None  # unlearned answers that did not pass, in whose place `result` was retrained


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

    Costs are counted in retrainings. Retraining for R requests costs R of them and is exact. A search retrains
    `num_references` times for each of `num_proxies` proxies, tries all candidates, and does the same once more to judge the
    best one by proxies that did not choose it; then a request costs a fraction of a retraining. The cheaper way is gone. Where
    it is the search and the best point is further than `tolerance` spreads from retrained models, or the answers do not look
    like retrained models of the proxies, all requests are retrained if the budget allows that.

    Args:
        model: with `init`, since retraining starts there.
        variables, data: the trained model.
        requests: stacked [R, k], or one; all for whole classes or all for rows, and of about the same size.
        recipe: how the model was trained.
        key: one typed key.
        unseen: rows that training never saw, at least 4: a random half is held out for methods that read such rows and the
            other one judges. No report should use them.
        budget: retrainings that may be spent, at least 0. What a search takes is known afterwards only.
        to_come: requests of this kind that will follow, which a search serves as well.
        tuned: of an earlier answer, in place of a search; for the same model, data, recipe, candidates and kind of request.
        candidates: methods by name, with values of their settings; each takes an optimizer.
        num_steps: of unlearning; rows of a step are those of the recipe.
        num_proxies, num_references: see `tune`; fewer proxies where there are fewer other classes.
        tolerance: worst gap that passes, in spreads of one retrained model.
        chunk, mesh, directory, progress: see `tune`.

    Returns:
        `Answer`.

    Raises:
        ValueError: requests that name no rows, unknown ones or are of two kinds, no candidate that fits, unseen rows that are
            too few or were trained on, a budget that allows no answer, or what `tune` refuses.

    Example:
        >>> recipe = jaxunlearn.Recipe(optax.adam, learning_rate=0.01, num_steps=20, batch_size=16)
        >>> found = jaxunlearn.answer(model, variables, data, request, recipe, key, unseen=test)
        >>> found.how, found.passed
        ('retrained', True)
    """
    started = time.perf_counter()
    checks.check_range("budget", budget, low=0)
    counts = ("to_come", to_come, 0), ("num_steps", num_steps, 1), ("recipe.num_steps", recipe.num_steps, 1)
    for name, value, least in counts:
        checks.require_count(name, value, least=least)
    single = np.ndim(requests.indices) == 1
    stacked = jax.tree.map(lambda x: np.asarray(x)[None] if single else np.asarray(x), requests)
    asked.require_requests(stacked, data)
    for_classes, classes = asked.require_one_kind(stacked), classes_of(model, variables, data)
    held_out, judging = _halves(unseen, data, classes)
    methods = asked.fitting(candidates, classifier=classes is not None, for_classes=for_classes)
    space = asked.points_of(methods)
    if tuned is not None and tuned.settings is not None and tuned.settings not in space:
        raise ValueError(f"tuned chose {tuned.settings}, which is none of the candidates: give the candidates of that search")
    if for_classes:
        labels = np.asarray(data.train.targets)[np.asarray(data.present) > 0]
        num_proxies = asked.proxies_there_are(asked.typical(stacked), labels, num_proxies)
    search_key, run_key = jax.random.split(key)
    told = described(stacked, data, judging, classes=classes)
    job = _Job(
        model, variables, data, stacked, recipe, held_out, judging, classes, methods, told, num_steps, chunk, mesh, run_key
    )
    each = PASSES * num_steps / recipe.num_steps
    numbers: dict[str, Any] = {"num_proxies": num_proxies, "num_references": num_references}
    costs = estimated(len(stacked.indices), len(space), each=each, searches=tuned is None, **numbers)
    mixed = tuned is None and len(set(told.gone > 0)) > 1  # some requests take a class with them, others do not
    plan = planned(
        costs, budget=budget, to_come=to_come, blind=num_proxies * each, comparable=num_proxies > 0 and not mixed,
        searches=tuned is None,
    )  # fmt: skip
    blind = plan.way == "blind"
    if plan.way == "retrain":
        said = _retrained(job, costs, plan.why, tuned=tuned)
    else:

        def search(key: PRNGKeyArray, points: list[Settings], halving: float | None) -> Tuned:
            return tune(
                model, job.make, None if blind else recipe.retrain(model), variables, data, asked.typical(stacked), key,
                space=points, test=judging, halving=halving, chunk=chunk, mesh=mesh, directory=directory, progress=progress,
                **numbers,
            )  # fmt: skip

        searched = None
        if tuned is None:
            searched, tuned, spent = _searched(search, space, search_key, blind=blind)
            spent = num_proxies * each if blind else np.nan_to_num(spent, nan=costs.search)
            costs = costs._replace(search=float(spent))
        said = _unlearned(job, costs, tuned, searched, tolerance=tolerance, left=budget - costs.search)
    if single:
        said = said._replace(**{x: jax.tree.map(lambda leaf: leaf[0], getattr(said, x)) for x in ("result", "rejected")})
    return said._replace(seconds=time.perf_counter() - started)


class _Job(NamedTuple):
    """What is to be answered, and how a method answers it."""

    model: Model
    variables: Variables
    data: Data
    requests: ForgetRequest  # [R, k]
    recipe: Recipe
    held_out: Examples  # rows that methods may read
    judging: Examples  # rows to judge by
    classes: int | None
    methods: Candidates
    told: Proxies  # what the requests are about
    num_steps: int
    chunk: int | None
    mesh: Mesh | None
    key: PRNGKeyArray

    def make(self, method: str, learning_rate: Any, **settings: Any) -> UnlearnFn:
        """The method of one point."""
        factory = METHODS[method].factory
        given = {name: value for name, value in settings.items() if name in self.methods[method]}
        if "held_out" in inspect.signature(factory).parameters:
            given["held_out"] = self.held_out
        optimizer = self.recipe.scaled(learning_rate, num_steps=self.num_steps)
        return iterate(factory(self.model, optimizer, **given), num_steps=self.num_steps, batch_size=self.recipe.batch_size)

    def run(self, unlearn: UnlearnFn) -> Result:
        """Answers to all requests."""
        prepare_key, answer_key = jax.random.split(self.key)
        ready = jax.jit(prepare(unlearn))(self.variables, self.data, prepare_key)
        call = batched(unlearn, chunk=self.chunk, mesh=self.mesh)
        keys = jax.random.split(answer_key, len(self.requests.indices))
        return check(call(self.variables, ready, self.requests, keys), allow=COMPARED)


def _retrained(job: _Job, costs: Costs, why: str, **more: Any) -> Answer:
    result = job.run(job.recipe.retrain(job.model))
    if faults := _faults(result):
        return Answer(
            result, "retrained", False, f"Retrained ({why}), but {'; '.join(faults)}: check the recipe.", costs, **more
        )
    return Answer(result, "retrained", True, f"Retrained: {why}.", costs, **more)


def _searched(
    search: Callable[..., Tuned], space: list[Settings], key: PRNGKeyArray, *, blind: bool
) -> tuple[Tuned, Tuned, float]:
    """A search, its best point on other proxies, and the retrainings that both took."""
    choose_key, judge_key = jax.random.split(key)
    searched = search(choose_key, space[:1] if blind else space, 3.0)
    if searched.settings is None or blind:
        return searched, searched, searched.retrainings
    tuned = search(judge_key, [searched.settings], None)  # what was chosen looks better where it was chosen than elsewhere
    return searched, tuned, searched.retrainings + tuned.retrainings


def _unlearned(job: _Job, costs: Costs, tuned: Tuned, searched: Tuned | None, *, tolerance: float, left: float) -> Answer:
    """Answers by the point that was chosen; retrained ones, if it does not pass and enough is left of the budget."""
    of_search: dict[str, Any] = {"searched": searched, "tuned": tuned}
    if tuned.settings is None:
        why = "every candidate diverged on the proxies"
        if costs.retraining <= left:
            return _retrained(job, costs, why, **of_search)
        raise ValueError(f"{why}, and {left:.3g} retrainings are left of the budget for {costs.retraining:g}")
    best = next(point for point in tuned.table if point.settings == tuned.settings)
    result = job.run(job.make(**tuned.settings))
    found = known_by(job.model, result.variables, job.data, job.told, job.judging)
    name = tuned.settings["method"]
    numbers = ", ".join(f"{setting} {best.settings[setting]:g}" for setting in job.methods[name])
    chosen = f"{name} ({numbers}), " + (f"the best of {len(searched.table)} points" if searched else "chosen before")
    unlike = asked.untried(job.told, described(tuned.proxies, job.data, job.judging, classes=job.classes))
    sizes, shares = asked.sizes_of(job.requests), job.classes is not None
    doubts = [
        *([unlike] if unlike else []),
        *_doubts(best, tuned, tolerance),
        *_faults(result),
        *_strange(found, tuned.references, tuned.spreads, sizes, shares=shares),
    ]
    of_search |= {"gaps": {measure: gap / tuned.spreads[measure] for measure, gap in best.gaps.items()}, "found": found}
    if not doubts:
        there = f"on {best.proxies} requests like these it is {best.value:.1f} spreads from retrained models"
        return Answer(result, name, True, f"Unlearned by {chosen}: {there} in the worst measure.", costs, **of_search)
    if costs.retraining <= left - costs.unlearning:
        return _retrained(job, costs, f"{chosen}, does not pass, since {'; '.join(doubts)}", rejected=result, **of_search)
    said = f"Not good enough: {chosen}; but {'; '.join(doubts)}. Retrain, or allow a larger budget."
    return Answer(result, name, False, said, costs, **of_search)


def _halves(unseen: Examples, data: Data, classes: int | None) -> tuple[Examples, Examples]:
    """Rows that methods may read, and rows to judge by."""
    checks.require_rows_like("unseen", unseen, data.train)
    if (rows := len(jax.tree.leaves(unseen)[0])) < 4:
        raise ValueError(f"unseen needs at least 4 rows, half of them to judge by, got {rows}")
    if classes is not None:
        checks.require_labels("unseen", unseen.targets, classes)
    present = np.flatnonzero(np.asarray(data.present) > 0)
    require_disjoint("answer", members=jax.tree.map(lambda x: np.asarray(x)[present], data.train), nonmembers=unseen)
    order = np.random.default_rng(0).permutation(rows)
    read, judging = (jax.tree.map(lambda x, part=part: x[part], unseen) for part in (order[::2], order[1::2]))
    return read, judging


def _faults(result: Result) -> list[str]:
    status = np.asarray(result.status)
    wrong = [code for code in np.unique(status) if code != Status.OK]
    return [f"{np.sum(status == code)} of {len(status)} answers say {Status(int(code)).name}" for code in wrong]


def _doubts(best: Point, tuned: Tuned, tolerance: float) -> list[str]:
    """What speaks against the point of a search."""
    doubts = []
    if tuned.reference != "retrained models":
        doubts.append("the budget allows no retrained model to compare with")
    if not best.value <= tolerance:
        there = f"on {best.proxies} requests like these it is {best.value:.1f} spreads from {tuned.reference}"
        doubts.append(f"{there}, and {tolerance:g} are allowed")
    return doubts


def _strange(found: Outcome, references: Outcome, spreads: Spreads, sizes: np.ndarray, *, shares: bool) -> list[str]:
    """How answers look unlike the references of the proxies: on average, and one by one where chance can be reckoned."""
    doubts = []
    for measure in MEASURES:
        own, known = (np.asarray(getattr(x, measure), np.float64) for x in (found, references))
        mean, name = float(np.mean(known)), NAMES[measure]
        unit = max(float(np.std(known)), spreads[measure], LEAST_SPREAD * abs(mean))
        if not abs(np.mean(own) - mean) <= FAR * unit:
            doubts.append(f"their {name} is {np.mean(own):.3g}, that of the references {mean:.3g}")
        elif shares or measure == "auc":
            likely = (mean * known.size + 1) / (known.size + 2)
            chance = {"forget": likely * (1 - likely) / sizes, "auc": 1 / (12 * sizes)}.get(measure, 0)
            if apart := int(np.sum(~(np.abs(own - mean) <= VERY_FAR * np.sqrt(unit**2 + chance)))):
                doubts.append(f"{apart} of {len(own)} answers stand out by their {name}")
    return doubts
