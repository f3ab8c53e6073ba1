"""Methods by name, from their cards alone: how they are built, what is searched for them, and where they do not apply."""

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

import jaxunlearn as ju
from experiments.common.study import Study
from jaxunlearn.catalogue import method_of
from jaxunlearn.loop.iterate import Augment

Settings: TypeAlias = dict[str, float]
LEARNING_RATE = 1e-3  # of methods with steps whose card names none
LAYERS = {"mlp": "Dense_1|head", "cnn": "Dense_0|head", "resnet18": "head"}  # what methods train that take `layers`
HELD_OUT = "held_out"  # argument of methods that are given rows which training never saw
AXES = "axes"  # argument of methods that are told which axes of a convolution are spatial
IMAGE_SHAPE = "image_shape"  # argument of methods that work on images
LARGEST_RECORD = 4 * 2**30  # bytes of recorded updates

Parameters: TypeAlias = Mapping[str, inspect.Parameter]


def on_networks() -> list[str]:
    """Names of the methods that take any model, but for retraining, which is the reference."""
    return [name for name, card in ju.METHODS.items() if card.takes == "model" and name != "retrain"]


def known(name: str) -> str:
    """The name in the catalogue of a method that takes a model.

    Raises:
        SystemExit: there is none; near misses are named.
    """
    try:
        found = method_of(name)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if ju.METHODS[found].takes != "model":
        instead = {
            "problem": "a convex problem, see certified_stream.py",
            "learner": "a learner of sums, see benchmarks/summation.py",
            "trainer": "a trainer of shards, see benchmarks/sisa.py",
            "generator": "a generator, see output_guard.py",
            "environment": "environments, see rl_grid.py",
        }
        raise SystemExit(f"{name} takes no network but {instead[ju.METHODS[found].takes]} in experiments/")
    return found


def parameters_of(name: str) -> Parameters:
    """What the factory of a method takes behind its model."""
    return dict(list(inspect.signature(ju.METHODS[name].factory).parameters.items())[1:])


def settings_of(name: str) -> dict[str, Any]:
    """Keyword arguments of a factory with their defaults; `inspect.Parameter.empty` where there is none."""
    kinds = (inspect.Parameter.KEYWORD_ONLY,)
    return {setting: x.default for setting, x in parameters_of(name).items() if x.kind in kinds}


def has_steps(name: str) -> bool:
    """Whether a method is an `Unlearner`, so that it takes an optimizer."""
    return "optimizer" in parameters_of(name)


def needs_learning_rate(name: str) -> bool:
    """Whether a method has steps, or is followed by fine-tuning: its card searches a learning rate that it does not take."""
    return has_steps(name) or "learning_rate" in ju.METHODS[name].search


def given(name: str, setting: Study, network: str) -> dict[str, Any]:
    """What a factory must be given and no search can find, by the names of its parameters."""
    values: dict[str, Callable[[], Any]] = {
        "layers": lambda: LAYERS[network],
        "oracle": setting.retrain,
        HELD_OUT: lambda: setting.held_out,
        AXES: lambda: (0, 1),  # of kernels in flax
        "solver": lambda: "cg",  # the scale of LiSSA would be one more setting to search
    }
    settings = settings_of(name)
    needed = [x for x, default in settings.items() if default is inspect.Parameter.empty or x == "solver"]
    return {x: values[x]() for x in needed if x in values}


def build(
    name: str,
    model: ju.Model,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: Any = None,
    augment: Augment | None = None,
    retain_batch_size: int | None = None,
    **settings: Any,
) -> ju.UnlearnFn:
    """A method of the catalogue, with Adam and a cosine schedule if it has steps; hyper-parameters may be traced.

    A method without steps that is given a learning rate is followed by fine-tuning.

    Args:
        name: of the method.
        model: what it unlearns from.
        num_steps, batch_size: of a method with steps, and of fine-tuning.
        learning_rate: the first one of the schedule.
        augment, retain_batch_size: see `jaxunlearn.iterate`.
        settings: of its factory.

    Raises:
        ValueError: a method that needs a learning rate and has none, or has one and needs none.
    """
    if needs_learning_rate(name) != (learning_rate is not None):
        raise ValueError(f"{name} {'needs a' if learning_rate is None else 'has no use for a'} learning_rate")
    factory = ju.METHODS[name].factory
    if learning_rate is None:
        return factory(model, **settings)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    sizes = {"batch_size": batch_size, "retain_batch_size": retain_batch_size}
    run = partial(ju.iterate, num_steps=num_steps, **sizes, augment=augment)
    if has_steps(name):
        return run(factory(model, optimizer, **settings))
    return ju.then(factory(model, **settings), run(ju.finetune(model, optimizer)))


def defaults(name: str) -> Settings:
    """The first point of a method's search; what the search does not name is left to its factory."""
    return {**first_rate(name), **{setting: values[0] for setting, values in ju.METHODS[name].search.items()}}


def points(name: str) -> list[Settings]:
    """All points of a method's search."""
    return [{**first_rate(name), **point} for point in grid_points(ju.METHODS[name].search)]


def grid_points(grid: Mapping[str, Sequence[float]]) -> list[Settings]:
    """All points of a grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def first_rate(name: str) -> Settings:
    """The learning rate of a method with steps whose card names none."""
    return {"learning_rate": LEARNING_RATE} if has_steps(name) and "learning_rate" not in ju.METHODS[name].search else {}


def left_out(name: str, setting: Study, *, on_classes: bool, seeds: int) -> str | None:
    """Why a method does not apply to requests, None if it does.

    Args:
        name: of the method.
        setting: what it is to unlearn from.
        on_classes: whether requests are for whole classes.
        seeds: how many originals there are.
    """
    if name not in ju.METHODS:  # doing nothing, retraining again
        return None
    card = ju.METHODS[name]
    if card.requests == "attributes":
        return "forgets attributes of all rows; the request is for rows"
    if card.targets in ("classes", "tokens") and setting.num_classes == 0:
        return "works on class probabilities or labels; the targets are real"
    if card.requests == "classes" and not on_classes:
        return "overwrites whole classes; the request is for some of their rows"
    told = {*card.search, *given(name, setting, "mlp")}
    if HELD_OUT in settings_of(name) and setting.held_out is None:
        return "needs rows that training never saw, and all of them are training or test rows"
    if IMAGE_SHAPE in settings_of(name) and jnp.ndim(setting.data.train.inputs) < 3:
        return "works on images; the inputs are none"
    unknown = [x for x, default in settings_of(name).items() if default is inspect.Parameter.empty and x not in told]
    if unknown:
        return f"needs {', '.join(unknown)}, which neither its search names nor experiments/common/methods.py"
    assert setting.model.init is not None  # studies have one
    like = jax.eval_shape(setting.model.init, jax.random.key(0))
    if AXES in settings_of(name) and not any(x.ndim == 4 for x in jax.tree.leaves(like.params)):
        return "turns convolutions, and the network has none"
    if "recollections" in card.reads:
        return "it needs a training on fixed batches by plain SGD, and a vector for every row"
    if "updates" in card.reads:
        size = seeds * setting.num_steps * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like.params))
        if size > LARGEST_RECORD:
            return f"the recorded updates would take {size / 2**30:.0f} GiB"
    return None
