"""Does a class leave the outputs, or the features too? Representation Unlearning and others, beside retrained models.

    python experiments/representation.py                                                    # digits, offline
    python experiments/representation.py --dataset mnist --network cnn --rows 2000 --data-dir DIR
    python experiments/representation.py --smoke                                            # few models and steps

Some models are trained, and retrained without each class, twice with other seeds. For Representation Unlearning a sweep over
beta runs over all requests and values as one compiled call; beta is chosen on some classes and reported on the others. Then
the models of every method are looked into: probes in front of the map and behind it, neighbours, alignment, CKA with retrained
models, and the restoration test. Each measure stands on the scale of retrained models, and one word says what they tell. Random
rows are forgotten too. Written to the folder `--out`: `report.html` with the plots, `representation.json`.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float
from rich.console import Console

import jaxunlearn as ju
from experiments.common import plots, report, study, training
from experiments.common.comparison import prepared
from experiments.common.report import Column, Section, Table
from experiments.compare import Config as CompareConfig
from experiments.compare import load_settings
from jaxunlearn import features

REGIMES = ("standard", "zero_shot")
OUTPUTS = ("forget accuracy", "class test accuracy")
PEERS = ("finetune", "gradient_difference", "scrub", "ssd", "contrastive_unlearning", "dimensional_alignment")
ORIGINAL, AGAIN = "do nothing", "retrained again"


@dataclass
class Config:
    """Command line of the script."""

    dataset: str = "digits"
    """digits, or an image data set prepared by TFDS."""
    data_dir: str | None = None
    """Where TFDS finds prepared data."""
    network: str = "mlp"
    """mlp, cnn or resnet18."""
    rows: int = 1000
    """Training rows."""
    training_steps: int = 600
    """Steps of training and retraining."""
    unlearning_steps: int = 100
    """Steps of methods with a loop."""
    models: int = 10
    """Models of every kind; five seeds are the first five of them."""
    classes: int = 10
    """How many classes are asked for, one a request; the first half chooses beta, the others are reported."""
    betas: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Weights of forgetting that are tried."""
    peers: tuple[str, ...] = PEERS
    """Other methods, with the settings of experiments/configs."""
    strengths: tuple[float, ...] = (0.0, 1.0, 5.0, 10.0)
    """Of the restoration test."""
    random_rows: int = 48
    """Rows of the request for random rows."""
    deep_steps: int = 500
    """Steps of the map with a hidden layer, which must learn to reconstruct first."""
    autoencoder_steps: int = 1000
    """Steps of the sparse autoencoders."""
    seed: int = 0
    """Of rows and training."""
    chunk: int = 100
    """Rows that go through a model together while its features are prepared."""
    out: Path = Path("out/representation")
    """Folder of the results."""
    smoke: bool = False
    """Run in seconds, with too little of everything to mean anything."""


class Kind(NamedTuple):
    """Models [s] of one kind for one request, and how to see into them."""

    model: ju.Model
    variables: ju.Variables


class World(NamedTuple):
    """What every part works on."""

    config: Config
    setting: study.Study
    requests: ju.ForgetRequest  # one a class
    originals: ju.Variables  # [s]
    retrained: ju.Variables  # [s, r]
    again: ju.Variables  # [s, r]
    prepared: list[ju.Data]  # of every original


def made(config: Config) -> World:
    """Train and retrain."""
    setting = study.overfitted(
        config.dataset, config.data_dir, network=config.network, num_rows=config.rows, label_noise=0.0,
        num_steps=config.training_steps, seed=config.seed,
    )  # fmt: skip
    key = jax.random.key(config.seed)
    requests = ju.from_classes(setting.data, [[c] for c in range(config.classes)], num_classes=setting.num_classes)
    originals = setting.originals(range(config.models), jax.random.fold_in(key, 0))
    first, second = (
        study.answer(setting.retrain(), originals, setting.data, requests, jax.random.fold_in(key, place)).result.variables
        for place in (1, 2)
    )
    prepare = jax.jit(features.prepare(setting.model, chunk=config.chunk))
    ready = [prepare(at(originals, s), setting.data, key) for s in range(config.models)]
    return World(config, setting, requests, originals, first, second, ready)


def at(stacked: Any, *places: int) -> Any:
    """One entry of every leaf."""
    return jax.tree.map(lambda x: x[places], stacked)


# Accuracies


class Accuracies(NamedTuple):
    """Of models for one request each."""

    forget: Float[Array, "..."]  # training rows of the class
    forgotten_test: Float[Array, "..."]  # test rows of the class
    retain: Float[Array, "..."]  # training rows of the other classes
    test: Float[Array, "..."]  # test rows of the other classes


@cache
def accuracies(model: ju.Model) -> Callable[..., Accuracies]:
    """Compiled `(variables [s, r], classes [r], training rows, test rows) -> Accuracies`."""

    def split(variables: ju.Variables, chosen: Any, rows: ju.Examples) -> tuple[jax.Array, jax.Array]:
        logits = ju.audit.predict(model, variables, rows)
        labels = jnp.asarray(rows.targets)
        inside = (labels == chosen).astype(jnp.float32)
        return ju.audit.accuracy(logits, labels, inside), ju.audit.accuracy(logits, labels, 1 - inside)

    def one(variables: ju.Variables, chosen: Any, train: ju.Examples, test: ju.Examples) -> Accuracies:
        (forget, retain), (forgotten_test, others) = (split(variables, chosen, rows) for rows in (train, test))
        return Accuracies(forget, forgotten_test, retain, others)

    return jax.jit(jax.vmap(jax.vmap(one, (0, 0, None, None)), (0, None, None, None)))


def over_all(world: World, variables: ju.Variables) -> Accuracies:
    """Of models [s, r]."""
    setting = world.setting
    return accuracies(setting.model)(variables, jnp.arange(world.config.classes), setting.data.train, setting.test)


def sweep(world: World, regime: str) -> tuple[ju.Variables, float]:
    """Models [s, b, r] for every beta and request, and seconds of a pair."""
    model = world.setting.model

    @jax.jit
    def run(variables, data, keys):
        def one(beta):
            unlearn = ju.affine_representation_unlearning(model, beta=beta, regime=regime)  # type: ignore[arg-type]
            return ju.batched(unlearn, chunk=world.config.classes)(variables, data, world.requests, keys)

        return jax.vmap(one)(jnp.asarray(world.config.betas))

    keys = jax.random.split(jax.random.key(world.config.seed + 3), world.config.classes)
    calls = [(at(world.originals, s), world.prepared[s], keys) for s in range(world.config.models)]
    jax.block_until_ready(run(*calls[0]))
    start = time.perf_counter()
    results = jax.block_until_ready([run(*call).variables for call in calls])
    seconds = (time.perf_counter() - start) / (len(calls) * len(world.config.betas) * world.config.classes)
    return jax.tree.map(lambda *x: jnp.stack(x), *results), seconds


def chosen_beta(world: World, found: Accuracies, reference: Accuracies) -> int:
    """Place of the beta that is closest to retrained on the first half of the classes: sum of both gaps."""
    validation = slice(0, world.config.classes // 2)
    cost = sum(
        jnp.abs(jnp.mean((x - y[:, None])[:, :, validation], axis=(0, 2)))
        for x, y in ((found.forget, reference.forget), (found.test, reference.test))
    )
    return int(jnp.argmin(jnp.asarray(cost)))


# Looking into models


def seen(kind: Kind, rows: ju.Examples) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features in front of a map and behind it, and logits, of models [s]."""
    return looking(kind.model)(kind.variables, rows.inputs)


@cache
def looking(model: ju.Model) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """The program behind `seen`."""

    def one(variables, inputs):
        outputs = model.forward(variables, inputs, train=False)
        front = outputs.features["penultimate"]
        return front, outputs.features.get("mapped", front), outputs.logits

    return jax.jit(jax.vmap(one, (0, None)))


class Sight(NamedTuple):
    """What is computed once for a class."""

    request: int
    anchors: Float[Array, "a e D"]  # features of its test rows, of retrained models that serve for nothing else
    originals: Float[Array, "s e D"]  # the same of the originals
    autoencoders: ju.audit.SparseAutoencoder  # [s]
    experts: Any  # [s, width]


def sights(world: World) -> list[Sight]:
    """For every reported class."""
    setting, config = world.setting, world.config
    train, test = setting.data.train, setting.test
    kind = Kind(setting.model, world.originals)
    states, test_states = seen(kind, train)[1], seen(kind, test)[1]
    width = states.shape[-1]
    sparsity = max(1, width // 8)
    fit = partial(ju.audit.fit_sparse_autoencoder, width=width, sparsity=sparsity, num_steps=config.autoencoder_steps)
    keys = jax.random.split(jax.random.key(config.seed + 5), config.models)
    autoencoders = jax.jit(jax.vmap(fit))(states, keys)

    def chosen(autoencoder, z):
        codes = ju.audit.encode(autoencoder, z, sparsity=sparsity)
        return ju.audit.experts(codes, jnp.asarray(train.targets), num_classes=setting.num_classes)

    masks = jax.jit(jax.vmap(chosen))(autoencoders, states)
    found = []
    for request in reported(config):
        rows = np.asarray(test.targets) == request
        anchors = Kind(setting.model, jax.tree.map(lambda x, r=request: x[: config.models // 2, r], world.again))
        found.append(Sight(request, seen(anchors, test)[1][:, rows], test_states[:, rows], autoencoders, masks[:, request]))
    return found


def measured(world: World, kind: Kind, sight: Sight, lanes: slice) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every measure of models [s] for one class, a value a model, and accuracies [s, 2, a] after restoration.

    Args:
        world: what is shared.
        kind: the models.
        sight: of the class.
        lanes: which originals the models belong to.
    """
    setting, request = world.setting, sight.request
    train, test = setting.data.train, setting.test
    labels, test_labels = jnp.asarray(train.targets), jnp.asarray(test.targets)
    forgotten, asked = np.asarray(labels == request), np.asarray(test_labels == request)
    front, behind, logits = seen(kind, train)
    test_front, test_behind, test_logits = seen(kind, test)
    values: dict[str, Any] = {
        "forget accuracy": jnp.mean(jnp.argmax(logits, axis=-1)[:, forgotten] == request, axis=1),
        "class test accuracy": jnp.mean(jnp.argmax(test_logits, axis=-1)[:, asked] == request, axis=1),
    }
    probe, vote = probes(setting.num_classes)
    for place, (z, test_z) in {"in front": (front, test_front), "behind": (behind, test_behind)}.items():
        values[f"probe {place}"] = probe(z, labels, test_z, test_labels).recall[:, request]
        values[f"neighbours {place}"] = vote(z, labels, test_z[:, asked], test_labels[asked])
    values["alignment"] = aligned(behind[:, forgotten], behind[:, ~forgotten])
    values["CKA with retrained"] = similar(test_behind[:, asked], sight.anchors)
    own = jax.tree.map(lambda x: x[lanes], (sight.originals, sight.autoencoders, sight.experts))
    keys = jax.random.split(jax.random.key(request), behind.shape[0])
    heads = jax.vmap(features.without_map)(kind.variables)
    curves = restoring(setting.model, world.config.strengths)(heads, test_behind[:, asked], *own, keys, request)
    values["restored"] = curves[:, 0, world.config.strengths.index(1.0)]
    return {name: np.asarray(x) for name, x in values.items()}, np.asarray(curves)


@cache
def restoring(model: ju.Model, strengths: tuple[float, ...]) -> Callable[..., jax.Array]:
    """Accuracies [s, 2, a] of models [s] after restoration with experts, and with random features."""
    head = model.head
    assert head is not None  # networks of the experiments have one

    def one(variables, states, original, autoencoder, mask, key, request):
        curve = ju.audit.restoration_curve(
            partial(head.apply, variables), states, original, autoencoder, mask, request, key, strengths=jnp.asarray(strengths)
        )
        return jnp.stack([curve.restored, curve.random])

    return jax.jit(jax.vmap(one, (0, 0, 0, 0, 0, 0, None)))


@cache
def probes(num_classes: int) -> tuple[Callable[..., ju.audit.Probe], Callable[..., jax.Array]]:
    """A linear probe, and the accuracy of neighbours, for models [s]."""
    probe = partial(ju.audit.linear_probe, num_classes=num_classes, num_steps=50)
    vote = partial(ju.audit.knn_accuracy, num_classes=num_classes)
    return tuple(jax.jit(jax.vmap(f, (0, None, 0, None))) for f in (lambda *rows: probe(*rows), lambda *rows: vote(*rows)))  # type: ignore[return-value]


aligned = jax.jit(jax.vmap(ju.audit.dimensional_alignment_score))


@jax.jit
def similar(z: Float[Array, "s e D"], anchors: Float[Array, "a e D"]) -> Float[Array, "s"]:
    """Mean CKA of models with the anchors."""
    return jnp.mean(jax.vmap(jax.vmap(ju.audit.linear_cka, (None, 0)), (0, None))(z, anchors), axis=1)


def reported(config: Config) -> range:
    """Classes that no setting was chosen on."""
    return range(config.classes // 2, config.classes)


# Methods


def peers(world: World, console: Console) -> dict[str, ju.Variables]:
    """Models [s, r] of other methods, with the settings of experiments/configs for single classes."""
    found = {}
    config, setting = world.config, world.setting
    for name in config.peers:
        numbers, search = load_settings(CompareConfig(dataset=config.dataset), name, "class")
        if search["dataset"] != config.dataset:
            console.print(f"{name} has the settings that were searched on {search['dataset']}")
        loop = {"num_steps": config.unlearning_steps, "batch_size": setting.batch_size}
        unlearn = prepared(name, setting.model, study.unlearner(name, setting.model, **loop, **numbers))  # type: ignore[arg-type]
        key = jax.random.key(config.seed + 4)
        found[name] = study.answer(unlearn, world.originals, setting.data, world.requests, key).result.variables
    return found


def with_map(
    world: World, unlearn: Callable[[ju.Model], ju.UnlearnFn], widths: tuple[int, ...]
) -> tuple[ju.Model, ju.Variables]:
    """Models [s, r] of a method on originals that a map was inserted into, so that both sides of it can be seen."""
    config, key = world.config, jax.random.key(world.config.seed + 6)
    model, _ = ju.insert_map(world.setting.model, at(world.originals, 0), widths, key)
    inserted = jax.vmap(lambda v: ju.insert_map(world.setting.model, v, widths, key)[1])(world.originals)
    program = jax.jit(ju.batched(unlearn(model), chunk=config.classes))
    keys = jax.random.split(key, config.classes)
    results = [program(at(inserted, s), world.prepared[s], world.requests, keys) for s in range(config.models)]
    for result in results:
        ju.check(result)
    return model, jax.tree.map(lambda *x: jnp.stack(x), *[result.variables for result in results])


def random_rows(world: World, beta: float) -> list[dict[str, Any]]:
    """Forgetting of random rows: attack, KLoM, and both probes on the forgotten rows, of the affine map and its bounds."""
    setting, config = world.setting, world.config
    data = setting.data
    request = study.random_requests(data, [config.random_rows], config.seed)
    rows = np.asarray(request.indices[0])[np.asarray(request.weights[0]) > 0]
    retrained, again = (
        jax.tree.map(
            lambda x: x[:, 0],
            study.answer(
                setting.retrain(), world.originals, data, request, jax.random.key(config.seed + place)
            ).result.variables,
        )
        for place in (7, 8)
    )
    one = world._replace(config=replace(config, classes=1), requests=request)
    model, mapped = with_map(one, lambda model: ju.affine_representation_unlearning(model, beta=beta), ())
    kinds = {
        ORIGINAL: Kind(setting.model, world.originals),
        "affine map": Kind(model, jax.tree.map(lambda x: x[:, 0], mapped)),
        AGAIN: Kind(setting.model, again),
        "retrained": Kind(setting.model, retrained),
    }
    gone, kept = (jax.tree.map(lambda x, r=r: x[r], data.train) for r in (rows, np.setdiff1d(np.arange(config.rows), rows)))
    reference = ju.audit.margins(seen(kinds["retrained"], gone)[2], gone.targets)
    probe, _ = probes(setting.num_classes)
    area = jax.vmap(lambda a, b: ju.audit.auc(a, jnp.ones_like(a), b, jnp.ones_like(b)))
    found = []
    for name, kind in kinds.items():
        (front, behind, logits), (kept_front, kept_behind, _) = seen(kind, gone), seen(kind, kept)
        margins = ju.audit.margins(logits, gone.targets)
        held_out = ju.audit.margins(seen(kind, setting.test)[2], setting.test.targets)
        found.append({
            "method": name,
            "auc": float(jnp.mean(area(margins, held_out))),
            "klom": float(jnp.mean(ju.audit.klom(margins, reference))),
            "in front": float(jnp.mean(probe(kept_front, kept.targets, front, gone.targets).accuracy)),
            "behind": float(jnp.mean(probe(kept_behind, kept.targets, behind, gone.targets).accuracy)),
        })  # fmt: skip
    return found


# The report

ACCURACY_COLUMNS = [
    Column("method", "method"),
    Column("forget", "forget accuracy", ".1%"),
    Column("forgotten_test", "test acc. of the class", ".1%"),
    Column("retain", "retain accuracy", ".1%"),
    Column("test", "test acc. of the others", ".1%"),
    Column("gap", "its gap to retrained", "+.1%"),
    Column("milliseconds", "ms/request", ".3g"),
]
RANDOM_COLUMNS = [
    Column("method", "method"), Column("auc", "attack AUC", ".3f"), Column("klom", "KLoM", ".2f"),
    Column("in front", "probe in front of the map", ".1%"), Column("behind", "probe behind it", ".1%"),
]  # fmt: skip
INTRO = """\
A map in front of a frozen head can hide a class from the outputs. This report asks what the features still know of it, which is
the question of a concept. Whether the influence of single rows is gone is another one, see the table of random rows."""
READING = """\
Retrained models are the reference: what their features reveal of a class they never saw is no fault of unlearning. A measure
that is off the floor on the side of the original speaks against a method. "Suppressed" says that outputs forgot the class and
some measure of features did not. No word claims deletion: in front of an inserted map everything is as it was."""


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(
            config, rows=200, training_steps=20, unlearning_steps=3, models=8, classes=2, betas=(1e-3, 1e-1),
            peers=("ssd",), autoencoder_steps=5, deep_steps=5, random_rows=10,
        )  # fmt: skip
    console = Console()
    began = time.perf_counter()
    world = made(config)
    reference, floor = over_all(world, world.retrained), over_all(world, world.again)
    console.print(f"trained and retrained after {time.perf_counter() - began:.0f} s")
    chosen, series, times = {}, {}, {}
    results: dict[str, tuple[ju.Model, ju.Variables]] = {}
    for regime in REGIMES:
        swept, seconds = sweep(world, regime)
        series[regime] = jax.vmap(partial(over_all, world), 1, 1)(swept)
        beta = config.betas[chosen_beta(world, series[regime], reference)]
        name = f"affine map, {regime.replace('_', '-')}"
        chosen[regime], times[name] = beta, 1e3 * seconds
        options: dict[str, Any] = {"beta": beta, "regime": regime}
        results[name] = with_map(world, lambda model, o=options: ju.affine_representation_unlearning(model, **o), ())

    def steps(model: ju.Model) -> ju.UnlearnFn:
        options = {"num_steps": config.deep_steps, "batch_size": 256, "beta": chosen["standard"]}
        return ju.representation_unlearning(model, optax.adam(1e-3), **options)

    model = world.setting.model
    results["deep map"] = with_map(world, steps, (world.prepared[0].extra["features"].shape[1],))
    results["concept_erasure"] = with_map(world, ju.concept_erasure, ())
    results["prototype_erasure"] = with_map(world, ju.prototype_erasure, ())
    results |= {name: (model, variables) for name, variables in peers(world, console).items()}
    results |= {ORIGINAL: (model, study.repeat(world.originals, config.classes)), AGAIN: (model, world.again)}
    console.print(f"unlearned after {time.perf_counter() - began:.0f} s")
    rows, values, curves = [], {}, {}
    looked = sights(world)
    for name, (own, variables) in {**results, "retrained": (model, world.retrained)}.items():
        lanes = slice(config.models // 2, None) if name == AGAIN else slice(None)  # the first half are the anchors
        each = [
            measured(world, Kind(own, jax.tree.map(lambda x, r=sight.request, p=lanes: x[p, r], variables)), sight, lanes)
            for sight in looked
        ]
        values[name] = {key: np.mean([x[key] for x, _ in each], axis=0) for key in each[0][0]}
        curves[name] = np.mean([x for _, x in each], axis=(0, 1))
        outcome = over_all(world._replace(setting=world.setting._replace(model=own)), variables)
        rows.append(accuracy_row(name, outcome, reference, reported(config), times.get(name)))
    judged = {
        name: ju.audit.judge_features(
            values[name], values["retrained"], values[ORIGINAL], jax.random.key(config.seed + 9), outputs=OUTPUTS
        )
        for name in results
        if name != ORIGINAL
    }  # fmt: skip
    random = random_rows(world, chosen["standard"])
    environment = training.environment()
    summary = {
        "config": {**vars(config), "out": None, "data_dir": None},
        "environment": environment,
        "seconds": time.perf_counter() - began,
        "chosen_beta": chosen,
        "sweep": {
            regime: {
                key: np.round(np.mean(x[:, :, config.classes // 2 :], axis=(0, 2)), 5).tolist()
                for key, x in part._asdict().items()
            }
            for regime, part in series.items()
        },
        "accuracies": [as_json(row) for row in rows],
        "measures": {name: {key: np.round(x, 5).tolist() for key, x in part.items()} for name, part in values.items()},
        "words": {name: part.word for name, part in judged.items()},
        "verdicts": {
            name: {key: [int(x.verdict), round(float(x.p_value), 5)] for key, x in part.judgements.items()}
            for name, part in judged.items()
        },
        "restoration": {name: np.round(part, 5).tolist() for name, part in curves.items()},
        "random_rows": random,
    }
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "representation.json").write_text(report.compact_json(summary))
    measures = [
        {
            "method": name,
            "word": judged[name].word if name in judged else None,
            **{key: mean_interval(x) for key, x in part.items()},
        }
        for name, part in values.items()
    ]
    columns = [Column("method", "method"), Column("word", "what they tell"), *(Column(x, x, ".2f") for x in values[ORIGINAL])]
    tables = [
        Table(ACCURACY_COLUMNS, rows, f"means over {config.models} models and {len(reported(config))} classes"),
        Table(columns, measures, "means over classes, with 95 % intervals over models"),
        Table(RANDOM_COLUMNS, random, f"{config.random_rows} random rows; beta {chosen['standard']:g}"),
    ]
    sections = [
        Section("Accuracies", "", [tables[0]], [beta_figure(config, series, reference, floor)]),
        Section("What features know", READING, [tables[1]], figures(world, results, values, curves)),
        Section("Random rows", "", [tables[2]]),
    ]
    report.write_report(config.out / "report.html", "jaxunlearn: representations", INTRO, sections, environment=environment)
    for table in tables:
        report.print_table(table, console)
    for name, part in judged.items():
        console.print(f"{name}: {part.word}")
    console.print(f"{summary['seconds']:.0f} s; report: {config.out / 'report.html'}")
    return summary


def accuracy_row(
    name: str, found: Accuracies, reference: Accuracies, places: range, milliseconds: float | None
) -> dict[str, Any]:
    """Means over models and reported classes, with crossed intervals."""
    part = slice(places.start, places.stop)
    values = {key: ju.audit.crossed_interval(x[:, part]) for key, x in found._asdict().items()}
    gap = ju.audit.crossed_interval(found.test[:, part] - reference.test[:, part])
    return {"method": name, **values, "gap": gap, "milliseconds": milliseconds}


def mean_interval(values: np.ndarray) -> ju.audit.Interval:
    """Mean over models, with a normal interval."""
    mean, half = np.mean(values), 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
    return ju.audit.Interval(jnp.float32(mean), jnp.float32(mean - half), jnp.float32(mean + half))


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """Intervals as lists."""
    return {key: [float(x) for x in value] if isinstance(value, ju.audit.Interval) else value for key, value in row.items()}


def beta_figure(config: Config, series: dict[str, Accuracies], reference: Accuracies, floor: Accuracies):
    """Accuracies against beta, with those of retrained models as a band."""
    part = slice(config.classes // 2, config.classes)
    lines, bands = {}, {}
    betas = np.asarray(config.betas)
    for regime, found in series.items():
        lines[f"{regime}: forgotten class"] = betas, 100 * np.asarray(found.forget[:, :, part].mean(axis=(0, 2)))
        lines[f"{regime}: test, the others"] = betas, 100 * np.asarray(found.test[:, :, part].mean(axis=(0, 2)))
    both = np.concatenate([np.asarray(x.test[:, part]).mean(axis=1) for x in (reference, floor)])
    name = "retrained: test, the others"
    lines[name] = betas, np.full(len(betas), 100 * both.mean())
    bands[name] = tuple(np.full(len(betas), 100 * np.quantile(both, q)) for q in (0.025, 0.975))
    figure = plots.curves(lines, x_label="beta", y_label="accuracy [%]", log_x=True, bands=bands)
    return figure, "Affine map in closed form. The band holds 95 % of retrained models; they never name the forgotten class."


def figures(
    world: World,
    results: dict[str, tuple[ju.Model, ju.Variables]],
    values: dict[str, dict[str, np.ndarray]],
    curves: dict[str, np.ndarray],
) -> list[Any]:
    """Restoration, CKA, and features in front of the map and behind it."""
    strengths = np.asarray(world.config.strengths)
    restoration = plots.curves(
        {name: (strengths, 100 * x[0]) for name, x in curves.items()},
        x_label="strength", y_label="accuracy on the forgotten class [%]",
    )  # fmt: skip
    cka = plots.accuracy_bars({
        name: {"CKA with retrained": mean_interval(x["CKA with retrained"])} for name, x in values.items()
    })  # fmt: skip
    name = "affine map, standard"
    model, variables = results[name]
    request = reported(world.config)[0]
    front, behind, _ = seen(Kind(model, jax.tree.map(lambda x: x[:1, request], variables)), world.setting.test)
    maps = {"in front of the map": np.asarray(front[0]), "behind it": np.asarray(behind[0])}
    pair = plots.feature_maps(maps, np.asarray(world.setting.test.targets), request)
    return [
        (restoration, "Accuracy after the class's features were put back to where the original model has them."),
        (cka, "Mean linear CKA (debiased, in percent) with retrained models on test rows of the class."),
        (pair, f"{name}: test rows on the first two principal components in front of the map; class {request} is forgotten."),
    ]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
