"""Removal from learners of sums beside fitting them anew.

    python experiments/benchmarks/summation.py
    python experiments/benchmarks/summation.py --smoke

Rows are normal, with a mean for every class. A fit and the answer to a request are timed in turns, compile time apart; the
answer to 64 requests is one call. Parameters are compared with those of a fit without the rows.
"""

import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import numpy as np

import jaxunlearn as ju
from experiments.common import script
from experiments.common.report import Column, Section, Table
from jaxunlearn import summation

TARGET = 1000  # times quicker than fitting anew, at 60,000 rows
COLUMNS = [
    Column("learner", "learner"),
    Column("fit_ms", "fit, ms", ".2f"),
    Column("one_ms", "one request, ms", ".3f"),
    Column("many_ms", "one of 64, ms", ".3f"),
    Column("ratio", "fit / one of 64", ".0f"),
    Column("apart", "largest relative difference", ".1e"),
]


@dataclass
class Config(script.Base):
    """Command line of the benchmark."""

    rows: int = 60_000
    """Training rows."""
    width: int = 64
    """Inputs of a row."""
    classes: int = 10
    requests: int = 64
    """In one call."""
    size: int = 1
    """Rows of a request."""
    rounds: int = 9
    """Of which the median counts."""
    out: Path = Path("out/summation")


def learners(config: Config) -> dict[str, summation.Learner]:
    """Those that are timed, by name."""
    features = summation.random_features(jax.random.key(0), 2 * config.width, config.width, scale=config.width**0.5)
    return {
        "ridge": summation.ridge(),
        "ridge, random features": summation.ridge(features=features),
        "nearest mean": summation.nearest_mean(config.classes),
        "Gaussian naive Bayes": summation.gaussian_naive_bayes(config.classes),
        "multinomial naive Bayes": summation.multinomial_naive_bayes(config.classes),
        "linear discriminant": summation.linear_discriminant(config.classes, shrinkage=0.01),
        "quadratic discriminant": summation.quadratic_discriminant(config.classes, shrinkage=0.01),
    }


def main(config: Config) -> dict[str, Any]:
    """Fit, remove and time; returns what is written."""
    if config.smoke:
        config = replace(config, rows=200, width=4, classes=3, requests=4, rounds=1)
    _, console = script.begin(config)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, config.classes, config.rows).astype(np.int32)
    inputs = rng.normal(size=(config.rows, config.width)) + rng.normal(size=(config.classes, config.width))[labels]
    inputs = inputs.astype(np.float32)
    rows = []
    every = learners(config)
    with script.progress(console, "learners", len(every)) as advance:
        for name, learner in every.items():
            advance(name)
            targets: Any = np.eye(config.classes, dtype=np.float32)[labels] if name.startswith("ridge") else labels
            data = ju.training_data(np.abs(inputs) if name.startswith("multinomial") else inputs, targets)
            rows.append({"learner": name, **of_learner(learner, data, config)})
            advance(done=1)
    reached = sum(row["ratio"] >= TARGET for row in rows)
    notes = [f"at least {TARGET} times quicker than fitting anew: {reached} of {len(rows)} learners"]
    table = Table(COLUMNS, rows, f"{config.rows} rows of {config.width} inputs, {config.size} of them in a request")
    return script.finish(
        config, console, "summation", script.summary_of(config, rows=rows, notes=notes), title="Removal from sums",
        intro=str(__doc__), sections=[Section("Times", "; ".join(notes), [table], [])], tables=[table], notes=notes,
    )  # fmt: skip


def of_learner(learner: summation.Learner, data: ju.Data, config: Config) -> dict[str, float]:
    """One learner."""
    generator = np.random.default_rng(1)
    requests = ju.from_indices(
        data, [generator.choice(config.rows, config.size, replace=False) for _ in range(config.requests)]
    )
    keys = jax.random.split(jax.random.key(0), config.requests)
    fit = jax.jit(lambda data: summation.fit(learner, data))
    fitted = fit(data)
    one = jax.jit(summation.summation(learner))
    many = jax.jit(ju.batched(summation.summation(learner)))
    first = jax.tree.map(lambda x: x[0], requests)
    calls = {
        "fit": lambda: fit(data),
        "one": lambda: one(fitted, data, first, keys[0]),
        "many": lambda: many(fitted, data, requests, keys),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(config.rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    median = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    found = ju.check(one(fitted, data, first, keys[0])).variables.params
    again = fit(ju.remove(data, first)).params
    apart = jax.tree.map(_apart, found, again)
    per_request = median["many"] / config.requests
    return {
        "fit_ms": median["fit"], "one_ms": median["one"], "many_ms": per_request, "ratio": median["fit"] / per_request,
        "apart": max(jax.tree.leaves(apart)),
    }  # fmt: skip


def _apart(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest entry."""
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300))


if __name__ == "__main__":
    script.run(main, Config, __doc__)
