"""SISA on images: what removals cost, shards side by side, accuracy of the ensemble, and the attack that slows it down.

    python experiments/benchmarks/sisa.py
    python experiments/benchmarks/sisa.py --dataset mnist --data-dir DIR --rows 4000
    python experiments/benchmarks/sisa.py --smoke

What is timed is timed in turns, compile time apart; the smallest time of each counts, since other work only adds to it. On
CPUs that are not idle, compare CPU time. The cost of all is known before anything runs, and is printed then.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common import data as datasets
from experiments.common import plots, script
from experiments.common.models import MLP
from experiments.common.report import Column, Section, Table
from jaxunlearn import sisa

ONE_BY_ONE = "shards one by one, one program"
TIMES = [
    Column("what", "what"),
    Column("wall", "s", ".3f"),
    Column("cpu", "s of CPU", ".3f"),
    Column("share", "of the loop", ".0%"),
    Column("cpu_share", "of its CPU time", ".0%"),
]
COSTS = [
    Column("requests", "requests", "d"),
    Column("expected", "random ones, expected", ".1%"),
    Column("attack", "attack", ".1%"),
    Column("bound", "bound", ".1%"),
    Column("one_by_one", "attack, one after another", ".1%"),
]
ACCURACIES = [
    Column("what", "test accuracy"),
    Column("median", "median", ".1%"),
    Column("low", "smallest", ".1%"),
    Column("high", "largest", ".1%"),
]


@dataclass
class Config(script.OnData):
    """Command line of the benchmark."""

    rows: int = 4000
    """Training rows at most."""
    shards: int = 16
    slices: int = 8
    epochs: int = 20
    """Of the single model; shards visit as many rows."""
    batch_size: int = 16
    width: int = 64
    """Of the hidden layer."""
    learning_rate: float = 1e-3
    """Of Adam."""
    deletions: int = 100
    """Single random rows."""
    checked: int = 2
    """Of those, how many answers are compared with a training without the row, bit for bit."""
    seeds: int = 3
    """Partitions and trainings whose accuracy is taken."""
    rounds: int = 5
    """Of what is timed."""
    out: Path = Path("out/sisa")


class Setting(NamedTuple):
    """What is trained."""

    data: ju.Data
    test: ju.Examples
    model: ju.Model
    partition: sisa.Partition
    trainers: dict[str, sisa.Trainer]  # by how shards are laid out; the first one answers requests
    key: jax.Array

    @property
    def trainer(self) -> sisa.Trainer:
        return next(iter(self.trainers.values()))

    def fit(self, layout: str) -> Callable[..., ju.Variables]:
        return jax.jit(lambda data, partition, key: sisa.fit(self.trainers[layout], data, partition, key))


def main(config: Config) -> dict[str, Any]:
    """Train, remove, time; returns what is written."""
    if config.smoke:
        config = replace(config, rows=64, shards=2, slices=2, epochs=2, width=4, deletions=3, checked=1, seeds=1, rounds=1)
    mesh, console = script.begin(config)
    setting = prepared(config, mesh)
    cost = sisa.expected_cost(setting.trainer, setting.partition)
    formula = (2 / 3 + 1 / (3 * config.slices)) / config.shards
    told = (
        f"{len(setting.data.present)} rows, {config.shards} shards, {config.slices} slices: training visits {cost.training} "
        f"rows; a removal is expected to visit {cost.expected:.0f} ({cost.share:.2%}, by the formula {formula:.2%}), "
        f"and at most {cost.bound}"
    )
    console.print(told)
    with script.progress(console, config.dataset, 4) as advance:
        advance("removals")
        fit, unlearn = setting.fit(ONE_BY_ONE), jax.jit(sisa.sisa(setting.trainer))
        fitted = fit(setting.data, setting.partition, setting.key)
        found = removals(config, setting, cost.training, fit, unlearn, fitted)
        advance("times", 1)
        times = timed(config, setting, fit, unlearn, fitted)
        advance("accuracies", 1)
        accuracies = accuracies_of(config, setting, fit)
        advance("attack", 1)
        attacks = attacks_on(config, setting, cost.training)
        advance(done=1)
    quickest, least = (min(row[share] for row in times if row["what"] in setting.trainers) for share in ("share", "cpu_share"))
    notes = [
        told,
        f"{config.deletions} single random removals visited {found['share']:.2%} of a training on average (standard error "
        f"{found['standard_error']:.2%}): {found['share'] / cost.share:.2f} times what was expected, "
        f"{found['share'] / formula:.2f} times the formula (target: within 10 %)",
        f"removals that visited exactly the rows that were told before: {found['as_told']} of {config.deletions}; answers that "
        f"equal a training without the row, bit for bit: {found['equal']} of {config.checked}",
        f"shards in one program take {quickest:.2f} times a loop over {config.shards} jitted runs (target: at most 1), "
        f"{least:.2f} times its CPU time",
    ]
    curve = {
        name: (np.array([row["requests"] for row in attacks]), np.array([row[key] for row in attacks]))
        for name, key in (("random rows, expected", "expected"), ("attack", "attack"), ("bound", "bound"))
    }
    figure = plots.curves(curve, x_label="requests that are answered together", y_label="row visits, share of a training")
    tables = [
        Table(TIMES, times, f"smallest of {config.rounds} turns"),
        Table(ACCURACIES, accuracies, f"{config.seeds} seeds"),
        Table(COSTS, attacks, "row visits as shares of a training"),
    ]
    sections = [
        Section("Times", "; ".join(notes), tables[:1], []),
        Section("Accuracy", "", tables[1:2], []),
        Section("Slow-down attack", "", tables[2:], [(figure, "What requests cost that are answered together.")]),
    ]
    summary = script.summary_of(
        config, expected=cost._asdict(), formula=formula, removals=found, times=times, accuracies=accuracies, attacks=attacks,
        notes=notes,
    )  # fmt: skip
    return script.finish(
        config, console, "sisa", summary, title="SISA", intro=str(__doc__), sections=sections, tables=tables, notes=notes
    )


def prepared(config: Config, mesh: Any) -> Setting:
    """Rows, model, partition, and how shards may be laid out."""
    known = datasets.load(config.dataset, config.data_dir, max_rows=config.rows)
    data = ju.training_data(*known.train)
    module = MLP((config.width,), known.num_classes)
    model = ju.adapters.from_linen(module, ju.losses.cross_entropy, known.train.inputs[:1])
    layouts: dict[str, dict[str, Any]] = {ONE_BY_ONE: {"chunk": 1}, "shards side by side (vmap)": {"chunk": config.shards}}
    if mesh is not None and config.shards % mesh.size == 0:
        layouts[f"shards over {mesh.size} devices"] = {"chunk": 1, "mesh": mesh}
    trainers = {name: trainer_of(config, model, config.epochs, **options) for name, options in layouts.items()}
    key = jax.random.key(0)
    partition = sisa.random_partition(data, key, shards=config.shards, slices=config.slices)
    return Setting(data, jax.tree.map(jnp.asarray, known.test), model, partition, trainers, key)


def trainer_of(config: Config, model: ju.Model, epochs: int, **options: Any) -> sisa.Trainer:
    """How shards and the single model are trained."""
    return sisa.trainer(model, optax.adam(config.learning_rate), epochs=epochs, batch_size=config.batch_size, **options)


def request_for(data: ju.Data, row: Any) -> ju.ForgetRequest:
    """One row."""
    return jax.tree.map(lambda x: x[0], ju.from_indices(data, [[int(row)]]))


def removals(
    config: Config, setting: Setting, training: int, fit: Callable, unlearn: Callable, fitted: ju.Variables
) -> dict[str, Any]:
    """Row visits of single removals, each from the whole ensemble, and whether answers are trainings without the row."""
    data, shares, equal, as_told = setting.data, [], 0, 0
    rows = np.random.default_rng(1).choice(len(data.present), config.deletions, replace=False)
    for place, row in enumerate(rows):
        result = ju.check(unlearn(fitted, data, request_for(data, row), setting.key))
        shares.append(float(result.stats["visits"].sum()) / training)
        told = sisa.visits_of(setting.trainer, setting.partition, [row])
        as_told += np.array_equal(told, result.stats["visits"])
        if place < config.checked:
            again = fit(ju.remove(data, request_for(data, row)), setting.partition, setting.key)
            equal += ju.ledger.fingerprint(again) == ju.ledger.fingerprint(result.variables)
    error = float(np.std(shares) / np.sqrt(len(shares)))
    low, high = np.quantile(shares, [0.025, 0.975]).tolist()
    return {
        "share": float(np.mean(shares)),
        "standard_error": error,
        "low": low,
        "high": high,
        "equal": equal,
        "as_told": as_told,
    }


def timed(config: Config, setting: Setting, fit: Callable, unlearn: Callable, fitted: ju.Variables) -> list[dict[str, Any]]:
    """Smallest seconds of training all shards, by layout, and of removals; the first row is what others are compared with."""
    data, partition, key = setting.data, setting.partition, setting.key
    parts = [jax.tree.map(lambda x, s=s: x[s : s + 1], partition) for s in range(config.shards)]  # one shard as a partition
    one = setting.fit(ONE_BY_ONE)
    calls: dict[str, Callable[[], Any]] = {
        f"a loop over {config.shards} jitted runs": lambda: [one(data, part, key) for part in parts],
        ONE_BY_ONE: lambda: fit(data, partition, key),
    }
    for name in list(setting.trainers)[1:]:
        run = setting.fit(name)
        calls[name] = lambda run=run: run(data, partition, key)
    for name, place in {"first": 0, "middle": config.slices // 2, "last": config.slices - 1}.items():
        request = request_for(data, partition.rows[0, place, 0])
        calls[f"removal from the {name} slice"] = lambda request=request: unlearn(fitted, data, request, key)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(config.rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    best = {name: np.min(values, axis=0).tolist() for name, values in spent.items()}
    loop = next(iter(best.values()))
    return [
        {"what": name, "wall": wall, "cpu": cpu, "share": wall / loop[0], "cpu_share": cpu / loop[1]}
        for name, (wall, cpu) in best.items()
    ]


def accuracies_of(config: Config, setting: Setting, fit: Callable) -> list[dict[str, Any]]:
    """Test accuracy of the ensemble and of one model that visits as many rows; a partition and a training for each seed."""
    single = trainer_of(config, setting.model, config.epochs)
    train_one = jax.jit(lambda data, partition, key: sisa.fit(single, data, partition, key))
    judges = {
        "votes of shards": sisa.ensemble(setting.model),
        "mean of their probabilities": sisa.ensemble(setting.model, by="probabilities"),
    }

    def accuracy(model: ju.Model) -> Callable[[ju.Variables], jax.Array]:
        return jax.jit(
            lambda variables: jnp.mean(
                jnp.argmax(model.forward(variables, setting.test.inputs).logits, axis=1) == setting.test.targets
            )
        )

    scores = {name: accuracy(judge) for name, judge in judges.items()}
    found: dict[str, list[float]] = {name: [] for name in (*judges, "one model")}
    for seed in range(config.seeds):
        key = jax.random.key(seed)
        halves = {
            shards: sisa.random_partition(setting.data, key, shards=shards, slices=slices)
            for shards, slices in ((config.shards, config.slices), (1, 1))
        }
        together = fit(setting.data, halves[config.shards], key)
        for name, score in scores.items():
            found[name].append(float(score(together)))
        found["one model"].append(float(scores["votes of shards"](train_one(setting.data, halves[1], key))))
    return [
        {"what": name, "median": float(np.median(x)), "low": min(x), "high": max(x), "seeds": x} for name, x in found.items()
    ]


def attacks_on(config: Config, setting: Setting, training: int) -> list[dict[str, Any]]:
    """Row visits of requests that come together, as shares of a training: random rows, and those that cost most."""
    task, partition = setting.trainer, setting.partition
    rows = []
    for size in sorted({min(2**power, config.shards) for power in range(10)}):
        attack = sisa.slow_down_attack(task, partition, size)
        known = sisa.expected_cost(task, partition, requests=size)
        alone = sum(int(sisa.visits_of(task, partition, [row]).sum()) for row in attack)  # each hits another shard
        visits = int(sisa.visits_of(task, partition, attack).sum())
        rows.append({
            "requests": size, "expected": known.share, "attack": visits / training, "bound": known.bound / training,
            "one_by_one": alone / training,
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    script.run(main, Config, __doc__)
