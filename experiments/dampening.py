"""What does selective synaptic dampening depend on? Its threshold alpha and its batch size, on classes and on random rows.

    python experiments/dampening.py                                                        # digits, offline
    python experiments/dampening.py --dataset mnist --network cnn --rows 2000 --data-dir DIR
    python experiments/dampening.py --smoke                                                # tiny, to see whether it runs

Importances are squares of mean gradients of batches, so their ratio, which alpha is compared with, depends on the size of the
batches; `1` squares gradients of rows. All values of alpha and all requests of a batch size run in one compiled program.
Written to the folder `--out`: `report.html` with the plots, `dampening.json`.
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

import jaxunlearn as ju
from experiments.common import plots, script
from experiments.common.comparison import Ready, Seeds, answer, audited, originals, programs
from experiments.common.outcome import NOTHING, RETRAINED, Outcome
from experiments.common.report import Column, Section, Table
from experiments.common.running import reusable
from experiments.common.scenarios import Scenario

SHOWN = ("forget", "retain", "test", "auc")
CLASSES, RANDOM = "a class", "random rows"
COLUMNS = [
    Column("request", "request for"),
    Column("batch_size", "batch size", ".0f"),
    Column("alpha", "alpha", ".3g"),
    Column("selected", "parameters dampened", ".2%"),
    Column("forget", "forget accuracy", ".1%"),
    Column("retain", "retain accuracy", ".1%"),
    Column("test", "test accuracy", ".1%"),
    Column("auc", "attack AUC", ".3f"),
]


@dataclass
class Config(script.OnNetworks):
    """Command line of the script."""

    rows: int = 1000
    label_noise: float = 0.0
    test_rows: int = 1000
    """Test rows; all rows of a smaller test set."""
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
    out: Path = Path("out/dampening")


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(
            config, rows=60, training_steps=5, seeds=2, classes=2, random_requests=1, random_rows=5, alphas=(1.0, 5.0),
            batch_sizes=(1, 16),
        )  # fmt: skip
    mesh, console = script.begin(config)
    began = time.perf_counter()
    scenario = asked(config)
    bench = programs(scenario.study, network=config.network, num_steps=0, scale=config.scale, mesh=mesh)
    seeds = Seeds(config.draw, config.request_seed, config.draw, range(config.seeds))
    kinds = {CLASSES: slice(config.classes), RANDOM: slice(config.classes, None)}
    rows: list[dict[str, Any]] = []
    with script.progress(console, "dampening", 2 + len(config.batch_sizes) * len(config.alphas)) as advance:
        advance("training and retraining", done=1)
        ready = Ready(scenario, originals(bench, scenario, seeds.training), seeds)
        ends = {name: rows_of(audited(bench, ready, answer(bench, ready, name, {}))[0], kinds) for name in (NOTHING, RETRAINED)}
        advance(done=1)
        for batch_size in config.batch_sizes:
            answers = reusable(swept(config, scenario.study.model, batch_size), mesh=mesh)
            ready_for = jax.jit(ju.prepare(ju.ssd(scenario.study.model, batch_size=batch_size)))
            key = jax.random.key(config.draw)
            prepared = [ready_for(variables, scenario.study.data, key) for variables in ready.originals]
            keys = jax.random.split(key, len(scenario.requests.indices))
            for alpha in config.alphas:
                advance(f"batches of {batch_size}, alpha {alpha:g}")
                thresholds = np.full(len(keys), alpha, np.float32)
                calls = [
                    (variables, data, (scenario.requests, thresholds), keys)
                    for variables, data in zip(ready.originals, prepared, strict=True)
                ]
                done = answers(calls)
                found = audited(bench, ready, done)[0]
                shares = done.result.stats["selected"]
                rows += rows_of(found, kinds, batch_size=batch_size, alpha=alpha, selected=shares)
                advance(done=1)
    summary = script.summary_of(
        config,
        seconds=time.perf_counter() - began,
        weights=sum(x.size for x in jax.tree.leaves(ready.originals[0].params)),
        rows=rows,
        ends=ends,
    )
    caption = (
        f"means over {config.seeds} models; {config.classes} classes, {config.random_requests} x {config.random_rows} rows"
    )
    shown = [{**row, "request": f"{row['request']}: {name}"} for name, part in ends.items() for row in part] + rows
    table = Table(COLUMNS, shown, caption)
    section = Section("Threshold and batch size", READING, [table], [figure(rows, ends, kind) for kind in kinds])
    return script.finish(
        config, console, "dampening", summary, title="jaxunlearn: dampening", intro=INTRO, sections=[section], tables=[table],
        notes=[f"{summary['seconds']:.0f} s"],
    )  # fmt: skip


def rows_of(outcome: Outcome, kinds: dict[str, slice], selected: Any = None, **fields: Any) -> list[dict[str, Any]]:
    """One row per kind of request: means over models and requests."""
    rows = []
    for kind, part in kinds.items():
        values = {name: float(np.mean(np.asarray(getattr(outcome, name))[:, part])) for name in SHOWN}
        share = None if selected is None else float(np.mean(selected[:, part]))
        rows.append({"request": kind, "selected": share, **fields, **values})
    return rows


INTRO = """\
Selective synaptic dampening shrinks the parameters that matter alpha times more to the forget set than to all rows. Published
importances are squares of the mean gradients of batches."""
READING = """\
Retrained models are the aim: for a class they get 0 % of the forget set right, for random rows about as many as of test
rows. A threshold is right where a curve meets them without losing the others; that it moves with the batch size is why alpha
means nothing without one."""


def asked(config: Config) -> Scenario:
    """Requests for classes, then requests for random rows."""
    setting = config.setting()
    setting = setting._replace(test=jax.tree.map(lambda x: x[: config.test_rows], setting.test))
    labels, generator = np.asarray(setting.data.train.targets), np.random.default_rng(config.request_seed)
    classes = [np.flatnonzero(labels == c) for c in range(config.classes)]
    random = [generator.choice(len(labels), config.random_rows, replace=False) for _ in range(config.random_requests)]
    requests = ju.from_indices(setting.data, [*classes, *random])
    unseen_weights = jnp.ones((len(requests.indices), len(setting.test.targets)))
    return Scenario("dampening", "influence of examples", setting, requests, setting.test, unseen_weights)


def swept(config: Config, model: ju.Model, batch_size: int):
    """The method with a threshold per request."""

    def answered(variables: ju.Variables, data: ju.Data, request: Any, key: jax.Array) -> ju.Result:
        rows, alpha = request
        return ju.ssd(model, alpha=alpha, strength=config.strength, batch_size=batch_size)(variables, data, rows, key)

    return answered


def figure(rows: list[dict[str, Any]], ends: dict[str, Any], kind: str):
    """Forget and test accuracy against alpha, a pair of lines for each batch size."""
    lines = {}
    for batch_size in dict.fromkeys(row["batch_size"] for row in rows):
        found = [row for row in rows if (row["request"], row["batch_size"]) == (kind, batch_size)]
        alphas = np.array([row["alpha"] for row in found])
        for name in ("forget", "test"):
            lines[f"batches of {batch_size}: {name}"] = alphas, 100 * np.array([row[name] for row in found])
    aim = next(row for row in ends[RETRAINED] if row["request"] == kind)
    level = ("retrained: test", 100 * aim["test"])
    return plots.curves(lines, x_label="alpha", y_label="accuracy [%]", log_x=True, level=level), f"Requests for {kind}."


if __name__ == "__main__":
    script.run(main, Config, __doc__)
