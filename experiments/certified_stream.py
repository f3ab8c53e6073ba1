"""A thousand people leave a convex head one after another, and the last weights are certified.

    python experiments/certified_stream.py                                       # digits, ten classes, offline
    python experiments/certified_stream.py --problem binary                      # digits, 3 against 8
    python experiments/certified_stream.py --dataset mnist --problem binary --data-dir DIR      # 11,982 rows of 785
    python experiments/certified_stream.py --dataset mnist --data-dir DIR --parts features      # 30,000 rows, ten classes
    python experiments/certified_stream.py --smoke                               # tiny, for a first look whether it runs

Three heads: on pixels; on *other features*, of a network that was trained on other data; on *own features*, of one that was
trained on the rows that are to be forgotten, which must be refused. Each head answers a stream of single removals in one
compiled program, with a certificate of its own behind every window, and 64 simultaneous requests in another one.
`--parts features` is the stream of the second head alone. Written to the folder `--out`: `report.html`,
`certified_stream.png`, `certified_stream.json`.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import jaxunlearn as ju
from experiments.common import certified, plots, script, training
from experiments.common.data import Dataset, load, subset
from experiments.common.models import build
from experiments.common.outcome import as_json
from experiments.common.report import Column, Section, Table
from experiments.common.running import at, reusable, timed
from experiments.common.scale import leads

PAIR = (3, 8)  # the classes of the binary problem
EPSILONS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
BOUNDS = {"worst_case": "worst case", "data": "data bound", "quartic": "quartic bound", "residual": "true residual"}
REFUSED = "trained on forgotten rows"

STREAM_COLUMNS = [
    Column("head", "head"),
    Column("removals", "rows", "d"),
    Column("certificates", "certificates", "d"),
    Column("milliseconds", "ms each", ".1f"),
    Column("certify_milliseconds", "ms certificate", ".0f"),
    Column("refit_milliseconds", "ms refit", ".0f"),
    Column("distance", "distance", ".0e"),
    Column("distance_bound", "bound", ".0e"),
    Column("accuracy", "accuracy", ".2%"),
    Column("retrained_accuracy", "refit", ".2%"),
    Column("verdict", "verdict"),
]
BATCH_COLUMNS = [
    Column("head", "head"),
    Column("requests", "requests", "d"),
    Column("milliseconds", "ms each", ".2f"),
    Column("faster", "refit / it", ".0f"),
    Column("distance", "distance", ".1e"),
    Column("distance_bound", "bound", ".1e"),
]
BUDGET_COLUMNS = [
    Column("bound", "bound"),
    Column("sum", "sum over the stream", ".2e"),
    Column("share", "of the budget", ".3g"),
    Column("spent", "spent at removal", "d"),
]
EPSILON_COLUMNS = [
    Column("epsilon", "epsilon", "g"),
    Column("noise", "noise", ".1e"),
    Column("accuracy", "accuracy of releases", ".2%"),
    Column("gap", "minus refit [points]", "+.2f"),
]


@dataclass
class Config(script.OnData):
    """Command line of the script."""

    problem: Literal["softmax", "binary"] = "softmax"
    """Ten classes (large images pooled to half their sides), or 3 against 8."""
    parts: Literal["all", "features"] = "all"
    """Everything, or the stream of the head on other features alone."""
    removals: int = 1000
    """Single removals in a stream; fewer where less than 30 % of every class would be left."""
    window: int = 100
    """Removals between two certificates; a rest that fills no window is left out."""
    requests: int = 64
    """Simultaneous requests, of one row each."""
    l2: float = 1e-2
    """Of the head, for a mean loss."""
    steps: int = 2
    """Newton steps per removal."""
    solver: Literal["dense", "cg"] = "dense"
    """Of refits; cg where the Hessian is large."""
    sensitivity: float = 1e-3
    """Largest distance to the retrained head that counts as removed; fixed before anything is measured."""
    epsilon: float = 1.0
    """Of the certificate."""
    delta: float = 1e-5
    """Of the certificate."""
    sigma: float = 1.0
    """Deviation of the secret of objective perturbation, in sums of gradients over rows."""
    draws: int = 200
    """Noise draws behind an accuracy."""
    extractor_steps: int = 600
    """Training steps of the networks that give features."""
    seed: int = 0
    """Of rows, networks and noise."""
    out: Path = Path("out/certified_stream")


class Case(NamedTuple):
    """One head: its rows, and where its features came from."""

    name: str
    train: ju.Examples  # rows of norm at most 1
    test: ju.Examples
    extractor: str  # what is declared to `certify`


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, problem="binary", removals=12, requests=4, draws=10, extractor_steps=20)
    mesh, console = script.begin(config)
    began, cpu = time.perf_counter(), time.process_time()
    dataset = load(config.dataset, config.data_dir)
    problem = ju.convex.logistic(config.l2) if config.problem == "binary" else ju.convex.softmax(config.l2, dataset.num_classes)
    everything = config.parts == "all"
    with script.progress(console, "certified stream", 4 if config.smoke else 6 if everything else 3) as advance:
        advance("training networks for features")
        cases, found = heads(config, dataset), {}
        for case in cases:
            advance(f"removing from a head on {case.name}", done=1)
            found[case.name] = answer(config, problem, case, mesh)
        perturbed = None
        if everything:
            advance("objective perturbation", done=1)
            perturbed = objective_perturbation(config, problem, cases[0])
        advance("accuracy against epsilon", done=1)
        curve = accuracy_against_epsilon(config, found[cases[0].name], cases[0].test)
    caption = f"removals one after another, at {_at(config)}"
    if any(x["stream"]["removals"] < config.removals for x in found.values()):
        caption += f"; fewer than {config.removals} where {certified.KEPT:.0%} of every class would not be left"
    tables = [Table(STREAM_COLUMNS, [x["stream"] for x in found.values()], caption)]
    if perturbed is not None:
        tables += [
            Table(BATCH_COLUMNS, [x["batch"] for x in found.values()], "simultaneous requests, in one compiled call"),
            Table(BUDGET_COLUMNS, perturbed["rows"], f"objective perturbation, sigma {config.sigma:g}, at {_at(config)}"),
        ]
    told = f"head on {cases[0].name} after its stream, sensitivity {config.sensitivity:g}"
    tables.append(Table(EPSILON_COLUMNS, curve, told))
    summary = script.summary_of(
        config,
        heads={name: x["json"] for name, x in found.items()},
        **({} if perturbed is None else {"objective_perturbation": perturbed["json"]}),
        accuracy_against_epsilon=[{**row, **as_json({"accuracy": row["accuracy"]})} for row in curve],
        seconds={"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu},
    )
    return script.finish(
        config, console, "certified_stream", summary, title="jaxunlearn certified stream", intro=INTRO,
        sections=sections(config, found, perturbed, curve, tables), tables=tables,
        notes=[in_words(config, one["stream"], one["refusal"]) for one in found.values()],
    )  # fmt: skip


def in_words(config: Config, row: dict[str, Any], refusal: list[str]) -> str:
    """What became of one head.

    Args:
        config: of the script.
        row: of the table of streams.
        refusal: why the last certificate is void.
    """
    said = f"Head on {row['head']}: {row['removals']} rows left one after another, {row['milliseconds']:.1f} ms each"
    if refusal:
        return f"{said}. No certificate: {'; '.join(refusal)}."
    return (
        f"{said}, where training again takes {row['refit_milliseconds']:.0f} ms. {row['certificates']} certificates hold; "
        f"at the end it is {row['distance']:.0e} from a retrained head, and at most {row['distance_bound']:.0e} by the bound. "
        f"With noise for {_at(config)} it is right on {row['accuracy'].estimate:.1%} of test rows, a retrained head on "
        f"{row['retrained_accuracy']:.1%}."
    )


def _at(config: Config) -> str:
    return f"epsilon {config.epsilon:g}, delta {config.delta:g}"


def heads(config: Config, dataset: Dataset) -> list[Case]:
    """Rows of the three heads; of a smoke run, of the first one, which needs no network.

    Networks see pixels; what they are trained on decides what may be certified.

    Binary: the other data are the other eight classes. Ten classes: a random half of the training rows, which is then not
    part of any head on features.
    """
    train, test = dataset.train, dataset.test
    if config.problem == "binary":
        train, test = (subset(part, np.isin(part.targets, PAIR)) for part in (dataset.train, dataset.test))
        others = subset(dataset.train, ~np.isin(dataset.train.targets, PAIR))
        seen = train
    else:
        half = np.random.default_rng(config.seed).permutation(len(train.targets)) < len(train.targets) // 2
        others, seen = subset(train, half), subset(train, ~half)

    def labels(part: ju.Examples) -> np.ndarray:
        return (part.targets == PAIR[1]).astype(np.int32) if config.problem == "binary" else part.targets

    def case(name: str, extractor: str, part: ju.Examples, features: Callable[[np.ndarray], np.ndarray]) -> Case:
        rows = [ju.Examples(ju.convex.feature_rows(features(x.inputs)), labels(x)) for x in (part, test)]
        return Case(name, rows[0], rows[1], extractor)

    pooled = config.problem == "softmax" and train.inputs.shape[1] > 16
    extract = partial(extractor, config, dataset.num_classes)
    pixels = case("pixels", "none", train, _halved if pooled else lambda x: x)
    if config.smoke:
        return [pixels]
    elsewhere = case("other features", "trained on other data", seen, extract(others))
    if config.parts == "features":
        return [elsewhere]
    return [pixels, elsewhere, case("own features", REFUSED, seen, extract(seen))]


def _halved(images: np.ndarray) -> np.ndarray:
    n, h, w, c = images.shape
    return images.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def extractor(config: Config, num_classes: int, examples: ju.Examples) -> Callable[[np.ndarray], np.ndarray]:
    """Penultimate features of a network with 64 of them, trained on these examples."""
    model = build("mlp", examples.inputs.shape[1:], num_classes, widths=(128, 64))
    variables = training.train(
        model, ju.training_data(*examples), optax.adam(2e-3), num_steps=config.extractor_steps, batch_size=64,
        seeds=[config.seed], key=jax.random.key(config.seed),
    )  # fmt: skip
    network = jax.tree.map(lambda x: x[0], variables)
    forward = jax.jit(lambda inputs: model.forward(network, inputs, train=False).features["penultimate"])
    return lambda inputs: np.concatenate(
        [np.asarray(forward(part)) for part in np.array_split(inputs, 1 + len(inputs) // 4096)]
    )


def answer(config: Config, problem: ju.convex.Problem, case: Case, mesh: Mesh | None) -> dict[str, Any]:
    """The stream and the simultaneous requests of one head, certified, compared with refits, and timed."""
    data, key = ju.training_data(*case.train), jax.random.key(config.seed)
    head = ju.convex.fit(problem, data, solver=config.solver)
    rows = certified.deletions(case.train.targets, config.removals, config.seed)
    window = min(config.window, len(rows))
    rows = rows[: len(rows) // window * window]
    size = case.train.inputs.shape[1] * problem.num_outputs
    capacity = max(problem.num_outputs, size // 4)

    def certify(result, data, request):
        return ju.certificates.certify(
            result, data, request, problem=problem, epsilon=config.epsilon, delta=config.delta, extractor=case.extractor,
            adaptive=False, mechanism=ju.certificates.DeleteThenNoise(config.sensitivity),
        )  # fmt: skip

    stream = certified.stream(
        problem, data, head, rows, steps=config.steps, capacity=capacity, key=key, window=window, look=certify
    )
    refit = ju.convex.refit(problem, solver=config.solver)
    retrained = timed(refit, head, stream.left, ju.empty_request(), key, repeats=3 if config.parts == "all" else 1)
    kernel, reference = certified.kernel_of(stream.last), certified.kernel_of(retrained.result)
    certificate = certify(stream.last, stream.left, stream.gone)
    failed = [f"{x.name}: {x.detail}" for x in certificate.assumptions if not x.holds]
    noise = certificate.noise_scale
    released = certified.accuracy_of_releases(kernel, noise, case.test, draws=config.draws, seed=config.seed)
    row = {
        "head": case.name,
        "removals": len(rows),
        "certificates": sum(each.valid for each in stream.looked),
        "milliseconds": 1e3 * stream.seconds / len(rows),
        "certify_milliseconds": 1e3 * stream.look_seconds / len(stream.looked),
        "refit_milliseconds": 1e3 * retrained.run_seconds,
        "distance": float(np.linalg.norm(kernel - reference)),
        "distance_bound": float(stream.stats["distance_bound"][-1]),
        "accuracy": released if certificate.valid else None,  # what is refused is not released
        "retrained_accuracy": certified.accuracy(reference, case.test),
        "verdict": "valid" if certificate.valid else "refused",
    }
    batch = None
    if config.parts == "all":
        batch = simultaneous(config, problem, case, data, head, 1e3 * retrained.run_seconds, mesh)
    return {
        "case": case,
        "stats": stream.stats,
        "kernel": kernel,
        "reference": reference,
        "refusal": failed,
        "stream": row,
        "batch": batch,
        "json": {
            "rows": list(case.train.inputs.shape),
            "extractor": case.extractor,
            "stream": {**row, **as_json({"accuracy": released} if certificate.valid else {})},
            "stream_compile_seconds": stream.compile_seconds,
            "stream_seconds": stream.seconds,
            "refit_compile_seconds": retrained.compile_seconds,
            "noise_scale": noise,
            "accuracy_without_noise": certified.accuracy(kernel, case.test),
            "assumptions_that_failed": failed,
            "removals_asked_for": config.removals,
            "largest_residual": float(stream.stats["residual"].max()),
            "largest_certified_distance": max(each.distance for each in stream.looked),
            "sensitivity": certificate.sensitivity,
            "simultaneous": batch,
        },
    }


def _stat_names() -> dict[str, str]:
    return {name if name == "residual" else f"{name}_bound": label for name, label in BOUNDS.items()}


def _counted(values: np.ndarray) -> np.ndarray:
    return np.arange(1, len(values) + 1)


def simultaneous(
    config: Config,
    problem: ju.convex.Problem,
    case: Case,
    data: ju.Data,
    head: ju.Variables,
    refit_milliseconds: float,
    mesh: Mesh | None,
) -> dict[str, Any]:
    """Alternatives of one row each in one compiled call; a few of them are refitted for the distance."""
    rows = certified.deletions(case.train.targets, config.requests, config.seed + 1)
    requests = ju.from_indices(data, [[row] for row in rows], capacity=1)
    keys = jax.random.split(jax.random.key(config.seed), len(rows))
    unlearn = ju.convex.woodbury_removal(problem, steps=config.steps)
    shared = jax.jit(ju.prepare(unlearn))(head, data, keys[0])
    run, call = reusable(unlearn, chunk=len(rows), mesh=mesh), (head, shared, requests, keys)
    first, done = run([call]), run([call] * 5)
    result = at(ju.check(done.result), 0)
    refit = jax.jit(ju.convex.refit(problem, solver=config.solver))
    few = jax.tree.map(lambda x: x[:4], (requests, keys))
    refitted = [refit(head, data, ju.ForgetRequest(*one), key) for *one, key in zip(*few[0][:2], few[1], strict=True)]
    pairs = zip(certified.kernel_of(result)[:4], map(certified.kernel_of, refitted), strict=True)
    distances = [np.linalg.norm(removed - reference) for removed, reference in pairs]
    milliseconds = 1e3 * done.run_seconds / (5 * len(rows))
    return {
        "head": case.name,
        "requests": len(rows),
        "milliseconds": milliseconds,
        "faster": refit_milliseconds / milliseconds,
        "distance": float(max(distances)),
        "distance_bound": float(np.max(result.stats["distance_bound"])),
        "compile_seconds": first.compile_seconds,
    }


def objective_perturbation(config: Config, problem: ju.convex.Problem, case: Case) -> dict[str, Any]:
    """The same stream from a head that was trained with a secret, one Newton step per removal: which bound pays how long?"""
    plain = ju.training_data(*case.train)
    shape = (case.train.inputs.shape[1], problem.num_outputs)
    data = ju.convex.with_perturbation(plain, shape, config.sigma, jax.random.key(config.seed + 2))
    head = ju.convex.fit(problem, data, solver=config.solver)
    rows = certified.deletions(case.train.targets, config.removals, config.seed)
    capacity = max(problem.num_outputs, shape[0] * shape[1] // 4)
    stream = certified.stream(problem, data, head, rows, steps=1, capacity=capacity, key=jax.random.key(config.seed))
    budget = ju.certificates.removal_budget(config.sigma, config.epsilon, config.delta)
    secret = float(np.linalg.norm(np.asarray(ju.slots.PERTURBATION.get(data))))
    sums = {}
    for stat, label in _stat_names().items():
        values = stream.stats[stat]
        if stat == "worst_case_bound":  # proved without a perturbation; see jaxunlearn.certificates.ObjectivePerturbation
            values = values * (1 + secret / (2 * (stream.stats["num_retain"] + 1))) ** 2
        sums[label] = values if stat == "residual" else np.cumsum(values)  # what is left is measured, not added up
    spent = {label: np.flatnonzero(values > budget) for label, values in sums.items()}
    table = [
        {
            "bound": label,
            "sum": float(values[-1]),
            "share": float(values[-1] / budget),
            "spent": int(spent[label][0] + 1) if spent[label].size else None,
        }
        for label, values in sums.items()
    ]
    accuracies = {
        "accuracy_before": certified.accuracy(certified.kernel_of(head), case.test),
        "accuracy_after": certified.accuracy(certified.kernel_of(stream.last), case.test),
        "accuracy_before_without_secret": certified.accuracy(
            certified.kernel_of(ju.convex.fit(problem, plain, solver=config.solver)), case.test
        ),
    }
    return {
        "sums": sums,
        "stats": stream.stats,
        "budget": budget,
        "rows": table,
        "json": {"budget": budget, "bounds": table, **accuracies},
    }


def accuracy_against_epsilon(config: Config, found: dict[str, Any], test: ju.Examples) -> list[dict[str, Any]]:
    """Accuracy of releases after the stream, for a grid of epsilons at the fixed sensitivity."""
    reference = certified.accuracy(found["reference"], test)
    rows = []
    for epsilon in EPSILONS:
        noise = float(ju.certificates.gaussian_scale(config.sensitivity, epsilon, config.delta))
        accuracy = certified.accuracy_of_releases(found["kernel"], noise, test, draws=config.draws, seed=config.seed)
        gap = 100 * (float(accuracy.estimate) - reference)
        rows.append({"epsilon": epsilon, "noise": noise, "accuracy": accuracy, "gap": gap})
    return rows


INTRO = """\
People leave one after another. After each removal the head is a few Newton steps from where training on the remaining rows
would end, and the gradient that is left proves how far. Noise of a fixed size, larger than that distance calls for, makes the
released weights (epsilon, delta) indistinguishable from those of a head that never saw the rows.

How to read it: the distance to a refitted head is what was really left; its bound is what the certificate counts.
Accuracies are those of released weights: removed and noised. A head on features is only as clean as the network that made
them: one that was trained on the rows keeps them, whatever happens to the head, and its certificate is refused.

Requests must not depend on releases, and one release is observed. Nothing here speaks of copies of the rows elsewhere."""


def sections(
    config: Config,
    found: dict[str, dict[str, Any]],
    perturbed: dict[str, Any] | None,
    curve: list[dict[str, Any]],
    tables: list[Table],
) -> list[Section]:
    """Parts of the report; the picture is written here."""
    first = next(iter(found.values()))
    distances = plots.curves(
        {name: (_counted(x["stats"]["distance_bound"]), x["stats"]["distance_bound"]) for name, x in found.items()},
        x_label="removal", y_label="bound of the distance to a refit", log_y=True, level=("sensitivity", config.sensitivity),
    )  # fmt: skip
    epsilons = np.array([row["epsilon"] for row in curve])
    accuracies = 100 * np.array([[float(x) for x in row["accuracy"]] for row in curve]).T
    accuracy = plots.curves(
        {"releases": (epsilons, accuracies[0])}, bands={"releases": (accuracies[1], accuracies[2])},
        x_label="epsilon", y_label="test accuracy [%]", log_x=True,
        level=("retrained", 100 * first["stream"]["retrained_accuracy"]),
    )  # fmt: skip
    refusals = [
        f"Certificate of the head on {name} refused: {'; '.join(x['refusal'])}." for name, x in found.items() if x["refusal"]
    ]
    told = "Where noise begins to cost accuracy; the band holds 95 % of releases."
    picture, middle = distances, []
    if perturbed is not None:
        picture, secret = budgets(config, perturbed, tables[2])
        words = "Alternatives from one start; time of the whole call, divided by its requests."
        middle = [Section("At once", words, [tables[1]]), secret]
    if leads():
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "certified_stream.png").write_bytes(plots.to_png(picture))
    return [
        Section("One after another", "\n\n".join(refusals), [tables[0]], [(distances, "What the certificates count.")]),
        *middle,
        Section("Accuracy against epsilon", "", [tables[-1]], [(accuracy, told)]),
    ]


def budgets(config: Config, perturbed: dict[str, Any], table: Table) -> tuple[Any, Section]:
    """What each removal leaves under objective perturbation, and how long its budget lasts."""
    residuals = plots.curves(
        {label: (_counted(perturbed["stats"][stat]), perturbed["stats"][stat]) for stat, label in _stat_names().items()},
        x_label="removal", y_label="norm of the gradient that is left", log_y=True,
    )  # fmt: skip
    budget = plots.curves(
        {label: (_counted(values), values) for label, values in perturbed["sums"].items()},
        x_label="removal", y_label="spent so far", log_y=True, level=("budget", perturbed["budget"]),
    )  # fmt: skip
    words = (
        "Bounds of successive removals add up; when they exceed the budget, the head has to be trained again. The true "
        "residual is what is left at each moment; it is shown for comparison, and no such certificate may use it. The worst "
        "case is proved for one Newton step from an exact optimum; it is shown as published, added up over the stream.\n\n"
        f"The secret of deviation {config.sigma:g} costs accuracy: {perturbed['json']['accuracy_before']:.1%} with it, "
        f"{perturbed['json']['accuracy_before_without_secret']:.1%} without, and {perturbed['json']['accuracy_after']:.1%} "
        "after the stream."
    )
    pictures = [
        (residuals, "One Newton step per removal: what it leaves, and bounds of that."),
        (budget, "What each has spent."),
    ]
    return residuals, Section("Objective perturbation", words, [table], pictures)


if __name__ == "__main__":
    script.run(main, Config, __doc__)
