"""Unlearn rows from a checkpoint of a flax.linen network, and get a new checkpoint and a report.

    python experiments/unlearn_checkpoint.py --demo                         # trains a checkpoint on digits first
    python experiments/unlearn_checkpoint.py --checkpoint DIR --rows 3 14 15 --out out/request-1
    python experiments/unlearn_checkpoint.py --checkpoint DIR --rows-file ids.txt --network resnet18 --dataset cifar10 \\
        --data-dir DIR --method scrub --options alpha 0.1 forget_epochs 5 --retrain --training-steps 20000

The checkpoint is one that orbax wrote: `{"params": ..., "batch_stats": ...}` as linen's `init` returns them, or a train state
with such entries, of which nothing else is read. All rows are forgotten in one merged request. Written to the folder `--out`:
`checkpoint` (weights in linen's form), `report.html` and `unlearn_checkpoint.json`; the last two do not say which rows.
"""

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import optax
import tyro
from jaxtyping import PRNGKeyArray
from rich.console import Console

import jaxunlearn as ju
from experiments.common import plots, report, study, training
from experiments.common.data import load
from experiments.common.models import build
from experiments.common.report import Column, Section, Table
from jaxunlearn.checkpoint import load_variables, save_variables

BEFORE, AFTER, RETRAINED = "before", "after", "retrained"
FILES = ("trained", "checkpoint", "report.html", "unlearn_checkpoint.json")
UNREPORTED = ("rows", "rows_file", "checkpoint", "data_dir", "out")  # who asked, and where things are on this machine
CHUNK = 1024  # rows that are audited side by side
COLUMNS = [
    Column("model", "model"),
    Column("retain_accuracy", "retain acc.", ".1%"),
    Column("forget_accuracy", "forget acc.", ".1%"),
    Column("test_accuracy", "test acc.", ".1%"),
    Column("auc", "attack AUC", ".3f"),
    Column("tpr", "TPR at 1 % FPR", ".1%"),
]


@dataclass
class Config:
    """Command line of the script."""

    checkpoint: Path | None = None
    """Folder of the trained checkpoint."""
    rows: tuple[int, ...] = ()
    """Rows of the training split to forget, counted from 0."""
    rows_file: Path | None = None
    """A text file of such numbers, separated by white space; instead of --rows."""
    demo: bool = False
    """First train a checkpoint into OUT/trained; without rows, forget the first 32."""
    network: str = "mlp"
    """mlp, cnn or resnet18, as it was trained."""
    dataset: str = "digits"
    """digits, or an image data set prepared by TFDS, as it was trained on."""
    data_dir: str | None = None
    """Where TFDS finds prepared data."""
    standardise: bool = False
    """Pixels are standardised by channel instead of left in [0, 1]."""
    method: str = "gradient_difference"
    """Any method of `jaxunlearn.METHODS`."""
    learning_rate: float = 1e-3
    """Of the method, under Adam with a cosine schedule."""
    steps: int = 100
    """Steps of the method."""
    batch_size: int = 64
    """Rows a step, of the request and of the retained rows each; of training, too."""
    options: dict[str, str] = field(default_factory=dict)
    """Further settings of the method, e.g. alpha 0.97."""
    retrain: bool = False
    """Also retrain without the rows, as a reference."""
    training_steps: int = 600
    """Steps of training (demo) and retraining; a reference only if the checkpoint was trained like that."""
    training_learning_rate: float = 2e-3
    """Of training and retraining, with Adam."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("out/unlearn_checkpoint")
    """Folder of the results."""


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    console = Console()
    _check(config)
    keys = dict(zip(("train", "unlearn", "retrain"), jax.random.split(jax.random.key(config.seed), 3), strict=True))
    dataset = load(config.dataset, config.data_dir, scaling="standardise" if config.standardise else "unit")
    data = ju.training_data(*dataset.train)
    test = jax.tree.map(jnp.asarray, dataset.test)
    model = build(config.network, dataset.train.inputs.shape[1:], dataset.num_classes)
    request = ju.merge(ju.from_indices(data, [_rows(config)]))
    unlearn = _method(config, model)
    retrain = ju.retrain(
        model, optax.adam(config.training_learning_rate), num_steps=config.training_steps, batch_size=config.batch_size
    )

    checkpoint = config.checkpoint
    if config.demo:
        checkpoint = config.out / "trained"
        console.print(f"training a {config.network} on {config.dataset}")
        fresh = jax.jit(_init(model))(keys["train"])
        trained = jax.jit(retrain)(fresh, data, ju.empty_request(), keys["train"])
        _save(checkpoint, ju.check(trained, allow=[ju.Status.EMPTY_REQUEST]).variables)
    assert checkpoint is not None  # one of the two was given
    variables = _load(checkpoint, model)

    num_rows = int(request.weights.sum())
    models, seconds = {BEFORE: variables}, {}
    for name, function, doing in ((AFTER, unlearn, config.method), (RETRAINED, retrain, "retraining")):
        if name == AFTER or config.retrain:
            console.print(f"{doing} without {num_rows} of {len(dataset.train.targets)} rows")
            key = keys["unlearn" if name == AFTER else "retrain"]
            done = training.timed(function, variables, data, request, key)
            models[name] = ju.check(done.result).variables
            seconds[name] = {"compile_seconds": done.compile_seconds, "run_seconds": done.run_seconds}
    console.print("auditing")
    found = jax.device_get(jax.jit(_audit, static_argnums=0)(model, list(models.values()), data, request, test))
    audits, curves = ({name: _lane(part, i) for i, name in enumerate(models)} for part in found)

    _save(config.out / "checkpoint", models[AFTER])
    environment = training.environment()
    summary = {
        "config": {name: value for name, value in vars(config).items() if name not in UNREPORTED},
        "environment": environment,
        "forgotten_rows": num_rows,
        "guarantee": ju.METHODS[config.method].guarantee,
        "models": {name: {**study.as_json(audits[name]), **seconds.get(name, {})} for name in models},
    }
    (config.out / "unlearn_checkpoint.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    table = Table(COLUMNS, [{"model": name, **audits[name]} for name in models], "Each model, with 95 % intervals over rows")
    _write_report(config, table, audits, curves, num_rows, environment)
    report.print_table(table._replace(columns=COLUMNS[:-1]), console)  # as many as fit 80 characters
    console.print(f"checkpoint: {config.out / 'checkpoint'}\nreport: {config.out / 'report.html'}", soft_wrap=True)
    if config.demo:
        command = f"python {sys.argv[0]} --checkpoint {checkpoint} --rows 3 14 15 --out {config.out}-2"
        console.print(f"next: {command}", soft_wrap=True)
    return summary


def _check(config: Config) -> None:
    if config.demo == (config.checkpoint is not None):
        raise SystemExit("give either --checkpoint DIR, or --demo, which trains one first")
    if config.rows and config.rows_file is not None:
        raise SystemExit("give either --rows or --rows-file, not both")
    if not (config.rows or config.rows_file or config.demo):
        raise SystemExit("nothing to forget: give --rows 3 14 15, or --rows-file with one row number a line")
    if config.method not in ju.METHODS:
        raise SystemExit(f"unknown method {config.method!r}: choose one of {', '.join(ju.METHODS)}")
    taken = [
        name for name in ("trained", "checkpoint", "report.html", "unlearn_checkpoint.json") if (config.out / name).exists()
    ]
    if taken:
        raise SystemExit(f"{config.out} holds {', '.join(taken)} already, which is not overwritten: choose another --out")


def _rows(config: Config) -> list[int]:
    if config.rows_file is None:
        return list(config.rows or range(32))
    if not config.rows_file.is_file():
        raise SystemExit(f"there is no file {config.rows_file}")
    words = config.rows_file.read_text(encoding="utf-8").split()
    wrong = [word for word in words if not word.isdecimal()]
    if wrong or not words:
        raise SystemExit(f"{config.rows_file} must hold row numbers, separated by white space, got {wrong[:5] or 'none'}")
    return list(map(int, words))


def _method(config: Config, model: ju.Model) -> ju.UnlearnFn:
    signature = inspect.signature(ju.METHODS[config.method].factory)
    loop = {"num_steps", "batch_size"}
    known = {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in loop}
    unknown = [name for name in config.options if name not in known]
    if unknown:
        raise SystemExit(f"{config.method} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    missing = [name for name, default in known.items() if default is inspect.Parameter.empty and name not in config.options]
    if missing:
        raise SystemExit(f"{config.method} needs {', '.join(missing)}: give --options {missing[0]} VALUE")
    return study.unlearner(
        config.method,
        model,
        num_steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate if loop <= set(signature.parameters) else None,
        **{name: _number(value) for name, value in config.options.items()},
    )


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _init(model: ju.Model) -> Callable[[PRNGKeyArray], ju.Variables]:
    assert model.init is not None  # every network of `build` has one
    return model.init


def _load(path: Path, model: ju.Model) -> ju.Variables:
    like = jax.eval_shape(_init(model), jax.eval_shape(lambda: jax.random.key(0)))
    found = load_variables(path, {"params": like.params, **(like.state or {})}, partial=True)
    params = found.pop("params")
    return ju.Variables(params, found or ())


def _save(path: Path, variables: ju.Variables) -> None:
    save_variables(path, {"params": variables.params, **(variables.state or {})})


def _audit(
    model: ju.Model, models: list[ju.Variables], data: ju.Data, request: ju.ForgetRequest, test: ju.Examples
) -> tuple[dict[str, Any], ju.audit.Roc]:
    """Figures of each model and its ROC curve, with a leading axis for the models."""
    forgotten = jnp.sum(request.weights)
    sizes = {"retain": jnp.sum(data.present) - forgotten, "forget": forgotten, "test": jnp.float32(len(test.targets))}

    def one(variables: ju.Variables) -> tuple[dict[str, Any], ju.audit.Roc]:
        performance = ju.audit.performance(model, variables, data, request, test, chunk=CHUNK)
        attack = ju.audit.loss_attack(model, variables, data, request, test, chunk=CHUNK)
        scores = ju.audit.loss_scores(model, variables, data, request, test, chunk=CHUNK)
        figures: dict[str, Any] = {"auc": attack.auc, "tpr": attack.tpr}
        for part, size in sizes.items():
            right = jnp.round(getattr(performance.accuracy, part) * size)
            figures[f"{part}_accuracy"] = ju.audit.clopper_pearson(right, size)
            figures[f"{part}_loss"] = getattr(performance.loss, part)
        return figures, ju.audit.roc_curve(*scores)

    return jax.lax.map(one, jax.tree.map(lambda *x: jnp.stack(x), *models))


def _lane(stacked: Any, position: int) -> Any:
    return jax.tree.map(lambda x: x[position], stacked)


def _write_report(config: Config, table: Table, audits: dict, curves: dict, num_rows: int, environment: dict[str, Any]) -> None:
    guarantee = ju.METHODS[config.method].guarantee
    promise = "It guarantees nothing." if guarantee == "none" else f"Its guarantee is {guarantee}."
    reference = (
        "The aim is the row `retrained`, a model trained without the rows, not an accuracy or an attack as low as possible. "
        "It is one model: another seed would move it. It is a reference only if the checkpoint was trained in the same way."
        if config.retrain
        else "Without a retrained model (--retrain) nobody can tell from this table how much should have been forgotten."
    )
    intro = f"""\
{num_rows} rows were unlearned from a {config.network} trained on {config.dataset}, by {config.method}. {promise}

{reference}

Intervals are over the rows, the model is taken as it is. The attack tells forgotten rows from test rows by their loss. It is
a weak attack: what it does not find may still be there. The old checkpoint, its optimizer state and the rows themselves are
left where they are; deleting them is up to you."""
    splits = ("forget", "retain", "test")
    accuracy = plots.accuracy_bars(
        {name: {split: figures[f"{split}_accuracy"] for split in splits} for name, figures in audits.items()}
    )
    figures = [
        (accuracy, "Accuracy of each model. On the line of the retrained model is right; lower is not better."),
        (plots.roc_curves(curves), "The loss attack."),
    ]
    section = Section("Before and after", "", [table], figures)
    report.write_report(
        config.out / "report.html", "Rows unlearned from a checkpoint", intro, [section], environment=environment
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
