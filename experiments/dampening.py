"""What does selective synaptic dampening depend on? Its threshold alpha and its batch size, on classes and on random rows.

    python experiments/dampening.py                                                        # digits, offline
    python experiments/dampening.py --dataset mnist --network cnn --rows 2000 --data-dir DIR
    python experiments/dampening.py --smoke                                                # tiny, to see whether it runs

Importances are squares of mean gradients of batches, so their ratio, which alpha is compared with, depends on the size of the
batches; `1` squares gradients of rows. All values of alpha and all requests of a batch size are one compiled call. Written to
the folder `--out`: `report.html` with the plots, `dampening.json`.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

import jaxunlearn as ju
from experiments.common import plots, report, study, training
from experiments.common.report import Column, Section, Table
from jaxunlearn.closed_form import ssd

SHOWN = ("forget", "retain", "test", "auc")
COLUMNS = [
    Column("request", "request for"),
    Column("batch_size", "batch size", ".0f"),
    Column("alpha", "alpha", ".3g"),
    Column("selected", "weights dampened", ".2%"),
    Column("forget", "forget accuracy", ".1%"),
    Column("retain", "retain accuracy", ".1%"),
    Column("test", "test accuracy", ".1%"),
    Column("auc", "attack AUC", ".3f"),
]


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
    test_rows: int = 1000
    """Test rows; all rows of a smaller test set."""
    training_steps: int = 600
    """Steps of training and retraining."""
    models: int = 5
    """Originals; seeds of training."""
    classes: int = 5
    """Requests for a class each."""
    random_requests: int = 3
    """Requests for random rows."""
    random_rows: int = 50
    """Rows of each."""
    alphas: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 25.0, 50.0)
    """Thresholds."""
    strength: float = 1.0
    """The paper's lambda."""
    batch_sizes: tuple[int, ...] = (1, 16, 64, 256)
    """Rows whose mean gradient is squared."""
    seed: int = 0
    """Of rows, training and requests."""
    out: Path = Path("out/dampening")
    """Folder of the results."""
    smoke: bool = False
    """Run with too little of everything to mean anything."""


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(
            config, rows=60, training_steps=5, models=2, classes=2, random_requests=1, random_rows=5, alphas=(1.0, 5.0),
            batch_sizes=(1, 16),
        )  # fmt: skip
    console, began = Console(), time.perf_counter()
    setting = study.overfitted(
        config.dataset, config.data_dir, network=config.network, num_rows=config.rows, label_noise=0.0,
        num_steps=config.training_steps, seed=config.seed,
    )  # fmt: skip
    setting = setting._replace(test=jax.tree.map(lambda x: x[: config.test_rows], setting.test))
    data, key = setting.data, jax.random.key(config.seed)
    requests = asked(config, data)
    originals = setting.originals(range(config.models), jax.random.fold_in(key, 0))
    retrained = study.answer(setting.retrain(), originals, data, requests, jax.random.fold_in(key, 1)).result.variables
    console.print(f"trained and retrained after {time.perf_counter() - began:.0f} s")

    @jax.jit
    def audit(variables: ju.Variables) -> study.Outcome:  # [r] models
        never = jnp.ones((requests.indices.shape[0], len(setting.test.targets)))
        return study.outcome(setting, variables, requests, setting.test, never)

    def rows_of(outcomes: list[study.Outcome], **fields: Any) -> list[dict[str, Any]]:
        """One row a kind of request: means over models and requests."""
        kinds = {"a class": slice(config.classes), "random rows": slice(config.classes, None)}
        selected = fields.pop("selected", None)  # [s, r]
        rows = []
        for kind, part in kinds.items():
            values = {x: float(np.mean([np.asarray(getattr(one, x))[part] for one in outcomes])) for x in SHOWN}
            share = None if selected is None else float(np.mean(selected[:, part]))
            rows.append({"request": kind, "selected": share, **fields, **values})
        return rows

    rows, points = [], {}
    for batch_size in config.batch_sizes:
        swept = jax.jit(sweep(config, setting.model, batch_size))
        outcomes, shares = [], []  # [model][alpha]
        for s in range(config.models):
            found = swept(jax.tree.map(lambda x, s=s: x[s], originals), data, requests)
            outcomes.append([audit(jax.tree.map(lambda x, a=a: x[a], found.variables)) for a in range(len(config.alphas))])
            shares.append(np.asarray(found.stats["selected"]))
        for a, alpha in enumerate(config.alphas):
            new = rows_of([one[a] for one in outcomes], batch_size=batch_size, alpha=alpha, selected=np.stack(shares)[:, a])
            rows += new
            for row in new:
                points.setdefault((row["request"], batch_size), []).append(row)
        console.print(f"batches of {batch_size} after {time.perf_counter() - began:.0f} s")
    ends = {
        name: rows_of([audit(jax.tree.map(lambda x, s=s: x[s], models)) for s in range(config.models)])
        for name, models in {
            "do nothing": study.repeat(originals, requests.indices.shape[0]),
            "retrained": retrained,
        }.items()
    }
    environment = training.environment()
    summary = {
        "config": {**vars(config), "out": None, "data_dir": None},
        "environment": environment,
        "seconds": time.perf_counter() - began,
        "weights": sum(x.size for x in jax.tree.leaves(originals.params)) // config.models,
        "rows": rows,
        "ends": ends,
    }
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "dampening.json").write_text(report.compact_json(summary))
    caption = (
        f"means over {config.models} models; {config.classes} classes, {config.random_requests} x {config.random_rows} rows"
    )
    shown = [{**row, "request": f"{row['request']}: {name}"} for name, part in ends.items() for row in part] + rows
    table = Table(COLUMNS, shown, caption)
    figures = [figure(points, ends, kind) for kind in ("a class", "random rows")]
    section = Section("Threshold and batch size", READING, [table], figures)
    report.write_report(config.out / "report.html", "jaxunlearn: dampening", INTRO, [section], environment=environment)
    report.print_table(table, console)
    console.print(f"{summary['seconds']:.0f} s; report: {config.out / 'report.html'}")
    return summary


INTRO = """\
Selective synaptic dampening shrinks the weights that matter alpha times more to the forgotten rows than to all. Published
importances are squares of the mean gradients of batches."""
READING = """\
Retrained models are the aim: for a class they get 0 % of the forgotten rows right, for random rows about as many as of test
rows. A threshold is right where a curve meets them without losing the others; that it moves with the batch size is why alpha
means nothing without one."""


def asked(config: Config, data: ju.Data) -> ju.ForgetRequest:
    """Requests for classes, then requests for random rows."""
    labels, generator = np.asarray(data.train.targets), np.random.default_rng(config.seed)
    classes = [np.flatnonzero(labels == c) for c in range(config.classes)]
    random = [generator.choice(len(labels), config.random_rows, replace=False) for _ in range(config.random_requests)]
    return ju.from_indices(data, [*classes, *random])


def sweep(config: Config, model: ju.Model, batch_size: int):
    """`(variables, data, requests) -> Result [a, r]` with importances of its own."""
    keys = jax.random.split(jax.random.key(config.seed), config.classes + config.random_requests)

    def run(variables: ju.Variables, data: ju.Data, requests: ju.ForgetRequest) -> ju.Result:
        ready = ssd.prepare(model, batch_size=batch_size)(variables, data, keys[0])

        def at(alpha):
            unlearn = ju.ssd(model, alpha=alpha, strength=config.strength, batch_size=batch_size)
            return ju.batched(unlearn, chunk=len(keys))(variables, ready, requests, keys)

        return jax.vmap(at)(jnp.array(config.alphas))

    return run


def figure(points: dict[Any, list[dict[str, Any]]], ends: dict[str, Any], kind: str):
    """Forget and test accuracy against alpha, a pair of lines for each batch size."""
    lines = {}
    for (request, batch_size), rows in points.items():
        if request == kind:
            alphas = np.array([row["alpha"] for row in rows])
            for name in ("forget", "test"):
                lines[f"batches of {batch_size}: {name}"] = alphas, 100 * np.array([row[name] for row in rows])
    aim = next(row for row in ends["retrained"] if row["request"] == kind)
    level = ("retrained: test", 100 * aim["test"])
    return plots.curves(lines, x_label="alpha", y_label="accuracy [%]", log_x=True, level=level), f"Requests for {kind}."


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
