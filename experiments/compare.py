"""All methods in all scenarios, compared with retraining: one table and one plot of gap against time a scenario.

    python experiments/compare.py                                # digits, three seeds; under 20 minutes on two CPU cores
    python experiments/compare.py --smoke                        # tiny, for a first look whether it runs
    python experiments/compare.py --dataset breast_cancer --scenario random memorised --methods scrub npo
    python experiments/compare.py --dataset mnist --data-dir DIR --rows 2000 --network cnn
    python experiments/compare.py --tune                         # choose the settings on other draws, write experiments/configs

Written to the folder `--out`: `results.jsonl` (a line as soon as a method is done with a scenario; an interrupted run with
the same configuration goes on behind it), `compare.json` and `report.html`. Settings were chosen on other draws of
rows, labels, seeds and requests; the budget of that search is printed with the results.
"""

import inspect
import itertools
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import jaxunlearn as ju
from experiments.common import plots, report, scenarios, study, training
from experiments.common.comparison import (
    AGAIN,
    ORIGINAL,
    RETRAINED,
    Bench,
    Ready,
    Seeds,
    answer,
    audited,
    compared,
    left_out,
    of_one_shape,
    programs,
    trained,
)
from experiments.common.data import load
from experiments.common.log import Records, append, read_log, told_by_first
from experiments.common.report import Column, Section, Table
from experiments.common.scale import Scale, leads, start
from experiments.common.scenarios import NAMES
from experiments.common.study import Outcome, Study

Grid: TypeAlias = dict[str, tuple[float, ...]]
Settings: TypeAlias = dict[str, float]
ScenarioName: TypeAlias = Literal[
    "random", "memorised", "class", "classes", "subclass", "group", "confusion", "backdoor", "sequential"
]
MethodName: TypeAlias = Literal[
    "finetune", "cf_k", "eu_k", "l1_sparse", "gradient_ascent", "gradient_difference", "npo", "random_label", "bad_teacher",
    "scrub", "unsir", "task_vector", "amnesiac", "output_perturbation", "salun", "influence", "newton", "certified_newton_step",
    "woodfisher", "ntk_forgetting", "fisher_forgetting", "ssd", "lfssd", "assd", "lcodec", "representation_unlearning",
    "affine_representation_unlearning", "concept_erasure", "nullspace_projection", "prototype_erasure",
    "contrastive_unlearning", "dimensional_alignment",
]  # fmt: skip

# What --tune searches: all points of a grid.
GRIDS: dict[str, Grid] = {
    "finetune": {"learning_rate": (1e-3, 3e-3, 1e-2, 2e-2, 4e-2)},
    "cf_k": {"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)},
    "eu_k": {"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)},
    "l1_sparse": {"learning_rate": (3e-3, 1e-2, 2e-2), "gamma": (1e-4, 5e-4, 2e-3)},
    "gradient_ascent": {"learning_rate": (1e-5, 3e-5, 1e-4, 2e-4, 4e-4)},
    "gradient_difference": {"learning_rate": (2e-3, 4e-3, 8e-3), "alpha": (0.9, 0.95, 0.97, 0.99)},
    "npo": {"learning_rate": (2e-3, 8e-3), "beta": (0.3, 1.0), "retain_weight": (2.0, 8.0, 30.0)},
    "random_label": {"learning_rate": (1e-3, 4e-3, 1e-2), "alpha": (0.5, 0.8, 0.95, 0.99)},
    "bad_teacher": {"learning_rate": (1e-3, 4e-3, 1e-2), "alpha": (0.5, 0.8, 0.95, 0.99)},
    "scrub": {"learning_rate": (2e-3, 4e-3, 8e-3), "alpha": (0.1,), "forget_epochs": (3, 6, 12)},
    "unsir": {"learning_rate": (1e-3, 4e-3, 1e-2), "alpha": (0.5, 0.8, 0.95)},
    "task_vector": {"learning_rate": (1e-4, 1e-3), "scale": (0.1, 0.3, 1.0, 3.0)},
    "amnesiac": {"learning_rate": (1e-3, 3e-3, 1e-2, 2e-2, 4e-2)},
    "output_perturbation": {"sigma": (3e-3, 1e-2, 2e-2, 4e-2, 8e-2)},
    "salun": {"learning_rate": (1e-3, 4e-3, 1e-2), "alpha": (0.8, 0.95, 0.99)},
    "influence": {"damping": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)},
    "newton": {"damping": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)},
    "certified_newton_step": {"convexity": (0.003, 0.03, 0.3, 3.0)},
    "woodfisher": {"alpha": (0.2, 1.0), "damping": (1e-3, 1e-2, 1e-1)},
    "ntk_forgetting": {"decay": (1e-5, 1e-4, 1e-3, 1e-2)},
    "fisher_forgetting": {"strength": (1e-8, 1e-7, 1e-6, 1e-5)},
    "ssd": {"alpha": (1.2, 2.0, 5.0, 10.0, 20.0, 40.0), "strength": (0.3, 1.0)},
    "lfssd": {"alpha": (1.5, 3.0, 6.0, 12.0), "strength": (0.3, 1.0)},
    "assd": {},
    "lcodec": {"damping": (1e-3, 1e-2, 1e-1, 1.0)},
    "representation_unlearning": {"learning_rate": (1e-3, 1e-2), "beta": (1e-3, 1e-2, 1e-1, 1.0)},
    "affine_representation_unlearning": {"beta": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)},
    "concept_erasure": {},
    "nullspace_projection": {},
    "prototype_erasure": {},
    "contrastive_unlearning": {"learning_rate": (4e-3, 1e-2, 2e-2), "contrastive_weight": (0.03, 0.3, 3.0, 10.0)},
    "dimensional_alignment": {"learning_rate": (1e-3, 4e-3, 1e-2), "alignment_weight": (0.1, 1.0), "own_class": (0.0, 0.1)},
}
SHOWN = {ORIGINAL: "do nothing"}
LEAST_SPREAD = 0.005  # half a point: spreads over few seeds can be 0 by chance


@dataclass
class Config:
    """Command line of the comparison."""

    dataset: str = "digits"
    """digits, breast_cancer, diabetes, or an image data set prepared by TFDS."""
    scenario: tuple[ScenarioName, ...] = ()
    """Which scenarios; by default all that fit the data set."""
    methods: tuple[MethodName, ...] = ()
    """Which methods; by default all."""
    seeds: int = 3
    """Original models; seeds of training."""
    requests: int = 8
    """Requests a scenario, at most."""
    draw: int = 0
    """Seed of the training rows, their wrong labels, triggers, styles."""
    request_seed: int = 0
    """Which rows are asked to be forgotten, and the draws of the methods."""
    training_seed: int = 0
    """First seed of training; the others follow."""
    audit_seed: int = 0
    """Of what only the audit sees: test rows, memorisation, unseen persons, the second retraining."""
    data_dir: str | None = None
    """Where TFDS finds prepared data."""
    network: str = "mlp"
    """mlp, cnn or resnet18."""
    rows: int = 500
    """Training rows; all rows of a smaller data set."""
    test_rows: int = 1000
    """Test rows; all rows of a smaller test set."""
    label_noise: float = 0.12
    """Fraction of training rows with a wrong label, where a scenario does not spoil labels itself."""
    training_steps: int = 600
    """Steps of training and retraining."""
    unlearning_steps: int = 100
    """Steps of every other method with a loop."""
    memorisation_models: int = 64
    """Models from which memorisation is estimated."""
    configs: Path = Path(__file__).parent / "configs"
    """Folder of the settings, a file a method."""
    out: Path = Path("out/compare")
    """Folder of the results."""
    smoke: bool = False
    """Run with too few seeds, requests and steps to mean anything."""
    tune: bool = False
    """Choose the settings instead: search all grids on other draws and write them to --configs."""
    tune_draws: tuple[int, ...] = (1, 2)
    """Seeds of rows, labels, requests and training of the search; --draw must not be among them."""
    tune_seeds: int = 2
    """Original models a draw of the search."""
    tune_requests: int = 4
    """Requests a scenario and draw of the search, at most."""
    scale: tyro.conf.OmitArgPrefixes[Scale] = field(default_factory=Scale)


def main(config: Config) -> dict[str, Any]:
    """Compare, or search; returns what is written as JSON."""
    if min(config.seeds, config.tune_seeds) < 2:
        raise SystemExit("--seeds and --tune-seeds must be at least 2: intervals and spreads are taken over seeds")
    if config.tune and config.draw in config.tune_draws:
        raise SystemExit(f"settings must not be chosen on what is reported: leave --draw={config.draw} out of --tune-draws")
    if config.smoke:
        config = replace(
            config, seeds=2, requests=2, rows=200, training_steps=20, unlearning_steps=5, memorisation_models=16,
            tune_seeds=2, tune_requests=2, tune_draws=config.tune_draws[:1],
        )  # fmt: skip
    mesh = start(config.scale)
    console = Console(quiet=not leads())
    return tune(config, mesh, console) if config.tune else compare(config, mesh, console)


# Studies and programs


def studies(config: Config, draw: int, audit_seed: int, model: ju.Model | None = None) -> tuple[Study, Study]:
    """The study with some wrong labels and the one with right labels, on the same rows and with one model."""
    loaded = load(config.dataset, config.data_dir, seed=draw)
    options: dict[str, Any] = {
        "network": config.network,
        "num_rows": min(config.rows, len(loaded.train.targets)),
        "num_steps": config.training_steps,
        "seed": draw,
    }
    noise = config.label_noise if loaded.num_classes else 0.0
    noisy = study.overfitted(loaded, label_noise=noise, **options)
    clean = study.overfitted(loaded, label_noise=0.0, **options)
    order = np.random.default_rng(audit_seed).permutation(len(noisy.test.inputs))[: config.test_rows]
    shared = {"model": noisy.model if model is None else model, "test": jax.tree.map(lambda x: x[np.sort(order)], noisy.test)}
    return noisy._replace(**shared), clean._replace(**shared)


def chosen_scenarios(config: Config, setting: Study, console: Console) -> list[str]:
    """The scenarios that fit, in order; those that do not are named with the reason.

    Raises:
        SystemExit: none fits.
    """
    shape = setting.data.train.inputs.shape[1:]
    reasons = {name: scenarios.why_not(name, setting.num_classes, shape) for name in config.scenario or NAMES}
    for name, reason in reasons.items():
        if reason is not None:
            console.print(f"scenario {name} is left out of {config.dataset}: it {reason}")
    fitting = [name for name, reason in reasons.items() if reason is None]
    if not fitting:
        raise SystemExit(f"none of the scenarios {', '.join(reasons)} fits {config.dataset}")
    return fitting


def why_left_out(method: str, table: str, setting: Study, seeds: int) -> str | None:
    """Why a method is not run in a scenario, None if it is."""
    reason = left_out(method, table, setting, seeds)
    if reason is None and method in ju.METHODS and method not in GRIDS:
        return "has no grid in experiments/compare.py, so nobody searched its settings"
    return reason


# Settings


def load_settings(config: Config, method: str, name: str) -> tuple[Settings, dict[str, Any]]:
    """The numbers of a method for a scenario, and the search that found them.

    A data set that was never searched gets those of digits, and `search["dataset"]` says so.

    Raises:
        SystemExit: there are none; the search makes them.
    """
    path = config.configs / f"{method}.json"
    found = json.loads(path.read_text())["datasets"] if path.exists() else {}
    for dataset in (config.dataset, "digits"):
        entry = found.get(dataset, {}).get(name)
        if entry is not None:
            return entry["values"], {"dataset": dataset, **entry["search"]}
    raise SystemExit(f"{path} has no settings for {name} on {config.dataset}: choose them with --tune")


def save_settings(config: Config, method: str, entries: dict[str, Any]) -> None:
    """Write what a search chose; other data sets and scenarios in the file stay."""
    path = config.configs / f"{method}.json"
    datasets = json.loads(path.read_text())["datasets"] if path.exists() else {}
    datasets[config.dataset] = {**datasets.get(config.dataset, {}), **entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.compact_json({"method": method, "datasets": datasets}))


def tune(config: Config, mesh: Mesh | None, console: Console) -> dict[str, Any]:
    """Search all points of the grids, on draws that are not reported, and write the best of each scenario."""
    started = time.perf_counter()
    methods = list(config.methods or GRIDS)
    first, _ = studies(config, config.tune_draws[0], config.tune_draws[0])
    bench = programs(first, network=config.network, num_steps=config.unlearning_steps, scale=config.scale, mesh=mesh)
    names = chosen_scenarios(config, first, console)
    tables = [table for name in names for table in NAMES[name]]
    points = {
        method: [dict(zip(GRIDS[method], x, strict=True)) for x in itertools.product(*GRIDS[method].values())]
        for method in methods
    }
    chosen: dict[str, dict[str, Any]] = {}
    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[doing]}"))
    with Progress(*columns, console=console) as progress:
        total = len(tables) * len(config.tune_draws) * (1 + sum(map(len, points.values())))
        task = progress.add_task("search", total=total, doing="")
        ready: dict[str, list[Ready]] = {table: [] for table in tables}
        references: dict[str, list[Outcome]] = {table: [] for table in tables}
        for draw in config.tune_draws:
            seeds = Seeds(draw, draw, draw, range(100 * draw, 100 * draw + config.tune_seeds))
            pair = studies(config, draw, draw, first.model)
            for name in names:
                for one in prepare(config, bench, pair, name, seeds, config.tune_requests, mesh):
                    progress.update(task, advance=1, doing=f"draw {draw}: {one.scenario.name}")
                    ready[one.scenario.name].append(one)
                    references[one.scenario.name].append(audited(bench, one, answer(bench, one, RETRAINED, {})))
        for method in methods:
            entries = {}
            for table in tables:
                progress.update(task, doing=f"{method}: {table}")
                if why_left_out(method, table, first, config.tune_seeds) is not None:
                    progress.advance(task, len(config.tune_draws) * len(points[method]))
                    continue
                scores = []
                for options in points[method]:
                    outcomes = []
                    for one in ready[table]:
                        outcomes.append(audited(bench, one, answer(bench, one, method, options)))
                        progress.advance(task)
                    scores.append(worst_over_draws(outcomes, references[table], ready[table][0].scenario.measure))
                best = int(np.argmin(scores))
                search = {
                    "points": len(points[method]),
                    "grid": GRIDS[method],
                    "draws": config.tune_draws,
                    "seeds": config.tune_seeds,
                    "requests": ready[table][0].scenario.requests.indices.shape[0],
                    "unlearning_steps": config.unlearning_steps,
                }
                if not np.isfinite(scores[best]):
                    raise SystemExit(f"{method} diverged at every point of its grid for {table}: add smaller numbers to GRIDS")
                entries[table] = {
                    "values": points[method][best],
                    "worst_gap_in_spreads": round(scores[best], 3),
                    "search": search,
                }
                console.print(f"{table:18} {method:20} {points[method][best]}  worst gap {scores[best]:.1f} spreads")
            if leads() and entries:
                save_settings(config, method, entries)
            chosen[method] = entries
    console.print(f"searched for {time.perf_counter() - started:.0f} s; settings: {config.configs}")
    return chosen


def worst_over_draws(outcomes: Sequence[Outcome], references: Sequence[Outcome], measure: str) -> float:
    """Largest gap of a grid point in seed spreads, gaps and spreads averaged over draws; infinite if it diverged."""
    names = compared(measure)
    gaps = [study.gaps(outcome, reference, names) for outcome, reference in zip(outcomes, references, strict=True)]
    widths = [study.spreads(reference, names) for reference in references]

    def scaled(name: str) -> float:
        gap = abs(float(np.mean([float(draw[name].estimate) for draw in gaps])))
        return gap / max(float(np.mean([draw[name] for draw in widths])), LEAST_SPREAD)

    largest = max(map(scaled, names), key=lambda value: math.inf if math.isnan(value) else value)
    return math.inf if math.isnan(largest) else largest


def prepare(
    config: Config, bench: Bench, pair: tuple[Study, Study], name: str, seeds: Seeds, num_requests: int, mesh: Mesh | None
) -> list[Ready]:
    """The scenarios of one name with their originals."""

    def values() -> np.ndarray:
        how: dict[str, Any] = {"chunk": config.scale.chunk, "mesh": mesh}
        return scenarios.memorisation(pair[0], num_models=config.memorisation_models, seed=seeds.audit, **how)

    built = scenarios.build(
        name,
        *pair,
        num_requests=num_requests,
        seed=seeds.draw,
        request_seed=seeds.request,
        audit_seed=seeds.audit,
        values=values,
    )
    originals = [result.variables for result in trained(bench.train, built[0].study, seeds.training)]  # they share a study
    return [Ready(of_one_shape(scenario), originals, seeds) for scenario in built]


# The comparison and its log


def identity(config: Config) -> dict[str, Any]:
    """What two runs must have in common to go into one log, besides the settings: all that moves a number in it."""
    free = ("scenario", "methods", "out", "configs", "data_dir", "smoke", "tune", "tune_draws", "tune_seeds", "tune_requests")
    kept = {name: value for name, value in vars(config).items() if name not in free}
    return json.loads(json.dumps({**kept, "scale": config.scale.recorded()}))


def compare(config: Config, mesh: Mesh | None, console: Console) -> dict[str, Any]:
    """Answer every scenario by every method, as far as the log does not hold it yet, and report."""
    pair = studies(config, config.draw, config.audit_seed)
    names = chosen_scenarios(config, pair[0], console)
    takes = {name: next(iter(inspect.signature(method.factory).parameters)) for name, method in ju.METHODS.items()}
    networks = [name for name in ju.METHODS if takes[name] == "model" and name != "retrain"]
    if not config.methods:
        others = ", ".join(name for name in ju.METHODS if takes[name] != "model")
        console.print(f"left out, since they take a convex problem and not a network: {others}")
    methods = [ORIGINAL, *(config.methods or networks), AGAIN, RETRAINED]
    tables = [table for name in names for table in NAMES[name]]
    reasons = {table: {method: why_left_out(method, table, pair[0], config.seeds) for method in methods} for table in tables}
    wanted = [(table, method) for table in tables for method in methods if reasons[table][method] is None]
    settings, searches = {}, {}
    for table, method in wanted:
        if method in GRIDS:  # doing nothing and retraining have none
            settings[table, method], searches[f"{table}/{method}"] = load_settings(config, method, table)
    log = config.out / "results.jsonl"
    records, problem = {}, ""
    if leads():
        try:
            records = read_log(log, identity(config), settings)
        except ValueError as error:
            problem = str(error)
    refused, pending = told_by_first(bool(problem), [pair not in records for pair in wanted])
    if refused:
        raise SystemExit(problem or "the first process refused the configuration, see its message")
    todo = [pair for pair, is_pending in zip(wanted, pending, strict=True) if is_pending]
    describe_search(config, searches, console)
    if len(todo) < len(wanted):
        console.print(f"{log}: {len(wanted) - len(todo)} of {len(wanted)} results are there already")
    started = time.perf_counter()
    bench = programs(pair[0], network=config.network, num_steps=config.unlearning_steps, scale=config.scale, mesh=mesh)
    training_seeds = range(config.training_seed, config.training_seed + config.seeds)
    seeds = Seeds(config.draw, config.request_seed, config.audit_seed, training_seeds)
    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[doing]}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compare", total=len(todo), doing="")
        for name in names:
            if not any(table in NAMES[name] for table, _ in todo):
                continue
            progress.update(task, doing=f"{name}: training the originals")
            for ready in prepare(config, bench, pair, name, seeds, config.requests, mesh):
                table = ready.scenario.name
                for method in [method for place, method in todo if place == table]:
                    progress.update(task, doing=f"{table}: {method}")
                    options = settings.get((table, method), {})
                    done = answer(bench, ready, method, options)
                    line = as_record(ready, method, done, audited(bench, ready, done), options)
                    if leads():
                        append(log, line)
                        records[table, method] = line
                    progress.advance(task)
    if not leads():
        return {}
    environment = training.environment()
    found = {table: summarise(table, methods, records, reasons[table]) for table in tables}
    summary = {
        "config": identity(config),
        "environment": environment,
        "seconds_of_this_run": round(time.perf_counter() - started, 1),
        "scenarios": {table: one["json"] for table, one in found.items()},
    }
    write(config, summary, found, environment, searches)
    for one in found.values():
        report.print_table(one["table"], console)
        for text in one["left_out"]:
            console.print(text)
    report.print_table(overview(found), console)
    console.print(f"report: {config.out / 'report.html'}")
    return summary


def as_record(ready: Ready, method: str, done: training.Timed, outcome: Outcome, options: Settings) -> dict[str, Any]:
    """A line of the log: all values of one method in one scenario, [seeds][requests], and its times."""
    scenario, _, seeds = ready
    answered = len(seeds.training) * scenario.requests.indices.shape[0]
    if scenario.stream is not None and method not in (RETRAINED, AGAIN):  # each of a stream's requests needs a retraining
        answered *= scenario.stream.indices.shape[1]

    def number(value: float) -> float | None:
        return round(float(value), 6) if np.isfinite(value) else None

    values = {key: [[number(x) for x in row] for row in value] for key, value in outcome._asdict().items()}
    return {
        "scenario": scenario.name,
        "method": method,
        "question": scenario.question,
        "measure": scenario.measure,
        "classes": scenario.study.num_classes,
        "rows": np.asarray(scenario.requests.weights.sum(axis=-1)).astype(int).tolist(),
        "options": options,
        "not_finite": int(np.sum(np.asarray(done.result.status) == ju.Status.NONFINITE)),
        "values": values,
        "compile_seconds": round(done.compile_seconds, 3),
        "run_seconds": round(done.run_seconds, 4),
        "milliseconds": None if method == ORIGINAL else round(1e3 * done.run_seconds / answered, 4),
    }


# Tables


def outcome_of(line: dict[str, Any]) -> Outcome:
    """The values of a line of the log; null is NaN."""
    return Outcome(**{key: jnp.asarray(np.array(value, np.float32)) for key, value in line["values"].items()})


def summarise(table: str, methods: Sequence[str], records: Records, reasons: dict[str, str | None]) -> dict[str, Any]:
    """Tables, plot and JSON of one scenario, from the log alone."""
    first = records[table, RETRAINED]
    reference, measure = outcome_of(first), first["measure"]
    names, seeds, requests = compared(measure), *reference.auc.shape
    known = [method for method in methods if reasons[method] is None]
    rows, gap_rows, lines, points, levels = [], [], {}, {}, {}
    for method in known:
        line = records[table, method]
        outcome = outcome_of(line)
        means = {name: ju.audit.crossed_interval(getattr(outcome, name)) for name in names}
        row: dict[str, Any] = {"method": SHOWN.get(method, method), **means, "milliseconds": line["milliseconds"]}
        lines[method] = {
            "options": line["options"],
            "means": as_lists(means),
            "milliseconds": line["milliseconds"],
            "compile_seconds": line["compile_seconds"],
            "not_finite": line["not_finite"],
        }
        row["not_finite"] = line["not_finite"] or None
        if method != RETRAINED:
            gaps = study.gaps(outcome, reference, names)
            scaled = study.in_spreads(outcome, reference, names, least=LEAST_SPREAD)
            place = max(names, key=lambda name: math.inf if math.isnan(scaled[name]) else abs(scaled[name]))
            worst = scaled[place]
            row |= {"worst": worst, "place": place}
            gap_rows.append({"method": row["method"], **{name: gaps[name] for name in names}, "worst": worst})
            lines[method] |= {
                "gaps": as_lists(gaps),
                "gaps_in_spreads": {name: rounded(value) for name, value in scaled.items()},
                "worst": rounded(worst),
                "worst_at": place,
            }
            if method in (ORIGINAL, AGAIN):
                levels[row["method"]] = max(abs(worst), 0.01)
            elif np.isfinite(worst):
                points[method] = (line["milliseconds"], max(abs(worst), 0.01))
        rows.append(row)
    rows += [{"method": method} for method, reason in reasons.items() if reason is not None]
    gap_columns, columns = columns_of(measure, bool(first["classes"]))
    caption = f"{table}: means over {seeds} seeds x {requests} requests, 95 % intervals; worst: largest gap in seed spreads"
    figure = plots.pareto(points, levels=levels, reference_time=first["milliseconds"]) if points else None
    return {
        "json": {
            "question": first["question"],
            "measure": measure,
            "rows": first["rows"],
            "seed_spreads": {name: rounded(value) for name, value in study.spreads(reference, names).items()},
            "methods": lines,
            "left_out": {method: reason for method, reason in reasons.items() if reason is not None},
        },
        "table": Table(columns, rows, caption),
        "gap_table": Table(gap_columns, gap_rows, f"{table}: signed gaps to the retrained models of the same requests"),
        "left_out": [f"{method} is left out: it {reason}" for method, reason in reasons.items() if reason is not None],
        "figure": figure,
    }


def columns_of(measure: str, classifies: bool) -> tuple[list[Column], list[Column]]:
    """Columns of the gap table and of the table."""
    unit, form = ("acc.", ".1%") if classifies else ("RMSE", ".3f")
    measures = [Column(name, f"{name} {unit}", form) for name in ("retain", "forget", "test")]
    measures += [Column("unseen", measure, form)] if measure else []
    measures.append(Column("auc", "attack AUC", ".3f"))
    signed = [column._replace(format=f"+{column.format}") for column in measures]
    worst, method = Column("worst", "worst", "+.1f"), Column("method", "method")
    rest = [worst, Column("place", "at"), Column("milliseconds", "ms/request", ".1f"), Column("not_finite", "diverged", "d")]
    return [method, *signed, worst], [method, *measures, *rest]


def overview(found: Mapping[str, dict[str, Any]]) -> Table:
    """Largest gap in seed spreads of every method in every scenario."""
    methods = list(dict.fromkeys(method for one in found.values() for method in one["json"]["methods"] if method != RETRAINED))
    methods = [method for method in methods if method != AGAIN] + [AGAIN]
    rows = []
    for method in methods:
        worst = {table: one["json"]["methods"].get(method, {}).get("worst") for table, one in found.items()}
        rows.append({"method": SHOWN.get(method, method), **worst})
    columns = [Column("method", "method"), *(Column(table, table, "+.1f") for table in found)]
    return Table(
        columns,
        rows,
        "Largest signed gap to retrained models in seed spreads, by scenario; a dash: does not apply, or diverged",
    )


def rounded(value: float) -> float | None:
    """Four significant digits; None, which is JSON, for what is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def as_lists(intervals: Mapping[str, ju.audit.Interval]) -> dict[str, list[float | None]]:
    """Intervals as [estimate, low, high]."""
    return {name: [rounded(float(x)) for x in interval] for name, interval in intervals.items()}


def describe_search(config: Config, searches: Mapping[str, dict[str, Any]], console: Console) -> None:
    """Print what the settings cost."""
    for line in search_lines(config, searches):
        console.print(line)


def search_lines(config: Config, searches: Mapping[str, dict[str, Any]]) -> list[str]:
    """The budget of the search, a sentence for each kind of it."""
    kinds: dict[str, list[str]] = {}
    for name, search in searches.items():
        kind = (
            f"draws {', '.join(map(str, search['draws']))} of {search['dataset']}, {search['seeds']} seeds x up to "
            f"{{requests}} requests each, {search['unlearning_steps']} steps"
        )
        kinds.setdefault(kind, []).append(name)
    lines = []
    for kind, names in kinds.items():
        points = [searches[name]["points"] for name in names]
        most = max(searches[name]["requests"] for name in names)
        lines.append(
            f"settings of {len(names)} pairs of method and scenario: {min(points)} to {max(points)} points each, "
            f"{sum(points)} in all, tried on {kind.format(requests=most)}"
        )
        other = sorted({searches[name]["dataset"] for name in names} - {config.dataset})
        if other:
            lines.append(f"they were chosen on {', '.join(other)} and not on {config.dataset}: --tune chooses new ones")
    return lines


INTRO = """\
Networks were trained until they knew their training rows by heart. People then asked for rows to be forgotten, in several
scenarios. Every method answered all requests of a scenario; the retrained models, which never saw the rows, are what they
are compared with.

How to read it: the aim is the retrained row, not an accuracy or an attack as low as possible. The attack tells forgotten
rows from unseen rows that are drawn like them, by their loss. It is a weak attack: what it does not find may still be
there. No method but retraining guarantees anything.

Worst: the largest of the signed gaps to retrained models over the measures of the table, in standard deviations of one
retrained model over seeds, of which there are few; one below half a point (0.005) counts as half a point. "Retrained again"
is a second set of retrained models under other seeds: gaps of its size are no gaps. Over 11 scenarios and 5 measures some
gaps of two spreads come by chance."""
NOTES = {
    "memorised low": "These rows are known without having been seen: there is next to nothing to forget. A negative control.",
    "class": "The accuracy on unseen rows of the class tells whether the concept is gone.",
    "classes": "The accuracy on unseen rows of the classes tells whether the concept is gone.",
    "group": "Persons are synthetic: a fixed pattern added to rows that were dealt out at random.",
    "confusion": "Labels of two classes were swapped in half of their rows; the measure is how often unseen rows are confused.",
    "backdoor": "Attack success: unseen rows with the patch, not of the target class, that are taken for it.",
    "sequential": "One model answers request after request; the audit looks at it after the last one.",
}


def write(
    config: Config,
    summary: dict[str, Any],
    found: Mapping[str, dict[str, Any]],
    environment: dict[str, Any],
    searches: Mapping[str, dict[str, Any]],
) -> None:
    """Write the report and the numbers."""
    (config.out / "compare.json").write_text(report.compact_json(summary))
    budget = "Search of the settings: " + "; ".join(search_lines(config, searches)) + "." if searches else ""
    sections = [Section("Overview", budget, [overview(found)])]
    for table, one in found.items():
        caption = "Largest gap against time a request; the line joins what no other method beats in both."
        figures = [(one["figure"], caption)] if one["figure"] is not None else []
        text = [f"Question: {one['json']['question']}.", NOTES.get(table, ""), *(f"{line}." for line in one["left_out"])]
        sections.append(Section(table.capitalize(), "\n\n".join(text), [one["table"], one["gap_table"]], figures))
    title = f"jaxunlearn comparison: {config.dataset}"
    report.write_report(config.out / "report.html", title, INTRO, sections, environment=environment)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
