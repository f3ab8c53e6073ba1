"""Models of one kind for every original: trained, retrained, or answered by a method; measured, and kept in a log."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import jaxunlearn as ju
from experiments.common import recall, token_methods, training, weights
from experiments.common.coupled import coupled
from experiments.common.methods import Settings
from experiments.common.outcome import AGAIN, NOTHING, RETRAINED
from experiments.common.planted import World
from experiments.common.recall import Found, Recall
from experiments.common.running import Run, at, in_blocks, reusable
from experiments.common.scale import Scale
from experiments.common.token_methods import Answer, Steps
from jaxunlearn import frozen

TARGET = 16  # repetitions of the canaries that the verdict is about
KINDS = (NOTHING, RETRAINED, AGAIN)


class Plan(NamedTuple):
    """Sizes of the runs."""

    training_steps: int
    batch_size: int
    learning_rate: float  # of training
    steps: Steps  # of methods
    rank: int
    relearning_steps: int
    relearning_rate: float
    controls: int
    draw: int


class Bench(NamedTuple):
    """Programs that are compiled once."""

    world: World
    plan: Plan
    parts: frozen.OnBase
    train: Run
    look: Run
    answers: dict[str, Run]

    @property
    def chosen(self) -> np.ndarray:
        """Requests that models are retrained for."""
        return np.flatnonzero(self.world.repetitions == TARGET)[: self.plan.controls]


def bench(world: World, plan: Plan, names: Iterable[str], scale: Scale, mesh: Mesh | None) -> Bench:
    """The programs of a script.

    Args:
        world: what all run on.
        plan: sizes.
        names: methods, see `token_methods.NAMES`.
        scale, mesh: how requests are laid out.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, plan.learning_rate, max(plan.training_steps // 20, 1), plan.training_steps
    )
    optimizer = optax.adamw(schedule, weight_decay=0.1)
    learn = ju.retrain(world.model, optimizer) if world.start is None else ju.finetune(world.model, optimizer)
    train = ju.iterate(learn._replace(sample=coupled), num_steps=plan.training_steps, batch_size=plan.batch_size)
    parts = token_methods.adapters(world, plan.rank)
    look = recall.measuring(world, steps=plan.relearning_steps, learning_rate=plan.relearning_rate)
    return Bench(
        world, plan, parts, reusable(train, chunk=scale.chunk, mesh=mesh),
        reusable(look, in_axes=(0, None, 0, 0), chunk=scale.chunk, mesh=mesh),
        {
            name: reusable(
                token_methods.answering(name, world, parts, plan.steps), in_axes=((None, 0), None, 0, 0), chunk=scale.chunk,
                mesh=mesh,
            )
            for name in names
        },
    )  # fmt: skip


def trained(bench: Bench, seed: int) -> tuple[ju.Variables, ju.Variables, float, int]:
    """An original, and models that are retrained without some requests, first from the same key, then from others.

    Returns:
        The original, the others [2, controls], seconds of running, and tokens that were read.
    """
    world, plan, count = bench.world, bench.plan, len(bench.chosen)
    asked = [at(world.requests, place) for place in bench.chosen]
    none = ju.empty_request(world.requests.indices.shape[1])
    requests = jax.tree.map(lambda *x: np.stack(x), none, *asked, *asked)
    own = jax.random.fold_in(jax.random.key(plan.draw), seed)
    keys = jnp.concatenate([jnp.stack([own] * (1 + count)), jax.random.split(own, count)])
    start = training.form(world.model) if world.start is None else world.start
    done = bench.train([(start, world.data, requests, keys)])
    ju.check(at(done.result, 0), allow=[ju.Status.EMPTY_REQUEST])
    models = at(done.result.variables, 0)
    controls = jax.tree.map(lambda x: x[1:].reshape(2, count, *x.shape[1:]), models)
    tokens = (1 + 2 * count) * plan.training_steps * plan.batch_size * world.data.train.inputs.shape[1]
    return at(models, 0), controls, done.run_seconds, tokens


def repeated(variables: ju.Variables, count: int) -> ju.Variables:
    """One model, as many times."""
    return jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], count, axis=0), variables)


def answered(
    bench: Bench, name: str, base: ju.Variables, chosen: Settings | list[Settings], places: np.ndarray, seed: int
) -> tuple[Answer, float, int]:
    """Requests to one original.

    Args:
        bench: the programs.
        name: of the method.
        base: the original.
        chosen: settings of all requests, or of each.
        places: which requests.
        seed: of the draws.

    Returns:
        Models, seconds of running, and tokens that were read.
    """
    each = chosen if isinstance(chosen, list) else [chosen] * len(places)
    settings = {key: np.array([one[key] for one in each], np.float32) for key in each[0]}
    keys = jax.random.split(jax.random.fold_in(jax.random.key(bench.plan.draw), 1000 + seed), len(bench.world.canaries))
    done = bench.answers[name]([((base, settings), bench.world.asked, at(bench.world.requests, places), keys[places])])
    steps = bench.plan.steps
    rows = len(places) * steps.num_steps * (steps.forget + steps.retain)
    return at(done.result, 0), done.run_seconds, rows * bench.world.data.train.inputs.shape[1]


def measured(bench: Bench, models: ju.Variables, places: np.ndarray) -> Found:
    """What models [r] know of these requests; in blocks of one size, so that one program measures all kinds."""
    size = len(bench.chosen)
    blocks = in_blocks((models, places.astype(np.int32)), size)
    keys, rows = jax.random.split(jax.random.key(0), size), recall.looked_at(bench.world)
    found = bench.look([(variables, rows, place, keys) for variables, place in blocks]).result
    return jax.tree.map(lambda x: x.reshape(-1)[: len(places)], found)


# Originals on the disk, and lines of the log


def original_at(folder: Path, seed: int) -> Path:
    """Where an original is kept, as a model that other libraries read."""
    return folder / f"original-{seed}"


def save_original(folder: Path, world: World, seed: int, base: ju.Variables) -> None:
    """Keep an original for a run that goes on."""
    weights.save(original_at(folder, seed), world.form, world.config, base)


def load_original(folder: Path, seed: int) -> ju.Variables:
    """The original that was kept."""
    return weights.load(original_at(folder, seed)).variables


def scenario_of(seed: int) -> str:
    """What lines of an original are kept under."""
    return f"seed {seed}"


def line_of(
    name: str, seed: int, places: np.ndarray, found: Found, *, settings: Mapping[str, float] | None = None,
    status: Any = None, unmoved: int | None = None, seconds: float | None = None, tokens: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """A line of the log: what models of one kind know, and what they cost."""

    def numbers(values: Any) -> list[float | None]:
        return [round(float(x), 5) if np.isfinite(x) else None for x in np.ravel(values)]

    values = {
        field: {part: numbers(x) for part, x in value._asdict().items()} if isinstance(value, Recall) else numbers(value)
        for field, value in found._asdict().items()
    }
    return {
        "scenario": scenario_of(seed), "method": name, "settings": dict(settings or {}), "requests": places.tolist(),
        "not_ok": int(np.sum(np.asarray(status) != ju.Status.OK)) if status is not None else 0, "unmoved": unmoved,
        "seconds": None if seconds is None else round(seconds, 3), "tokens": tokens, "values": values,
        "written": round(time.time()),
    }  # fmt: skip


def found_in(lines: Iterable[Mapping[str, Any]]) -> Found:
    """What lines of one kind of models hold, [seeds, requests]; null is NaN."""
    values = [line["values"] for line in lines]

    def stacked(*path: str) -> Any:
        rows = []
        for value in values:
            for part in path:
                value = value[part]
            rows.append(np.array(value, float))
        return np.stack(rows)

    recalled: list[Any] = [Recall(*(stacked(field, part) for part in Recall._fields)) for field in Found._fields[:3]]
    return Found(*recalled, *map(stacked, Found._fields[3:]))
