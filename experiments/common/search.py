"""Choosing settings: all points of a method's search, tried on draws of rows, labels, seeds and requests of its own."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from rich.console import Console

import jaxunlearn as ju
from experiments.common import methods, script, settings
from experiments.common.comparison import Bench, Ready, Seeds, answer, audited, measures_of, programs
from experiments.common.log import told_by_first
from experiments.common.methods import Settings, left_out
from experiments.common.outcome import LEAST_SPREAD, RETRAINED, Outcome, gaps, spreads
from experiments.common.scale import leads
from experiments.common.scenarios import ON_CLASSES
from experiments.common.setup import Config, chosen_scenarios, prepare, studies, tables_of


def tried(bench: Bench, ready: Ready, method: str, settings: Settings) -> Outcome:
    """What the audit finds for one point on one draw."""
    return audited(bench, ready, answer(bench, ready, method, settings))[0]


def gaps_over_draws(
    outcomes: Sequence[Outcome], references: Sequence[Outcome], measures: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Signed gap to retrained models and seed spread, both averaged over draws."""
    apart = [gaps(outcome, reference, measures) for outcome, reference in zip(outcomes, references, strict=True)]
    widths = [spreads(reference, measures) for reference in references]
    return {
        name: (float(np.mean([draw[name].estimate for draw in apart])), float(np.mean([draw[name] for draw in widths])))
        for name in measures
    }


def worst_over_draws(outcomes: Sequence[Outcome], references: Sequence[Outcome], measures: Sequence[str]) -> float:
    """Largest gap of a point in seed spreads; infinite if it diverged."""
    found = gaps_over_draws(outcomes, references, measures)
    scaled = [abs(gap) / max(width, LEAST_SPREAD) for gap, width in found.values()]
    return max(math.inf if math.isnan(value) else value for value in scaled)


def tune(config: Config, mesh: Mesh | None, console: Console) -> dict[str, Any]:
    """Search all points of the cards, on draws that are not reported, and write the best of each scenario.

    Where the time is over, points that come later were not tried; "points" beside the settings says how many were.
    """
    started = time.perf_counter()
    first, _ = studies(config, config.tune_draws[0], config.tune_draws[0])
    bench = programs(first, network=config.network, num_steps=config.unlearning_steps, scale=config.scale, mesh=mesh)
    names = chosen_scenarios(config, first, console)
    points = {method: methods.points(method) for method in config.methods}
    chosen: dict[str, dict[str, Any]] = {}
    total = len(tables_of(names)) * len(config.tune_draws) * (1 + sum(map(len, points.values())))
    with script.progress(console, "search", total) as advance:
        ready: dict[str, list[Ready]] = {table: [] for table in tables_of(names)}
        references: dict[str, list[Outcome]] = {table: [] for table in ready}
        for draw in config.tune_draws:
            seeds = Seeds(draw, draw, draw, range(100 * draw, 100 * draw + config.tune_seeds))
            pair = studies(config, draw, draw, first.model)
            for name in names:
                for one in prepare(config, bench, pair, name, seeds, config.tune_requests, mesh):
                    advance(f"draw {draw}: {one.scenario.name}", done=1)
                    ready[one.scenario.name].append(one)
                    references[one.scenario.name].append(tried(bench, one, RETRAINED, {}))
        for method in config.methods:
            entries = {}
            for table in ready:
                advance(f"{method}: {table}")
                if left_out(method, first, on_classes=table in ON_CLASSES, seeds=config.tune_seeds) is not None:
                    advance(done=len(config.tune_draws) * len(points[method]))
                    continue
                scores: list[float] = []
                for place, point in enumerate(points[method]):
                    late = time.perf_counter() - started > 60 * config.tune_minutes
                    if told_by_first(late, [])[0]:
                        advance(done=len(ready[table]) * (len(points[method]) - place))
                        break
                    outcomes = [tried(bench, one, method, point) for one in ready[table]]
                    advance(done=len(outcomes))
                    measures = measures_of(ready[table][0].scenario.measure)
                    scores.append(worst_over_draws(outcomes, references[table], measures))
                if not scores:
                    console.print(f"{table:18} {method:20} not searched: the time is over")
                    continue
                best = int(np.argmin(scores))
                if not np.isfinite(scores[best]):
                    raise SystemExit(
                        f"{method} diverged at all {len(scores)} points tried for {table}: give its card smaller values"
                    )
                entries[table] = {
                    "values": points[method][best],
                    "worst_gap_in_spreads": round(scores[best], 3),
                    "search": {
                        "points": len(scores),
                        "grid": dict(ju.METHODS[method].search),
                        "draws": config.tune_draws,
                        "seeds": config.tune_seeds,
                        "requests": ready[table][0].scenario.requests.indices.shape[0],
                        "unlearning_steps": config.unlearning_steps,
                    },
                }
                console.print(f"{table:18} {method:20} {points[method][best]}  worst gap {scores[best]:.1f} spreads")
            if leads() and entries:
                settings.save(config.configs, method, config.study_key, entries)
            chosen[method] = entries
    console.print(f"searched for {time.perf_counter() - started:.0f} s; settings: {config.configs}")
    return chosen
