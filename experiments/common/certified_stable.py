"""Predictions that no removal of a few rows of every batch can change: shares of test rows, by number of rows."""

import itertools
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
    stable_rates: tuple[float, ...]


class Trained(NamedTuple):
    """What is trained on rows that may go, from where."""

    name: str
    model: ju.Model
    start: ju.Variables
    own: ju.Examples
    test: ju.Examples


def stable(dataset: Dataset, config: Asked, tell: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Half of the rows make a network and stay; some steps of SGD on the others follow, of which rows may go.

    Training goes on from the network that the rows which stay have made, its head alone or all of it.

    Args:
        dataset: its training rows are split in halves, as for the head on frozen features.
        config: see `Asked`.
        tell: gets a line whenever something is done.

    Returns:
        Rows: `method`, `rate`, `removals` (of every batch), `test` (share right without removals), `stable` (share certified
        to stay), `both` (right and stable), `changed` (share that some training without as many rows did change) and `width`
        (of the box, at most; None where there is no bound).

    Raises:
        AssertionError: a training left its box, or changed a stable prediction.
    """
    half = np.random.default_rng(config.seed).permutation(len(dataset.train.targets)) < len(dataset.train.targets) // 2
    public, own = subset(dataset.train, half), subset(dataset.train, ~half)
    model = built("mlp", dataset, config)
    network = certified_head.trained(model, adam(config, config.training_steps), config, public)
    features = certified_head.extractor_of(model, network)
    parts = [ju.Examples(features(part.inputs), part.targets) for part in (own, dataset.test)]
    assert model.head is not None  # models of the experiments have one
    kernel, bias = model.head.get(network)
    head, begun = ju.Model(_linear, ju.losses.cross_entropy), ju.Variables({"kernel": kernel, "bias": bias})
    cases = [
        Trained("head on frozen features", head, begun, *parts),
        Trained("whole network", model, network, own, dataset.test),
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
    shape = {"num_steps": config.stable_steps, "batch_size": len(case.own.targets) // 2}
    batches = ju.fixed_batches(len(case.own.targets), key, **shape)

    @jax.jit
    def bounded(removals, rate):
        box = certificates.reachable(
            case.model, case.start, data, batches, learning_rate=rate, removals=removals, divide="fixed"
        )  # fmt: skip
        return box, certificates.stable_predictions(case.model, box, case.test.inputs)

    @jax.jit
    def without(requests, rate):
        train = ju.recollect(case.model, learning_rate=rate, vectors=False, **shape)
        many = ju.batched(train, in_axes=(None, None, 0, None), chunk=RUNS)
        found = many(case.start, data, requests, key).variables
        return found, jax.vmap(lambda one: jnp.argmax(case.model.forward(one, case.test.inputs).logits, axis=1))(found)

    generator, rows = np.random.default_rng(config.seed), []
    capacity = max(1, max(config.removals)) * config.stable_steps
    for rate, removals in itertools.product(config.stable_rates, config.removals):
        box, found = jax.device_get(bounded(removals, rate))
        lists = [_at_most(batches, removals, generator) for _ in range(RUNS)]
        others, seen = jax.device_get(without(_requests(data, lists, capacity), rate))
        _require_inside(box, others)
        labels, bound = seen[0], np.asarray(found.labels)  # the first request is for nothing
        right, certain = labels == case.test.targets, bound >= 0
        if (seen != bound)[:, certain].any():
            raise AssertionError(f"{case.name}: a stable prediction changed")
        ends = zip(*map(jax.tree.leaves, (box.lower, box.upper)), strict=True)
        width = max(float(np.max(high - low)) for low, high in ends)
        rows.append({
            "method": case.name, "rate": rate, "removals": removals, "test": right.mean(), "stable": certain.mean(),
            "both": (certain & right).mean(), "changed": (seen != labels).any(axis=0).mean(),
            "width": width if np.isfinite(width) else None,
        })  # fmt: skip
    return rows


def _requests(data: ju.Data, lists: list[list[int]], capacity: int) -> ju.ForgetRequest:
    """Requests of one capacity; the first is for nothing."""
    asked = ju.from_indices(data, [one or [0] for one in lists], capacity=capacity)
    weights = np.array(asked.weights)
    weights[0] = 0
    weights[[not one for one in lists]] = 0
    return asked._replace(weights=weights)


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
        wide = np.asarray(found, np.float64)
        if ((wide < low) | (wide > high)).any():  # NaN says that there is no bound
            raise AssertionError("a training left its box")
