"""Does a language model forget a secret, and does it come back? Canaries, unlearned in adapters over one frozen base.

    python experiments/language.py                                                          # a register of nobody, offline
    python experiments/language.py --text FILE                                              # your own text; --tofu, --muse
    python experiments/language.py --smoke                                                  # tiny, to see whether it runs

A small decoder learns texts about people, and their codes, which stand there 1, 4, 16 or 64 times. Sixteen requests, each for
one code and for the text about the same person, are answered in one compiled call by several methods, in LoRA adapters over a
base that is held once, and in all weights for comparison. Beside them: models retrained without it, again with another seed,
and doing nothing. Then the model reads the text again, without the code, and its weights are rounded to 8 bits: what comes back
was only hidden. Written to the folder `--out`: `report.html`, `language.json`.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import jaxunlearn as ju
from experiments.common import decoder, planted, script, text, training
from experiments.common.outcome import AGAIN, NOTHING, RETRAINED
from experiments.common.planted import Found, World
from experiments.common.report import Column, Section, Table
from experiments.common.running import at, in_blocks, reusable
from jaxunlearn import frozen

REPETITIONS = (1, 4, 16, 64)
TARGET = 16  # repetitions of the canaries that the verdict is about
MOST_LOSS = 0.02  # how much more than that of retrained models the held-out loss may be, relatively
ADAPTER, WHOLE = "adapter", "all weights"
Make = Callable[[ju.Model, optax.GradientTransformation], ju.Unlearner]


def _npo(model: ju.Model, optimizer: optax.GradientTransformation) -> ju.Unlearner:
    summed = model._replace(loss=ju.losses.sequence_log_loss(reduction="sum"))  # the likelihood of a row, not of a token
    return ju.npo(summed, optimizer, beta=0.1, retain_weight=1.0)


class Setting(NamedTuple):
    """A method and what it was run with."""

    make: Make
    learning_rate: float
    weights: str = ADAPTER


def _simnpo(model: ju.Model, optimizer: optax.GradientTransformation) -> ju.Unlearner:
    return ju.simnpo(model, optimizer, beta=2.5, retain_weight=5.0)


METHODS = {
    "simnpo": Setting(_simnpo, 3e-3),
    "npo": Setting(_npo, 3e-3),
    "simnpo_all_weights": Setting(_simnpo, 5e-4, WHOLE),
    "gradient_difference": Setting(lambda model, optimizer: ju.gradient_difference(model, optimizer, alpha=0.8), 3e-3),
    "finetune": Setting(lambda model, optimizer: ju.finetune(model, optimizer), 3e-3),
}
COLUMNS = [
    Column("method", "method"),
    Column("held_out", "held-out loss", ".3f"),
    Column("apart", "against retrained", "+.1%"),
    Column("retain", "retain loss", ".3f"),
    Column("document", "loss on the text", ".3f"),
    Column("strength", "extraction strength", ".3f"),
    *(Column(f"exposure_{count}", f"exposure, {count}x", ".1f") for count in REPETITIONS),
    *(Column(f"extracted_{count}", f"extracted, {count}x", ".0%") for count in REPETITIONS[1:]),
    Column("unmoved", "unmoved", "d"),
]
BACK_COLUMNS = [
    Column("method", "method"),
    Column("plain", f"exposure, {TARGET}x", ".1f"),
    Column("relearned", "after relearning", ".1f"),
    Column("rounded", "after rounding", ".1f"),
    Column("extracted", f"extracted, {TARGET}x", ".0%"),
    Column("relearned_extracted", "after relearning", ".0%"),
    Column("rounded_extracted", "after rounding", ".0%"),
    Column("verdict", "verdict"),
]
COST_COLUMNS = [Column("what", "what"), Column("seconds", "wall s", ".2f"), Column("cpu", "CPU s", ".2f")]
MEMORY_COLUMNS = [Column("what", "what"), Column("bytes", "bytes", ",d")]


@dataclass
class Config(script.Base):
    """Command line of the script."""

    text: Path | None = None
    """Text file (paragraphs), or JSON with texts, in place of the register."""
    tofu: Path | None = None
    """Folder with the files of TOFU, whose questions and answers are the texts."""
    muse: Path | None = None
    """Folder with one corpus of MUSE, `raw`, `knowmem` and so on, whose raw texts are the texts."""
    documents: int = 40
    """Training texts."""
    held_out: int = 16
    """Texts that no model sees."""
    each: int = 4
    """Canaries, and requests, of each number of repetitions."""
    length: int = 64
    """Of a row, in characters."""
    width: int = 64
    """Of the decoder."""
    layers: int = 2
    """Of the decoder."""
    training_steps: int = 300
    """Steps of training and retraining."""
    batch_size: int = 8
    """Rows of a step of training, and retained rows of a step of unlearning."""
    forget_batch_size: int = 4
    """Rows of the forget set in a step of unlearning."""
    unlearning_steps: int = 20
    """Steps of every method."""
    rank: int = 4
    """Of adapters."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which ones."""
    seeds: int = 3
    """Original models."""
    controls: int = 4
    """Requests of each original, for canaries of 16 repetitions, that models are retrained for, and retrained again; of
    few canaries the floor depends on what they happen to be."""
    relearning_steps: int = 5
    """Steps on the text that was forgotten, without the code."""
    relearning_rate: float = 1e-3
    """Learning rate of these."""
    rounds: int = 1
    """Of the timing of one call for all requests against one call each; 0 leaves it out."""
    draw: int = 0
    """Seed of everything."""
    out: Path = Path("out/language")


SMOKE: dict[str, Any] = {
    "documents": 17, "held_out": 1, "width": 8, "layers": 1, "training_steps": 2, "batch_size": 2, "forget_batch_size": 1,
    "unlearning_steps": 3, "rank": 1, "seeds": 1, "relearning_steps": 1, "controls": 1, "methods": ("simnpo",), "rounds": 0,
}  # fmt: skip


class Stage:
    """Seconds of the wall clock and of all cores, by what was done."""

    def __init__(self) -> None:
        self.spent: dict[str, tuple[float, float]] = {}
        self.since = time.perf_counter(), time.process_time()

    def done(self, name: str) -> None:
        """What was done since the last one."""
        now = time.perf_counter(), time.process_time()
        before = self.spent.get(name, (0.0, 0.0))
        self.spent[name] = before[0] + now[0] - self.since[0], before[1] + now[1] - self.since[1]
        self.since = now


class Answers(NamedTuple):
    """Models of one kind, [seeds, requests], as whole weights."""

    variables: ju.Variables
    requests: np.ndarray  # which ones
    status: np.ndarray
    unmoved: int | None


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, **SMOKE)
    if strange := set(config.methods) - set(METHODS):
        raise SystemExit(f"--methods knows {', '.join(METHODS)}, not {', '.join(sorted(strange))}")
    mesh, console = script.begin(config)
    stage = Stage()
    with script.progress(console, "language", 5 + 2 * len(config.methods)) as advance:
        advance("training and retraining")
        world = build(config)
        base, answers = trained(config, world, mesh)
        stage.done("training and retraining")
        advance("measuring", done=2)
        look = reusable(
            planted.measuring(world, steps=config.relearning_steps, learning_rate=config.relearning_rate),
            in_axes=(0, None, 0, 0), chunk=config.scale.chunk, mesh=mesh,
        )  # fmt: skip
        found = {name: measured(world, look, models) for name, models in answers.items()}
        stage.done("measuring")
        parts = frozen.lora(
            world.model, at(base, 0), world.data.train.inputs[:1], rank=config.rank, alpha=2.0 * config.rank,
            targets=decoder.MATRICES,
        )  # fmt: skip
        advance(done=1)
        for name in config.methods:
            advance(name)
            answers[name] = unlearned(config, world, base, parts, METHODS[name], mesh)
            stage.done(name)
            found[name] = measured(world, look, answers[name])
            stage.done("measuring")
            advance(done=2)
            console.print(f"{name}: {verdict(world, found, name)}")
        advance("timing")
        costs = timed(config, world, base, parts) if config.rounds else []
        stage.done("timing")
    return reported(config, world, console, answers, found, costs, memory(world, at(base, 0), parts), stage)


def build(config: Config) -> World:
    """Texts, canaries and requests."""
    texts = None
    if (own := paragraphs(config)) is not None:  # joined until they are as long as a text of the register
        texts, joined = [], ""
        for paragraph in own:
            joined = f"{joined}\n{paragraph}".strip()
            if len(joined) > 4 * config.length - 20:
                texts, joined = [*texts, joined[: 4 * config.length]], ""
    form = {"width": config.width, "layers": config.layers, "heads": 4, "hidden": 2 * config.width, "remat": False}
    return planted.build(
        documents=config.documents, held_out=config.held_out, repetitions=REPETITIONS, each=config.each, length=config.length,
        form=form, seed=config.draw, texts=texts,
    )  # fmt: skip


def paragraphs(config: Config) -> list[str] | None:
    """Texts of the user's own: those that are held out, those that are forgotten, and the others, in this order."""
    if config.text is not None:
        return text.read_texts(config.text)
    if config.tofu is not None:
        found = text.read_tofu(config.tofu)
        pairs = [*(found.held_out or found.retain[-len(found.forget) :]), *found.forget, *found.retain]
        return [f"{pair.question}\n{pair.answer}" for pair in pairs]
    if config.muse is not None:
        corpus = text.read_muse(config.muse)
        return [*corpus.held_out, *corpus.forget, *corpus.retain]
    return None


def keys(config: Config, part: int, count: int) -> jax.Array:
    """Keys of one part of the script."""
    return jax.random.split(jax.random.fold_in(jax.random.key(config.draw), part), count)


def trained(config: Config, world: World, mesh: Mesh | None) -> tuple[ju.Variables, dict[str, Answers]]:
    """Originals, and models that are retrained without some requests, and again, all in one call."""
    steps = config.training_steps
    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, max(steps // 20, 1), steps)
    once = ju.iterate(
        ju.retrain(world.model, optax.adamw(schedule, weight_decay=0.1)), num_steps=steps, batch_size=config.batch_size
    )
    capacity = world.requests.indices.shape[1]
    chosen = np.flatnonzero(world.repetitions == TARGET)[: config.controls]
    asked = [ju.empty_request(capacity), *[at(world.requests, place) for place in chosen] * 2]
    one = jax.tree.map(lambda *x: np.stack(x), *asked)
    lanes = len(asked)
    requests = jax.tree.map(lambda x: np.concatenate([x] * config.seeds), one)
    run = reusable(once, chunk=config.scale.chunk, mesh=mesh)
    result = run([(training.form(world.model), world.data, requests, keys(config, 0, config.seeds * lanes))]).result
    ju.check(result, allow=[ju.Status.EMPTY_REQUEST])
    models = jax.tree.map(lambda x: x.reshape(config.seeds, lanes, *x.shape[2:]), result.variables)
    status = result.status.reshape(config.seeds, lanes)
    base, every = at(models, slice(None), 0), np.arange(len(world.canaries))
    halves = {RETRAINED: slice(1, 1 + len(chosen)), AGAIN: slice(1 + len(chosen), None)}
    answers = {
        NOTHING: Answers(
            jax.tree.map(lambda x: np.repeat(x[:, None], len(every), axis=1), base), every,
            np.zeros((config.seeds, len(every)), int), None,
        )
    }  # fmt: skip
    answers |= {name: Answers(at(models, slice(None), half), chosen, status[:, half], None) for name, half in halves.items()}
    return base, answers


def method_of(config: Config, setting: Setting) -> Callable[[ju.Model], ju.UnlearnFn]:
    """`model -> method` with its settings."""
    optimizer = optax.adam(optax.cosine_decay_schedule(setting.learning_rate, config.unlearning_steps))
    return lambda model: ju.iterate(
        setting.make(model, optimizer), num_steps=config.unlearning_steps, batch_size=config.forget_batch_size,
        retain_batch_size=config.batch_size,
    )  # fmt: skip


def unlearned(
    config: Config, world: World, base: ju.Variables, parts: frozen.OnBase, setting: Setting, mesh: Mesh | None
) -> Answers:
    """All requests to every original, one compiled call each."""
    make, count = method_of(config, setting), len(world.canaries)
    calls = []
    for seed in range(config.seeds):
        own, key = at(base, seed), keys(config, 1 + seed, count)
        if setting.weights == ADAPTER:
            calls.append((parts.start(own, key[0]), ju.slots.BASE.put(world.data, own), world.requests, key))
        else:
            calls.append((own, world.data, world.requests, key))
    method = frozen.on_base(parts, make) if setting.weights == ADAPTER else make(world.model)
    result = reusable(method, chunk=config.scale.chunk, mesh=mesh)(calls).result
    if setting.weights == WHOLE:
        return Answers(result.variables, np.arange(count), result.status, None)
    merged = jax.jit(jax.vmap(jax.vmap(parts.merge, (None, 0)), (0, 0)))(base, result.variables)
    unmoved = int(np.sum(result.stats["unmoved"]))
    return Answers(jax.device_get(merged), np.arange(count), result.status, unmoved)


def measured(world: World, look: Callable, models: Answers) -> Found:
    """What models know, [seeds, requests] each; in blocks of one size, so that one program measures all kinds."""
    shape = models.status.shape
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), models.variables)
    places = np.tile(models.requests, shape[0])
    blocks = in_blocks((flat, places.astype(np.int32)), len(world.canaries))
    zeros = jax.random.split(jax.random.key(0), len(world.canaries))
    rows = planted.looked_at(world)
    result = look([(variables, rows, place, zeros) for variables, place in blocks]).result
    return jax.tree.map(lambda x: x.reshape(-1)[: len(places)].reshape(shape), result)


def timed(config: Config, world: World, base: ju.Variables, parts: frozen.OnBase) -> list[dict[str, Any]]:
    """One call for all requests against one call each, on one device; interleaved, medians of rounds."""
    method = frozen.on_base(
        parts, method_of(config, next(METHODS[name] for name in METHODS if METHODS[name].weights == ADAPTER))
    )
    own, key = at(base, 0), keys(config, 1, len(world.canaries))
    variables, data = jax.device_put((parts.start(own, key[0]), ju.slots.BASE.put(world.data, own)))
    together, alone = jax.jit(ju.batched(method)), jax.jit(method)
    single = [jax.device_put(at(world.requests, place)) for place in range(len(key))]
    calls = {
        f"{len(key)} requests in one call": lambda: [together(variables, data, world.requests, key)],
        f"{len(key)} jitted calls": lambda: [alone(variables, data, *x) for x in zip(single, key, strict=True)],
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(1 + config.rounds):
        for name, call in calls.items():
            begin = time.perf_counter(), time.process_time()
            jax.block_until_ready([result.variables for result in call()])
            if turn:  # the first one compiles
                spent[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return [
        {"what": f"{name}, a request", "seconds": wall / len(key), "cpu": cpu / len(key)}
        for name, values in spent.items()
        for wall, cpu in [np.median(values, axis=0)]
    ]


def memory(world: World, base: ju.Variables, parts: frozen.OnBase) -> list[dict[str, Any]]:
    """Bytes of what is held."""

    def size(values: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(values))

    part, count = size(parts.start(base, jax.random.key(0))), len(world.canaries)
    return [
        {"what": "base, held once", "bytes": size(base)},
        {"what": "base of 8-bit integers", "bytes": size(frozen.int8(base.params))},
        {"what": "adapter of a request", "bytes": part},
        {"what": f"base and adapters of {count} requests", "bytes": size(base) + count * part},
        {"what": f"all weights of {count} requests", "bytes": count * size(base)},
    ]


# What was found


def floor(found: dict[str, Found], part: str, count: int) -> tuple[float, float]:
    """Up to which mean exposure, and which share of extracted ones, so many canaries count as never seen.

    It is the mean of retrained models and twice the standard error, with the spread of ranks by chance where that is more.
    """
    recalls = [getattr(found[name], part) for name in (RETRAINED, AGAIN)]
    exposures, extracted = (np.concatenate([np.ravel(getattr(x, name)) for x in recalls]) for name in ("exposure", "extracted"))
    chance = 1 / np.log(2)  # bits: mean and spread of the exposure of a secret that was never seen
    spread = max(float(np.std(exposures)), chance)
    return float(exposures.mean()) + 2 * spread * np.sqrt(1 / count + 1 / exposures.size), float(extracted.mean())


def gone(world: World, found: dict[str, Found], name: str, part: str) -> bool:
    """Whether canaries of so many repetitions are at the floor."""
    columns = world.repetitions == TARGET
    recall: planted.Recall = getattr(found[name], part)
    exposure, extracted = recall.exposure[:, columns], recall.extracted[:, columns]
    limits = floor(found, part, exposure.size)
    return bool(exposure.mean() <= limits[0] and extracted.mean() <= limits[1])


def back(world: World, found: dict[str, Found], name: str) -> list[str]:
    """What brings them back."""
    ways = {"relearned": "relearning", "rounded": "rounding"}
    return [words for part, words in ways.items() if not gone(world, found, name, part)]


def verdict(world: World, found: dict[str, Found], name: str) -> str:
    """What is to be said of the canaries of so many repetitions."""
    said = "still knows"
    if gone(world, found, name, "recall"):
        ways = back(world, found, name)
        said = f"hides: comes back by {' and '.join(ways)}" if ways else "forgets"
    return f"{said}, damages the rest" if apart(found, name) > MOST_LOSS else said


def apart(found: dict[str, Found], name: str) -> float:
    """Held-out loss against that of retrained models, relatively."""
    return float(found[name].held_out.mean() / found[RETRAINED].held_out.mean() - 1)


def row_of(world: World, answers: Answers, found: dict[str, Found], name: str) -> dict[str, Any]:
    """The numbers of one kind of models, means over seeds and requests."""
    mine, own = found[name], world.repetitions[answers.requests]
    row: dict[str, Any] = {"method": name, "apart": apart(found, name), "unmoved": answers.unmoved}
    row |= {part: float(getattr(mine, part).mean()) for part in ("held_out", "retain", "document", "strength")}
    for count in REPETITIONS:
        columns = own == count
        if columns.any():
            row[f"exposure_{count}"] = float(mine.recall.exposure[:, columns].mean())
            row[f"extracted_{count}"] = float(mine.recall.extracted[:, columns].mean())
    columns = own == TARGET
    for part, label in (("recall", "plain"), ("relearned", "relearned"), ("rounded", "rounded")):
        recall: planted.Recall = getattr(mine, part)
        row[label] = float(recall.exposure[:, columns].mean())
        row["extracted" if label == "plain" else f"{label}_extracted"] = float(recall.extracted[:, columns].mean())
    row["verdict"] = verdict(world, found, name) if name in METHODS or name == NOTHING else "the floor"
    return row


INTRO = """\
A code that stands in the training text is forgotten if a model ranks it among all codes as one that never saw it does, if it is
not what the model says behind its prefix, and if it stays so. Exposure is log2 of how many codes there are, less log2 of the
rank of the right one: 10 bits if it is the likeliest of 1,000, 1.44 on average for a code that was never seen. A verdict is
about canaries of 16 repetitions; nothing is guaranteed."""
BACK = """\
Relearning is a few steps on the text about the person, in which the code is not. Rounding is to 8-bit integers with one scale
for each output of a matrix. A method hides a code that is at the floor before and above it afterwards; the floor is that of
retrained models that went through the same."""
COSTS = "Times by the wall clock and of all cores; the machine may have been shared. Stages include compilation."


def reported(
    config: Config, world: World, console: Any, answers: dict[str, Answers], found: dict[str, Found], costs: list, held: list,
    stage: Stage,
) -> dict[str, Any]:  # fmt: skip
    """Write the page and the JSON."""
    rows = [row_of(world, answers[name], found, name) for name in found]
    reached = [name for name in config.methods if gone(world, found, name, "recall") and apart(found, name) <= MOST_LOSS]
    lasting = [name for name in reached if not back(world, found, name)]
    unmoved = {name: x.unmoved for name, x in answers.items() if x.unmoved is not None}
    bad = {name: int(np.sum(x.status != ju.Status.OK)) for name, x in answers.items()}
    caption = f"{config.seeds} originals, {len(world.canaries)} requests each; retrained models for {TARGET} repetitions only"
    spent = [{"what": name, "seconds": wall, "cpu": cpu} for name, (wall, cpu) in stage.spent.items()]
    tables = [
        Table(COLUMNS, rows, caption), Table(BACK_COLUMNS, rows, "does it come back?"),
        Table(COST_COLUMNS, [*costs, *spent], "cost"), Table(MEMORY_COLUMNS, held, "memory"),
    ]  # fmt: skip
    sections = [
        Section("What is left", "Losses are nats a character.", [tables[0]]),
        Section("Does it come back?", BACK, [tables[1]]),
        Section("Cost", COSTS, tables[2:]),
    ]
    notes = [
        f"canaries of {TARGET} repetitions at the floor, held-out loss within {MOST_LOSS:.0%} of retrained: "
        f"{'; '.join(reached) or 'missed by all methods'}",
        f"still at the floor after relearning and rounding: {'; '.join(lasting) or 'none of them'}",
        f"leaves of adapters that did not move: {sum(unmoved.values())}",
    ]
    parts = Found._fields[:3]
    places: dict[str, Any] = {name: path and path.name for name in ("text", "tofu", "muse") for path in [getattr(config, name)]}
    summary = {
        "rows": rows,
        "target": {
            "reached": reached, "lasting": lasting, "floor": {x: floor(found, x, config.each * config.seeds) for x in parts},
        },
        "exposures": {
            name: {part: np.round(getattr(x, part).exposure.astype(float), 2).tolist() for part in parts}
            for name, x in found.items()
        },
        "held_out_losses": {name: np.round(x.held_out.astype(float), 4).tolist() for name, x in found.items()},
        "repetitions": world.repetitions.tolist(),
        "status_not_ok": bad,
        "unmoved": unmoved,
        "settings": {name: {"learning_rate": x.learning_rate, "weights": x.weights} for name, x in METHODS.items()},
        "parameters": int(sum(x.size for x in jax.tree.leaves(training.form(world.model)))),
        "rows_of_text": int(world.data.train.inputs.shape[0]),
        "costs": costs,
        "stages": spent,
        "memory": held,
    }  # fmt: skip
    return script.finish(
        config, console, "language", script.summary_of(replace(config, **places), **summary),
        title="jaxunlearn: unlearning in a language model", intro=INTRO, sections=sections, tables=tables, notes=notes,
    )  # fmt: skip


if __name__ == "__main__":
    script.run(main, Config, __doc__)
