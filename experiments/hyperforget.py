"""Does a diffusion over weights forget a class? HyperForget beside retrained models, and whether it does what it is told.

    python experiments/hyperforget.py                                                       # digits, offline
    python experiments/hyperforget.py --smoke                                               # tiny, to see whether it runs

Many small networks are trained, retrained without each class, and led away from each class by steps, with checkpoints on the
way. A hypernetwork learns from pairs of them to make one from the other, told the losses of both. It then answers requests for
every class from networks that it has not seen: all requests and samples in one compiled call. Asked for a range of losses, the
losses of what it makes say whether it can be steered. A reconstruction, see `jaxunlearn.hyperforget`. Written to the folder
`--out`: `report.html` with the plots, `hyperforget.json`.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float

import jaxunlearn as ju
from experiments.common import checkpoints, denoiser, models, plots, script, training
from experiments.common.outcome import AGAIN, NOTHING, RETRAINED
from experiments.common.report import Column, Section, Table
from experiments.common.running import Run, Timed, reusable
from experiments.common.study import Study, overfitted
from jaxunlearn import hypernetworks

LAYERS = (("Dense_0/kernel", "Dense_0/bias"), ("head/kernel", "head/bias"))
ONE = "hyperforget, one sample"
COLUMNS = [
    Column("method", "method"),
    Column("forget", "forget acc.", ".1%"),
    Column("retain", "retain acc.", ".1%"),
    Column("test", "test acc., other classes", ".1%"),
    Column("unseen", "test acc., the class", ".1%"),
    Column("auc", "attack AUC", ".3f"),
    Column("milliseconds", "ms/request", ".1f"),
]
COST_COLUMNS = [Column("what", "what"), Column("seconds", "seconds", ".2f"), Column("retrainings", "in retrainings", ".2f")]
ALIGNMENT_COLUMNS = [Column("loss", "prompted loss"), Column("r2", "R2, mean", ".2f"), Column("worst", "R2, worst", ".2f")]


@dataclass
class Config(script.OnData):
    """Command line of the script."""

    rows: int = 1000
    """Training rows."""
    draw: int = 0
    """Seed of the training rows and of everything else."""
    units: int = 10
    """Hidden units of the networks."""
    training_steps: int = 300
    """Steps of training and retraining."""
    checkpoints: int = 8
    """Networks that are kept of a run."""
    seeds: int = 60
    """Runs that the hypernetwork learns from, each with its retrainings and unlearnings."""
    originals: int = 4
    """Runs that it has not seen; their networks are unlearned from."""
    classes: int = 10
    """Requests, one class each."""
    lambdas: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Weights of the forget set where a network is led away from it."""
    unlearning_steps: int = 40
    """Steps that lead away."""
    most_loss: float = 12.0
    """Networks whose loss on the forget set is beyond it are left out."""
    width: int = 64
    """Of the hypernetwork."""
    blocks: int = 3
    """Of the hypernetwork."""
    hyper_steps: int = 10_000
    """Steps of its training."""
    hyper_batch: int = 64
    """Pairs of networks in a step."""
    diffusion_steps: int = 1000
    """Of its training."""
    sampling_steps: int = 50
    """So many of them are taken to sample."""
    samples: int = 8
    """Networks that are sampled for a request."""
    forget_prompt: float = 5.0
    """Loss on the forget set that is asked for, in nats."""
    prompts: int = 10
    """Prompts that the alignment is measured with."""
    out: Path = Path("out/hyperforget")


SMOKE: dict[str, Any] = {
    "rows": 100, "units": 4, "training_steps": 4, "checkpoints": 2, "seeds": 2, "originals": 2, "classes": 2, "lambdas": (1.0,),
    "unlearning_steps": 2, "width": 8, "blocks": 1, "hyper_steps": 3, "hyper_batch": 4, "diffusion_steps": 25,
    "sampling_steps": 3, "samples": 2, "prompts": 2,
}  # fmt: skip


class World(NamedTuple):
    """What all parts of the script share."""

    config: Config
    mesh: Mesh | None
    setting: Study
    like: ju.Variables
    requests: ju.ForgetRequest
    runs: checkpoints.Runs  # of the originals
    again: Float[Any, "s r v"]  # retrained with other seeds

    def lanes(self) -> tuple[np.ndarray, np.ndarray]:
        """The original and the request of every answer."""
        seed, request = np.indices((self.config.originals, self.config.classes))
        return seed.ravel(), request.ravel()

    def key(self, number: int) -> jax.Array:
        """Key of one part of the script."""
        return jax.random.fold_in(jax.random.key(self.config.draw), number)


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, **SMOKE)
    if config.originals < 2:
        raise SystemExit("--originals must be at least 2: intervals are taken over them")
    mesh, console = script.begin(config)
    with script.progress(console, "hyperforget", 6) as advance:
        advance("training, retraining and unlearning networks")
        began = time.perf_counter()
        world, pairs = prepared(config, mesh)
        seconds = {"checkpoints": time.perf_counter() - began}
        advance("training the hypernetwork", done=2)
        made, losses = trained(world, pairs)
        seconds["training of the hypernetwork"] = time.perf_counter() - began - seconds["checkpoints"]
        advance("sampling", done=2)
        least = least_retained(pairs)
        several, one = (sampler(world, made, count) for count in (config.samples, 1))
        ends = world.runs.trained[:, -1]
        prompts = np.tile(np.array([least, config.forget_prompt], np.float32), (len(world.lanes()[0]), 1))
        answers = {name: asked(world, run, ends, [prompts]) for name, run in (("hyperforget", several), (ONE, one))}
        advance("asking for other losses", done=1)
        aligned = {name: alignment(world, one, least, name) for name in ("forget", "retain")}
        advance("auditing", done=1)
        rows = audited(world, answers)
    seconds["a request"] = answers["hyperforget"].run_seconds / answers["hyperforget"].result.status.size
    return reported(world, console, rows, aligned, seconds, losses, answers)


def prepared(config: Config, mesh: Mesh | None) -> tuple[World, denoiser.Pairs]:
    """All networks; pairs of those that the hypernetwork learns from."""
    setting = overfitted(
        config.dataset,
        config.data_dir,
        num_rows=config.rows,
        label_noise=0.0,
        num_steps=config.training_steps,
        seed=config.draw,
    )
    shape, data = setting.data.train.inputs.shape[1:], setting.data
    setting = setting._replace(model=models.build("mlp", shape, setting.num_classes, widths=(config.units,)))
    requests = ju.from_classes(data, [[label] for label in range(config.classes)], num_classes=setting.num_classes)
    plan = checkpoints.Plan(
        optax.adam(5e-3), config.training_steps, setting.batch_size, max(config.training_steps // config.checkpoints, 1),
        config.lambdas, config.unlearning_steps, 5e-3, config.most_loss,
    )  # fmt: skip
    like, chunk = training.form(setting.model), config.scale.chunk
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.draw), 0), config.seeds + 2 * config.originals)
    runs = checkpoints.train_all(setting.model, like, data, requests, keys, plan, chunk=chunk, mesh=mesh)
    ends = config.seeds, config.seeds + config.originals
    seen, held = (
        checkpoints.Runs(runs.trained[part], runs.retrained[part], runs.seconds_per_run)
        for part in (slice(ends[0]), slice(*ends))
    )
    world = World(config, mesh, setting, like, requests, held, runs.retrained[ends[1] :, :, -1])
    tails = checkpoints.unlearn_all(
        setting.model, variables_of(like, seen.trained[:, -1]), data, requests, world.key(1), plan, chunk=chunk, mesh=mesh
    )
    return world, checkpoints.paired(setting.model, like, data, seen, tails, plan, setting.num_classes)


def variables_of(like: ju.Variables, vectors: Float[Any, "n v"]) -> ju.Variables:
    """Networks of vectors, stacked."""
    return like._replace(params=jax.vmap(lambda x: hypernetworks.to_params(x, like.params))(jnp.asarray(vectors)))


def least_retained(pairs: denoiser.Pairs) -> float:
    """The least loss on all other classes among the goals, which is what is asked for."""
    goals, labels = np.unique(np.concatenate(pairs.kinds)[:, 1:], axis=0).T
    found = jax.vmap(lambda losses, label: denoiser.sides(losses, jnp.asarray(pairs.counts), label)[0])
    return float(jnp.min(found(jnp.asarray(pairs.losses)[goals], jnp.asarray(labels))))


def trained(world: World, pairs: denoiser.Pairs) -> tuple[hypernetworks.Hypernetwork, np.ndarray]:
    """The hypernetwork, which samples in fewer steps than it was trained with, and the losses of its training."""
    config, params = world.config, world.like.params
    sizes = denoiser.Sizes(config.width, config.blocks)
    made = denoiser.create(pairs, params, LAYERS, sizes, num_steps=config.diffusion_steps, key=world.key(2))
    made, losses = denoiser.train(
        made, pairs, params, LAYERS, num_steps=config.hyper_steps, batch_size=config.hyper_batch, learning_rate=1e-3,
        key=world.key(3),
    )  # fmt: skip
    assert made.schedule is not None
    return made._replace(schedule=hypernetworks.respaced(made.schedule, config.sampling_steps)), np.asarray(losses)


def sampler(world: World, made: hypernetworks.Hypernetwork, count: int) -> Run:
    """The method with so many samples, and prompts for each answer; compiled once."""

    def answered(variables: ju.Variables, data: ju.Data, asked: Any, key: jax.Array) -> ju.Result:
        request, (retain, forget) = asked
        unlearn = ju.hyperforget(
            world.setting.model, hypernetwork=made, forget_prompt=forget, retain_prompt=retain, num_samples=count
        )
        return unlearn(variables, data, request, key)

    return reusable(answered, in_axes=(0, None, 0, 0), chunk=world.config.scale.chunk, mesh=world.mesh)


def asked(world: World, run: Run, starts: Float[Any, "s v"], prompts: Sequence[Float[Any, "l 2"]]) -> Timed:
    """Every request to every original, in one call for each row of prompts; results [prompts, originals x classes]."""
    seed, request = world.lanes()
    variables, requests = variables_of(world.like, starts[seed]), jax.tree.map(lambda x: x[request], world.requests)
    keys = jax.random.split(world.key(4), len(seed))
    return run([(variables, world.setting.data, (requests, tuple(part.T)), keys) for part in prompts])


class Alignment(NamedTuple):
    """Losses that were asked for and those of what was made, [originals, classes, prompts], and how well they agree."""

    prompts: Float[Any, "s r m"]
    observed: Float[Any, "s r m"]
    r2: Float[Any, "s r"]


def alignment(world: World, run: Run, least: float, side: str) -> Alignment:
    """One sample for each of some prompts, evenly spaced.

    For the forget set they run from the loss of the original to the one that is asked for, with the least loss on the others.
    For the retain set a network of an early checkpoint is to lose up to all that can be lost, and on the class in proportion.
    """
    config, setting, (seed, request) = world.config, world.setting, world.lanes()
    starts = world.runs.trained[:, -1 if side == "forget" else 0]
    losses = checkpoints.class_losses(setting.model, world.like, setting.data, starts, setting.num_classes)
    counts = jnp.asarray(np.bincount(np.asarray(setting.data.train.targets), minlength=setting.num_classes))
    both = jax.vmap(lambda losses, label: denoiser.sides(losses, counts, label))
    before = np.asarray(both(jnp.asarray(losses)[seed], jnp.asarray(request)))
    if side == "forget":
        first = np.stack([np.full(len(seed), least), before[:, 1]], axis=1)
        last = np.full_like(first, config.forget_prompt) * [0, 1] + first * [1, 0]
    else:
        first, last = 0.9 * before, before * (least / before[:, :1])
    prompts = np.linspace(first, last, config.prompts, dtype=np.float32)
    found = asked(world, run, starts, list(prompts)).result.stats[f"{side}_losses"][..., 0]
    wanted, observed = (x.T.reshape(config.originals, config.classes, -1) for x in (prompts[..., int(side == "forget")], found))
    return Alignment(wanted, observed, r_squared(wanted, observed))


def r_squared(prompts: Float[Any, "... m"], observed: Float[Any, "... m"]) -> Float[Any, "..."]:
    """Prompt alignment of G.pt: `1 - sum (l - l*)^2 / sum (l* - mean l*)^2`."""
    spread = np.sum((prompts - prompts.mean(axis=-1, keepdims=True)) ** 2, axis=-1)
    return 1 - np.sum((observed - prompts) ** 2, axis=-1) / (spread + 1e-8)


def audited(world: World, answers: dict[str, Timed]) -> list[dict[str, Any]]:
    """Accuracies of every kind of network, with intervals over originals and classes."""
    config, setting = world.config, world.setting
    seed, request = world.lanes()
    unseen = jax.nn.one_hot(setting.test.targets, setting.num_classes).T

    def one(variables, asked, weights):
        found = ju.audit.outcome(setting.model, variables, setting.data, asked, setting.test, unseen_weights=weights)
        count, own = len(setting.test.targets), jnp.sum(weights)
        return found._replace(test=(found.test * count - found.unseen * own) / (count - own))

    measure = jax.jit(jax.vmap(one))
    networks = {
        NOTHING: variables_of(world.like, world.runs.trained[seed, -1]),
        **{name: jax.tree.map(lambda x: x[0], done.result.variables) for name, done in answers.items()},
        AGAIN: variables_of(world.like, world.again[seed, request]),
        RETRAINED: variables_of(world.like, world.runs.retrained[seed, request, -1]),
    }
    asked, weights = jax.tree.map(lambda x: x[request], world.requests), unseen[request]
    milliseconds = {name: 1e3 * done.run_seconds / len(seed) for name, done in answers.items()}
    milliseconds |= {RETRAINED: 1e3 * world.runs.seconds_per_run}
    rows = []
    for name, variables in networks.items():
        found = jax.tree.map(lambda x: x.reshape(config.originals, config.classes), measure(variables, asked, weights))
        values = {key: ju.audit.crossed_interval(x, within=(0, 1)) for key, x in found._asdict().items()}
        rows.append({"method": name, **values, "milliseconds": milliseconds.get(name)})
    return rows


INTRO = """\
A hypernetwork samples whole networks by diffusion over their weights, told what losses on the forget set and on the retain set
they shall have. It is trained on networks that saw the forget set, so to hand it on is no unlearning, and what it samples
starts from a network that saw it too. Nothing is guaranteed, and nothing here reproduces published numbers: the method is
reconstructed from an abstract and from the code that it extends."""
READING = """\
Retrained networks are the aim; those of another seed are what can be hoped for. All of them are networks that the hypernetwork
was not trained on."""
STEERED = """\
Prompt alignment of G.pt: 1 where what is made has the losses that were asked for, 0 where their mean would do as well."""
COSTS = """\
Networks and hypernetwork are made once for all requests of these classes; a retraining is one of those that were made side by
side. Times are by the wall clock; what is done once includes compilation."""


def reported(
    world: World, console: Any, rows: list[dict[str, Any]], aligned: dict[str, Alignment], seconds: dict[str, float],
    losses: np.ndarray, answers: dict[str, Timed],
) -> dict[str, Any]:  # fmt: skip
    """Write the page and the JSON."""
    config, one = world.config, world.runs.seconds_per_run
    costs = [{"what": name, "seconds": x, "retrainings": x / one} for name, x in {**seconds, "a retraining": one}.items()]
    agreed = [{"loss": name, "r2": x.r2.mean(), "worst": x.r2.min()} for name, x in aligned.items()]
    status = answers["hyperforget"].result.status
    sound = int(np.sum(status == ju.Status.OK))
    caption = f"{config.originals} originals, {config.classes} classes; 95 % intervals over both"
    tables = [
        Table(COLUMNS, rows, caption),
        Table(ALIGNMENT_COLUMNS, agreed, f"{config.prompts} prompts for each original and class, one sample each"),
        Table(COST_COLUMNS, costs, "cost"),
    ]
    bars = {row["method"]: {x: row[x] for x in ("forget", "retain", "test")} for row in rows}
    curve = {"loss": (np.arange(len(losses)), losses)}
    sections = [
        Section("Accuracies", READING, [tables[0]], [(plots.accuracy_bars(bars), "Accuracy beside that of retrained ones.")]),
        Section("Prompts", STEERED, [tables[1]], [(steered(x), f"Loss on the {name} set.") for name, x in aligned.items()]),
        Section("Cost", COSTS, [tables[2]], [
            (plots.curves(curve, x_label="step", y_label="loss", log_y=True), "Training of the hypernetwork."),
        ]),
    ]  # fmt: skip
    found = {
        "accuracies": [
            {key: [float(x) for x in value] if isinstance(value, ju.audit.Interval) else value for key, value in row.items()}
            for row in rows
        ],
        "alignment": {
            name: {key: np.round(value, 4).tolist() for key, value in x._asdict().items()} for name, x in aligned.items()
        },
        "seconds": seconds,
        "seconds_per_retraining": one,
        "status_ok": [sound, int(status.size)],
        "parameters": int(world.runs.trained.shape[-1]),
        "hypernetwork_loss": [float(x.mean()) for x in np.array_split(losses, min(10, len(losses)))],
    }
    return script.finish(
        config, console, "hyperforget", script.summary_of(config, **found), title="jaxunlearn: HyperForget", intro=INTRO,
        sections=sections, tables=tables, notes=[f"{sound} of {status.size} answers have status OK"],
    )  # fmt: skip


def steered(found: Alignment) -> Any:
    """What was made against what was asked for, in the mean, with the range of the middle 80 %."""
    wanted = found.prompts.mean(axis=(0, 1))
    band = np.quantile(found.observed, 0.1, axis=(0, 1)), np.quantile(found.observed, 0.9, axis=(0, 1))
    lines = {"made": (wanted, found.observed.mean(axis=(0, 1))), "asked for": (wanted, wanted)}
    return plots.curves(lines, x_label="prompt [nats]", y_label="loss [nats]", bands={"made": band})


if __name__ == "__main__":
    script.run(main, Config, __doc__)
