"""Methods for token rows: how each is built on `planted.World.asked`, where it moves weights, and what is searched for it."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

import jaxunlearn as ju
from experiments.common import decoder, settings
from experiments.common.methods import Settings
from experiments.common.planted import World
from jaxunlearn import frozen

# the first value of each is what a method runs with that was never searched
SEARCH: dict[str, dict[str, tuple[float, ...]]] = {
    "idk": {"learning_rate": (4e-4, 8e-4), "retain_weight": (1.0, 3.0)},
    "preference_optimization": {"learning_rate": (4e-4,), "beta": (0.1, 0.2), "retain_weight": (2.0, 1.0)},
    "npo": {"learning_rate": (4e-4,), "beta": (0.1, 0.3), "retain_weight": (1.0, 3.0)},
    "simnpo": {"learning_rate": (4e-4, 8e-4), "beta": (1.0,), "retain_weight": (5.0, 1.0)},
    "undial": {"learning_rate": (4e-4,), "strength": (8.0, 3.0), "retain_weight": (3.0, 1.0)},
    "rmu": {"learning_rate": (4e-4, 1.6e-3), "coefficient": (5.0, 20.0), "alpha": (10.0,)},
    "gradient_difference": {"learning_rate": (4e-4, 2e-4), "alpha": (0.9, 0.97)},
    "finetune": {"learning_rate": (4e-4, 1.6e-3)},
}
SUMMED = ("npo", "preference_optimization")  # their likelihood is that of a row, not of a token
REFUSING = ("idk", "preference_optimization")
WHOLE = "_all_weights"  # ends the name of a method that moves all weights; others move adapters over a frozen base
IN_ADAPTERS = tuple(SEARCH)
NAMES = (*IN_ADAPTERS, *(f"{name}{WHOLE}" for name in SEARCH))
SCENARIOS, STUDY = ("canaries", "canaries, all weights"), "register"  # what settings are kept under


class Steps(NamedTuple):
    """Sizes of a run."""

    num_steps: int
    forget: int  # rows of a step
    retain: int


def factory_of(name: str) -> str:
    """The name in the catalogue."""
    return name.removesuffix(WHOLE)


def is_whole(name: str) -> bool:
    """Whether it moves all weights."""
    return name.endswith(WHOLE)


def points(name: str) -> list[Settings]:
    """All combinations of the values that are searched."""
    search = SEARCH[factory_of(name)]
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]


def chosen(folder: Path, name: str) -> tuple[Settings, dict[str, Any] | None]:
    """Settings of a method and the search that chose them, None where there was none."""
    found, search = settings.load(folder, factory_of(name), SCENARIOS[is_whole(name)], STUDY)
    return (points(name)[0], None) if search is None else (found, search)


def build(name: str, world: World, steps: Steps, chosen: Mapping[str, Any]) -> Callable[[ju.Model], ju.UnlearnFn]:
    """`model -> method`, with Adam and a cosine schedule.

    Args:
        name: one of `NAMES`.
        world: what it runs on.
        steps: sizes of the run.
        chosen: `learning_rate` and settings of the factory, which may be traced.
    """
    name = factory_of(name)
    given: dict[str, Any] = {key: value for key, value in chosen.items() if key != "learning_rate"}
    if name in REFUSING:
        given["refusals"] = ju.slots.REFUSALS
    if name == "rmu":
        given["layer"] = world.layer
    optimizer = optax.adam(optax.cosine_decay_schedule(chosen["learning_rate"], steps.num_steps))

    def make(model: ju.Model) -> ju.UnlearnFn:
        if name in SUMMED:
            model = model._replace(loss=ju.losses.sequence_log_loss(reduction="sum"))
        return ju.iterate(
            ju.METHODS[name].factory(model, optimizer, **given), num_steps=steps.num_steps, batch_size=steps.forget,
            retain_batch_size=steps.retain,
        )  # fmt: skip

    return make


def adapters(world: World, rank: int) -> frozen.OnBase:
    """LoRA of all matrices."""
    assert world.model.init is not None
    like = jax.eval_shape(world.model.init, jax.random.key(0))
    inputs = world.data.train.inputs[:1]
    return frozen.lora(world.model, like, inputs, rank=rank, alpha=2.0 * rank, targets=decoder.MATRICES)


class Answer(NamedTuple):
    """A model that answered a request, as whole weights."""

    variables: ju.Variables
    status: jax.Array
    unmoved: jax.Array  # leaves of adapters that did not move; of all weights none is counted


def answering(name: str, world: World, parts: frozen.OnBase, steps: Steps) -> Callable[..., Answer]:
    """`((base, chosen), data, request, key) -> Answer`, one program for all settings and requests."""

    def answer(trained: Any, data: ju.Data, request: ju.ForgetRequest, key: jax.Array) -> Answer:
        base, chosen = trained
        make = build(name, world, steps, chosen)
        if is_whole(name):
            result = make(world.model)(base, data, request, key)
            return Answer(result.variables, result.status, jax.numpy.int32(0))
        held, part = ju.slots.BASE.put(data, base), parts.start(base, key)
        result = frozen.on_base(parts, make)(part, held, request, key)
        return Answer(parts.merge(base, result.variables), result.status, result.stats["unmoved"])

    return answer
