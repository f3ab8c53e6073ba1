"""Does an encoder unlearn how to complete images of a class? I2I beside retrained models, its baselines and a proxy retain set.

    python experiments/image_to_image.py                                                    # digits, offline
    python experiments/image_to_image.py --smoke                                            # tiny, to see whether it runs

Small networks learn to fill a hole in the middle of images. Every class is one request, answered for all originals and classes
in one batched call, and retrained without the class. Held-out images of the class and of the others say what became of
completions: error in the hole, Frechet distance in the features of a classifier, and whether what is drawn looks like its own
class. A proxy retain set holds half of the other classes; the other half is what it is judged by. Written to the folder
`--out`: `report.html` with images, `image_to_image.json`.
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
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

import jaxunlearn as ju
from experiments.common import completion, models, plots, script, training
from experiments.common.data import load
from experiments.common.outcome import AGAIN, NOTHING, RETRAINED
from experiments.common.report import Column, Section, Table
from experiments.common.running import Timed, reusable
from jaxunlearn import passes
from jaxunlearn.sampling import masked_mean

I2I, PROXY, LOSS = "image_to_image", "image_to_image, proxy", "largest loss"
LABEL, RANDOM, RETAIN = "noisy label", "random embedding", "retain embedding"
COLUMNS = [
    Column("method", "method"),
    Column("forget", "error, the class", ".3f"),
    Column("forget_times", "times do nothing", ".2f"),
    Column("others", "error, other classes", ".3f"),
    Column("others_times", "times do nothing", ".2f"),
    Column("judged_times", "those in no proxy, times do nothing", ".2f"),
]
LOOKS = [
    Column("method", "method"),
    Column("forget_frechet", "Frechet, the class", ".1f"),
    Column("others_frechet", "Frechet, other classes", ".2f"),
    Column("forget_same", "own class drawn, the class", ".1%"),
    Column("others_same", "own class drawn, other classes", ".1%"),
]
TIMES = [Column("how", "how"), Column("milliseconds", "ms a request", ".1f")]


@dataclass
class Config(script.OnData):
    """Command line of the script."""

    rows: int | None = None
    """Training rows; all by default."""
    classes: int = 10
    """Requests, one class each."""
    seeds: int = 3
    """Original models; seeds of training."""
    hole: int = 3
    """Side of the hole, in pixels."""
    width: int = 128
    """Of the hidden layers of encoder and decoder."""
    code: int = 32
    """Numbers of an embedding."""
    training_steps: int = 500
    """Steps of training and retraining."""
    unlearning_steps: int = 150
    """Steps of every method."""
    learning_rate: float = 2e-3
    """The first one of the cosine schedule of every method, with AdamW."""
    weight_decay: float = 1e-4
    """Of AdamW; the decoder must stay as it is all the same."""
    alpha: float = 0.25
    """Weight of the forget set."""
    batch_size: int = 64
    """Rows of the forget set in a step, and of training."""
    retain_batch_size: int = 128
    """Rows of the retain set in a step."""
    baselines: bool = True
    """Run the baselines of the paper too."""
    out: Path = Path("out/image_to_image")


SMOKE: dict[str, Any] = {
    "rows": 200, "classes": 2, "seeds": 2, "width": 8, "code": 4, "training_steps": 3, "unlearning_steps": 2, "batch_size": 8,
    "retain_batch_size": 8, "baselines": False,
}  # fmt: skip


class World(NamedTuple):
    """What all parts of the script share."""

    config: Config
    mesh: Mesh | None
    data: ju.Data
    test: ju.Examples
    num_classes: int
    completer: completion.Completer
    requests: ju.ForgetRequest  # one entry per lane, as below
    seed: np.ndarray  # of the original of every lane
    label: np.ndarray  # that every lane forgets

    def judged(self, labels: np.ndarray) -> np.ndarray:
        """Which rows are of a class that neither a lane nor its proxy retain set shows: the first half of those that follow."""
        steps = (labels - self.label[:, None]) % self.num_classes
        return (steps > 0) & (steps <= (self.num_classes - 1) // 2)

    def key(self, number: int) -> jax.Array:
        """Key of one part of the script."""
        return jax.random.fold_in(jax.random.key(0), number)


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, **SMOKE)
    mesh, console = script.begin(config)
    began, started = time.process_time(), time.perf_counter()
    with script.progress(console, "image_to_image", 3) as advance:
        advance("training and retraining")
        world = prepared(config, mesh)
        originals, retrained = trained(world)
        advance("unlearning", done=1)
        answers = unlearned(world, originals)
        times = one_by_one(world, originals, answers[I2I])
        advance("judging completions", done=1)
        starts = jax.tree.map(lambda x: np.asarray(x)[world.seed], originals)
        networks = {NOTHING: starts, **{name: x.result.variables for name, x in answers.items()}, **retrained}
        drawn = {name: completions(world, variables) for name, variables in networks.items()}
        features, right = classifier(world)
        found = judged(world, drawn, features)
    before, after = (jax.tree.leaves(networks[x].params["decoder"]) for x in (NOTHING, I2I))
    same = all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
    seconds = {"cpu": time.process_time() - began, "wall": time.perf_counter() - started}
    return reported(world, console, drawn, found, answers, times, same, right, seconds)


def prepared(config: Config, mesh: Mesh | None) -> World:
    """Images, requests and the network."""
    loaded = load(config.dataset, config.data_dir)
    train = jax.tree.map(lambda x: x[: config.rows], loaded.train)
    shape = train.inputs.shape[1:]
    completer = completion.build(shape, hole=config.hole, width=config.width, code=config.code)
    data = ju.training_data(*train)
    requests = ju.from_classes(data, [[label] for label in range(config.classes)], num_classes=loaded.num_classes)
    seed, label = (x.ravel() for x in np.indices((config.seeds, config.classes)))
    lanes = jax.tree.map(lambda x: np.asarray(x)[label], requests)
    return World(config, mesh, data, loaded.test, loaded.num_classes, completer, lanes, seed, label)


def trained(world: World) -> tuple[ju.Variables, dict[str, ju.Variables]]:
    """The originals; for every lane a model retrained without its class, and another one."""
    config, model = world.config, world.completer.model
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.training_steps))
    originals = training.train(
        model, world.data, optimizer, num_steps=config.training_steps, batch_size=config.batch_size, seeds=range(config.seeds),
        key=world.key(0),
    )  # fmt: skip
    once = ju.iterate(ju.retrain(model, optimizer), config.training_steps, batch_size=config.batch_size)
    run = reusable(once, chunk=config.scale.chunk, mesh=world.mesh)
    keys = [jax.random.split(world.key(number), len(world.seed)) for number in (1, 2)]
    found = run([(training.form(model), world.data, world.requests, key) for key in keys]).result.variables
    return originals, {name: jax.tree.map(lambda x, at=at: x[at], found) for at, name in enumerate((AGAIN, RETRAINED))}


def i2i(world: World, **options: Any) -> Callable[[optax.GradientTransformation], ju.Unlearner]:
    """The method with the settings of the script."""
    parts = world.completer
    kept = {"encode": parts.encode, "decode": parts.decode, "corrupt": parts.corrupt, "low": 0.0, "high": 1.0}
    return lambda optimizer: ju.image_to_image(parts.model, optimizer, alpha=world.config.alpha, **kept, **options)


def noisy_label(world: World) -> Callable[[optax.GradientTransformation], ju.Unlearner]:
    """Baseline: the whole model learns to complete the forget set to noise."""
    model, alpha = world.completer.model, world.config.alpha

    def objective(variables, context, batch, key):
        key, noise_key = jax.random.split(key)
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn="retain")
        images = batch.forget.examples.inputs
        noise = jnp.clip(jnp.mean(images) + jnp.std(images) * jax.random.normal(noise_key, images.shape), 0, 1)
        wrong = model.loss(forget.outputs, batch.forget.examples._replace(inputs=noise))
        return retain.loss + alpha * masked_mean(wrong, batch.forget.weights, empty=0), (moved.state, {})

    return lambda optimizer: ju.descend(model, optimizer, objective)


def finished(config: Config, method: Callable[[optax.GradientTransformation], ju.Unlearner]) -> ju.UnlearnFn:
    """A method with the optimizer and the steps of the script."""
    rate = optax.cosine_decay_schedule(config.learning_rate, config.unlearning_steps)
    optimizer = optax.adamw(rate, weight_decay=config.weight_decay)
    return ju.iterate(
        method(optimizer), config.unlearning_steps, batch_size=config.batch_size, retain_batch_size=config.retain_batch_size
    )


def unlearned(world: World, originals: ju.Variables) -> dict[str, Timed]:
    """Every method on every lane. The proxy retain set is the half of the other classes that is not judged."""
    config, model = world.config, world.completer.model
    labels = np.asarray(world.data.train.targets)
    everything = np.ones((len(world.seed), len(labels)), np.float32)
    proxies = 1 - world.judged(labels).astype(np.float32)
    baselines = {
        RANDOM: i2i(world, target="random embedding"),
        RETAIN: i2i(world, target="retain embedding"),
        LABEL: noisy_label(world),
        LOSS: lambda optimizer: ju.gradient_difference(model, optimizer, alpha=1 / (1 + config.alpha)),
    }
    starts = jax.tree.map(lambda x: np.asarray(x)[world.seed], originals)
    keys = jax.random.split(world.key(3), len(world.seed))
    answers = {}
    for name, method in {I2I: i2i(world), **(baselines if config.baselines else {})}.items():
        axes = 0, ju.Data(None, 0, None), 0, 0
        run = reusable(finished(config, method), in_axes=axes, chunk=config.scale.chunk, mesh=world.mesh)
        for title, present in {name: everything, **({PROXY: proxies} if name == I2I else {})}.items():
            done = run([(starts, world.data._replace(present=present), world.requests, keys)])
            answers[title] = done._replace(result=jax.tree.map(lambda x: x[0], done.result))
    return answers


def one_by_one(world: World, originals: ju.Variables, together: Timed) -> dict[str, float]:
    """Milliseconds per request in the batched call, and in a loop of jitted calls for the first original."""
    single, count = jax.jit(finished(world.config, i2i(world))), world.config.classes
    variables = jax.tree.map(lambda x: jnp.asarray(x[0]), originals)
    requests, keys = jax.tree.map(lambda x: jnp.asarray(x[:count]), world.requests), jax.random.split(world.key(4), count)
    calls = [(jax.tree.map(lambda x, at=at: x[at], requests), keys[at]) for at in range(count)]
    jax.block_until_ready(single(variables, world.data, *calls[0]))  # compiles
    began = time.perf_counter()
    jax.block_until_ready([single(variables, world.data, *call) for call in calls])
    devices = 1 if world.mesh is None else world.mesh.size
    return {
        f"one batched call on {devices} device{'s' * (devices > 1)}": 1e3 * together.run_seconds / len(world.seed),
        "a loop of jitted calls on one": 1e3 * (time.perf_counter() - began) / count,
    }


def completions(world: World, variables: ju.Variables) -> Float[np.ndarray, "l n h w c"]:
    """Held-out images as every lane completes them."""
    model, images = world.completer.model, jnp.asarray(world.test.inputs)
    return np.asarray(jax.jit(jax.vmap(lambda x: model.forward(x, images).logits))(variables))


def judged(
    world: World, drawn: dict[str, Float[np.ndarray, "l n h w c"]], features: Callable[[Any], np.ndarray]
) -> dict[str, dict[str, Float[Array, "s r"]]]:
    """Figures of every kind of network, by original and class."""
    real, labels = np.asarray(world.test.inputs), np.asarray(world.test.targets)
    own, unshown = labels == world.label[:, None], world.judged(labels)
    inside = np.broadcast_to(world.completer.hole, real.shape[1:])
    known, shown = np.asarray(world.data.train.inputs)[:, inside], np.asarray(world.data.train.targets)
    found: dict[str, dict[str, Any]] = {}
    for name, images in drawn.items():
        error = np.mean((images - real)[:, :, inside] ** 2, axis=2)
        seen = [features(x) for x in images]
        drawn_class = [completion.classes_of_neighbours(x[:, inside], known, shown) for x in images]
        figures: dict[str, list] = {x: [] for x in ("forget", "others", "judged", *(y.key for y in LOOKS[1:]))}
        for lane in range(len(images)):
            for side, rows in (("forget", own[lane]), ("others", ~own[lane]), ("judged", unshown[lane])):
                figures[side].append(error[lane, rows].mean())
                if side != "judged":
                    figures[f"{side}_frechet"].append(completion.frechet(seen[lane][rows], features(real[rows])))
                    figures[f"{side}_same"].append(np.mean(drawn_class[lane][rows] == labels[rows]))
        found[name] = {x: np.reshape(y, (world.config.seeds, world.config.classes)) for x, y in figures.items()}
    for figures in found.values():
        figures |= {f"{side}_times": figures[side] / found[NOTHING][side] for side in ("forget", "others", "judged")}
    return found


def classifier(world: World) -> tuple[Callable[[Any], np.ndarray], float]:
    """Features of a small classifier trained on real images, and its accuracy on held-out ones."""
    model = models.build("mlp", world.data.train.inputs.shape[1:], world.num_classes, widths=(64, 16))
    steps = {"num_steps": world.config.training_steps, "batch_size": world.config.batch_size}
    fitted = training.train(model, world.data, optax.adam(2e-3), seeds=[0], key=world.key(5), **steps)
    variables = jax.tree.map(lambda x: x[0], fitted)
    predict = jax.jit(lambda x: model.forward(variables, x))
    right = jnp.mean(jnp.argmax(predict(world.test.inputs).logits, axis=1) == world.test.targets)
    return lambda images: np.asarray(predict(images).features["penultimate"], float), float(right)


INTRO = """\
An encoder learns to take images of one class for noise. It is an eraser of what looks like that class, with no guarantee: the
decoder still knows how to draw it, and completions that are visibly spoilt tell what was forgotten. All figures are of held-out
images, in the hole alone."""
ERRORS = """\
Mean squared error in the hole, pixels in [0, 1]. Retrained models guess from the other classes; networks that were unlearned
draw one greyish patch. A proxy retain set shows half of the other classes; the last column is of the other half."""
LOOKING = """\
Frechet distance of completed images to the real ones in the features of a classifier, small where they look alike. Own class
drawn: five nearest holes of real training images agree with the class; of real holes {real:.1%} do. The classifier is right
about {right:.1%} of held-out images."""
SEEN = """\
Every column of the first figure is a request of its own, for the class that is shown. In the second one all networks forget
class 0."""


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at and what was reached, in the mean over originals and classes."""
    own, proxy, retrained = found[I2I], found[PROXY], found[RETRAINED]
    lower = float(np.mean(own["forget"] < retrained["forget"]))
    values = [
        ("error of the class, times do nothing, at least 3", own["forget_times"].mean(), 3.0, True),
        ("error of the class, times that of retrained models, at least 1",
         own["forget"].mean() / retrained["forget"].mean(), 1.0, True),
        ("error of other classes, times do nothing, at most 1.1", own["others_times"].mean(), 1.1, False),
        ("proxy: error of classes not shown, times that with the real retain set, at most 1.5",
         (proxy["judged"] / own["judged"]).mean(), 1.5, False),
    ]  # fmt: skip
    rows = [
        {"target": name, "value": float(x), "reached": "yes" if (x >= limit) == above or x == limit else "no"}
        for name, x, limit, above in values
    ]
    return [*rows, {"target": "share of answers whose class is completed better than by the retrained model", "value": lower}]


def grids(world: World, drawn: dict[str, Any]) -> list[tuple[Any, str]]:
    """Images of the classes that are forgotten, and of others, completed by several networks of the first original."""
    real, labels = np.asarray(world.test.inputs), np.asarray(world.test.targets)
    first = [int(np.flatnonzero(labels == label)[0]) for label in range(world.num_classes)]
    shown = [NOTHING, I2I, PROXY, RETRAINED]

    def grid(lanes: list[int], rows: list[int]) -> Any:
        damaged = np.where(world.completer.hole, 0.5, real[rows])
        lines = {"original": real[rows], "damaged": damaged, **{name: drawn[name][lanes, rows] for name in shown}}
        return plots.image_grid({name: x.mean(axis=-1) for name, x in lines.items()}, [str(labels[row]) for row in rows])

    classes = list(range(world.config.classes))
    others = list(range(1, world.num_classes))
    order = f"From top to bottom: original, damaged, completed by {', '.join(shown)}."
    return [
        (grid(classes, [first[x] for x in classes]), f"Images of the forgotten class. {order}"),
        (grid([0] * len(others), [first[x] for x in others]), f"Images of other classes, where class 0 is forgotten. {order}"),
    ]


def reported(
    world: World, console: Any, drawn: dict[str, Any], found: dict[str, Any], answers: dict[str, Timed],
    times: dict[str, float], same: bool, right: float, seconds: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Write the page and the JSON."""
    config = world.config
    inside = np.broadcast_to(world.completer.hole, world.test.inputs.shape[1:])
    holes = [np.asarray(x.inputs)[:, inside] for x in (world.test, world.data.train)]
    targets_seen, targets_held = (np.asarray(x.targets) for x in (world.data.train, world.test))
    real = completion.classes_of_neighbours(holes[0], holes[1], targets_seen) == targets_held
    words = LOOKING.format(real=real.mean(), right=right)
    order = [NOTHING, *answers, AGAIN, RETRAINED]
    intervals = {
        x: {
            key: ju.audit.crossed_interval(value, within=(0, 1 if key.endswith("_same") else np.inf))
            for key, value in found[x].items()
        }
        for x in order
    }
    rows = [{"method": x, **intervals[x]} for x in order]
    reached = targets(found)
    clocks = [{"how": name, "milliseconds": x} for name, x in times.items()]
    caption = f"{config.seeds} originals, {config.classes} classes; 95 % intervals over both"
    tables = [
        Table(COLUMNS, rows, caption),
        Table(LOOKS, rows, caption),
        Table([Column("target", "target"), Column("value", "reached", ".2f"), Column("reached", "target met")], reached),
        Table(TIMES, clocks, "compilation apart"),
    ]
    sections = [
        Section("Completions", SEEN, figures=grids(world, drawn)),
        Section("Errors", ERRORS, [tables[0]]),
        Section("Looks", words, [tables[1]]),
        Section("Targets", tables=[tables[2]]),
        Section("Time", tables=[tables[3]]),
    ]
    status = np.concatenate([x.result.status for x in answers.values()])
    summary = script.summary_of(
        config,
        figures={x: {key: [float(y) for y in value] for key, value in intervals[x].items()} for x in order},
        by_class={x: {key: np.round(found[x][key].mean(axis=0), 4).tolist() for key in ("forget", "others")} for x in order},
        targets=reached,
        milliseconds={x["how"]: x["milliseconds"] for x in clocks},
        milliseconds_batched={name: 1e3 * x.run_seconds / len(world.seed) for name, x in answers.items()},
        decoder_unchanged=same,
        real_holes_of_their_class=float(real.mean()),
        status_ok=[int(np.sum(status == ju.Status.OK)), int(status.size)],
        seconds=seconds,
    )
    return script.finish(
        config, console, "image_to_image", summary, title="jaxunlearn: image completion", intro=INTRO, sections=sections,
        tables=tables, notes=[f"{summary['status_ok'][0]} of {status.size} answers have status OK",
                              f"decoders unchanged bit for bit: {same}"],
    )  # fmt: skip


if __name__ == "__main__":
    script.run(main, Config, __doc__)
