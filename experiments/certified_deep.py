"""What certificates of networks are worth: accuracy at equal epsilon, epsilon at equal accuracy, beside noise alone.

    python experiments/certified_deep.py                                            # digits, offline
    python experiments/certified_deep.py --dataset mnist --data-dir DIR --parts linear     # 11,982 rows of 785, one step
    python experiments/certified_deep.py --smoke                                    # tiny, to see whether it runs

**Network.** Random requests to a trained network, each answered with a certificate of the same epsilon, and then trained on
without noise for the same number of steps. Whoever certifies has to beat two rows: output perturbation, which clips the weights
and adds noise without a look at any row, and a fresh start, which forgets everything and costs no noise.

**Linear.** One row leaves a logistic regression after which one step is made (Langevin unlearning and its noise in learning,
with the exact accountant and with the published one; descent-to-delete), or which is solved anew (delete, then noise). Figures
of the authors for one row and one step on MNIST: 0.911 at epsilon 1, descent-to-delete 0.597.

Written to the folder `--out`: `report.html`, `certified_deep.json`.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common import models, script
from experiments.common.certified import accuracy, accuracy_of_releases, kernel_of
from experiments.common.data import load, subset
from experiments.common.report import Column, Section, Table
from jaxunlearn import certificates, convex

PAIR = (3, 8)
MARGIN = 1.0001  # of the noise, for the rounding of settings to float32
SHARE = 0.9  # of the retrained accuracy that counts as useful
ALONE, FRESH, RETRAINED, NOTHING = "output perturbation", "fresh start, as many steps", "retrained", "do nothing"
NETWORK_COLUMNS = [
    Column("method", "method"),
    Column("norm", "norm", "g"),
    Column("epsilon", "epsilon", "g"),
    Column("noise", "noise of a step", ".3g"),
    Column("bare", "test, no training after", ".1%"),
    Column("test", "test", ".1%"),
    Column("retain", "retain set", ".1%"),
    Column("forget", "forget set", ".1%"),
]
USEFUL_COLUMNS = [
    Column("method", "method"),
    Column("norm", "norm", "g"),
    Column("bare", "nothing after"),
    Column("test", "with training"),
]
LINEAR_COLUMNS = [
    Column("method", "method"),
    Column("epsilon", "epsilon", "g"),
    Column("noise", "noise", ".3g"),
    Column("accuracy", "accuracy", ".1%"),
]


@dataclass
class Config(script.OnData):
    """Command line of the script."""

    parts: Literal["all", "network", "linear"] = "all"
    epsilons: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    delta: float = 1e-5
    norms: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Radii that weights are clipped to."""
    requests: int = 64
    request_size: int = 50
    widths: tuple[int, ...] = (32,)
    training_steps: int = 600
    """Steps of training and retraining."""
    noisy_steps: int = 10
    after_steps: int = 200
    """Steps without noise behind the noisy ones, and of the fresh start."""
    batch_size: int = 64
    rate: float = 1e-2
    """First learning rate of Adam, with a cosine schedule."""
    pull: float = 1.0
    """Norm that gradients of noisy steps are clipped to."""
    draws: int = 20
    """Releases of every linear head."""
    burn_in: int = 150
    """Noisy steps of learning, from the optimum: its law is reached after few."""
    seed: int = 0
    out: Path = Path("out/certified_deep")


SMOKE: dict[str, Any] = {
    "epsilons": (1.0, 10.0), "norms": (0.1,), "requests": 2, "widths": (8,), "training_steps": 20, "after_steps": 10,
    "draws": 2, "burn_in": 5, "noisy_steps": 2,
}  # fmt: skip


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, **SMOKE)
    _, console = script.begin(config)
    began, cpu, rows = time.perf_counter(), time.process_time(), {}
    with script.progress(console, "certified_deep", 2) as advance:
        if config.parts != "linear":
            advance("network")
            rows["network"] = network(config, advance)
        advance(done=1)
        if config.parts != "network":
            advance("linear")
            rows["linear"] = linear(config)
    seconds = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    return reported(config, console, rows, seconds)


# network


class Setting(NamedTuple):
    """A method with all that a certificate rests on."""

    name: str
    start: Callable[..., Any]  # (norm, sigma, decay) -> Unlearner or UnlearnFn; the same one is compiled once
    sigma: Callable[[float, float], float]  # (norm, epsilon)
    decay: float = 0.0  # of a noisy step


def settings(config: Config, model: ju.Model) -> Iterator[Setting]:
    """All that is compared; the rate follows the norm, so that noisy steps may cross the ball once."""
    steps, delta = config.noisy_steps, config.delta
    lost = min(0.5, 2.0 / steps)

    def noisy(norm: float, sigma: float, decay: float, project: Any = "never", decreasing: bool = False):
        clip: dict[str, Any] = {} if project == "before noise" else {"gradient_norm": config.pull}
        rate = norm / (steps * config.pull)
        return ju.noisy_finetune(
            model, adam(config, config.after_steps), sigma=sigma, norm=norm, noisy_steps=steps, noisy_rate=rate,
            noisy_decay=decay / rate, project=project, decreasing=decreasing, **clip,
        )  # fmt: skip

    def alone(norm, sigma, decay):
        del decay
        return ju.output_perturbation(model, sigma=sigma, clip_norm=norm)

    def shifted(norm, epsilon, decay=0.0, profile: Any = 1.0):
        start, drift = 2 * norm, 2 * norm / steps
        return float(certificates.step_noise(start, 1 - decay, drift, epsilon, delta, num_steps=steps, profile=profile))

    def projected(norm, epsilon, **push):
        return float(certificates.projected_noise(norm, epsilon, delta, num_steps=steps, **push))

    def either(norm, epsilon):
        push = {"learning_rate": norm / (steps * config.pull), "gradient_norm": config.pull}
        return min(projected(norm, epsilon, **push), shifted(norm, epsilon))

    falling = certificates.decreasing(1 - lost, num_steps=steps)
    yield Setting(ALONE, alone, lambda norm, epsilon: float(certificates.gaussian_scale(2 * norm, epsilon, delta)))
    yield Setting("clipped gradients", noisy, shifted)
    yield Setting("clipped gradients, decay", noisy, partial(shifted, decay=lost), lost)
    decreasing = partial(noisy, decreasing=True)
    yield Setting("the same, decreasing noise", decreasing, partial(shifted, decay=lost, profile=falling), lost)
    yield Setting("model clipped, then noise", partial(noisy, project="before noise"), projected)
    yield Setting("noise, then model clipped", partial(noisy, project="after noise"), either)


def adam(config: Config, steps: int) -> optax.GradientTransformation:
    """The optimizer of everything without noise."""
    return optax.adam(optax.cosine_decay_schedule(config.rate, steps))


def network(config: Config, tell: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Every method at every epsilon and norm, for all requests in one compiled call each."""
    dataset = load(config.dataset, config.data_dir, scaling="standardise", max_rows=5000, progress=False)
    train, test = (x._replace(inputs=x.inputs.reshape(len(x.targets), -1)) for x in (dataset.train, dataset.test))
    data = ju.training_data(*train)
    model = models.build("mlp", train.inputs.shape[1:], dataset.num_classes, widths=config.widths)
    generator = np.random.default_rng(config.seed)
    lists = [generator.choice(len(train.targets), config.request_size, replace=False) for _ in range(config.requests)]
    requests, keys = ju.from_indices(data, lists), jax.random.split(jax.random.key(config.seed), config.requests)
    measure = measuring(model, data, test, requests)

    like = model.init(jax.random.key(99))  # type: ignore[misc]

    def trained(steps):
        method = ju.iterate(ju.retrain(model, adam(config, steps)), steps, batch_size=1, retain_batch_size=config.batch_size)
        asked = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:1])]), requests)  # the last request is for nothing
        many = ju.batched(method, in_axes=(None, None, 0, 0), chunk=len(keys) + 1)
        return jax.jit(many)(like, data, asked, jax.random.split(jax.random.key(config.seed), len(keys) + 1)).variables

    with_and_without = trained(config.training_steps)
    original = jax.tree.map(lambda x: x[-1], with_and_without)
    rows = [
        {"method": NOTHING, **measure(jax.tree.map(lambda x: jnp.stack([x] * config.requests), original))},
        {"method": RETRAINED, **measure(jax.tree.map(lambda x: x[:-1], with_and_without))},
        {"method": FRESH, **measure(jax.tree.map(lambda x: x[:-1], trained(config.after_steps)))},
    ]
    programs: dict[Any, Any] = {}
    for each in settings(config, model):
        program = programs.setdefault(each.start, many_of(config, model, each))
        noisy_steps = 0 if each.name == ALONE else config.noisy_steps
        for epsilon in config.epsilons:
            for norm in config.norms:
                sigma = each.sigma(norm, epsilon) * MARGIN
                results = [
                    program((norm, sigma, each.decay), noisy_steps + after, original, data, requests, keys)
                    for after in (0, config.after_steps)
                ]
                require_certified(jax.tree.map(lambda x: x[0], results[0]), data, requests, each, epsilon, config.delta)
                bare, found = (measure(result.variables) for result in results)
                own = {"method": each.name, "norm": norm, "epsilon": epsilon, "noise": sigma, "bare": bare["test"]}
                rows.append({**own, **found})
                tell(f"{each.name}, epsilon {epsilon:g}, norm {norm:g}: {float(found['test'].estimate):.1%}")
    return rows


def many_of(config: Config, model: ju.Model, each: Setting) -> Callable[..., ju.Result]:
    """All requests in one compiled call, for every norm, noise and number of steps."""

    @jax.jit
    def call(values, steps, original, data, requests, keys):
        run = partial(
            ju.iterate, batch_size=1, retain_batch_size=config.batch_size, active_steps=steps, damaged_at=np.inf
        )  # fmt: skip
        method = each.start(*values)
        if isinstance(method, ju.Unlearner):
            method = run(method, config.noisy_steps + config.after_steps)
        else:
            method = ju.then(method, run(ju.finetune(model, adam(config, config.after_steps)), config.after_steps))
        return ju.batched(method, in_axes=(None, None, 0, 0), chunk=len(keys))(original, data, requests, keys)

    return call


def measuring(model: ju.Model, data: ju.Data, test: ju.Examples, requests: ju.ForgetRequest) -> Callable[..., dict[Any, Any]]:
    """Accuracies of as many models as there are requests, with intervals over them."""

    def shares(pair):
        variables, request = pair

        def right(examples):
            return jnp.argmax(model.forward(variables, examples.inputs).logits, axis=1) == examples.targets

        own = right(data.train)
        gone = jnp.zeros(own.shape).at[request.indices].max(request.weights)
        return right(test).mean(), (own * (1 - gone)).sum() / (1 - gone).sum(), (own * gone).sum() / gone.sum()

    program = jax.jit(lambda variables: jax.lax.map(shares, (variables, requests)))

    def measure(variables):
        found = program(variables)
        limits: Any = (ju.audit.Interval(*map(float, ju.audit.t_interval(x))) for x in found)  # type: ignore[arg-type]
        return dict(zip(("test", "retain", "forget"), limits, strict=True))

    return measure


def require_certified(
    result: ju.Result, data: ju.Data, requests: ju.ForgetRequest, each: Setting, epsilon: float, delta: float
) -> None:
    """Stop unless the run is certified at the epsilon of its row."""
    mechanism: Any = certificates.NoisyFinetune()
    if each.name == ALONE:  # the statistics of both parts have a prefix
        mechanism = certificates.OutputPerturbation(own_noise=True)
        result = result._replace(stats={name.split("/")[-1]: value for name, value in result.stats.items()})
    certificate = certificates.certify_run(
        result, data, jax.tree.map(lambda x: np.asarray(x)[0], requests),
        mechanism=mechanism, epsilon=epsilon, delta=delta, extractor="none", adaptive=False, secret_key=True,
    )  # fmt: skip
    if not certificate.valid:
        raise SystemExit(f"{each.name}: {[one for one in certificate.assumptions if not one.holds]}")


def useful(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Smallest epsilon of the grid at which a method keeps most of the retrained accuracy."""
    least = SHARE * float(next(row for row in rows if row["method"] == RETRAINED)["test"].estimate)
    found = []
    for method, norm in dict.fromkeys((row["method"], row["norm"]) for row in rows if "norm" in row):
        own = [row for row in rows if (row["method"], row.get("norm")) == (method, norm)]

        def first(column, own=own):
            enough = [row["epsilon"] for row in own if float(row[column].estimate) >= least]
            return f"{min(enough):g}" if enough else "none"

        found.append({"method": method, "norm": norm, "bare": first("bare"), "test": first("test")})
    return found


# linear


def linear(config: Config) -> list[dict[str, Any]]:
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
    rows: list[dict[str, Any]] = [{"method": NOTHING, "accuracy": ju.audit.Interval(*np.full(3, alone))}]

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


# report

NETWORK = """\
All rows of a table are certified at their epsilon against a clean algorithm, with the constants that the run enforced; the last
columns are after the training without noise, which costs nothing. A method has to do better than output perturbation and than
the fresh start, which is certified at every epsilon."""
LINEAR = """\
One row leaves, one step is made, delta is one over the number of rows. Intervals hold 95 % of releases. Noise is that of the
release, or sigma of a Langevin step. Output perturbation clips at the radius that holds every optimum. References differ:
Langevin and delete-then-noise compare with retraining with the same noise."""


def reported(config: Config, console: Any, rows: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """Write the page and the JSON."""
    sections, tables, extra = [], [], {}
    if "network" in rows:
        extra["useful"] = useful(rows["network"])
        shown = [
            Table(NETWORK_COLUMNS, rows["network"]),
            Table(USEFUL_COLUMNS, extra["useful"], f"smallest epsilon for {SHARE:.0%}"),
        ]
        sections.append(Section("Network", NETWORK, shown))
        tables += shown
    if "linear" in rows:
        sections.append(Section("Linear", LINEAR, [Table(LINEAR_COLUMNS, rows["linear"])]))
        tables.append(Table(LINEAR_COLUMNS, rows["linear"]))
    summary = script.summary_of(config, **rows, **extra, seconds=seconds)
    return script.finish(
        config,
        console,
        "certified_deep",
        summary,
        title="Certificates of networks",
        intro=NETWORK,
        sections=sections,
        tables=tables,
    )  # fmt: skip


if __name__ == "__main__":
    script.run(main, Config, __doc__)
