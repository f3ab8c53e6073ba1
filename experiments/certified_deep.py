"""What certificates of networks are worth: accuracy at equal epsilon, epsilon at equal accuracy, beside noise alone.

    python experiments/certified_deep.py                                            # digits, offline
    python experiments/certified_deep.py --network cnn --requests 16                # a small CNN without normalisation
    python experiments/certified_deep.py --dataset mnist --data-dir DIR --parts linear     # 11,982 rows of 785, one step
    python experiments/certified_deep.py --smoke                                    # tiny, to see whether it runs

**Network.** Random requests to a trained network, each answered with a certificate of the same epsilon, and then trained on
without noise for the same number of steps. Whoever certifies has to beat two rows: output perturbation, which clips the weights
and adds noise without a look at any row, and a fresh start, which forgets everything and costs no noise. Beside them stand
frozen features of a network that was trained on half of the rows, which may never leave, with a certified convex head on the
others: nothing is trained after its noise.

**Linear.** One row leaves a logistic regression after which one step is made (Langevin unlearning and its noise in learning,
with the exact accountant and with the published one; descent-to-delete), or which is solved anew (delete, then noise). Figures
of the authors for one row and one step on MNIST: 0.911 at epsilon 1, descent-to-delete 0.597.

Written to the folder `--out`: `report.html`, `certified_deep.png`, `certified_deep.json`.
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
from experiments.common import certified_head, models, plots, script
from experiments.common.certified_linear import linear
from experiments.common.data import load
from experiments.common.report import Column, Section, Table
from experiments.common.running import timed
from experiments.common.scale import leads
from jaxunlearn import certificates

MARGIN = 1.001  # of the noise, for the rounding of settings and weights to float32
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
    Column("milliseconds", "ms per request", ".1f"),
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
    network: Literal["mlp", "cnn"] = "mlp"
    widths: tuple[int, ...] = (32,)
    """Of the MLP."""
    channels: tuple[int, ...] = (8, 16)
    """Of the CNN."""
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
    dataset = load(config.dataset, config.data_dir, max_rows=5000, progress=False)  # no scale that depends on rows
    train, test = dataset.train, dataset.test
    data = ju.training_data(*train)
    shape: dict[str, Any] = {"widths": config.widths} if config.network == "mlp" else {"channels": config.channels, "width": 32}
    model = models.build(config.network, train.inputs.shape[1:], dataset.num_classes, **shape)
    generator = np.random.default_rng(config.seed)
    lists = [generator.choice(len(train.targets), config.request_size, replace=False) for _ in range(config.requests)]
    requests, keys = ju.from_indices(data, lists), jax.random.split(jax.random.key(config.seed), config.requests)
    measure = measuring(model, data, test, requests)

    like = model.init(jax.random.key(99))  # type: ignore[misc]

    def trained(steps):
        method = ju.iterate(ju.retrain(model, adam(config, steps)), steps, batch_size=1, retain_batch_size=config.batch_size)
        asked = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:1])]), requests)  # the last request is for nothing
        many = ju.batched(method, in_axes=(None, None, 0, 0), chunk=len(keys) + 1)
        done = timed(many, like, data, asked, jax.random.split(jax.random.key(config.seed), len(keys) + 1))
        return done.result.variables, 1e3 * done.run_seconds / (len(keys) + 1)

    (with_and_without, retraining), (fresh, short) = trained(config.training_steps), trained(config.after_steps)
    original = jax.tree.map(lambda x: x[-1], with_and_without)
    without, fresh = (jax.tree.map(lambda x: x[:-1], each) for each in (with_and_without, fresh))
    rows = [
        {"method": NOTHING, **measure(jax.tree.map(lambda x: jnp.stack([x] * config.requests), original))},
        {"method": RETRAINED, "milliseconds": retraining, **measure(without)},
        {"method": FRESH, "milliseconds": short, **measure(fresh)},
    ]
    tell("head on frozen features")
    extractor = partial(certified_head.extractor, model, adam(config, config.training_steps), config)
    rows += certified_head.rows(dataset, extractor, config)
    programs: dict[Any, Any] = {}

    def program_of(each, trains):
        return programs.setdefault((each.start, trains), many_of(config, model, each, trains))

    for each in settings(config, model):
        noisy_steps = 0 if each.name == ALONE else config.noisy_steps
        for epsilon in config.epsilons:
            for norm in config.norms:
                sigma = each.sigma(norm, epsilon) * MARGIN
                results, seconds = [], []
                for after in (0, config.after_steps):
                    began = time.perf_counter()
                    call = (norm, sigma, each.decay), noisy_steps + after, original, data, requests, keys
                    results.append(jax.block_until_ready(program_of(each, after > 0 or each.name != ALONE)(*call)))
                    seconds.append(time.perf_counter() - began)  # the first call of a program is compiled, the last is not
                require_certified(jax.tree.map(lambda x: x[0], results[0]), data, requests, each, epsilon, config.delta)
                bare, found = (measure(result.variables) for result in results)
                own = {"method": each.name, "norm": norm, "epsilon": epsilon, "noise": sigma, "bare": bare["test"]}
                own["milliseconds"] = 1e3 * seconds[-1] / config.requests
                rows.append({**own, **found})
                tell(f"{each.name}, epsilon {epsilon:g}, norm {norm:g}: {float(found['test'].estimate):.1%}")
    return rows


def many_of(config: Config, model: ju.Model, each: Setting, trains: bool) -> Callable[..., ju.Result]:
    """All requests in one compiled call, for every norm, noise and number of steps; without `trains` by the method alone."""

    @jax.jit
    def call(values, steps, original, data, requests, keys):
        run = partial(
            ju.iterate, batch_size=1, retain_batch_size=config.batch_size, active_steps=steps, damaged_at=np.inf
        )  # fmt: skip
        method = each.start(*values)
        if isinstance(method, ju.Unlearner):
            method = run(method, config.noisy_steps + config.after_steps)
        elif trains:
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
    if each.name == ALONE:
        mechanism = certificates.OutputPerturbation(own_noise=True)
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


# report

NETWORK = """\
All rows of a table are certified at their epsilon against a clean algorithm, with the constants that the run enforced; the last
columns are after the training without noise, which costs nothing. A method has to do better than output perturbation and than
the fresh start, which is certified at every epsilon. The head on frozen features gets no training after its noise; its features
are those of a network that was trained on half of the rows, which nobody can ask to forget."""
LINEAR = """\
One row leaves, one step is made, delta is one over the number of rows. Intervals hold 95 % of releases. Noise is that of the
release, or sigma of a Langevin step. Output perturbation clips at the radius that holds every optimum. References differ:
Langevin and delete-then-noise compare with retraining with the same noise."""


def curves_of(rows: list[dict[str, Any]], column: str) -> Any:
    """Accuracy against epsilon, a line per method, each at its best norm."""
    best: dict[str, dict[float, float]] = {}
    for row in rows:
        if "epsilon" in row:
            own = best.setdefault(row["method"], {})
            own[row["epsilon"]] = max(own.get(row["epsilon"], 0.0), 100 * float(row[column].estimate))
    retrained = next(100 * float(row["test"].estimate) for row in rows if row["method"] == RETRAINED)
    return plots.curves(
        {name: (np.array(list(own)), np.array(list(own.values()))) for name, own in best.items()},
        x_label="epsilon", y_label="test accuracy [%]", log_x=True, level=(RETRAINED, retrained),
    )  # fmt: skip


def reported(config: Config, console: Any, rows: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """Write the page and the JSON."""
    sections, tables, extra = [], [], {}
    if "network" in rows:
        extra["useful"] = useful(rows["network"])
        pictures = [
            (curves_of(rows["network"], column), f"Best norm at every epsilon, {told}. Dashed: retrained.")
            for column, told in (("bare", "no training after"), ("test", "with the training after"))
        ]
        if leads():
            config.out.mkdir(parents=True, exist_ok=True)
            (config.out / "certified_deep.png").write_bytes(plots.to_png(pictures[0][0]))
        shown = [
            Table(NETWORK_COLUMNS, rows["network"]),
            Table(USEFUL_COLUMNS, extra["useful"], f"smallest epsilon for {SHARE:.0%}"),
        ]
        sections.append(Section("Network", NETWORK, shown, pictures))
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
