"""The three heads of `certified_stream.py`: rows of norm at most 1, and where their features came from."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, Protocol

import jax
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common import training
from experiments.common.certified_head import extractor_of
from experiments.common.data import Dataset, subset
from experiments.common.models import build

PAIR = (3, 8)  # the classes of the binary problem
REFUSED = "trained on forgotten rows"


class Asked(Protocol):
    """What of the command line is read."""

    problem: Literal["softmax", "binary"]
    parts: Literal["all", "features"]
    extractor_steps: int
    seed: int
    smoke: bool


class Case(NamedTuple):
    """One head: its rows, and where its features came from."""

    name: str
    train: ju.Examples  # rows of norm at most 1
    test: ju.Examples
    extractor: str  # what is declared to `certify`


def heads(config: Asked, dataset: Dataset) -> list[Case]:
    """Rows of the three heads; of a smoke run, of the first one, which needs no network.

    Networks see pixels; what they are trained on decides what may be certified.

    Binary: the other data are the other eight classes. Ten classes: a random half of the training rows, which is then not
    part of any head on features.
    """
    train, test = dataset.train, dataset.test
    if config.problem == "binary":
        train, test = (subset(part, np.isin(part.targets, PAIR)) for part in (dataset.train, dataset.test))
        others = subset(dataset.train, ~np.isin(dataset.train.targets, PAIR))
        seen = train
    else:
        half = np.random.default_rng(config.seed).permutation(len(train.targets)) < len(train.targets) // 2
        others, seen = subset(train, half), subset(train, ~half)

    def labels(part: ju.Examples) -> np.ndarray:
        return (part.targets == PAIR[1]).astype(np.int32) if config.problem == "binary" else part.targets

    def case(name: str, extractor: str, part: ju.Examples, features: Callable[[np.ndarray], np.ndarray]) -> Case:
        rows = [ju.Examples(ju.convex.feature_rows(features(x.inputs)), labels(x)) for x in (part, test)]
        return Case(name, rows[0], rows[1], extractor)

    pooled = config.problem == "softmax" and train.inputs.shape[1] > 16
    extract = partial(extractor, config, dataset.num_classes)
    pixels = case("pixels", "none", train, _halved if pooled else lambda x: x)
    if config.smoke:
        return [pixels]
    elsewhere = case("other features", "trained on other data", seen, extract(others))
    if config.parts == "features":
        return [elsewhere]
    return [pixels, elsewhere, case("own features", REFUSED, seen, extract(seen))]


def _halved(images: np.ndarray) -> np.ndarray:
    n, h, w, c = images.shape
    return images.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def extractor(config: Asked, num_classes: int, examples: ju.Examples) -> Callable[[np.ndarray], np.ndarray]:
    """Penultimate features of a network with 64 of them, trained on these examples."""
    model = build("mlp", examples.inputs.shape[1:], num_classes, widths=(128, 64))
    variables = training.train(
        model, ju.training_data(*examples), optax.adam(2e-3), num_steps=config.extractor_steps, batch_size=64,
        seeds=[config.seed], key=jax.random.key(config.seed),
    )  # fmt: skip
    forward = extractor_of(model, jax.tree.map(lambda x: x[0], variables))
    return lambda inputs: np.concatenate(
        [np.asarray(forward(part)) for part in np.array_split(inputs, 1 + len(inputs) // 4096)]
    )
