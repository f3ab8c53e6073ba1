"""Frozen features with a certified head: the features know half of the rows, which stay; the head forgets any of the others."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common import training
from experiments.common.certified import accuracy, kernel_of
from experiments.common.data import Dataset, subset
from experiments.common.running import timed
from jaxunlearn import certificates, convex

HEAD, REFIT = "frozen features, certified head", "frozen features, head trained anew"
SENSITIVITY = 1e-3  # largest distance to the retrained head that counts as removed


class Asked(Protocol):
    """What of the command line is read."""

    epsilons: tuple[float, ...]
    delta: float
    requests: int
    request_size: int
    training_steps: int
    batch_size: int
    seed: int


def trained(model: ju.Model, optimizer: optax.GradientTransformation, config: Asked, examples: ju.Examples) -> ju.Variables:
    """A network that is trained on examples that may never be asked to go; steps, batch size and seed are those of `config`."""
    variables = training.train(
        model, ju.training_data(*examples), optimizer, num_steps=config.training_steps, batch_size=config.batch_size,
        seeds=[config.seed], key=jax.random.key(config.seed),
    )  # fmt: skip
    return jax.tree.map(lambda x: x[0], variables)


def extractor_of(model: ju.Model, variables: ju.Variables) -> Callable[[np.ndarray], np.ndarray]:
    """Inputs to penultimate features."""
    return jax.jit(lambda inputs: model.forward(variables, inputs, train=False).features["penultimate"])


def rows(
    dataset: Dataset, model: ju.Model, optimizer: optax.GradientTransformation, config: Asked, l2: float = 1e-2
) -> list[dict[str, Any]]:
    """All requests side by side, each certified at every epsilon, and the same heads trained anew.

    Args:
        dataset: half of its training rows make the features, the other half are asked to go.
        model, optimizer: of the training of the features.
        config: see `Asked`.
        l2: of the head, for a mean loss.

    Returns:
        Rows with the columns of `certified_deep`; accuracies are those of released heads, one draw of the noise per request.

    Raises:
        SystemExit: a certificate is void.
    """
    half = np.random.default_rng(config.seed).permutation(len(dataset.train.targets)) < len(dataset.train.targets) // 2
    features = extractor_of(model, trained(model, optimizer, config, subset(dataset.train, half)))
    own, test = (
        ju.Examples(convex.feature_rows(features(part.inputs)), part.targets)
        for part in (subset(dataset.train, ~half), dataset.test)
    )
    problem, data = convex.softmax(l2, dataset.num_classes), ju.training_data(*own)
    head = convex.fit(problem, data)
    generator, size = np.random.default_rng(config.seed), min(config.request_size, len(own.targets) // 2)
    requests = ju.from_indices(data, [generator.choice(len(own.targets), size, replace=False) for _ in range(config.requests)])
    keys = jax.random.split(jax.random.key(config.seed), config.requests)
    methods = convex.woodbury_removal(problem, steps=4), convex.refit(problem)
    shared = jax.jit(ju.prepare(methods[0]))(head, data, keys[0])
    answers, milliseconds = [], []
    for method, chunk in zip(methods, (config.requests, 1), strict=True):
        done = timed(ju.batched(method, chunk=chunk), head, shared, requests, keys)
        answers.append(ju.check(done.result))
        milliseconds.append(1e3 * done.cpu_seconds / config.requests)
    removed, anew = jax.device_get(answers)  # an entry of float64 stays float64 on the host

    def measured(result, noise):
        kernels = kernel_of(result) + noise * np.random.default_rng(config.seed + 1).normal(size=kernel_of(result).shape)
        found = []
        for kernel, gone in zip(kernels, np.asarray(requests.indices)[:, :size], strict=True):
            parts = test, subset(own, np.setdiff1d(np.arange(len(own.targets)), gone)), subset(own, gone)
            found.append([accuracy(kernel, part) for part in parts])
        limits: Any = (ju.audit.Interval(*map(float, ju.audit.t_interval(x))) for x in np.array(found).T)  # type: ignore[arg-type]
        return dict(zip(("test", "retain", "forget"), limits, strict=True))

    table = [{"method": REFIT, "milliseconds": milliseconds[1], **measured(anew, 0.0)}]
    for place in range(config.requests):
        result, request = jax.tree.map(lambda x, place=place: x[place], (removed._replace(extra={}), requests))
        certificate = certificates.certify(
            result, data, request, problem=problem, epsilon=config.epsilons[0], delta=config.delta,
            extractor="trained on other data", adaptive=False, mechanism=certificates.DeleteThenNoise(SENSITIVITY),
        )  # fmt: skip
        if not certificate.valid:
            raise SystemExit(f"{HEAD}: {[each for each in certificate.assumptions if not each.holds]}")
    for epsilon in config.epsilons:  # what is certified is a distance, the same for every epsilon
        noise = float(certificates.gaussian_scale(SENSITIVITY, epsilon, config.delta))
        found = measured(removed, noise)
        own_row = {"method": HEAD, "norm": None, "epsilon": epsilon, "noise": noise, "milliseconds": milliseconds[0]}
        table.append({**own_row, "bare": found["test"], **found})
    return table
