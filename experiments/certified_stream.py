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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import numpy as np
from jax.sharding import Mesh

import jaxunlearn as ju
from experiments.common import certified, plots, script
from experiments.common.certified_stream_page import (
    BATCH_COLUMNS,
    BUDGET_COLUMNS,
    EPSILON_COLUMNS,
    INTRO,
    STREAM_COLUMNS,
    in_words,
    promised,
    sections,
    stat_names,
)
from experiments.common.data import load
from experiments.common.outcome import as_json
from experiments.common.report import Table
from experiments.common.running import at, reusable, timed
from experiments.common.scale import leads
from experiments.common.stream_heads import Case, heads

EPSILONS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)


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
    caption = f"removals one after another, at {promised(config)}"
    if any(x["stream"]["removals"] < config.removals for x in found.values()):
        caption += f"; fewer than {config.removals} where {certified.KEPT:.0%} of every class would not be left"
    tables = [Table(STREAM_COLUMNS, [x["stream"] for x in found.values()], caption)]
    if perturbed is not None:
        tables += [
            Table(BATCH_COLUMNS, [x["batch"] for x in found.values()], "simultaneous requests, in one compiled call"),
            Table(BUDGET_COLUMNS, perturbed["rows"], f"objective perturbation, sigma {config.sigma:g}, at {promised(config)}"),
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
    parts, picture = sections(config, found, perturbed, curve, tables)
    if leads():
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "certified_stream.png").write_bytes(plots.to_png(picture))
    return script.finish(
        config, console, "certified_stream", summary, title="jaxunlearn certified stream", intro=INTRO,
        sections=parts, tables=tables,
        notes=[in_words(config, one["stream"], one["refusal"]) for one in found.values()],
    )  # fmt: skip


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
    for stat, label in stat_names().items():
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


if __name__ == "__main__":
    script.run(main, Config, __doc__)
