"""Forty-two forget requests answered by five methods, and compared with retraining.

    python experiments/quickstart.py                        # five seeds, on all CPU cores
    python experiments/quickstart.py --smoke                # tiny, for a first look whether it runs
    python experiments/quickstart.py --dataset mnist --data-dir DIR --rows 2000 --network cnn
    python experiments/quickstart.py --no-mesh --chunk 4    # on one device; more in experiments/launch/README.md

A small network learns 500 digits, some with wrong labels, by heart. 32 requests for 8 to 64 random rows and 10 requests for
a whole class are answered by five methods, in one compiled program each, and so are their retrained references. All methods
and more scenarios: `experiments/compare.py`. Written to the folder `--out`: `report.html` (one page with tables and plots),
`quickstart.png`, `quickstart.json`.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.common import plots, script
from experiments.common.comparison import Ready, Seeds, answer, audited, of_one_shape, originals, programs
from experiments.common.outcome import (
    AGAIN,
    FALSE_POSITIVE_RATES,
    LEAST_SPREAD,
    NOTHING,
    RETRAINED,
    Details,
    Outcome,
    as_json,
    gaps,
    in_spreads,
    in_words,
    spreads,
)
from experiments.common.report import Column, Section, Table
from experiments.common.running import Timed
from experiments.common.scale import leads
from experiments.common.scenarios import Scenario
from experiments.common.study import Study, random_requests
from jaxunlearn.audit import in_short, saved

RANDOM, CLASSES = "random rows", "whole classes"
# Chosen by experiments/tune_quickstart.py on other draws of rows, wrong labels, training seeds and requests; `unseen_matching`
# has one fixed setting, the learning rate of the training.
SETTINGS: dict[str, dict[str, dict[str, float]]] = {
    RANDOM: {
        "finetune": {"learning_rate": 1e-2},
        "gradient_ascent": {"learning_rate": 1e-5},
        "gradient_difference": {"learning_rate": 8e-3, "alpha": 0.97},
        "scrub": {"learning_rate": 4e-3, "alpha": 0.1, "forget_epochs": 5},
        "unseen_matching": {"learning_rate": 2e-3},
    },
    CLASSES: {
        "finetune": {"learning_rate": 1e-2},
        "gradient_ascent": {"learning_rate": 1e-4},
        "gradient_difference": {"learning_rate": 4e-3, "alpha": 0.995},
        "scrub": {"learning_rate": 4e-3, "alpha": 0.1, "forget_epochs": 3},
        "unseen_matching": {"learning_rate": 2e-3},
    },
}
METHODS = tuple(SETTINGS[RANDOM])
ORDER = (NOTHING, *METHODS, AGAIN, RETRAINED)
SMOKE = (NOTHING, "scrub", AGAIN, RETRAINED)  # a program less for every method left out

COLUMNS = [
    Column("method", "method"),
    Column("retain", "retain acc.", ".1%"),
    Column("forget", "forget acc.", ".1%"),
    Column("test", "test acc.", ".1%"),
    Column("auc", "attack AUC", ".3f"),
    Column("tpr", "TPR at 1 % FPR", ".1%"),
    Column("divergence", "JS to retr.", ".3f"),
    Column("milliseconds", "ms/request", ".1f"),
]
GAP_COLUMNS = [
    Column("method", "method"),
    Column("retain", "retain acc.", "+.1%"),
    Column("forget", "forget acc.", "+.1%"),
    Column("test", "test acc.", "+.1%"),
    Column("auc", "attack AUC", "+.3f"),
    Column("worst", "worst in spreads", ".1f"),
    Column("verdict", "verdict"),
]
NOTE = (
    "worst in spreads: largest of the four gaps, in standard deviations of a retrained model over seeds, half a point at "
    "least; verdict: gaps of more than two of them, in words"
)


@dataclass
class Config(script.Unlearning):
    """Command line of the quickstart."""

    random_requests: int = 32
    """Requests for random rows, of 8 to 64 rows."""
    out: Path = Path("out/quickstart")


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.seeds < 2:
        raise SystemExit("--seeds must be at least 2: intervals and spreads are taken over seeds")
    if config.smoke:
        config = replace(config, seeds=2, random_requests=3, rows=200, training_steps=20, unlearning_steps=5)
    order = SMOKE if config.smoke else ORDER
    mesh, console = script.begin(config)
    setting = config.setting()
    if setting.held_out is None:
        order = tuple(method for method in order if method != "unseen_matching")
        console.print("unseen_matching is left out: all rows are training or test rows, and it needs others")
    asked, parts = joined(kinds_of_requests(setting, config.random_requests, config.request_seed))
    bench = programs(setting, network=config.network, num_steps=config.unlearning_steps, scale=config.scale, mesh=mesh)
    lanes = config.seeds * asked.requests.indices.shape[0]
    answers: dict[str, Timed] = {}
    with script.progress(console, "quickstart", config.seeds + (len(order) - 1) * lanes) as advance:

        def tell(count: int) -> None:
            advance(done=count)

        advance("training the originals")
        models = originals(bench, asked, config.training_seeds(), tell=tell)
        ready = Ready(asked, models, Seeds(config.draw, config.request_seed, 0, config.training_seeds()))
        for method in (NOTHING, RETRAINED, AGAIN, *(method for method in METHODS if method in order)):
            advance(method)
            answers[method] = answer(bench, ready, method, settings_of(method, parts), tell=tell)
        advance("auditing")
        reference = answers[RETRAINED].result.variables
        found = {method: audited(bench, ready, answers[method], reference) for method in order}
    reported = {kind: describe(config, kind, part, found, answers) for kind, part in parts.items()}
    sections = []
    for kind, one in reported.items():
        accuracy = plots.accuracy_bars(one["accuracy"])
        if kind == RANDOM and leads():
            config.out.mkdir(parents=True, exist_ok=True)
            (config.out / "quickstart.png").write_bytes(plots.to_png(accuracy))
        figures = [
            (accuracy, "Accuracy beside that of retrained models (line and band). On the line is right; lower is not better."),
            (plots.roc_curves(one["roc"]), "The loss attack, averaged over seeds and requests."),
        ]
        sections.append(Section(kind.capitalize(), "", one["tables"], figures))
    milliseconds = {method: milliseconds_of(answers[method]) for method in answers if method != NOTHING}
    compiling = {method: answers[method].compile_seconds for method in milliseconds}
    times = plots.time_per_request(milliseconds, compiling)
    sections.append(Section("Time", "", [], [(times, "Time of the batched calls, divided by their requests.")]))
    summary = script.summary_of(config, settings=SETTINGS, scenarios={kind: one["json"] for kind, one in reported.items()})
    return script.finish(
        config, console, "quickstart", summary, title="jaxunlearn quickstart", intro=INTRO, sections=sections,
        tables=[table for one in reported.values() for table in one["tables"]], notes=[NOTE],
        in_short=in_short.of_gaps(saved.gaps_of(summary["scenarios"]), (NOTHING, AGAIN)),
    )  # fmt: skip


def kinds_of_requests(setting: Study, num_random: int, request_seed: int) -> dict[str, Scenario]:
    """Random rows and whole classes, in one shape."""
    sizes = np.linspace(8, 64, num_random).astype(int).tolist()
    labels = [[label] for label in range(setting.num_classes)]
    asked = {
        RANDOM: random_requests(setting.data, sizes, request_seed),
        CLASSES: ju.from_classes(setting.data, labels, num_classes=setting.num_classes),
    }

    def scenario(kind: str) -> Scenario:
        unseen_weights = jnp.ones((len(asked[kind].indices), len(setting.test.targets)))
        return Scenario(kind, "influence of examples", setting, asked[kind], setting.test, unseen_weights)

    return {kind: of_one_shape(scenario(kind)) for kind in asked}


def joined(kinds: dict[str, Scenario]) -> tuple[Scenario, dict[str, slice]]:
    """All requests as one scenario, so that one call answers them, and which of them are of a kind."""
    fields = ("requests", "unseen_weights")
    both = {field: jax.tree.map(lambda *x: np.concatenate(x), *[getattr(x, field) for x in kinds.values()]) for field in fields}
    ends = np.cumsum([len(scenario.requests.indices) for scenario in kinds.values()]).tolist()
    parts = {kind: slice(start, end) for kind, start, end in zip(kinds, [0, *ends], ends, strict=False)}
    return kinds[RANDOM]._replace(name="quickstart", **both), parts


def settings_of(method: str, parts: dict[str, slice]) -> dict[str, np.ndarray]:
    """Settings of a method, one per request."""
    return {
        name: np.concatenate([np.full(part.stop - part.start, SETTINGS[kind][method][name]) for kind, part in parts.items()])
        for name in SETTINGS[RANDOM].get(method, {})
    }


def milliseconds_of(done: Timed) -> float:
    """Per request."""
    return 1e3 * done.run_seconds / done.result.status.size


def describe(
    config: Config,
    kind: str,
    part: slice,
    audits: dict[str, tuple[Outcome, Details | None]],
    answers: dict[str, Timed],
) -> dict[str, Any]:
    """Tables, figures and JSON of one kind of requests."""
    found = {method: jax.tree.map(lambda x: x[:, part], audit) for method, audit in audits.items()}
    reference = found[RETRAINED][0]
    rows, gap_rows, records = [], [], {}
    for method, (outcome, details) in found.items():
        values = {**outcome._asdict(), **details._asdict()}
        means = {column.key: ju.audit.crossed_interval(values[column.key], within=(0, 1)) for column in COLUMNS[1:-1]}
        times = None if method == NOTHING else milliseconds_of(answers[method])
        known = means if method != RETRAINED else {**means, "divergence": None}
        rows.append({"method": method, **known, "milliseconds": times})
        records[method] = {"means": as_json(means)}
        if times is not None:
            records[method]["compile_seconds"] = answers[method].compile_seconds
            records[method]["run_seconds"] = answers[method].run_seconds
            records[method]["milliseconds_per_request"] = times
        if method != RETRAINED:
            apart, scaled = gaps(outcome, reference, within=(-1, 1)), in_spreads(outcome, reference, least=LEAST_SPREAD)
            worst = max(map(abs, scaled.values()))
            gap_rows.append({"method": method, **apart, "worst": worst, "verdict": in_words(scaled)})
            records[method]["gaps"] = as_json(apart)
            records[method]["gaps_in_seed_spreads"] = as_json(scaled)
            records[method]["within_two_seed_spreads"] = worst <= 2
            records[method]["verdict"] = in_words(scaled)
    count = part.stop - part.start
    return {
        "json": {"requests": count, "seed_spreads": spreads(reference), "methods": records},
        "tables": [
            Table(COLUMNS, rows, f"{kind}: means over {config.seeds} seeds x {count} requests, 95 % intervals"),
            Table(GAP_COLUMNS, gap_rows, f"{kind}: signed gaps to the retrained models of the same requests"),
        ],
        "accuracy": {row["method"]: {name: row[name] for name in ("forget", "retain", "test")} for row in rows},
        "roc": {method: (FALSE_POSITIVE_RATES, np.nanmean(details.roc, axis=(0, 1))) for method, (_, details) in found.items()},
    }


INTRO = """\
A network was trained until it knew its training rows by heart, wrong labels included. People then asked for rows to be
forgotten. Every method answered all requests in one compiled program; the retrained models, which never saw the rows, are the
reference.

How to read it: the aim is the row `retrained`, not an accuracy or an attack as low as possible. A forget accuracy above
that of retrained models means that rows are still known; one below means that they were driven out so hard that it shows. The
membership inference attack tells the forget set from test rows by their loss. It is a weak attack: what it does not find may
still be there. No method but retraining guarantees anything.

Worst in spreads: the largest of the four signed gaps, in standard deviations of one retrained model over seeds, half a point at
least; the verdict says in words which gaps are above two. `retrained again` is the floor: a second retraining for every
request, which no method can be expected to beat."""


if __name__ == "__main__":
    script.run(main, Config, __doc__)
