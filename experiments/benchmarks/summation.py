"""Removal from learners of sums beside fitting them anew.

    OPENBLAS_NUM_THREADS=1 python experiments/benchmarks/summation.py    # whose threads wait for each other in small solves
    python experiments/benchmarks/summation.py --smoke

Rows are normal, with a mean for every class. A fit and the answer to a request are timed in turns, compile time apart; the
answer to 64 requests is one call. Times are CPU times of the process, which other work on the machine does not reach; a call of
short programs that runs between two turns of the others would look better by the clock than it is. Parameters are compared with
those of a fit without the rows.

Where the time of one of 64 goes: the frame is what every method pays (checks, status, the results of 64 requests side by side),
the solve is that of the parameters; what is left are the sums. The bound is the ratio of floating-point operations of a fit
to those of one dense solve, which no removal that solves can pass at equal speed.
"""

import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.common import script
from experiments.common.report import Column, Section, Table
from jaxunlearn import summation
from jaxunlearn.precision import in_float64

TARGET = 1000  # times quicker than fitting anew, at 60,000 rows
COLUMNS = [
    Column("learner", "learner"),
    Column("fit_ms", "fit, ms", ".2f"),
    Column("one_ms", "one request, ms", ".3f"),
    Column("many_ms", "one of 64, ms", ".3f"),
    Column("frame_ms", "of it frame", ".3f"),
    Column("solve_ms", "solve", ".3f"),
    Column("ratio", "fit / one of 64", ".0f"),
    Column("bound", "bound by the solve", ".0f"),
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
    only: Annotated[tuple[str, ...], script.unless_given("all")] = ()
    """Learners by name."""
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
    every = {name: learner for name, learner in learners(config).items() if not config.only or name in config.only}
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


def of_learner(learner: summation.Learner, data: ju.Data, config: Config) -> dict[str, float | None]:
    """One learner."""
    generator = np.random.default_rng(1)
    requests = ju.from_indices(
        data, [generator.choice(config.rows, config.size, replace=False) for _ in range(config.requests)], capacity=config.size
    )
    keys = jax.random.split(jax.random.key(0), config.requests)
    fit = jax.jit(lambda data: summation.fit(learner, data))
    fitted = fit(data)
    one = jax.jit(summation.summation(learner))
    many = jax.jit(ju.batched(summation.summation(learner), chunk=config.scale.chunk))
    frame = jax.jit(ju.batched(ju.one_shot(lambda variables, *_: ju.Result(variables)), chunk=config.scale.chunk))
    first = jax.tree.map(lambda x: x[0], requests)
    changed = jnp.arange(learner.groups) < config.size

    @jax.jit
    @in_float64
    def solve(variables: ju.Variables, scales: jax.Array) -> Any:
        """Parameters of so many sums, as a request of so many rows solves for them."""
        total = variables.state.value

        def answer(scale: jax.Array) -> Any:
            return learner.solve_again(variables.params, total * scale, changed)

        return jax.lax.map(answer, scales)

    scales = jnp.linspace(1, 2, config.requests)
    calls = {
        "fit": lambda: fit(data),
        "one": lambda: one(fitted, data, first, keys[0]),
        "many": lambda: many(fitted, data, requests, keys),
        "frame": lambda: frame(fitted, data, requests, keys),
        "solve": lambda: solve(fitted, scales),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(config.rounds):
        for name, call in calls.items():
            start = time.process_time()
            jax.block_until_ready(call())
            seconds[name].append(time.process_time() - start)
    median = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    found = ju.check(one(fitted, data, first, keys[0])).variables.params
    again = fit(ju.remove(data, first)).params
    apart: Any = jax.tree.map(_apart, found, again)
    per_request = median["many"] / config.requests
    return {
        "fit_ms": median["fit"], "one_ms": median["one"], "many_ms": per_request, "frame_ms": median["frame"] / config.requests,
        "solve_ms": median["solve"] / config.requests, "ratio": median["fit"] / per_request,
        "bound": bound(learner, fitted.state.sum.shape, config), "apart": max(map(float, jax.tree.leaves(apart))),
    }  # fmt: skip


def bound(learner: summation.Learner, shape: tuple[int, ...], config: Config) -> float | None:
    """Operations of a fit by those of its dense solves: Cholesky's d^3 / 3, and 2 d^2 for every column; None without one."""
    groups, left, right = shape
    fit = 2 * config.rows * groups * left * right
    if learner.name == "ridge":
        return fit / (left**3 / 3 + 2 * left**2 * (right - left))
    if learner.name == "linear discriminant":
        width = right - 1
        return fit / (width**3 / 3 + 2 * width**2 * config.classes)
    if learner.name == "quadratic discriminant":
        width = left - 1
        return fit / (min(config.size, groups) * (width**3 / 3 + 2 * width**3))
    return None


def _apart(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest entry."""
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300))


if __name__ == "__main__":
    script.run(main, Config, __doc__)
