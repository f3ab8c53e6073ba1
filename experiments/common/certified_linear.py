"""One row leaves a logistic regression: noisy steps, steps and noise, recollected vectors, or an exact removal and noise."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.common.certified import accuracy, kernel_of
from experiments.common.data import load, subset
from experiments.common.outcome import NOTHING
from experiments.common.running import at, timed
from jaxunlearn import certificates, convex
from jaxunlearn.certificates import Constant

PAIR = (3, 8)
L2 = 1e-6 * 11_982  # as the authors of Langevin unlearning: 1e-6 per row in a sum over the rows of MNIST
SENSITIVITY = 1e-3  # largest distance to the retrained head that counts as removed
RETRAINED = "retrained"
BATCH, FAST = 256, 2.0  # of the training whose vectors are recollected
DESCENT, REWOUND = 200, 20  # steps of the descent that is rewound, and how many are taken back


class Asked(Protocol):
    """What of the command line is read."""

    linear_dataset: str
    data_dir: str | None
    epsilons: tuple[float, ...]
    requests: int
    draws: int
    burn_in: int
    retrainings: int
    seed: int


class Answer(NamedTuple):
    """A method that answered all requests, before `publish` would add noise."""

    name: str
    results: ju.Result
    noise: Callable[[float], float]  # epsilon to deviation
    milliseconds: float
    prepared: float = 0.0  # seconds, once for all requests


def linear(config: Asked, tell: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Every method at every epsilon, on requests for one row of a logistic regression of 3 against 8.

    Rows are pixels less 1/2, of norm 1, without an intercept, and one row leaves: the setting of Chien, Wang, Chen and Li.

    Args:
        config: see `Asked`.
        tell: gets a line whenever something is done.

    Returns:
        Rows with the columns of `certified_deep`; intervals hold 95 % of releases.

    Raises:
        SystemExit: a certificate is void.
    """
    dataset = load(config.linear_dataset, config.data_dir, progress=False)
    train, test = (
        ju.Examples(convex.feature_rows(part.inputs - 0.5, intercept=False), (part.targets == PAIR[1]).astype(np.int32))
        for part in (subset(part, np.isin(part.targets, PAIR)) for part in (dataset.train, dataset.test))
    )
    data, count = ju.training_data(*train), len(train.targets)
    problem, delta = convex.logistic(L2), 1 / count
    picked = np.random.default_rng(config.seed).choice(count, config.requests, replace=False)
    requests, key = ju.from_indices(data, [[row] for row in picked], capacity=1), jax.random.key(config.seed)
    keys = jax.random.split(key, config.requests)
    optimum = convex.fit(problem, data)
    rows: list[dict[str, Any]] = []

    def answered(unlearn, variables, ready, chunk=1):
        done = timed(ju.batched(unlearn, chunk=chunk), variables, ready, requests, keys)
        return ju.check(done.result), 1e3 * done.cpu_seconds / config.requests

    def published(answer: Answer):
        kernels = kernel_of(answer.results)
        for epsilon in config.epsilons:
            noise, generator = answer.noise(epsilon), np.random.default_rng(config.seed)
            found = [accuracy(kernel + noise * generator.normal(size=kernel.shape), test) for kernel in kernels]
            rows.append(row_of(answer.name, epsilon, noise, found, answer.milliseconds, answer.prepared))
        tell(f"linear, {answer.name}")

    asked = data, requests, delta
    few = jax.tree.map(lambda x: x[: config.retrainings], (requests, keys))
    retrained = timed(ju.batched(convex.refit(problem), chunk=1), optimum, data, *few)
    retraining = 1e3 * retrained.cpu_seconds / config.retrainings
    found = [accuracy(kernel, test) for kernel in kernel_of(ju.check(retrained.result))]
    rows.append({"method": NOTHING, "test": interval([accuracy(kernel_of(optimum), test)])})
    rows.append({"method": RETRAINED, "test": interval(found), "milliseconds": retraining})
    tell("linear, retrained")

    bound = problem.max_slope / problem.l2  # every optimum lies in this ball
    still, quick = answered(ju.output_perturbation(problem.model, sigma=0.0, clip_norm=bound), optimum, data)
    published(Answer("output perturbation", still, run_noise(still, certificates.OutputPerturbation(), *asked), quick))
    # an optimum is moved by one row by 2 max_slope / (l2 (n - 1)) at most: nothing is done but noise
    stable = 2 * problem.max_slope / (problem.l2 * (count - 1))
    published(Answer("no step, then noise", still, partial(gaussian, stable, delta), quick))
    stepped, quick = answered(convex.descent_to_delete(problem, steps=1), optimum, data)
    for name, extra in descents(problem, count, delta):
        noise = extra or head_noise(stepped, problem, certificates.Neel(), *asked)
        published(Answer(name, stepped, noise, quick))
    remove = convex.woodbury_removal(problem, steps=2)
    shared = timed(ju.prepare(remove), optimum, data, key)
    solved, quick = answered(remove, optimum, shared.result, config.requests)
    noise = head_noise(solved, problem, certificates.DeleteThenNoise(SENSITIVITY), *asked)
    published(Answer("delete, then noise", solved, noise, quick, shared.cpu_seconds))

    zeros = ju.Variables({"kernel": jnp.zeros(optimum.params["kernel"].shape, jnp.float32)})
    known = {"gradient bound G": problem.max_slope, "smoothness L": problem.l2 + problem.max_curvature, "mu": problem.l2}
    slope, smooth, convexity = (Constant(value, "declared") for value in known.values())
    rate = 1 / (problem.l2 + problem.max_curvature) / 1.001
    learn = partial(ju.rewind_to_delete, problem.model, step_size=rate, undo=False)
    past = jax.jit(learn(steps=DESCENT - REWOUND))(zeros, data, ju.empty_request(), key).variables
    rewound, quick = answered(learn(steps=REWOUND), past, data)
    mechanism: Any = certificates.Rewind(smooth, slope, steps_before=DESCENT - REWOUND, convexity=convexity)
    published(Answer(f"rewind {REWOUND} of {DESCENT} steps", rewound, run_noise(rewound, mechanism, *asked), quick))
    recollect = ju.recollect(problem.model, learning_rate=FAST, num_steps=60, batch_size=min(BATCH, count // 2))
    made = timed(recollect, zeros, data, ju.empty_request(), key)
    ready = data._replace(extra=made.result.extra)
    added, quick = answered(ju.hessian_free(problem.model), made.result.variables, ready)
    mechanism = certificates.HessianFree(slope, smooth, Constant(problem.curvature_lipschitz, "declared"), convexity)
    noise = run_noise(added, mechanism, ready, *asked[1:])
    published(Answer("hessian-free", added, noise, quick, made.cpu_seconds))
    rows += noisy_steps(problem, data, requests, optimum, test, config, answered, tell)
    done = [{**row, "faster": retraining / row["milliseconds"]} if row.get("milliseconds") else row for row in rows]
    return sorted(done, key=lambda row: (row.get("epsilon", 0), row["method"]))


def noisy_steps(problem, data, requests, optimum, test, config: Asked, answered, tell) -> list[dict[str, Any]]:
    """Langevin's steps and noisy steps on fixed batches; what they learned depends on their noise, so on epsilon."""
    count, one, key = len(data.present), at(requests, 0), jax.random.key(config.seed)
    rate, delta = 1 / (problem.l2 + problem.max_curvature), 1 / count
    width = -(-count // 10)  # ten batches
    batches = -(-count // width)
    learned = partial(certificates.langevin_mu, 1, count, problem.max_slope, problem.l2, rate, 1.0)
    smallest = min(width, count - (batches - 1) * width)
    in_batches = learned(num_batches=batches, smallest_batch=smallest)
    exact = certificates.unlearned_mu([learned()], [1], problem.l2, rate)
    epoch = certificates.unlearned_mu([in_batches], [batches], problem.l2, rate)

    def scaled(mu, epsilon):
        return mu * gaussian(1.0, delta, epsilon) * (1 + 1e-6)

    kinds = {
        "langevin, exact accountant": (lambda e: scaled(exact, e), convex.langevin, {"steps": 1}, config.burn_in),
        "langevin, published accountant": (
            lambda e: published_sigma(learned(), problem.l2, rate, e, delta), convex.langevin, {"steps": 1}, config.burn_in
        ),
        "noisy descent in ten batches, one epoch": (
            lambda e: scaled(epoch, e), partial(convex.pnsgd, batch_size=width), {"epochs": 1}, -(-config.burn_in // batches)
        ),
    }  # fmt: skip
    rows = []
    for name, (sigma_of, method, length, burn_in) in kinds.items():
        sigmas = [sigma_of(epsilon) for epsilon in config.epsilons]

        def learn_and_remove(sigma, key, method=method, length=length, burn_in=burn_in):
            first, second = jax.random.split(key)
            learn = method(problem, sigma=sigma, **dict.fromkeys(length, burn_in))
            begun = learn(optimum, data, ju.empty_request(), first).variables
            return method(problem, sigma=sigma, **length)(begun, data, one, second)

        lanes = jnp.asarray(np.repeat(sigmas, config.draws))
        with jax.enable_x64(True):
            results = jax.device_get(jax.jit(jax.vmap(learn_and_remove))(lanes, jax.random.split(key, len(lanes))))
        quick = answered(method(problem, sigma=sigmas[0], **length), optimum, data)[1]
        for place, (epsilon, sigma) in enumerate(zip(config.epsilons, sigmas, strict=True)):
            own = jax.tree.map(lambda x, place=place: x[place * config.draws : (place + 1) * config.draws], results)
            run_noise(own, certificates.Langevin(), data, requests, delta)(epsilon)
            found = [accuracy(kernel, test) for kernel in kernel_of(own)]
            rows.append(row_of(name, epsilon, sigma, found, quick))
        tell(f"linear, {name}")
    return rows


def descents(problem: convex.Problem, count: int, delta: float) -> list[tuple[str, Callable[[float], float] | None]]:
    """Descent-to-delete with a constant that counts the penalty, and as the authors of Langevin unlearning count: 1."""
    smoothness = problem.l2 + problem.max_curvature
    contraction = (smoothness - problem.l2) / (smoothness + problem.l2)
    theirs = certificates.neel_sensitivity(contraction, 1, 1.0, problem.l2, count)
    told = "descent to delete, one step"
    return [(told, None), (f"{told}, constant of 1", lambda epsilon: certificates.neel_scale(theirs, epsilon, delta))]


def head_noise(results, problem, mechanism, data, requests, delta) -> Callable[[float], float]:
    """Noise that the certificate of the first request asks for."""
    one = at((results._replace(extra={}), requests), 0)

    def noise(epsilon):
        return valid(certificates.certify(
            one[0], data, one[1], problem=problem, mechanism=mechanism, epsilon=epsilon, delta=delta, extractor="none",
            adaptive=False,
        ))  # fmt: skip

    return noise


def run_noise(results, mechanism, data, requests, delta) -> Callable[[float], float]:
    """The same, of a run; a smaller epsilon where the noise for it would drown in the rounding of the weights."""
    one = at((results._replace(extra={}), requests), 0)

    def noise(epsilon):
        certificate = certificates.certify_run(
            one[0], data, one[1], mechanism=mechanism, epsilon=epsilon, delta=delta, extractor="none", adaptive=False,
            secret_key=True,
        )  # fmt: skip
        if [each.name for each in certificate.assumptions if not each.holds] == ["noise above rounding"]:
            return noise(epsilon / 2)
        return valid(certificate)

    return noise


def valid(certificate: certificates.Certificate) -> float:
    """Its noise; SystemExit where it is void."""
    if not certificate.valid:
        raise SystemExit(f"{certificate.mechanism}: {[each for each in certificate.assumptions if not each.holds]}")
    return certificate.noise_scale


def gaussian(sensitivity: float, delta: float, epsilon: float) -> float:
    """Noise of the Gaussian mechanism."""
    return float(certificates.gaussian_scale(sensitivity, epsilon, delta))


def interval(values: list[float]) -> ju.audit.Interval:
    """The mean, and the limits of 95 % of the values."""
    return ju.audit.Interval(np.mean(values), *np.quantile(values, (0.025, 0.975)))  # type: ignore[arg-type]


def row_of(name, epsilon, noise, found, milliseconds, prepared=0.0) -> dict[str, Any]:
    """A row of the table."""
    own = {"method": name, "epsilon": epsilon, "noise": noise, "test": interval(found), "milliseconds": milliseconds}
    return {**own, "prepared": prepared or None}


def published_sigma(unit: float, convexity: float, rate: float, epsilon: float, delta: float) -> float:
    """Noise at which the published bound says epsilon, by bisection."""
    low, high = 1e-8, 1e8
    for _ in range(60):
        middle = (low * high) ** 0.5
        good = certificates.published_langevin_epsilon(unit / middle, 1, convexity, rate, delta) <= epsilon
        low, high = (low, middle) if good else (middle, high)
    return high
