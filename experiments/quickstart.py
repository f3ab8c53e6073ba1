"""Forty-two forget requests answered by four methods, and compared with retraining.

    python experiments/quickstart.py                        # five seeds, under two minutes on two CPU cores
    python experiments/quickstart.py --smoke                # tiny, for a first look whether it runs
    python experiments/quickstart.py --dataset mnist --data-dir DIR --rows 2000 --network cnn
    python experiments/quickstart.py --mesh --chunk 4       # over all devices; more in experiments/launch/README.md

A small network learns 500 digits, some with wrong labels, by heart. 32 requests for 8 to 64 random rows and 10 requests for
a whole class are answered by four methods, in one compiled call each, and so are their retrained references. All methods
and more scenarios: `experiments/compare.py`. Written to the folder `--out`: `report.html` (one page with tables and plots),
`quickstart.png`, `quickstart.json`.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import jaxunlearn as ju
from experiments.common import plots, report, study, training
from experiments.common.report import Column, Section, Table
from experiments.common.scale import Scale, in_bfloat16, leads, start

# Chosen by experiments/tune_quickstart.py on other draws of rows, wrong labels, training seeds and requests.
SETTINGS: dict[str, dict[str, dict[str, float]]] = {
    "random rows": {
        "finetune": {"learning_rate": 1e-2},
        "gradient_ascent": {"learning_rate": 1e-5},
        "gradient_difference": {"learning_rate": 8e-3, "alpha": 0.97},
        "scrub": {"learning_rate": 4e-3, "alpha": 0.1, "forget_epochs": 5},
    },
    "whole classes": {
        "finetune": {"learning_rate": 1e-2},
        "gradient_ascent": {"learning_rate": 1e-4},
        "gradient_difference": {"learning_rate": 4e-3, "alpha": 0.995},
        "scrub": {"learning_rate": 4e-3, "alpha": 0.1, "forget_epochs": 3},
    },
}
ORIGINAL, AGAIN, RETRAINED = "original", "retrained again", "retrained"

COLUMNS = [
    Column("method", "method"),
    Column("retain_accuracy", "retain acc.", ".1%"),
    Column("forget_accuracy", "forget acc.", ".1%"),
    Column("test_accuracy", "test acc.", ".1%"),
    Column("auc", "attack AUC", ".3f"),
    Column("tpr", "TPR at 1 % FPR", ".1%"),
    Column("divergence", "JS to retr.", ".3f"),
    Column("milliseconds", "ms/request", ".1f"),
]
SHOWN = [column.key for column in COLUMNS if column.key in study.Measures._fields]
GAP_COLUMNS = [
    Column("method", "method"),
    Column("retain_accuracy", "retain acc.", "+.1%"),
    Column("forget_accuracy", "forget acc.", "+.1%"),
    Column("test_accuracy", "test acc.", "+.1%"),
    Column("auc", "attack AUC", "+.3f"),
    Column("worst", "worst in spreads", ".1f"),
]


@dataclass
class Config:
    """Command line of the quickstart."""

    seeds: int = 5
    """Original models; seeds of training."""
    random_requests: int = 32
    """Requests for random rows, of 8 to 64 rows."""
    draw: int = 0
    """Seed of the training rows and their wrong labels."""
    request_seed: int = 0
    """Which random rows are asked to be forgotten."""
    training_seed: int = 0
    """First seed of training; the others follow."""
    dataset: str = "digits"
    """digits, or an image data set prepared by TFDS."""
    data_dir: str | None = None
    """Where TFDS finds prepared data."""
    network: str = "mlp"
    """mlp, cnn or resnet18."""
    rows: int = 500
    """Training rows."""
    label_noise: float = 0.12
    """Fraction of training rows with a wrong label."""
    training_steps: int = 600
    """Steps of training and retraining."""
    unlearning_steps: int = 100
    """Steps of every other method."""
    out: Path = Path("out/quickstart")
    """Folder of the results."""
    smoke: bool = False
    """Run in seconds with too few seeds, requests and steps to mean anything."""
    scale: tyro.conf.OmitArgPrefixes[Scale] = field(default_factory=Scale)


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.seeds < 2:
        raise SystemExit("--seeds must be at least 2: intervals and spreads are taken over seeds")
    if config.smoke:
        config = Config(
            seeds=2, random_requests=3, rows=200, training_steps=20, unlearning_steps=5, out=config.out,
            dataset=config.dataset, data_dir=config.data_dir, network=config.network, scale=config.scale,
        )  # fmt: skip
    mesh = start(config.scale)
    console = Console(quiet=not leads())
    setting = study.overfitted(
        config.dataset,
        config.data_dir,
        network=config.network,
        num_rows=config.rows,
        label_noise=config.label_noise,
        num_steps=config.training_steps,
        seed=config.draw,
    )
    sizes = np.linspace(8, 64, config.random_requests).astype(int)
    scenarios = {
        "random rows": study.random_requests(setting.data, sizes.tolist(), config.request_seed),
        "whole classes": ju.from_classes(setting.data, [[label] for label in range(setting.num_classes)]),
    }
    stages = 1 + sum(3 + len(SETTINGS[name]) for name in scenarios)
    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[doing]}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("quickstart", total=stages, doing="training the originals")

        def advance(doing: str) -> None:
            progress.update(task, advance=1, doing=doing)

        computed = setting._replace(model=in_bfloat16(setting.model)) if config.scale.bf16 else setting
        seeds = range(config.training_seed, config.training_seed + config.seeds)
        originals = computed.originals(seeds, jax.random.key(0), chunk=config.scale.chunk, mesh=mesh)
        found = {
            name: answer_scenario(config, setting, computed, mesh, originals, name, requests, advance)
            for name, requests in scenarios.items()
        }
        progress.update(task, doing="done")
    environment = training.environment()
    summary = {
        "config": {**vars(config), "out": None, "scale": config.scale.recorded()},
        "environment": environment,
        "settings": SETTINGS,
        "scenarios": {name: scenario["json"] for name, scenario in found.items()},
    }
    if leads():
        write(config.out, summary, found, environment)
    for scenario in found.values():
        report.print_table(scenario["table"], console)
        report.print_table(scenario["gap_table"], console)
    console.print("worst in spreads: largest of the four gaps, in standard deviations of a retrained model over seeds")
    console.print(f"report: {config.out / 'report.html'}")
    return summary


def answer_scenario(
    config: Config,
    setting: study.Study,
    computed: study.Study,
    mesh: Mesh | None,
    originals: ju.Variables,
    name: str,
    requests: ju.ForgetRequest,
    advance: Callable[[str], None],
) -> dict[str, Any]:
    """Answers of every method to one kind of request, audited: tables, figures and what goes into the JSON.

    Methods run on `computed`, whose model may compute in bfloat16; the audit runs on `setting`.
    """
    lanes = requests.indices.shape[0]
    advance(f"{name}: retraining {config.seeds * lanes} models")
    run = partial(study.answer, chunk=config.scale.chunk, mesh=mesh)
    answers = {RETRAINED: run(computed.retrain(), originals, setting.data, requests, jax.random.key(1))}
    for position, (method, options) in enumerate(SETTINGS[name].items()):
        advance(f"{name}: {method}")
        unlearn = study.unlearner(
            method, computed.model, num_steps=config.unlearning_steps, batch_size=setting.batch_size, **options
        )
        answers[method] = run(unlearn, originals, setting.data, requests, jax.random.key(2 + position))
    advance(f"{name}: retraining once more, for the floor")
    answers[AGAIN] = run(computed.retrain(), originals, setting.data, requests, jax.random.key(100))
    advance(f"{name}: auditing")
    audit = jax.jit(lambda variables, reference: study.measure(setting, variables, reference, requests))
    reference = answers[RETRAINED].result.variables
    models = {ORIGINAL: study.repeat(originals, lanes), **{method: done.result.variables for method, done in answers.items()}}
    order = [ORIGINAL, *SETTINGS[name], AGAIN, RETRAINED]
    measures = {method: jax.device_get(audit(models[method], reference)) for method in order}
    milliseconds = {method: 1e3 * done.run_seconds / (config.seeds * lanes) for method, done in answers.items()}

    rows, gap_rows, records = [], [], {}
    for method in order:
        means = {key: ju.audit.crossed_interval(getattr(measures[method], key)) for key in SHOWN}
        label = {"method": "do nothing" if method == ORIGINAL else method}
        known = means if method != RETRAINED else {**means, "divergence": None}
        rows.append({**label, **known, "milliseconds": milliseconds.get(method)})
        records[method] = {"means": study.as_json(means)}
        if method in answers:
            records[method]["compile_seconds"] = answers[method].compile_seconds
            records[method]["run_seconds"] = answers[method].run_seconds
            records[method]["milliseconds_per_request"] = milliseconds[method]
        if method != RETRAINED:
            gaps = study.gaps(measures[method], measures[RETRAINED])
            scaled = study.in_spreads(measures[method], measures[RETRAINED])
            worst = max(map(abs, scaled.values()))
            gap_rows.append({**label, **gaps, "worst": worst})
            records[method]["gaps"] = study.as_json(gaps)
            records[method]["gaps_in_seed_spreads"] = study.as_json(scaled)
            records[method]["within_two_seed_spreads"] = worst <= 2
    return {
        "json": {"requests": lanes, "seed_spreads": study.spreads(measures[RETRAINED]), "methods": records},
        "table": Table(COLUMNS, rows, f"{name}: means over {config.seeds} seeds x {lanes} requests, 95 % intervals"),
        "gap_table": Table(GAP_COLUMNS, gap_rows, f"{name}: signed gaps to the retrained models of the same requests"),
        "accuracy": {
            method: {
                split: ju.audit.crossed_interval(getattr(measures[method], f"{split}_accuracy"))
                for split in ("forget", "retain", "test")
            }
            for method in order
        },
        "roc": {method: (study.FALSE_POSITIVE_RATES, np.nanmean(measures[method].roc, axis=(0, 1))) for method in order},
        "milliseconds": milliseconds,
        "compile_seconds": {method: done.compile_seconds for method, done in answers.items()},
    }


INTRO = """\
A network was trained until it knew its training rows by heart, wrong labels included. People then asked for rows to be
forgotten. Every method answered all requests in one compiled call; the retrained models, which never saw the rows, are what
they are compared with.

How to read it: the aim is the retrained row, not an accuracy or an attack as low as possible. A forget accuracy above
retrained means that rows are still known; one below means that they were driven out so hard that it shows. The attack tells
forgotten rows from test rows by their loss. It is a weak attack: what it does not find may still be there. No method but
retraining guarantees anything.

Worst in spreads: the largest of the four signed gaps, in standard deviations of one retrained model over seeds. Retrained again
is the floor: a second retraining of every request, which no method can be expected to beat."""


def write(out: Path, summary: dict[str, Any], found: dict[str, dict[str, Any]], environment: dict[str, Any]) -> None:
    """Write the report, the picture and the numbers."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "quickstart.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    sections = []
    for name, scenario in found.items():
        accuracy = plots.accuracy_bars(scenario["accuracy"])
        figures = [
            (accuracy, "Accuracy beside that of retrained models (line and band). On the line is right; lower is not better."),
            (plots.roc_curves(scenario["roc"]), "The loss attack, averaged over seeds and requests."),
            (
                plots.time_per_request(scenario["milliseconds"], scenario["compile_seconds"]),
                "Time of the batched call, divided by its requests.",
            ),
        ]
        if name == "random rows":
            (out / "quickstart.png").write_bytes(plots.to_png(accuracy))
        sections.append(Section(name.capitalize(), "", [scenario["table"], scenario["gap_table"]], figures))
    report.write_report(out / "report.html", "jaxunlearn quickstart", INTRO, sections, environment=environment)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
