"""Predictions that no removal of a few rows of every batch can change: shares of test rows, by number of rows."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.common import certified_head, certified_network
from experiments.common.certified_network import adam, built
from experiments.common.data import Dataset, subset
from jaxunlearn import certificates

RUNS = 50  # trainings without rows, to see how much of the bounds is used


class Asked(certified_network.Asked, Protocol):
    """What of the command line is read."""

    removals: tuple[int, ...]
    stable_steps: int
    stable_rate: float


class Trained(NamedTuple):
    """What is trained on rows that may go, from where."""

    name: str
    model: ju.Model
    start: ju.Variables
    own: ju.Examples
    test: ju.Examples


def stable(dataset: Dataset, config: Asked, tell: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Half of the rows make a network and stay; some steps of SGD on the others follow, of which rows may go.

    Args:
        dataset: its training rows are split in halves, as for the head on frozen features.
        config: see `Asked`.
        tell: gets a line whenever something is done.

    Returns:
        Rows: `method`, `removals` (of every batch), `test` (share right without removals), `stable` (share certified to stay),
        `both` (right and stable), `changed` (share that some training without as many rows did change) and `width` (of
        the box, at most).

    Raises:
        AssertionError: a training left its box, or changed a stable prediction.
    """
    half = np.random.default_rng(config.seed).permutation(len(dataset.train.targets)) < len(dataset.train.targets) // 2
    public, own = subset(dataset.train, half), subset(dataset.train, ~half)
    model = built("mlp", dataset, config)
    network = certified_head.trained(model, adam(config, config.training_steps), config, public)
    features = certified_head.extractor_of(model, network)
    parts = [ju.Examples(features(part.inputs), part.targets) for part in (own, dataset.test)]
    width = parts[0].inputs.shape[1]
    head = ju.Model(_linear, ju.losses.cross_entropy)
    zeros = ju.Variables({"kernel": jnp.zeros((width, dataset.num_classes)), "bias": jnp.zeros(dataset.num_classes)})
    scale = float(np.abs(features(public.inputs)).max())  # of rows that stay
    parts = [part._replace(inputs=np.asarray(part.inputs) / scale) for part in parts]
    cases = [
        Trained("whole network, a few steps", model, network, own, dataset.test),
        Trained("head on frozen features, from zeros", head, zeros, parts[0], parts[1]),
    ]
    rows = []
    for case in cases:
        rows += _of(case, config)
        tell(f"stable predictions, {case.name}")
    return rows


def _linear(variables, inputs, *, train=False, key=None):
    return ju.Outputs(inputs @ variables.params["kernel"] + variables.params["bias"])


def _of(case: Trained, config: Asked) -> list[dict[str, Any]]:
    data, key = ju.training_data(*case.own), jax.random.key(config.seed)
    size = len(case.own.targets) // 2
    rate = config.stable_rate * (1.0 if case.model.init is not None else 10.0)  # the head starts from nothing
    shape = {"num_steps": config.stable_steps, "batch_size": size}
    batches = ju.fixed_batches(len(case.own.targets), key, **shape)
    train = ju.recollect(case.model, learning_rate=rate, vectors=False, **shape)

    @jax.jit
    def bounded(removals):
        box = certificates.reachable(
            case.model, case.start, data, batches, learning_rate=rate, removals=removals, divide="fixed"
        )  # fmt: skip
        return box, certificates.stable_predictions(case.model, box, case.test.inputs)

    @jax.jit
    def predicted(variables):
        return jnp.argmax(case.model.forward(variables, case.test.inputs).logits, axis=1)

    nominal = jax.jit(train)(case.start, data, ju.empty_request(), key).variables
    labels, rows = np.asarray(predicted(nominal)), []
    right = labels == case.test.targets
    generator = np.random.default_rng(config.seed)
    for removals in config.removals:
        box, found = jax.device_get(bounded(removals))
        certain = np.asarray(found.labels) >= 0
        changed = np.zeros(len(labels), bool)
        if removals:
            lists = [_at_most(batches, removals, generator) for _ in range(RUNS)]
            requests = ju.from_indices(data, lists)
            many = ju.batched(train, in_axes=(None, None, 0, None), chunk=RUNS)
            others = many(case.start, data, requests, key).variables
            _require_inside(box, others)
            seen = np.asarray(jax.jit(jax.vmap(predicted))(others))
            changed = (seen != labels).any(axis=0)
            if changed[certain].any() or (np.asarray(found.labels)[certain] != labels[certain]).any():
                raise AssertionError(f"{case.name}: a stable prediction changed")
        wide = max(float(np.max(high - low)) for low, high in zip(*map(jax.tree.leaves, (box.lower, box.upper)), strict=True))
        rows.append({
            "method": case.name, "removals": removals, "test": right.mean(), "stable": certain.mean(),
            "both": (certain & right).mean(), "changed": changed.mean(), "width": wide,
        })  # fmt: skip
    return rows


def _at_most(batches: Any, removals: int, generator: np.random.Generator) -> list[int]:
    """Random rows, no more than some of every batch."""
    counts, gone = np.zeros(len(batches), int), []
    places = np.asarray(batches)
    for row in generator.permutation(np.unique(places)):
        hits = (places == row).any(axis=1)
        if (counts[hits] < removals).all():
            gone.append(int(row))
            counts += hits
        if (counts == removals).all():
            break
    return gone


def _require_inside(box: certificates.Box, variables: ju.Variables) -> None:
    for low, high, found in zip(*map(jax.tree.leaves, (box.lower, box.upper, variables.params)), strict=True):
        if not ((low <= np.asarray(found, np.float64)) & (np.asarray(found, np.float64) <= high)).all():
            raise AssertionError("a training left its box")
