"""One fixed setting on models that it was not chosen for: how far from retrained models are its answers?

    python experiments/benchmarks/new_model.py --data-dir DIR --out experiments/results/new_model
    python experiments/benchmarks/new_model.py --smoke

Cells are data sets x networks x shares of wrong labels x kinds of requests: one row, 20 rows, 5 % of the rows, a class.
Every method runs with Adam at the learning rate of the training (a cosine schedule), the same number of steps, and the
defaults of its factory. A cell holds the largest of the gaps to retrained models in retain, forget and test accuracy and the
AUC of the loss attack, in spreads of a retrained model over seeds, half a point at least.
"""

import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.common import script
from experiments.common.comparison import Ready, Seeds, answer, audited, of_one_shape, originals, programs
from experiments.common.outcome import AGAIN, LEAST_SPREAD, NOTHING, RETRAINED, Outcome, in_spreads
from experiments.common.report import Column, Section, Table, compact_json
from experiments.common.scale import leads
from experiments.common.scenarios import Scenario
from experiments.common.study import Study, overfitted

MEASURES = ("retain", "forget", "test", "auc")


@dataclass
class Config(script.Base):
    """Command line of the benchmark."""

    data_dir: str | None = None
    """Where TFDS finds prepared MNIST."""
    datasets: tuple[str, ...] = ("digits", "mnist")
    """Digits with 500 training rows, others with 2,000."""
    networks: tuple[str, ...] = ("mlp", "cnn")
    """See `experiments.common.models.build`."""
    label_noise: tuple[float, ...] = (0.1, 0.0)
    """Shares of wrong labels, among held-out rows too."""
    methods: tuple[str, ...] = ("unseen_matching", "gradient_difference")
    """Names of the catalogue."""
    seeds: int = 3
    """Models of each cell."""
    requests: int = 4
    """Requests of each kind."""
    training_steps: int = 600
    """Of training and retraining, in batches of 64."""
    unlearning_steps: int = 50
    """Of every method."""
    test_rows: int = 1000
    """At most so many are looked at."""
    draw: int = 0
    """Seed of rows, wrong labels and requests."""
    again: bool = False
    """Retrain everything once more, which shows the floor."""
    out: Path = Path("out/new_model")


def main(config: Config) -> dict[str, Any]:
    """Fill all cells; returns what is written."""
    if config.smoke:
        config = replace(
            config, datasets=("digits",), networks=("mlp",), label_noise=(0.1,), methods=config.methods[:1],
            seeds=2, requests=1, training_steps=10, unlearning_steps=3,
        )  # fmt: skip
    mesh, console = script.begin(config)
    names = (NOTHING, *config.methods, *([AGAIN] if config.again else []))
    rows: list[dict[str, Any]] = []
    cells = list(itertools.product(config.datasets, config.networks, config.label_noise))
    with script.progress(console, "cells", len(cells) * (2 + len(names))) as advance:
        for dataset, network, noise in cells:
            advance(f"{dataset}, {network}, {noise:.0%} wrong labels: training")
            setting = overfitted(
                dataset, config.data_dir, network=network, num_rows=500 if dataset == "digits" else 2000, label_noise=noise,
                num_steps=config.training_steps, seed=config.draw,
            )  # fmt: skip
            setting = setting._replace(test=jax.tree.map(lambda x: x[: config.test_rows], setting.test))
            bench = programs(setting, network=network, num_steps=config.unlearning_steps, scale=config.scale, mesh=mesh)
            asked, parts = requests_of(setting, config)
            seeds = Seeds(config.draw, config.draw, 1, range(config.seeds))
            ready = Ready(asked, originals(bench, asked, seeds.training), seeds)
            advance(done=1)
            found: dict[str, Outcome] = {}
            for name in (RETRAINED, *names):
                advance(f"{dataset}, {network}, {noise:.0%} wrong labels: {name}")
                settings = {} if name not in config.methods else {"learning_rate": setting.learning_rate}
                found[name] = audited(bench, ready, answer(bench, ready, name, settings))[0]
                advance(done=1)
            for name in names:
                for kind, part in parts.items():
                    own, reference = (jax.tree.map(lambda x, part=part: x[:, part], found[x]) for x in (name, RETRAINED))
                    scaled = in_spreads(own, reference, MEASURES, least=LEAST_SPREAD)
                    points = {m: 100 * float(np.mean(getattr(own, m) - getattr(reference, m))) for m in MEASURES}
                    cell = {"dataset": dataset, "network": network, "noise": noise, "kind": kind, "method": name}
                    rows.append({**cell, "worst": max(map(abs, scaled.values())), "gaps": points, "in_spreads": scaled})
            if leads():  # an hour of MNIST is not to be lost
                config.out.mkdir(parents=True, exist_ok=True)
                (config.out / "new_model.json").write_text(compact_json(script.summary_of(config, cells=rows)))
    shares = {name: float(np.mean([row["worst"] <= 2 for row in rows if row["method"] == name])) for name in names}
    tables = [table_of(rows, kind, names) for kind in dict.fromkeys(row["kind"] for row in rows)]
    summary = script.summary_of(config, cells=rows, within_two_spreads=shares)
    notes = [f"{name}: within two spreads in {share:.0%} of the cells" for name, share in shares.items()]
    return script.finish(
        config, console, "new_model", summary, title="One fixed setting on new models", intro=str(__doc__),
        sections=[Section("Largest gap in spreads", "; ".join(notes), tables, [])], tables=tables, notes=notes,
    )  # fmt: skip


def requests_of(setting: Study, config: Config) -> tuple[Scenario, dict[str, slice]]:
    """All requests in one shape, and which of them are of a kind."""
    random = np.random.default_rng(500 + config.draw)
    total, count = len(setting.data.present), config.requests
    sizes = {"1 row": 1, "20 rows": 20, "5 %": total // 20}
    rows = [random.choice(total, size, replace=False) for size in sizes.values() for _ in range(count)]
    labels = random.choice(setting.num_classes, count, replace=False)
    by_class = ju.from_classes(setting.data, [[label] for label in labels], num_classes=setting.num_classes)
    by_rows = ju.from_indices(setting.data, rows, capacity=by_class.indices.shape[1])
    target = jnp.zeros((len(rows), setting.num_classes), bool)
    both = jax.tree.map(lambda *x: np.concatenate(x), by_rows._replace(target=target), by_class)
    alike = np.concatenate(
        [np.ones((len(rows), len(setting.test.targets))), labels[:, None] == np.asarray(setting.test.targets)]
    )
    scenario = Scenario("new model", "influence of examples", setting, both, setting.test, jnp.asarray(alike, jnp.float32))
    kinds = [*sizes, "class"]
    return of_one_shape(scenario), {kind: slice(place * count, (place + 1) * count) for place, kind in enumerate(kinds)}


def table_of(rows: list[dict[str, Any]], kind: str, names: tuple[str, ...]) -> Table:
    """Methods beside each other for one kind of requests."""
    lines: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        if row["kind"] == kind:
            cell = f"{row['dataset']}, {row['network']}, {row['noise']:.0%} wrong"
            lines.setdefault((cell,), {"cell": cell})[row["method"]] = row["worst"]
    return Table([Column("cell", "model"), *(Column(name, name, ".1f") for name in names)], list(lines.values()), kind)


if __name__ == "__main__":
    script.run(main, Config, __doc__)
