"""Are settings that `jaxunlearn.tune` chooses on proxies the right ones for the real request, and what does it cost?

    python experiments/benchmarks/tuning.py --out experiments/results/tuning.json
    python experiments/benchmarks/tuning.py --smoke

For each pair of a trained model and a request the grid of a method's card is searched on proxies. Then the whole grid is tried
on the real request, against retrained models for it and on other test rows. Reported is the largest gap of the chosen
point, in spreads of a retrained model, as a multiple of the smallest one that any point of the grid has.
"""

import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import numpy as np

import jaxunlearn as ju
from experiments.common import methods, script
from experiments.common.report import Column, Section, Table
from experiments.common.study import Study
from jaxunlearn.tuning.calls import Bench, retrained, tried
from jaxunlearn.tuning.judging import spreads_of
from jaxunlearn.tuning.proxies import described

COLUMNS = [
    Column("method", "method"),
    Column("kind", "request"),
    Column("pairs", "pairs", ".0f"),
    Column("ratio", "median ratio", ".2f"),
    Column("worst", "worst ratio", ".2f"),
    Column("chosen", "its largest gap", ".1f"),
    Column("best", "best of the grid", ".1f"),
    Column("first", "first point", ".1f"),
    Column("retrainings", "retrainings of wall time", ".1f"),
]


@dataclass
class Config(script.Unlearning):
    """Command line of the benchmark."""

    methods: tuple[str, ...] = ("gradient_difference", "random_label")
    """Methods with a search in their card."""
    draws: tuple[int, ...] = (0, 1, 2, 3)
    """Models: seeds of rows, wrong labels and training."""
    requests: int = 3
    """Requests of each kind for each model."""
    size: int = 20
    """Rows of a random request."""
    num_proxies: int = 2
    """Proxies of each search."""
    num_references: int = 2
    """Retrained models for each proxy."""
    seeds: int = 4
    """Retrained models for each real request."""
    unlearning_steps: int = 50
    """Steps of every method with steps, but for retraining."""
    out: Path = Path("out/tuning")


def main(config: Config) -> dict[str, Any]:
    """Search and compare; returns what is written."""
    if config.smoke:
        smaller: dict[str, Any] = {
            "rows": 200,
            "training_steps": 20,
            "unlearning_steps": 4,
            "draws": config.draws[:1],
            "requests": 1,
        }
        config = replace(config, **smaller, methods=config.methods[:1], seeds=2)
    mesh, console = script.begin(config)
    pairs: list[dict[str, Any]] = []
    with script.progress(console, "tuning", 2 * len(config.draws) * config.requests * len(config.methods)) as advance:
        for draw in config.draws:
            setting = replace(config, draw=draw).setting()
            recipe = jax.jit(setting.retrain())
            trained = ju.check(
                recipe(start(setting), setting.data, ju.empty_request(), jax.random.key(draw)), allow=[ju.Status.EMPTY_REQUEST]
            ).variables
            started = time.perf_counter()
            jax.block_until_ready(recipe(start(setting), setting.data, ju.empty_request(), jax.random.key(draw)))
            one = time.perf_counter() - started
            for kind, request in requests_of(setting, config, draw):
                for name in config.methods:
                    advance(f"draw {draw}: {name}, {kind}")
                    pairs.append(compared(config, setting, trained, request, name, kind, draw, one, mesh))
                    advance(done=1)
    rows = [summarised(pairs, name, kind) for name in config.methods for kind in ("random", "class")]
    table = Table(COLUMNS, rows, "Settings chosen on proxies, tried on the real request")
    summary = script.summary_of(config, pairs=pairs, table=rows)
    return script.finish(
        config, console, "tuning", summary, title="Settings chosen on proxies", intro=str(__doc__),
        sections=[Section("Pairs of model and request", "", [table], [])], tables=[table],
    )  # fmt: skip


def start(setting: Study) -> ju.Variables:
    """Variables of the right form; retraining starts afresh."""
    assert setting.model.init is not None  # studies have one
    return setting.model.init(jax.random.key(0))


def requests_of(setting: Study, config: Config, draw: int) -> list[tuple[str, ju.ForgetRequest]]:
    """Requests for random rows and for classes, each by itself."""
    random = np.random.default_rng(1000 + draw)
    rows = [random.choice(len(setting.data.present), config.size, replace=False) for _ in range(config.requests)]
    labels = random.choice(setting.num_classes, config.requests, replace=False)
    asked = {
        "random": ju.from_indices(setting.data, rows),
        "class": ju.from_classes(setting.data, [[label] for label in labels], num_classes=setting.num_classes),
    }
    return [(kind, jax.tree.map(lambda x, i=i: x[i], some)) for kind, some in asked.items() for i in range(config.requests)]


def compared(config, setting: Study, trained, request, name: str, kind: str, draw: int, one: float, mesh) -> dict[str, Any]:
    """One search, and the whole grid on the real request."""
    half = len(setting.test.targets) // 2
    choosing, reported = (jax.tree.map(lambda x, part=part: x[part], setting.test) for part in (slice(half), slice(half, None)))
    fixed = methods.given(name, setting, config.network)
    make = partial(
        methods.build, name, setting.model, num_steps=config.unlearning_steps, batch_size=setting.batch_size, **fixed
    )
    points = methods.points(name)[: 2 if config.smoke else None]
    key = jax.random.fold_in(jax.random.key(7), draw)
    found = ju.tune(
        setting.model, make, setting.retrain(), trained, setting.data, request, key, space=points, test=choosing,
        num_proxies=config.num_proxies, num_references=config.num_references, mesh=mesh, chunk=config.scale.chunk,
    )  # fmt: skip
    real = jax.tree.map(lambda x: np.asarray(x)[None], request)
    asked = described(real, setting.data, reported, classes=setting.num_classes)
    chunk, present = config.scale.chunk, setting.data.present
    bench = Bench(setting.model, trained, setting.data, present, reported, chunk, mesh, None, lambda doing, done: None, [], {})
    reference = retrained(bench, setting.retrain(), asked, config.seeds, jax.random.fold_in(key, 1))
    spreads = spreads_of(reference, shares=True)
    answers = tried(bench, make, dict(enumerate(points)), asked, jax.random.split(key, 1), len(points))
    values = [ju.worst_gap(outcome, reference, spreads) for outcome, _ in (answers[place] for place in range(len(points)))]
    best = int(np.nanargmin(values))
    chosen = points.index(found.settings) if found.settings is not None else None
    wall = sum(found.seconds[part] for part in ("references", "points")) - found.seconds["compiling"]
    return {
        "draw": draw, "method": name, "kind": kind, "chosen": chosen, "best": best, "values": values,
        "on_proxies": {points.index(point.settings): point.value for point in found.table},
        "ratio": values[chosen] / values[best] if chosen is not None else float("inf"),
        "seconds": found.seconds, "one_retraining_seconds": one, "retrainings_of_wall_time": wall / one,
    }  # fmt: skip


def summarised(pairs: list[dict[str, Any]], name: str, kind: str) -> dict[str, Any]:
    """Medians over the pairs of a method and a kind of request."""
    some = [pair for pair in pairs if (pair["method"], pair["kind"]) == (name, kind)]
    ratios = [pair["ratio"] for pair in some]
    return {
        "method": name,
        "kind": kind,
        "pairs": len(some),
        "ratio": float(np.median(ratios)),
        "worst": float(np.max(ratios)),
        "chosen": float(np.median([pair["values"][pair["chosen"]] for pair in some if pair["chosen"] is not None])),
        "best": float(np.median([pair["values"][pair["best"]] for pair in some])),
        "first": float(np.median([pair["values"][0] for pair in some])),
        "retrainings": float(np.median([pair["retrainings_of_wall_time"] for pair in some])),
    }


if __name__ == "__main__":
    script.run(main, Config, __doc__)
