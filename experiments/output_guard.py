"""What a guard at the output keeps of its promises: budgets calibrated on some prompts, answers to others.

    python experiments/output_guard.py                                                      # digits, offline
    python experiments/output_guard.py --smoke                                              # tiny, to see whether it runs

A guard lets a generator try until a verifier accepts. **It suppresses outputs and removes nothing**: the generator stays as it
is. Two generators: one says one of ten tokens, and its verifier errs as often as it is told; the other draws images of digits
from a Gaussian for each class, a linear verifier looks at them, and a judge that it does not know, the nearest neighbour
among other images, says what was shown. Ten requests, one token or one digit each, are calibrated and answered side by
side: prompts that ask for it (forget), prompts that hardly do (retain), and harder ones than those of the calibration
(shifted). Written to the folder `--out`: `report.html` with the plots, `output_guard.json`.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

import jaxunlearn as ju
from experiments.common import data, plots, script
from experiments.common.report import Column, Section, Table
from experiments.common.running import timed
from jaxunlearn import guards

NUM_CHOICES = 10
KINDS = ("forget", "retain")  # groups, each with its own budget
MEANS = ("coverage", "violations", "refused", "refused_alike", "shifted")
VARIANTS = ("in the mean", "with confidence")
MASS = {"forget": 0.4, "retain": -3.5, "shifted": 2.0}  # log odds of what is not to be shown; those of prompts vary around it
COMPONENTS = 16  # of images, for the generator
SHRINKAGE = 0.1  # of the covariance that the verifier uses
COLUMNS = [
    Column("world", "generator"),
    Column("variant", "calibrated"),
    Column("budget", "budget, mean", ".1f"),
    Column("promised", "promised", ".1%"),
    Column("coverage", "accepted within it", ".1%"),
    Column("least", "least of the requests", ".1%"),
    Column("tries", "tries, mean", ".2f"),
    Column("tail", "tries, 95th percentile", ".0f"),
    Column("shifted", "accepted, shifted prompts", ".1%"),
    Column("refused", "refused, retain prompts", ".1%"),
    Column("refused_alike", "the same, budget of the forget prompts", ".2%"),
]
ERROR_COLUMNS = [
    Column("world", "generator"),
    Column("variant", "calibrated"),
    Column("unguarded", "violations, no guard", ".1%"),
    Column("violations", "violations, guarded", ".2%"),
    Column("most", "most of the requests", ".2%"),
    Column("beta", "their bound, mean", ".2%"),
    Column("above", "requests above their bound", ".0f"),
    Column("satisfied", "right answers", ".1%"),
    Column("least_satisfied", "at least, by the bound", ".1%"),
]


@dataclass
class Config(script.Base):
    """Command line of the script."""

    requests: int = 10
    """Tokens, or digits, that are not to be shown; at most 10."""
    calibration: int = 299
    """Calibration prompts of each kind."""
    labelled: int = 500
    """Runs that the judge labels, for the bound on the verifier's error."""
    prompts: int = 1000
    """Test prompts of each kind and request."""
    max_tries: int = 20
    """Tries on calibration prompts."""
    alpha: float = 0.1
    """Share of prompts that may be refused."""
    confidence: float = 0.9
    """That the coverage is at least 1 - alpha, in the second variant; also of the bounds on errors."""
    false_accepts: float = 0.02
    """Share of the tokens to be suppressed that their verifier accepts."""
    false_rejects: float = 0.05
    """Share of the other tokens that it rejects."""
    seed: int = 0
    """Of everything."""
    out: Path = Path("out/output_guard")


class World(NamedTuple):
    """A generator with its verifier and its judge; a prompt is `(logits [10], what is not to be shown [])`."""

    generator: Callable[[Any, Any, PRNGKeyArray], tuple[PyTree, Any]]
    verifier: Callable[[Any, PyTree], Bool[Array, ""]]
    violates: Callable[[PyTree, Int[Array, ""]], Bool[Array, ""]]
    refusal: PyTree


def tokens(config: Config) -> World:
    """One of ten tokens; luck that nothing else depends on decides where the verifier errs."""

    def generator(prompt, state, key):
        token, luck = jax.random.split(key)
        return (jax.random.categorical(token, prompt[0]), jax.random.uniform(luck)), state

    def verifier(prompt, output):
        token, luck = output
        return jnp.where(token == prompt[1], luck < config.false_accepts, luck >= config.false_rejects)

    return World(generator, verifier, lambda output, shown: output[0] == shown, (-1, 0.0))


def digits(config: Config) -> World:
    """Images from a Gaussian for each class, a linear verifier, the nearest neighbour as judge: each from rows of its own."""
    loaded = data.load("digits", seed=config.seed)
    images = np.concatenate([x.inputs for x in (loaded.train, loaded.test)]).reshape(-1, 64)
    labels = np.concatenate([x.targets for x in (loaded.train, loaded.test)])
    parts = np.random.default_rng(config.seed).permutation(len(labels)) % 3
    means, spreads, middle, basis = gaussians(images[parts == 0], labels[parts == 0])
    weights, bias = discriminant(images[parts == 1], labels[parts == 1])
    known, names = jnp.asarray(images[parts == 2]), jnp.asarray(labels[parts == 2])

    def generator(prompt, state, key):
        label, noise = jax.random.split(key)
        shown = jax.random.categorical(label, prompt[0])
        latent = means[shown] + spreads[shown] @ jax.random.normal(noise, (COMPONENTS,))
        return jnp.clip(middle + basis @ latent, 0, 1), state

    def verifier(prompt, image):
        return jnp.argmax(image @ weights + bias) != prompt[1]

    def violates(image, shown):
        return names[jnp.argmin(jnp.sum(known**2, axis=1) - 2 * known @ image)] == shown

    return World(generator, verifier, violates, 0.0)


def gaussians(images: Float[Any, "n p"], labels: Int[Any, " n"]) -> tuple[Array, Array, Array, Array]:
    """Means [c, q] and factors [c, q, q] of the classes in principal components; mean and basis of those [p], [p, q]."""
    middle = images.mean(axis=0)
    basis = np.linalg.svd(images - middle, full_matrices=False)[2][:COMPONENTS].T
    latent = [(images[labels == label] - middle) @ basis for label in range(NUM_CHOICES)]
    factors = [np.linalg.cholesky(np.cov(x.T) + 1e-6 * np.eye(COMPONENTS)) for x in latent]
    found = np.stack([x.mean(axis=0) for x in latent]), np.stack(factors), middle, basis
    means, spreads, middle, basis = (jnp.asarray(x, jnp.float32) for x in found)
    return means, spreads, middle, basis


def discriminant(images: Float[Any, "n p"], labels: Int[Any, " n"]) -> tuple[Array, Array]:
    """Weights [p, c] and biases [c] of a linear discriminant with a shrunk covariance."""
    means = np.stack([images[labels == label].mean(axis=0) for label in range(NUM_CHOICES)])
    within = np.cov((images - means[labels]).T)
    within = (1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within))
    weights = np.linalg.solve(within, means.T)
    return jnp.asarray(weights, jnp.float32), jnp.asarray(-np.sum(means.T * weights, axis=0) / 2, jnp.float32)


Prompts = tuple[Float[np.ndarray, "r n c"], Int[np.ndarray, "r n"]]


def asked(config: Config, kind: str, generator: np.random.Generator) -> Prompts:
    """Prompts of all requests: what is not to be shown has odds around those of the kind, the others share the rest."""
    shape = (config.requests, config.prompts)
    mass = 1 / (1 + np.exp(-MASS[kind] - 0.6 * generator.normal(size=(*shape, 1))))
    own = np.eye(NUM_CHOICES, dtype=bool)[: config.requests, None]
    rest = np.exp(generator.normal(size=(*shape, NUM_CHOICES))) * ~own
    chances = np.where(own, mass, (1 - mass) * rest / rest.sum(axis=-1, keepdims=True))
    return np.log(chances).astype(np.float32), np.broadcast_to(np.arange(config.requests)[:, None], shape).astype(np.int32)


class Programs(NamedTuple):
    """Compiled once for a world; every call takes as many prompts of every request."""

    run: Callable[..., guards.Answer]  # (budgets [r], prompts, keys [r, n])
    first: Callable[..., PyTree]  # (prompts, keys): outputs without a guard
    violates: Callable[..., Bool[Array, "r n"]]  # (outputs, what is not to be shown [r, n])


def compiled(world: World) -> Programs:
    """The guard with a traced budget, the generator alone and the judge, for all prompts of all requests."""

    def one(budget, prompt, key):
        guard = guards.guarded(world.generator, verifier=world.verifier, budget=budget, refusal=world.refusal)
        return guard(prompt, key)

    def alone(prompt, key):
        return world.generator(prompt, (), key)[0]

    run = jax.jit(jax.vmap(jax.vmap(one, in_axes=(None, 0, 0))))
    return Programs(run, jax.jit(jax.vmap(jax.vmap(alone))), jax.jit(jax.vmap(jax.vmap(world.violates))))


def answered(world: World, config: Config) -> dict[str, np.ndarray]:
    """All requests: calibration, labelled runs, test; entries are [variants, requests] or [requests]."""
    run, first, violates = compiled(world)
    draws, keys = np.random.default_rng(config.seed), iter(jax.random.split(jax.random.key(config.seed), 16))

    def fresh():
        return jax.random.split(next(keys), (config.requests, config.prompts))

    def wrong(answers, shown):
        return np.asarray(answers.accepted & violates(answers.output, shown))

    most = jnp.full(config.requests, float(config.max_tries))
    times = [run(most, asked(config, kind, draws), fresh()).stopping_time[:, : config.calibration] for kind in KINDS]
    together = jnp.concatenate(times, axis=1)
    options = {"groups": jnp.repeat(jnp.arange(2), config.calibration), "num_groups": 2, "alpha": config.alpha}
    labelled, forget, retain, shifted = (asked(config, kind, draws) for kind in ("forget", "forget", "retain", "shifted"))
    trying = [fresh() for _ in range(5)]
    found = {"times": np.asarray(together), "unguarded": np.mean(violates(first(forget, trying[0]), forget[1]), axis=1)}
    variants = []
    for level in (None, config.confidence):
        budgets = jax.jit(jax.vmap(lambda x, level=level: guards.calibrate(x, confidence=level, **options)))(together)
        own, retained = guards.Budget(*(x[:, 0] for x in budgets)), guards.Budget(*(x[:, 1] for x in budgets))
        errors = wrong(run(own, labelled, trying[0]), labelled[1])[:, : config.labelled].sum(axis=1)
        beta = guards.verifier_error_bound(errors, config.labelled, confidence=config.confidence)
        answers, kept, alike, moved = (
            run(budget, prompts, key)
            for budget, prompts, key in zip(
                (own, retained, own, own), (forget, retain, retain, shifted), trying[1:], strict=True
            )
        )
        bad, covered = wrong(answers, forget[1]).mean(axis=1), jnp.mean(answers.accepted, axis=1)
        variants.append({
            "coverage": covered, "tries": answers.tries, "beta": beta, "violations": bad, "satisfied": covered - bad,
            "least_satisfied": guards.satisfied_bound(own, beta), "promised": guards.coverage(own).estimate,
            "budget": own.budget, "feasible": own.feasible, "refused": 1 - jnp.mean(kept.accepted, axis=1),
            "refused_alike": 1 - jnp.mean(alike.accepted, axis=1), "retain_budget": retained.budget,
            "shifted": jnp.mean(moved.accepted, axis=1),
        })  # fmt: skip
    return found | jax.tree.map(lambda *x: np.stack(x), *variants)


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, requests=2, calibration=60, labelled=60, prompts=60)
    if max(config.calibration, config.labelled) > config.prompts:
        raise SystemExit("--prompts must be at least --calibration and --labelled: each takes the first of so many prompts")
    if not 2 <= config.requests <= NUM_CHOICES:
        raise SystemExit(f"--requests must be from 2 to {NUM_CHOICES}: intervals are taken over them")
    _, console = script.begin(config)
    found, seconds = {}, {}
    with script.progress(console, "output_guard", 2) as advance:
        for name, make in (("tokens", tokens), ("digits", digits)):
            advance(name)
            began = time.perf_counter()
            found[name] = answered(make(config), config)
            seconds[name] = time.perf_counter() - began
            advance(done=1)
    costs = calibration_costs(config, jnp.asarray(found["tokens"]["times"]))
    rows = [row for name in found for row in described(name, found[name])]
    tables = [
        Table(
            COLUMNS,
            rows,
            f"alpha {config.alpha}, {config.calibration} calibration prompts of a kind; means over requests, 95 %",
        ),
        Table(ERROR_COLUMNS, rows, f"forget prompts, by the judge; bounds hold with probability {config.confidence}"),
    ]
    curves = [
        (coverage_curve(config, name, x["times"]), f"Stopping times of the calibration, {name}.") for name, x in found.items()
    ]
    sections = [Section("Promises", READING, tables), Section("Tries", "", [], curves)]
    records = [{key: as_json(value) for key, value in row.items()} for row in rows]
    raw = {
        name: {key: np.round(np.asarray(x, float), 5).tolist() for key, x in one.items() if key not in ("tries", "times")}
        for name, one in found.items()
    }
    summary = script.summary_of(config, means=records, requests=raw, seconds=seconds, calibration=costs)
    return script.finish(
        config, console, "output_guard", summary, title="jaxunlearn: a guard at the output", intro=INTRO, sections=sections,
        tables=tables, notes=[NOTE],
    )  # fmt: skip


def described(name: str, found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each variant: means over requests with intervals."""
    rows = []
    for place, variant in enumerate(VARIANTS):
        one = {key: x[place] for key, x in found.items() if key not in ("unguarded", "times")}
        means = {key: ju.audit.t_interval(jnp.asarray(x)) for key, x in one.items() if key in MEANS}
        plain = {key: float(one[key].mean()) for key in ("budget", "promised", "tries", "beta", "satisfied", "least_satisfied")}
        rows.append({
            "world": name, "variant": variant, **plain, **means,
            "unguarded": ju.audit.t_interval(jnp.asarray(found["unguarded"])),
            "tail": float(np.percentile(one["tries"], 95)), "least": float(one["coverage"].min()),
            "most": float(one["violations"].max()), "above": float(np.sum(one["violations"] > one["beta"])),
            "feasible": int(one["feasible"].sum()),
        })  # fmt: skip
    return rows


def calibration_costs(config: Config, times: Float[Array, "r n"]) -> dict[str, float]:
    """Milliseconds to calibrate 16 requests in one call, and in a loop of compiled calls."""
    sixteen = times[jnp.arange(16) % len(times)]
    single = jax.jit(lambda x: guards.calibrate(x, alpha=config.alpha))
    together = timed(jax.vmap(lambda x: guards.calibrate(x, alpha=config.alpha)), sixteen, repeats=20)
    alone = timed(single, sixteen[0], repeats=20)
    return {"together_ms": 1e3 * together.run_seconds, "loop_ms": 16e3 * alone.run_seconds}


def coverage_curve(config: Config, name: str, times: Float[Any, "r n"]) -> Any:
    """Share of calibration prompts that are accepted within so many tries."""
    tries = np.arange(1, config.max_tries + 1)
    parts = {"forget": times[:, : config.calibration], "retain": times[:, config.calibration :]}
    series = {kind: (tries, np.mean(part[..., None] <= tries, axis=(0, 1))) for kind, part in parts.items()}
    level = ("1 - alpha", 1 - config.alpha)
    return plots.curves(series, x_label="tries", y_label="accepted", level=level, title=name)


def as_json(value: Any) -> Any:
    """An interval as a list."""
    return [float(x) for x in value] if isinstance(value, ju.audit.Interval) else value


NOTE = "a guard suppresses outputs and removes nothing"
INTRO = """\
A guard lets a generator try until a verifier accepts, and refuses when its budget of tries is used up. It suppresses outputs
and removes nothing: the generator knows what it knew, and whoever gets at it without the guard finds all of it.

The budget is calibrated by conformal prediction, so that prompts like those of the calibration are accepted within it with the
promised probability. A reconstruction of inference-time unlearning, see `jaxunlearn.guards.guarded`."""
READING = """\
In the mean: the promise holds over calibrations, so that some requests may have less. With confidence: a request has 1 - alpha
or more with that probability. Shifted prompts ask harder than those of the calibration did: nothing is promised for them, and
it shows. Retain prompts are a group with a budget of its own, so a guard may refuse up to alpha of them; the last column is for
a guard that does not know of groups, and gives them the budget of the forget prompts.

Violations are counted by a judge that the verifier does not know. A refusal violates nothing."""


if __name__ == "__main__":
    script.run(main, Config, __doc__)
