"""The protocol of the study, as functions on any labelled data with a group column.

Everything is compared with models that were retrained from fresh weights without the rows of the same request, and these with
a second retraining: what those two differ by is the floor of every gap.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

import jaxunlearn as ju
from experiments.common import methods
from experiments.common.comparison import Bench, Ready, answer
from experiments.common.methods import Settings
from experiments.common.outcome import RETRAINED
from experiments.common.running import Run, Timed, at, reusable
from experiments.common.scenarios import Scenario
from experiments.common.study import Study
from experiments.common.training import form
from jaxunlearn.audit import Difficulty

GROUP_SHARE = 0.1  # of all rows, asked for from one group
DECILE = 0.1
EASIEST, HARDEST = "easiest", "hardest"
SUCCESS = ("retain", "forget", "test")  # each is to equal that of exact retraining


class Asked(NamedTuple):
    """Requests and what kind each of them is."""

    requests: ju.ForgetRequest  # [R, k]
    kinds: tuple[str, ...]
    sizes: tuple[int, ...]

    def of(self, kind: str) -> list[int]:
        """Places of the requests of a kind."""
        return [place for place, found in enumerate(self.kinds) if found == kind]


class Figures(NamedTuple):
    """What is measured of every model; leading axes [seeds, requests]."""

    retain: Any  # [s, r], accuracies
    forget: Any  # [s, r]
    test: Any  # [s, r]
    auc: Any  # [s, r], of the loss attack, forget set against test rows
    group_forget: Any  # [s, r, g], NaN where a request has no row of the group
    group_test: Any  # [s, r, g]
    group_auc: Any  # [s, r, g]
    missed: Any  # [s, r, c], false-negative rates on test rows
    cost: Any  # [s, r], of the answers on test rows


def share_kind(share: float) -> str:
    """The name of requests for a share of all rows."""
    return f"{100 * share:g} %"


def group_kind(name: str) -> str:
    """The name of requests for rows of one group only."""
    return f"only {name}"


def draw_requests(
    data: ju.Data,
    groups: Int[np.ndarray, " n"],
    names: Sequence[str],
    order: Int[np.ndarray, " n"] | None,
    *,
    shares: Sequence[float],
    each: int,
    seed: int,
) -> Asked:
    """Random rows of every share; rows of one group only; half of the easiest and half of the hardest decile.

    Args:
        data: n rows, all present.
        groups: of the rows.
        names: of the groups. All groups are asked for equally many rows: `GROUP_SHARE` of n, or all of the smallest group.
        order: rows from the easiest to the hardest; None leaves out requests by difficulty, and no names those of groups.
        shares: in (0, 1).
        each: requests of every kind.
        seed: of the rows.

    Raises:
        ValueError: a share that is not between 0 and 1, or a group without rows.
    """
    count = data.present.shape[0]
    generator = np.random.default_rng([seed, 3])
    pools: list[tuple[str, np.ndarray, int]] = []
    for share in shares:
        if not 0 < share < 1:
            raise ValueError(f"a forget share lies between 0 and 1, got {share}")
        pools.append((share_kind(share), np.arange(count), max(1, round(share * count))))
    members = [np.flatnonzero(groups == number) for number in range(len(names))]
    if members:
        size = min(round(GROUP_SHARE * count), *map(len, members))
        if size == 0:
            raise ValueError(f"no row of {names[int(np.argmin([*map(len, members)]))]} is in the training set of {count} rows")
        pools += [(group_kind(name), rows, size) for name, rows in zip(names, members, strict=True)]
    if order is not None:
        pools += [(kind, rows, len(rows) // 2) for kind, rows in zip((EASIEST, HARDEST), deciles(order), strict=True)]
    lists = [(kind, generator.choice(rows, size, replace=False)) for kind, rows, size in pools for _ in range(each)]
    requests = ju.from_indices(data, [np.sort(rows) for _, rows in lists])
    return Asked(requests, tuple(kind for kind, _ in lists), tuple(len(rows) for _, rows in lists))


def deciles(order: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """The easiest and the hardest decile of the rows, two rows at least."""
    size = max(2, round(DECILE * len(order)))
    return order[:size], order[-size:]


def scenario_of(setting: Study, asked: Asked) -> Scenario:
    """The requests in the form that `experiments.common.comparison` answers."""
    weights = jnp.ones((len(asked.kinds), len(setting.test.targets)))
    return Scenario("study", "influence of examples", setting, asked.requests, setting.test, weights)


def difficulty_of(setting: Study, seeds: Sequence[int], looks: int) -> Difficulty:
    """When rows are learned, and their mean loss, averaged over trainings of their own.

    These are no trainings that are judged: rows that one of them happened to find hard would be easier for the next.

    Args:
        setting: the training set.
        seeds: of the trainings.
        looks: checkpoints of each.
    """
    steps = np.unique(np.linspace(setting.num_steps / looks, setting.num_steps, looks).round().astype(np.int32))
    training = setting.retrain(active_steps=lambda data, _: data.extra[ju.slots.USER.name])
    like = form(setting.model)

    def of_one(key: Array) -> Difficulty:
        def stopped(step: Array) -> ju.Variables:
            return training(like, ju.slots.USER.put(setting.data, step), ju.empty_request(), key).variables

        checkpoints = jax.lax.map(stopped, jnp.asarray(steps))
        return ju.audit.difficulty(setting.model, checkpoints, setting.data.train)

    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    found = jax.jit(lambda keys: jax.lax.map(of_one, keys))(keys)
    return jax.tree.map(lambda x: np.asarray(x, np.float64).mean(axis=0), found)


def examiner(setting: Study, num_groups: int, *, chunk: int | None = None, mesh: Mesh | None = None) -> Run:
    """The program that measures models, see `examined`."""

    def measure(variables: ju.Variables, shared: Any, request: ju.ForgetRequest, number: Array) -> Figures:
        del number  # calls have four arguments
        data, test, groups, test_groups, costs = shared
        whole = ju.audit.outcome(setting.model, variables, data, request, test)
        by_group = ju.audit.group_outcomes(
            setting.model, variables, data, request, test, groups, test_groups, num_groups=num_groups
        )
        logits = ju.audit.predict(setting.model, variables, test)
        return Figures(
            whole.retain, whole.forget, whole.test, whole.auc, by_group.forget, by_group.test, by_group.auc,
            ju.audit.false_negative_rates(logits, test.targets),
            ju.audit.expected_cost(logits, test.targets, costs),
        )  # fmt: skip

    return reusable(measure, in_axes=(0, None, 0, 0), chunk=chunk, mesh=mesh)


class Rows(NamedTuple):
    """What the examination knows of the rows besides the study."""

    groups: Int[np.ndarray, " n"]
    test_groups: Int[np.ndarray, " m"]
    costs: Float[np.ndarray, "c c"]


def examined(run: Run, ready: Ready, rows: Rows, done: Timed) -> Figures:
    """What is measured of answers [seeds, requests]."""
    setting = ready.scenario.study
    shared = (setting.data._replace(extra={}), setting.test, *rows)
    requests = ready.scenario.requests
    numbers = np.arange(requests.indices.shape[0])
    calls = [(at(done.result.variables, place), shared, requests, numbers) for place in range(len(ready.originals))]
    return run(calls).result


# Settings


class Search(NamedTuple):
    """What a search chose, and what it took."""

    chosen: dict[float, Settings]  # by forget share
    average_gaps: dict[float, float]  # of the chosen points
    points: int
    runs: int  # of every point, for one share
    run_seconds: float  # of one run
    judge_seconds: float  # of the retrained models for one share


def search(
    bench: Bench,
    ready: Ready,
    rows: Rows,
    run: Run,
    asked: Asked,
    method: str,
    reference: Figures,
    points: Sequence[Settings],
    shares: Sequence[float],
    *,
    retrain_seconds: float,
    tell: Callable[[int], Any],
) -> Search:
    """The point of each forget share whose average gap to retrained models is the smallest, on rows that are not reported.

    Args:
        bench, ready, rows, run, asked: of the search's own draw.
        method: a name of the catalogue.
        reference: what is measured of retrained models.
        points: to be tried.
        shares: of `asked`.
        retrain_seconds: of one retraining.
        tell: called after every point with 1.
    """
    best: dict[float, tuple[float, Settings]] = {share: (math.inf, dict(points[0])) for share in shares}
    seconds, answered = 0.0, 1
    for point in points:
        done = answer(bench, ready, method, point)
        seconds, answered = seconds + done.run_seconds, done.result.status.size
        found = examined(run, ready, rows, done)
        for share in shares:
            places = asked.of(share_kind(share))
            pair = [{name: np.mean(getattr(x, name)[:, places]) for name in SUCCESS} for x in (found, reference)]
            value = float(ju.audit.average_gap(*pair).value)
            if value < best[share][0]:
                best[share] = value, dict(point)
        tell(1)
    runs = answered // len(shares)
    return Search(
        {share: point for share, (_, point) in best.items()}, {share: value for share, (value, _) in best.items()},
        len(points), runs, seconds / (answered * len(points)), runs * retrain_seconds,
    )  # fmt: skip


def settings_for(asked: Asked, chosen: Mapping[float, Settings], num_rows: int) -> dict[str, np.ndarray]:
    """Settings of every request: those of the forget share nearest to its size."""
    nearest = [min(chosen, key=lambda share, size=size: abs(math.log(size / num_rows / share))) for size in asked.sizes]
    return {name: np.array([chosen[share][name] for share in nearest], np.float32) for name in next(iter(chosen.values()))}


def points_of(method: str, most: int | None) -> list[Settings]:
    """Points of a method's card, at most so many of them at equal distances."""
    every = methods.points(method)
    if most is None or most >= len(every):
        return every
    return [every[place] for place in np.linspace(0, len(every) - 1, most).round().astype(int)]


# Gaps


def by_seed(values: Float[np.ndarray, "s r"], places: Sequence[int]) -> Float[np.ndarray, " s"]:
    """Means over requests, one per seed; NaN where a request has no value."""
    return np.asarray(values, np.float64)[:, list(places)].mean(axis=1)


def gaps(found: Figures, reference: Figures, name: str, places: Sequence[int], part: int | None = None) -> np.ndarray:
    """Signed gaps to retrained models of the same requests, [seeds].

    Args:
        found, reference: figures.
        name: of a field.
        places: of requests.
        part: group or class, for fields that have them.
    """
    first, second = (np.asarray(getattr(x, name)) for x in (found, reference))
    apart = first - second if part is None else (first - second)[..., part]
    return by_seed(apart, places)


def retrained_and_again(bench: Bench, ready: Ready, name: str = RETRAINED, **tell: Any) -> tuple[Timed, float]:
    """Retrained models of every seed and request, and the seconds of one retraining."""
    done = answer(bench, ready, name, {}, **tell)
    return done, done.run_seconds / done.result.status.size
