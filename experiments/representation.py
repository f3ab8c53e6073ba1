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
from jax.sharding import Mesh
from jaxtyping import Array, Float
from rich.console import Console

import jaxunlearn as ju
from experiments.common import methods, plots, script, settings
from experiments.common.comparison import Bench, Ready, Seeds, answer, of_one_shape, originals, programs
from experiments.common.outcome import AGAIN, NOTHING, RETRAINED
from experiments.common.report import Column, Section, Table
from experiments.common.running import at, reusable, stack
from experiments.common.scenarios import Scenario
from experiments.common.study import random_requests
from jaxunlearn import heads

REGIMES = ("standard", "zero_shot")
OUTPUTS = ("forget accuracy", "class test accuracy")
PEERS = ("finetune", "gradient_difference", "scrub", "ssd", "contrastive_unlearning", "dimensional_alignment")


@dataclass
class Config(script.Unlearning):
    """Command line of the script."""

    rows: int = 1000
    label_noise: float = 0.0
    seeds: int = 10
    """Models of every kind."""
    classes: int = 10
    """How many classes are asked for, one per request; the first half chooses beta, the others are reported."""
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
    feature_rows: int = 100
    """Rows that go through a model together while its features are prepared."""
    out: Path = Path("out/representation")


class Kind(NamedTuple):
    """Models [s] of one kind for one request, and how to see into them."""

    model: ju.Model
    variables: ju.Variables


class World(NamedTuple):
    """What every part works on."""

    config: Config
    mesh: Mesh | None
    bench: Bench
    ready: Ready  # one request per class
    originals: ju.Variables  # [s]
    retrained: ju.Variables  # [s, r]
    again: ju.Variables  # [s, r]
    prepared: list[ju.Data]  # of every original

    @property
    def model(self) -> ju.Model:
        """The network, without a map."""
        return self.bench.setting.model

    @property
    def data(self) -> ju.Data:
        """The training set."""
        return self.bench.setting.data

    @property
    def test(self) -> ju.Examples:
        """Rows that no model sees."""
        return self.bench.setting.test


def made(config: Config, mesh: Mesh | None) -> World:
    """Train and retrain."""
    setting = config.setting()
    bench = programs(setting, network=config.network, num_steps=config.unlearning_steps, scale=config.scale, mesh=mesh)
    requests = ju.from_classes(setting.data, [[c] for c in range(config.classes)], num_classes=setting.num_classes)
    scenario = scenario_of(bench, "class", requests)
    seeds = Seeds(config.draw, config.request_seed, config.draw, config.training_seeds())
    ready = Ready(scenario, originals(bench, scenario, seeds.training), seeds)
    first, second = (answer(bench, ready, name, {}).result.variables for name in (RETRAINED, AGAIN))
    prepare = jax.jit(heads.prepare(setting.model, chunk=config.feature_rows))
    prepared = [prepare(variables, setting.data, jax.random.key(config.draw)) for variables in ready.originals]
    return World(config, mesh, bench, ready, stack(ready.originals), first, second, prepared)


def scenario_of(bench: Bench, name: str, requests: ju.ForgetRequest) -> Scenario:
    """Requests on the training set, in the shape of all others."""
    setting = bench.setting
    unseen_weights = jnp.ones((len(requests.indices), len(setting.test.targets)))
    return of_one_shape(Scenario(name, "a concept", setting, requests, setting.test, unseen_weights))


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


def over_all(world: World, variables: ju.Variables, model: ju.Model | None = None) -> Accuracies:
    """Of models [s, r]."""
    return accuracies(model or world.model)(variables, jnp.arange(world.config.classes), world.data.train, world.test)


def sweep(world: World, regime: str) -> tuple[ju.Variables, float]:
    """Models [s, b, r] for every beta and request, and seconds of a pair."""
    betas, requests = np.asarray(world.config.betas, np.float32), world.ready.scenario.requests
    shape = len(betas), world.config.classes

    def answered(variables: ju.Variables, data: ju.Data, asked: Any, key: jax.Array) -> ju.Result:
        beta, request = asked
        unlearn = ju.affine_representation_unlearning(world.model, beta=beta, regime=regime)  # type: ignore[arg-type]
        return unlearn(variables, data, request, key)

    every = jax.tree.map(lambda x: np.tile(x, (shape[0], *(1,) * (np.ndim(x) - 1))), requests)
    asked = np.repeat(betas, shape[1]), every
    keys = jax.random.split(jax.random.key(world.config.draw + 3), len(asked[0]))
    calls = [(variables, data, asked, keys) for variables, data in zip(world.ready.originals, world.prepared, strict=True)]
    done = reusable(answered, mesh=world.mesh)(calls)
    variables = jax.tree.map(
        lambda x: x.reshape(-1, *shape, *x.shape[2:]), ju.check(done.result, allow=[ju.Status.DAMAGED]).variables
    )
    return variables, done.run_seconds / done.result.status.size


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
    config, train, test, num_classes = world.config, world.data.train, world.test, world.bench.setting.num_classes
    kind = Kind(world.model, world.originals)
    states, test_states = seen(kind, train)[1], seen(kind, test)[1]
    width = states.shape[-1]
    sparsity = max(1, width // 8)
    fit = partial(ju.audit.fit_sparse_autoencoder, width=width, sparsity=sparsity, num_steps=config.autoencoder_steps)
    keys = jax.random.split(jax.random.key(config.draw + 5), config.seeds)
    autoencoders = jax.jit(jax.vmap(fit))(states, keys)

    def chosen(autoencoder, z):
        codes = ju.audit.encode(autoencoder, z, sparsity=sparsity)
        return ju.audit.experts(codes, jnp.asarray(train.targets), num_classes=num_classes)

    masks = jax.jit(jax.vmap(chosen))(autoencoders, states)
    found = []
    for request in reported(config):
        rows = np.asarray(test.targets) == request
        anchors = Kind(world.model, at(world.again, slice(config.seeds // 2), request))
        found.append(Sight(request, seen(anchors, test)[1][:, rows], test_states[:, rows], autoencoders, masks[:, request]))
    return found


def measured(world: World, kind: Kind, sight: Sight, lanes: slice) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every measure of models [s] for one class, one value per model, and accuracies [s, 2, a] after restoration.

    Args:
        world: what is shared.
        kind: the models.
        sight: of the class.
        lanes: which originals the models belong to.
    """
    request, train, test = sight.request, world.data.train, world.test
    labels, test_labels = jnp.asarray(train.targets), jnp.asarray(test.targets)
    forgotten, asked = np.asarray(labels == request), np.asarray(test_labels == request)
    front, behind, logits = seen(kind, train)
    test_front, test_behind, test_logits = seen(kind, test)
    values: dict[str, Any] = {
        "forget accuracy": jnp.mean(jnp.argmax(logits, axis=-1)[:, forgotten] == request, axis=1),
        "class test accuracy": jnp.mean(jnp.argmax(test_logits, axis=-1)[:, asked] == request, axis=1),
    }
    probe, vote = probes(world.bench.setting.num_classes)
    for place, (z, test_z) in {"in front": (front, test_front), "behind": (behind, test_behind)}.items():
        values[f"probe {place}"] = probe(z, labels, test_z, test_labels).recall[:, request]
        values[f"neighbours {place}"] = vote(z, labels, test_z[:, asked], test_labels[asked])
    values["alignment"] = aligned(behind[:, forgotten], behind[:, ~forgotten])
    values["CKA with retrained"] = similar(test_behind[:, asked], sight.anchors)
    own = at((sight.originals, sight.autoencoders, sight.experts), lanes)
    keys = jax.random.split(jax.random.key(request), behind.shape[0])
    without = jax.vmap(heads.without_map)(kind.variables)
    curves = restoring(world.model, world.config.strengths)(without, test_behind[:, asked], *own, keys, request)
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
def similar(z: Float[Array, "s e D"], anchors: Float[Array, "a e D"]) -> Float[Array, " s"]:
    """Mean CKA of models with the anchors."""
    return jnp.mean(jax.vmap(jax.vmap(ju.audit.linear_cka, (None, 0)), (0, None))(z, anchors), axis=1)


def reported(config: Config) -> range:
    """Classes that no setting was chosen on."""
    return range(config.classes // 2, config.classes)


# Methods


def peers(world: World, console: Console) -> dict[str, ju.Variables]:
    """Models [s, r] of other methods, with the settings of experiments/configs for single classes."""
    found = {}
    for name in map(methods.known, world.config.peers):
        chosen, search = settings.load(settings.CONFIGS, name, "class", world.config.study_key)
        if search is None:
            console.print(f"{name}: {settings.NOT_SEARCHED}")
        elif search["dataset"] != world.config.study_key:
            console.print(f"{name} has the settings that were searched on {search['dataset']}")
        found[name] = answer(world.bench, world.ready, name, chosen).result.variables
    return found


def with_map(
    world: World, unlearn: Callable[[ju.Model], ju.UnlearnFn], widths: tuple[int, ...]
) -> tuple[ju.Model, ju.Variables]:
    """Models [s, r] of a method on originals that a map was inserted into, so that both sides of it can be seen."""
    key, requests = jax.random.key(world.config.draw + 6), world.ready.scenario.requests
    model, _ = ju.insert_map(world.model, world.ready.originals[0], widths, key)
    inserted = jax.vmap(lambda v: ju.insert_map(world.model, v, widths, key)[1])(world.originals)
    keys = jax.random.split(key, len(requests.indices))
    prepare = jax.jit(heads.prepare(model, chunk=world.config.feature_rows))
    each = [at(inserted, place) for place in range(world.config.seeds)]
    calls = [(variables, prepare(variables, world.data, key), requests, keys) for variables in each]
    result = reusable(unlearn(model), mesh=world.mesh)(calls).result
    return model, ju.check(result, allow=[ju.Status.DAMAGED]).variables


def random_rows(world: World, beta: float) -> list[dict[str, Any]]:
    """Forgetting of random rows: attack, KLoM, and both probes on the forget set, of the affine map and its bounds."""
    config, data = world.config, world.data
    request = random_requests(data, [config.random_rows], config.request_seed)
    rows = np.asarray(request.indices[0])[np.asarray(request.weights[0]) > 0]
    one = world._replace(ready=world.ready._replace(scenario=scenario_of(world.bench, "random", request)))
    retrained, again = (at(answer(one.bench, one.ready, x, {}).result.variables, slice(None), 0) for x in (RETRAINED, AGAIN))
    model, mapped = with_map(one, lambda model: ju.affine_representation_unlearning(model, beta=beta), ())
    kinds = {
        NOTHING: Kind(world.model, world.originals),
        "affine map": Kind(model, at(mapped, slice(None), 0)),
        AGAIN: Kind(world.model, again),
        RETRAINED: Kind(world.model, retrained),
    }
    gone, kept = (at(data.train, places) for places in (rows, np.setdiff1d(np.arange(config.rows), rows)))
    reference = ju.audit.margins(seen(kinds[RETRAINED], gone)[2], gone.targets)
    probe, _ = probes(world.bench.setting.num_classes)
    area = jax.vmap(lambda a, b: ju.audit.auc(a, jnp.ones_like(a), b, jnp.ones_like(b)))
    found = []
    for name, kind in kinds.items():
        (front, behind, logits), (kept_front, kept_behind, _) = seen(kind, gone), seen(kind, kept)
        margins = ju.audit.margins(logits, gone.targets)
        held_out = ju.audit.margins(seen(kind, world.test)[2], world.test.targets)
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
            config, rows=200, training_steps=20, unlearning_steps=3, seeds=8, classes=2, betas=(1e-3, 1e-1),
            peers=(), autoencoder_steps=5,
        )  # fmt: skip
    mesh, console = script.begin(config)
    began = time.perf_counter()
    world = made(config, mesh)
    reference, floor = over_all(world, world.retrained), over_all(world, world.again)
    console.print(f"trained and retrained after {time.perf_counter() - began:.0f} s")
    chosen, series, times = {}, {}, {}
    results: dict[str, tuple[ju.Model, ju.Variables]] = {}
    for regime in REGIMES[:1] if config.smoke else REGIMES:
        swept, seconds = sweep(world, regime)
        series[regime] = jax.vmap(partial(over_all, world), 1, 1)(swept)
        beta = config.betas[chosen_beta(world, series[regime], reference)]
        name = f"affine map, {regime.replace('_', '-')}"
        chosen[regime], times[name] = beta, 1e3 * seconds
        options: dict[str, Any] = {"beta": beta, "regime": regime}
        results[name] = with_map(world, lambda model, o=options: ju.affine_representation_unlearning(model, **o), ())

    def deep(model: ju.Model) -> ju.UnlearnFn:
        method = ju.representation_unlearning(model, optax.adam(1e-3), beta=chosen["standard"])
        return ju.iterate(method, num_steps=config.deep_steps, batch_size=256)

    model = world.model
    assert model.head is not None  # networks of the experiments have one
    if not config.smoke:  # every method here is a model of its own, which all that looks into models is compiled for
        results["deep map"] = with_map(world, deep, (model.head.get(world.ready.originals[0])[0].shape[0],))
        results["concept_erasure"] = with_map(world, ju.concept_erasure, ())
        results["prototype_erasure"] = with_map(world, ju.prototype_erasure, ())
    results |= {name: (model, variables) for name, variables in peers(world, console).items()}
    nothing = answer(world.bench, world.ready, NOTHING, {}).result.variables
    results |= {NOTHING: (model, nothing), AGAIN: (model, world.again)}
    console.print(f"unlearned after {time.perf_counter() - began:.0f} s")
    rows, values, curves = [], {}, {}
    looked = sights(world)
    for name, (own, variables) in {**results, RETRAINED: (model, world.retrained)}.items():
        lanes = slice(config.seeds // 2, None) if name == AGAIN else slice(None)  # the first half are the anchors
        each = [measured(world, Kind(own, at(variables, lanes, sight.request)), sight, lanes) for sight in looked]
        values[name] = {key: np.mean([x[key] for x, _ in each], axis=0) for key in each[0][0]}
        curves[name] = np.mean([x for _, x in each], axis=(0, 1))
        rows.append(accuracy_row(name, over_all(world, variables, own), reference, reported(config), times.get(name)))
    judged = {
        name: ju.audit.judge_features(
            values[name], values[RETRAINED], values[NOTHING], jax.random.key(config.draw + 9), outputs=OUTPUTS
        )
        for name in results
        if name != NOTHING
    }  # fmt: skip
    random = [] if config.smoke else random_rows(world, chosen["standard"])
    seconds = time.perf_counter() - began
    found = {
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
    measures = [
        {
            "method": name,
            "word": judged[name].word if name in judged else None,
            **{key: mean_interval(x) for key, x in part.items()},
        }
        for name, part in values.items()
    ]
    columns = [Column("method", "method"), Column("word", "what they tell"), *(Column(x, x, ".2f") for x in values[NOTHING])]
    tables = [
        Table(ACCURACY_COLUMNS, rows, f"means over {config.seeds} models and {len(reported(config))} classes"),
        Table(columns, measures, "means over classes, with 95 % intervals over models"),
        Table(RANDOM_COLUMNS, random, f"{config.random_rows} random rows; beta {chosen['standard']:g}"),
    ]
    sections = [
        Section("Accuracies", "", [tables[0]], [beta_figure(config, series, reference, floor)]),
        Section("What features know", READING, [tables[1]], figures(world, results, values, curves)),
        Section("Random rows", "", [tables[2]]),
    ]
    return script.finish(
        config, console, "representation", script.summary_of(config, seconds=seconds, **found),
        title="jaxunlearn: representations", intro=INTRO, sections=sections, tables=tables,
        notes=[*(f"{name}: {part.word}" for name, part in judged.items()), f"{seconds:.0f} s"],
    )  # fmt: skip


def accuracy_row(
    name: str, found: Accuracies, reference: Accuracies, places: range, milliseconds: float | None
) -> dict[str, Any]:
    """Means over models and reported classes, with crossed intervals."""
    part = slice(places.start, places.stop)
    values = {key: ju.audit.crossed_interval(x[:, part], within=(0, 1)) for key, x in found._asdict().items()}
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
    front, behind, _ = seen(Kind(model, jax.tree.map(lambda x: x[:1, request], variables)), world.test)
    maps = {"in front of the map": np.asarray(front[0]), "behind it": np.asarray(behind[0])}
    pair = plots.feature_maps(maps, np.asarray(world.test.targets), request)
    return [
        (restoration, "Accuracy after the class's features were put back to where the original model has them."),
        (cka, "Mean linear CKA (debiased, in percent) with retrained models on test rows of the class."),
        (pair, f"{name}: test rows on the first two principal components in front of the map; class {request} is forgotten."),
    ]


if __name__ == "__main__":
    script.run(main, Config, __doc__)
