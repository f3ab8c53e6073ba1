"""What does each metric of an audit see? Shares of verdicts on simulated models whose unlearning failed in a known way.

    python experiments/benchmarks/power.py --out experiments/results/power.json
    python experiments/benchmarks/power.py --smoke

No model is trained. The margin of row e is `mu_e + z` in every retrained model, z a standard normal of that model and row
by itself, and mu_e normal with mean 1 and deviation 2, the same for all models of a repeat; logits are those of ten classes of
which the nine wrong ones are equally likely. Unlearned models differ as a case says, in standard deviations of that z. A metric
sees a case if `jaxunlearn.audit.judge` says anything but INSIDE, which is the permutation test that is run here. Models of a
real ensemble also differ in what moves all of their rows together, which takes power from means over rows.
"""

import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

import jaxunlearn as ju
from experiments.common import script
from experiments.common.report import Column, Table, compact_json, print_table
from experiments.common.training import environment
from jaxunlearn.audit.metrics import METRICS, TASKS, Answers, Metric, Observed, fits, observe

CLASSES = 10
SLOW = ("divergence", "no_quality")  # half the repeats and a fifth of the labels


class Case(NamedTuple):
    """How unlearned models differ from retrained ones."""

    shift: np.ndarray  # of the margin of each row of the forget set
    spread: float  # of margins on the forget set over models, of that of retrained models
    damage: float  # what margins of retained and test rows lose


@dataclass
class Config:
    """Command line of the benchmark."""

    models: tuple[int, ...] = (39,)
    """Numbers of models of each kind."""
    forgotten: int = 50
    """Rows of the forget set, at least 4."""
    others: int = 250
    """Retained rows, and as many test rows."""
    repeats: int = 200
    """Simulated audits of a case, with the first number of models."""
    repeats_of_more: int = 100
    """The same with every further number."""
    permutations: int = 199
    """Random labels behind a verdict."""
    alpha: float = 0.05
    """Level of a verdict."""
    metrics: Annotated[tuple[str, ...], script.unless_given("all")] = ()
    """Some of the metrics; all that classifiers are audited by, without a choice."""
    seed: int = 0
    """Of all draws."""
    smoke: bool = False
    """Smallest size, for a first look whether it runs."""
    out: Path | None = None
    """JSON file."""


def cases(rows: int) -> dict[str, Case]:
    """The cases by name."""

    def those(*shifts: float) -> np.ndarray:
        return np.concatenate([shifts, np.zeros(rows - len(shifts))]).astype(np.float32)

    nothing = those()
    return {
        "null": Case(nothing, 1.0, 0.0),
        "all left by 0.25 sd": Case(nothing + 0.25, 1.0, 0.0),
        "all left by 0.5 sd": Case(nothing + 0.5, 1.0, 0.0),
        "all left by 1 sd": Case(nothing + 1, 1.0, 0.0),
        "one row left by 3 sd": Case(those(3), 1.0, 0.0),
        "two left, two driven out by 3 sd": Case(those(3, 3, -3, -3), 1.0, 0.0),
        "spread halved": Case(nothing, 0.5, 0.0),
        "retained and test rows lose 0.25 sd": Case(nothing, 1.0, 0.25),
    }


def draw(key: jax.Array, case: Case, models: int, rows: dict[str, int]) -> tuple[Observed, Observed]:
    """What is known of unlearned and of retrained models."""
    keys = dict(zip(rows, jax.random.split(key, len(rows)), strict=True))

    def told(candidate: bool) -> Observed:
        answers = {}
        for name, count in rows.items():
            centring, *spreading = jax.random.split(keys[name], 3)
            centre = 1 + 2 * jax.random.normal(centring, (count,))
            margins = jax.random.normal(spreading[candidate], (models, count))
            if candidate:
                margins = case.shift + case.spread * margins if name == "forget" else margins - case.damage
            others = jnp.full((models, count, CLASSES - 1), -np.log(CLASSES - 1))  # which sum to one, before logarithms
            logits = jnp.concatenate([(centre + margins)[..., None], others], axis=-1)
            answers[name] = Answers(logits, jnp.zeros((models, count), jnp.int32))
        return observe(answers)

    return told(True), told(False)


def p_value(metric: Metric, config: Config, models: int, permutations: int, key: jax.Array, case: Case) -> jax.Array:
    """Of one simulated audit; what `judge` has INSIDE has one above alpha, as float32 has it."""
    drawing, judging = jax.random.split(key)
    rows = {"forget": config.forgotten, "retain": config.others, "test": config.others}
    candidate, reference = draw(drawing, case, models, rows)
    return ju.audit.permutation_p_value(
        metric.statistic, candidate, reference, judging, num_permutations=permutations, two_sided=metric.signed
    )


def main(config: Config) -> dict[str, Any]:
    """Simulate all; returns what is written."""
    if config.smoke:
        smaller = {"models": (8,), "forgotten": 6, "others": 10, "repeats": 4, "permutations": 39}
        config = replace(config, **smaller, metrics=config.metrics or ("forget_accuracy", "margin_gap", "u_lira"))
    console, found = Console(), []
    chosen = config.metrics or tuple(name for name, metric in METRICS.items() if fits(metric, "classes"))
    summary = {"config": {**vars(config), "out": None}, "environment": environment(), "told": found}
    for models in config.models:
        for name in sorted(chosen, key=lambda name: name in SLOW):
            began = time.perf_counter()
            found += shares(name, config, models)
            console.print(f"{models} models, {METRICS[name].label}: {time.perf_counter() - began:.0f} s")
            if config.out is not None:  # after every metric, since all of them take an hour
                config.out.parent.mkdir(parents=True, exist_ok=True)
                config.out.write_text(compact_json(summary))
        show(found, models, chosen, config, console)
    return summary


def shares(name: str, config: Config, models: int) -> list[dict[str, Any]]:
    """How often one metric tells each case, with Clopper-Pearson limits."""
    repeats = config.repeats if models == config.models[0] else config.repeats_of_more
    permutations = config.permutations
    if name in SLOW:
        repeats, permutations = max(1, repeats // 2), max(round(1 / config.alpha), permutations // 5)
    test = jax.jit(partial(p_value, METRICS[name], config, models, permutations))
    names, told = list(cases(config.forgotten)), []
    for number, how in enumerate(cases(config.forgotten).values()):
        key = jax.random.fold_in(jax.random.key(config.seed), 1000 * models + number)  # all metrics see the same models
        told.append(sum(bool(test(one, how) <= config.alpha) for one in jax.random.split(key, repeats)))
    limits = np.stack(ju.audit.clopper_pearson(jnp.array(told), repeats), axis=1)
    settings = {"models": models, "metric": name, "repeats": repeats, "permutations": permutations}
    return [
        {**settings, "case": case, "told": [round(float(x), 4) for x in share]}
        for case, share in zip(names, limits, strict=True)
    ]


def markdown(summary: dict[str, Any], models: int) -> str:
    """The table of the README: what each metric fits, and the share of verdicts that are not INSIDE."""
    told = {(x["metric"], x["case"]): x["told"] for x in summary["told"] if x["models"] == models}
    names = [name for name in cases(summary["config"]["forgotten"]) if any(case == name for _, case in told)]
    lines = ["| metric | tasks | " + " | ".join(names) + " |", "|---|---|" + "---:|" * len(names)]
    for name, metric in METRICS.items():
        tasks = [task for task in TASKS if fits(metric, task)]
        shares = [f"{100 * told[name, case][0]:.0f} %" if (name, case) in told else "" for case in names]
        lines.append(f"| {metric.label} | {'any' if len(tasks) == len(TASKS) else ', '.join(tasks)} | {' | '.join(shares)} |")
    return "\n".join(lines)


def show(found: list[dict[str, Any]], models: int, chosen: tuple[str, ...], config: Config, console: Console) -> None:
    """The table of one number of models."""
    names = list(cases(config.forgotten))
    rows = [
        {
            "metric": METRICS[name].label,
            **{x["case"]: x["told"][0] for x in found if x["metric"] == name and x["models"] == models},
        }
        for name in chosen
    ]
    columns = [Column("metric", "metric"), *(Column(name, name, ".0%") for name in names)]
    print_table(Table(columns, rows, f"share that is not inside, {models} models of each kind"), console)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
