"""Compiled calls on one trained model that answer many requests, with one of many settings each, and look at the answers."""

import json
import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.audit.ensemble import content_hash
from jaxunlearn.audit.single.outcome import Outcome, outcome
from jaxunlearn.batching import batched
from jaxunlearn.loop.preparation import prepared_in_place
from jaxunlearn.status import Status, check
from jaxunlearn.tuning.clock import timed_call
from jaxunlearn.tuning.proxies import Proxies
from jaxunlearn.types import Data, Examples, Model, Result, UnlearnFn, Variables

COMPARED = (Status.UNCHANGED, Status.NOT_CONVERGED, Status.INDEFINITE, Status.DAMAGED, Status.NONFINITE)

Settings: TypeAlias = dict[str, Any]
Found: TypeAlias = tuple[Outcome, Int[np.ndarray, " n"]]  # outcomes and statuses [n], on the host


class Bench(NamedTuple):
    """The trained model, and how it is worked on."""

    model: Model
    variables: Variables
    data: Data
    measured: Float[Array, " n"]  # 1 where a training row is looked at in the answers
    test: Examples
    chunk: int | None
    mesh: Mesh | None
    directory: Path | None  # what was found is kept here, by the hash of what it was computed from
    progress: Callable[[str, int], None]
    running: list[float]  # seconds of every call, compilation apart
    programs: dict[Any, Any]  # what is compiled already


def looked_at(bench: Bench, name: Any, unlearn: Callable[..., Result], asked: Any, keys: Any, block: int, doing: str) -> Found:
    """Answer requests, `block` of them in one call, and look at the answers; no weights are kept.

    Args:
        bench: the model.
        name: what `unlearn` is known by; it is compiled once for each name and number of entries.
        unlearn: `(variables, data, (request, numbers), key) -> Result`.
        asked: `((requests, alike), numbers)`, n entries each.
        keys: [n].
        block, doing: for the calls and for `progress`.
    """

    def answered(variables: Variables, shared: Any, asked: Any, key: PRNGKeyArray) -> Any:
        data, test, measured = shared
        (request, alike), numbers = asked
        result = unlearn(variables, data, (request, numbers), key)
        plain = Data(data.train, measured, {})
        return outcome(bench.model, result.variables, plain, request, test, unseen_weights=alike), result.status

    if name not in bench.programs:
        bench.programs[name] = batched(answered, chunk=bench.chunk, mesh=bench.mesh)
    program = bench.programs[name]
    count, parts = len(keys), []
    for start in range(0, count, block):
        places = np.minimum(np.arange(start, start + block), count - 1)
        wanted = jax.tree.map(lambda x, at=places: x[at], asked)
        arguments = bench.variables, (bench.data, bench.test, bench.measured), wanted, keys[places]

        def compute(at: tuple = arguments) -> Found:
            found, _, seconds = timed_call(program, *at)
            bench.running.append(seconds)
            return jax.tree.map(np.asarray, found)

        parts.append(_kept(bench.directory, bench.running, compute, answered, arguments))
        bench.progress(doing, min(start + block, count))
    found, status = jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)
    return jax.tree.map(np.float64, found), status


def _kept(directory: Path | None, running: list[float], compute: Callable[[], Found], function: Any, arguments: tuple) -> Found:
    """What was found before for the same program and values, or now."""
    if directory is None:
        return compute()
    text = jax.jit(batched(function, chunk=1)).lower(*arguments).as_text()  # chunks and meshes do not change the values
    path = directory / f"{content_hash(arguments, text)}.json"
    if path.exists():
        running.append(math.nan)  # nobody knows how long it took
        stored: dict[str, Any] = {name: np.asarray(values) for name, values in json.loads(path.read_text()).items()}
        return Outcome(*(stored[name] for name in Outcome._fields)), stored["status"]
    found, status = compute()
    directory.mkdir(parents=True, exist_ok=True)
    begun = path.with_suffix(f".{os.getpid()}")
    begun.write_text(json.dumps({name: np.asarray(x).tolist() for name, x in {**found._asdict(), "status": status}.items()}))
    os.replace(begun, path)
    return found, status


def before(bench: Bench, proxies: Proxies) -> Outcome:
    """What the trained model knows of the rows of each proxy, [p]."""

    def nothing(variables, data, asked, key):
        return Result(variables, np.int32(Status.OK))

    count, asked = len(proxies.alike), (proxies.requests, proxies.alike)
    return looked_at(bench, "nothing", nothing, (asked, {}), jax.random.split(jax.random.key(0), count), count, "reading")[0]


def known_by(model: Model, variables: Variables, data: Data, proxies: Proxies, test: Examples) -> Outcome:
    """What models [R] know of the rows of a request each, [R], on the host.

    Args:
        model: their functions.
        variables: stacked [R].
        data: training rows.
        proxies: the requests [R].
        test: rows that training never saw.
    """
    plain = Data(data.train, data.present, {})

    def one(asked: Any) -> Outcome:
        variables, request, weights = asked
        return outcome(model, variables, plain, request, test, unseen_weights=weights)

    asked = variables, proxies.requests, np.asarray(proxies.alike)
    return jax.tree.map(np.asarray, jax.jit(lambda asked: jax.lax.map(one, asked))(asked))


def retrained(bench: Bench, retrain: UnlearnFn, proxies: Proxies, count: int, key: PRNGKeyArray) -> Outcome:
    """Models that never saw the rows of each proxy, [count, p]."""
    checks.require_unlearn_fn(retrain, "tune")

    def unlearn(variables, data, asked, key):
        return retrain(variables, data, asked[0], key)

    asked = proxies.requests, proxies.alike
    every = jax.tree.map(lambda x: np.tile(x, (count, *(1,) * (x.ndim - 1))), asked)
    keys = jax.random.split(key, len(every[1]))
    found, status = looked_at(bench, "retrain", unlearn, (every, {}), keys, len(keys), "retraining")
    check(Result(bench.variables, status))
    return jax.tree.map(lambda x: x.reshape(count, -1), found)


def tried(
    bench: Bench,
    make: Callable[..., UnlearnFn],
    points: dict[int, Settings],
    proxies: Proxies,
    keys: Any,
    block: int,
    static: Collection[str] = (),
) -> dict[int, Found]:
    """What each point gets on each proxy, [p]; points that differ in nothing but numbers share a program.

    Args:
        bench: the model.
        make: the method of a point.
        points: by their numbers.
        proxies, keys: p of them.
        block: entries of one call.
        static: floats that are not traced.
    """
    groups: dict[Any, list[int]] = {}
    for place, point in points.items():
        groups.setdefault(_name_of(_apart(point, static)[0], place), []).append(place)
    found: dict[int, Found] = {}
    for name, places in groups.items():
        fixed = _apart(points[places[0]], static)[0]
        numbers = [_apart(points[place], static)[1] for place in places]
        which, of = (x.reshape(-1) for x in np.indices((len(places), len(proxies.alike))))
        traced = {name: np.asarray([x[name] for x in numbers], np.float32)[which] for name in numbers[0]}

        def unlearn(variables, data, asked, key, fixed=fixed):
            request, chosen = asked
            method = make(**fixed, **chosen)
            checks.require_unlearn_fn(method, "tune(make=...)")
            return prepared_in_place(method)(variables, data, request, key)

        wanted = jax.tree.map(lambda x, at=of: x[at], (proxies.requests, proxies.alike))
        every, status = looked_at(
            bench, ("point", name), unlearn, (wanted, traced), keys[of], min(block, len(of)), f"trying {len(places)} points"
        )
        check(Result(bench.variables, status), allow=COMPARED)
        for number, place in enumerate(places):
            found[place] = jax.tree.map(lambda x, at=which == number: x[at], (every, status))
    return found


def _apart(point: Settings, static: Collection[str]) -> tuple[Settings, dict[str, float]]:
    """Settings that fix a program, and those that may be traced."""
    traced = {name: float(x) for name, x in point.items() if isinstance(x, float | np.floating) and name not in static}
    return {name: x for name, x in point.items() if name not in traced}, traced


def _name_of(static: Settings, place: int) -> Any:
    """Equal for settings that make the same program; values that cannot be compared make one of their own."""
    try:
        return tuple((setting, _typed(value)) for setting, value in sorted(static.items()))
    except TypeError:
        return place


def _typed(value: Any) -> Any:
    """A value with the types of all its parts, since 1, True and 1.0 are equal, and 0.0 and -0.0."""
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_typed, value))
    if value is None or isinstance(value, bool | int | float | str):
        return type(value), repr(value)
    raise TypeError
