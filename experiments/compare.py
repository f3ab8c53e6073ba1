"""All methods in all scenarios, compared with retraining: one table and one plot of gap against time per scenario.

    python experiments/compare.py                                # digits, three seeds
    python experiments/compare.py --smoke                        # tiny, for a first look whether it runs
    python experiments/compare.py --dataset breast_cancer --scenario random memorised --methods scrub npo
    python experiments/compare.py --dataset mnist --data-dir DIR --rows 2000 --network cnn
    python experiments/compare.py --tune                         # choose the settings on other draws, write experiments/configs
    python experiments/compare.py --tune --tune-minutes 30 --dataset mnist --network cnn --data-dir DIR

A method is in the comparison once its card is in the catalogue. Settings come from experiments/configs, where a search on other
draws of rows, labels, seeds and requests put them, and the budget of that search is printed with the results; a method that
was never searched runs with the first point of its card's search, and a note says so. Written to the folder `--out`:
`results.jsonl` (a line as soon as a method is done with a scenario; an interrupted run with the same configuration goes on
behind it), `compare.json` and `report.html`.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import numpy as np
from jax.sharding import Mesh
from rich.console import Console

import jaxunlearn as ju
from experiments.common import methods, report, script, settings, tables
from experiments.common.comparison import Ready, Seeds, answer, audited, programs
from experiments.common.log import append, read_log, told_by_first
from experiments.common.methods import Settings, left_out
from experiments.common.outcome import AGAIN, NOTHING, RETRAINED, Outcome
from experiments.common.report import Section
from experiments.common.running import Timed
from experiments.common.scale import leads
from experiments.common.scenarios import NAMES, ON_CLASSES
from experiments.common.search import tune
from experiments.common.setup import Config, chosen_scenarios, prepare, studies, tables_of
from jaxunlearn.audit import in_short, saved


def main(config: Config) -> dict[str, Any]:
    """Compare, or search; returns what is written as JSON."""
    if min(config.seeds, config.tune_seeds) < 2:
        raise SystemExit("--seeds and --tune-seeds must be at least 2: intervals and spreads are taken over seeds")
    if config.tune and config.draw in config.tune_draws:
        raise SystemExit(f"settings must not be chosen on what is reported: leave --draw={config.draw} out of --tune-draws")
    if config.smoke:
        config = replace(
            config, seeds=2, requests=2, rows=200, training_steps=20, unlearning_steps=5, memorisation_models=16,
            tune_seeds=2, tune_requests=2, tune_draws=config.tune_draws[:1], scenario=config.scenario or ("random",),
            methods=config.methods or ("scrub", "ssd"),
        )  # fmt: skip
    config = replace(config, methods=tuple(dict.fromkeys(map(methods.known, config.methods or methods.on_networks()))))
    mesh, console = script.begin(config)
    return tune(config, mesh, console) if config.tune else compare(config, mesh, console)


# The comparison and its log


def identity(config: Config) -> dict[str, Any]:
    """What two runs must have in common to go into one log, besides the settings: all that moves a number in it."""
    free = ("scenario", "methods", "out", "configs", "data_dir", "smoke", "tune", "tune_draws", "tune_seeds", "tune_requests",
            "tune_minutes")  # fmt: skip
    kept = {name: value for name, value in vars(config).items() if name not in free}
    return json.loads(json.dumps({**kept, "scale": config.scale.recorded()}))


def compare(config: Config, mesh: Mesh | None, console: Console) -> dict[str, Any]:
    """Answer every scenario by every method, as far as the log does not hold it yet, and report."""
    pair = studies(config, config.draw, config.audit_seed)
    names = chosen_scenarios(config, pair[0], console)
    compared = [NOTHING, *config.methods, AGAIN, RETRAINED]
    reasons = {
        table: {
            method: left_out(method, pair[0], on_classes=table in ON_CLASSES, seeds=config.seeds)
            for method in compared
        }
        for table in tables_of(names)
    }  # fmt: skip
    wanted = [(table, method) for table, found in reasons.items() for method in compared if found[method] is None]
    chosen: dict[tuple[str, str], Settings] = {}
    searches: dict[tuple[str, str], dict[str, Any] | None] = {}
    for table, method in wanted:
        if method in config.methods:
            chosen[table, method], searches[table, method] = settings.load(config.configs, method, table, config.study_key)
    log = config.out / "results.jsonl"
    records, problem = {}, ""
    if leads():
        try:
            records = read_log(log, identity(config), chosen)
        except ValueError as error:
            problem = str(error)
    refused, pending = told_by_first(bool(problem), [pair not in records for pair in wanted])
    if refused:
        raise SystemExit(problem or "the first process refused the configuration, see its message")
    todo = [pair for pair, is_pending in zip(wanted, pending, strict=True) if is_pending]
    budget = settings.budget(searches, config.study_key)
    for line in budget:
        console.print(line)
    if len(todo) < len(wanted):
        console.print(f"{log}: {len(wanted) - len(todo)} of {len(wanted)} results are there already")
    started = time.perf_counter()
    bench = programs(pair[0], network=config.network, num_steps=config.unlearning_steps, scale=config.scale, mesh=mesh)
    seeds = Seeds(config.draw, config.request_seed, config.audit_seed, config.training_seeds())
    with script.progress(console, "compare", len(todo)) as advance:
        for name in names:
            if not any(table in NAMES[name] for table, _ in todo):
                continue
            advance(f"{name}: training the originals")
            for ready in prepare(config, bench, pair, name, seeds, config.requests, mesh):
                table = ready.scenario.name
                for method in [method for place, method in todo if place == table]:
                    advance(f"{table}: {method}")
                    done = answer(bench, ready, method, chosen.get((table, method), {}))
                    line = as_record(ready, method, done, audited(bench, ready, done)[0], chosen.get((table, method), {}))
                    if leads():
                        append(log, line)
                        records[table, method] = line
                    advance(done=1)
    if not leads():
        return {}
    found = {}
    for table, why in reasons.items():
        notes = {
            method: settings.NOT_SEARCHED for (place, method), search in searches.items() if place == table and search is None
        }
        found[table] = tables.summarise(table, compared, records, why, notes)
    summary = script.summary_of(
        config,
        seconds_of_this_run=round(time.perf_counter() - started, 1),
        scenarios={table: one["json"] for table, one in found.items()},
    ) | {"config": identity(config)}
    overview = tables.overview(found)
    cost = "Search of the settings: " + "; ".join(budget) + "." if budget else ""
    for one in found.values():
        report.print_table(one["table"], console)
        for text in one["remarks"]:
            console.print(text)
    return script.finish(
        config, console, "compare", summary, title=f"jaxunlearn comparison: {config.dataset}", intro=INTRO,
        sections=[Section("Overview", cost, [overview]), *(section_of(table, one) for table, one in found.items())],
        tables=[overview], in_short=in_short.of_gaps(saved.gaps_of(summary["scenarios"]), (NOTHING, AGAIN)),
    )  # fmt: skip


def as_record(ready: Ready, method: str, done: Timed, outcome: Outcome, chosen: Settings) -> dict[str, Any]:
    """A line of the log: all values of one method in one scenario, [seeds][requests], and its times."""
    scenario, status = ready.scenario, np.asarray(done.result.status)
    answered = status.size  # of a stream each request counts
    if scenario.stream is not None and method in (RETRAINED, AGAIN):
        answered = outcome.retain.size

    def number(value: float) -> float | None:
        return round(float(value), 6) if np.isfinite(value) else None

    values = {key: [[number(x) for x in row] for row in value] for key, value in outcome._asdict().items()}
    counts = {name: int(np.sum(status == ju.Status[name.upper()])) for name in tables.REMARKS}
    return {
        "scenario": scenario.name,
        "method": method,
        "question": scenario.question,
        "measure": scenario.measure,
        "classes": scenario.study.num_classes,
        "rows": np.asarray(scenario.requests.weights.sum(axis=-1)).astype(int).tolist(),
        "settings": chosen,
        "requests": answered,
        **counts,
        "values": values,
        "compile_seconds": round(done.compile_seconds, 3),
        "run_seconds": round(done.run_seconds, 4),
        "milliseconds": None if method == NOTHING else round(1e3 * done.run_seconds / answered, 4),
    }


# The report


def section_of(table: str, one: dict[str, Any]) -> Section:
    """A scenario on the page."""
    caption = "Largest gap against time per request; the line joins what no other method beats in both."
    figures = [(one["figure"], caption)] if one["figure"] is not None else []
    text = [f"Question: {one['json']['question']}.", NOTES.get(table, ""), *(f"{line}." for line in one["remarks"])]
    return Section(table.capitalize(), "\n\n".join(text), [one["table"], one["gap_table"]], figures)


INTRO = """\
Networks were trained until they knew their training rows by heart. People then asked for rows to be forgotten, in several
scenarios. Every method answered all requests of a scenario; retrained models, which never saw the rows, are the reference.

How to read it: the aim is the row `retrained`, not an accuracy or an attack as low as possible. The membership inference
attack tells the forget set from unseen rows that are drawn like it, by their loss. It is a weak attack: what it does not find
may still be there. No method but retraining guarantees anything.

Worst: the largest of the signed gaps to retrained models over the measures of the table, in standard deviations of one
retrained model over seeds, of which there are few; one below half a point (0.005) counts as half a point. `retrained again`
is a second set of retrained models under other seeds: gaps of its size are no gaps. Over 11 scenarios and 5 measures some
gaps of two spreads come by chance."""
NOTES = {
    "memorised low": "These rows are known without having been seen: there is next to nothing to forget. A negative control.",
    "class": "The accuracy on unseen rows of the class tells whether the concept is gone.",
    "classes": "The accuracy on unseen rows of the classes tells whether the concept is gone.",
    "group": "Persons are synthetic: a fixed pattern added to rows that were dealt out at random.",
    "confusion": "Labels of two classes were swapped in half of their rows; the measure is how often unseen rows are confused.",
    "backdoor": "Attack success: unseen rows with the patch, not of the target class, that are taken for it.",
    "sequential": "One model answers request after request; the audit looks at it after the last one.",
}


if __name__ == "__main__":
    script.run(main, Config, __doc__)
