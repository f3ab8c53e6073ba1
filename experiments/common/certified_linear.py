"""One row leaves a logistic regression: one noisy step, one step and noise, or an exact removal and noise."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.common.certified import accuracy, accuracy_of_releases, kernel_of
from experiments.common.data import load, subset
from jaxunlearn import certificates, convex

PAIR = (3, 8)


class Asked(Protocol):
    """What of the command line is read."""

    dataset: str
    data_dir: str | None
    epsilons: tuple[float, ...]
    draws: int
    burn_in: int
    seed: int


def linear(config: Asked) -> list[dict[str, Any]]:
    """One row leaves a logistic regression of 3 against 8."""
    dataset = load(config.dataset, config.data_dir, progress=False)
    parts = [subset(part, np.isin(part.targets, PAIR)) for part in (dataset.train, dataset.test)]
    train, test = (
        ju.Examples(convex.feature_rows(x.inputs.reshape(len(x.targets), -1)), (x.targets == PAIR[1]).astype(np.int32))
        for x in parts
    )
    data, count = ju.training_data(*train), len(train.targets)
    problem = convex.logistic(1e-6 * count)  # as the authors: 1e-6 per row in the sum
    delta, rate = 1 / count, 1 / (problem.l2 + problem.max_curvature)
    optimum, request = convex.fit(problem, data), ju.from_indices(data, [[0]])
    one, key = jax.tree.map(lambda x: x[0], request), jax.random.key(config.seed)
    alone = accuracy(kernel_of(optimum), test)
    rows: list[dict[str, Any]] = [{"method": "do nothing", "accuracy": ju.audit.Interval(*np.full(3, alone))}]

    def noisy(name, epsilon, kernel, scale):
        found = accuracy_of_releases(kernel, scale, test, draws=config.draws, seed=config.seed)
        rows.append({"method": name, "epsilon": epsilon, "noise": scale, "accuracy": found})

    unit = certificates.unlearned_mu([certificates.langevin_mu(1, count, 1.0, problem.l2, rate, 1.0)], [1], problem.l2, rate)
    learned = certificates.langevin_mu(1, count, 1.0, problem.l2, rate, 1.0)
    lanes: list[tuple[str, float, float]] = []
    stepped = jax.jit(convex.descent_to_delete(problem, steps=1))(optimum, data, one, key)
    solved = jax.jit(convex.newton_removal(problem))(optimum, data, one, key)
    for epsilon in config.epsilons:
        contraction = float(stepped.stats["contraction"])
        neel = certificates.neel_sensitivity(contraction, 1, float(stepped.stats["lipschitz"]), problem.l2, count)
        noisy("descent to delete, one step", epsilon, kernel_of(stepped), certificates.neel_scale(neel, epsilon, delta))
        noisy("delete, then noise", epsilon, kernel_of(solved), float(certificates.gaussian_scale(1e-3, epsilon, delta)))
        bound = problem.max_slope / problem.l2  # every optimum lies in this ball
        noisy("output perturbation", epsilon, kernel_of(optimum), float(certificates.gaussian_scale(2 * bound, epsilon, delta)))
        lanes.append(("langevin, exact accountant", epsilon, unit * float(certificates.gaussian_scale(1.0, epsilon, delta))))
        lanes.append(("langevin, published accountant", epsilon, published(learned, problem.l2, rate, epsilon, delta)))
    sigmas = jnp.asarray(np.repeat([sigma for _, _, sigma in lanes], config.draws))
    keys = jax.random.split(key, len(sigmas))

    def learn_and_remove(sigma, key):
        first, second = jax.random.split(key)
        begun = convex.langevin(problem, sigma=sigma, steps=config.burn_in)(optimum, data, ju.empty_request(), first).variables
        return convex.langevin(problem, sigma=sigma, steps=1)(begun, data, one, second).variables.params["kernel"]

    with jax.enable_x64(True):
        kernels = np.asarray(jax.jit(jax.vmap(learn_and_remove))(sigmas, keys))
    for (name, epsilon, sigma), own in zip(lanes, kernels.reshape(len(lanes), config.draws, *kernels.shape[1:]), strict=True):
        found = [accuracy(kernel, test) for kernel in own]
        middle = ju.audit.Interval(np.mean(found), *np.quantile(found, (0.025, 0.975)))  # type: ignore[arg-type]
        rows.append({"method": name, "epsilon": epsilon, "noise": sigma, "accuracy": middle})
    return sorted(rows, key=lambda row: (row.get("epsilon", 0), row["method"]))


def published(unit: float, convexity: float, rate: float, epsilon: float, delta: float) -> float:
    """Noise at which the published bound says epsilon, by bisection."""
    low, high = 1e-8, 1e8
    for _ in range(60):
        middle = (low * high) ** 0.5
        good = certificates.published_langevin_epsilon(unit / middle, 1, convexity, rate, delta) <= epsilon
        low, high = (low, middle) if good else (middle, high)
    return high
