"""Choose the settings of the quickstart on other draws of rows, wrong labels, training seeds and requests.

    python experiments/tune_quickstart.py        # about ten minutes on two CPU cores

For every method and kind of request it prints the grid point whose largest gap to retrained models is smallest, in units
of the seed spread, over retain, forget and test accuracy and the AUC of the loss attack; gaps are averaged over the draws.
Writes all points as JSON.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import numpy as np

import jaxunlearn as ju
from experiments.common import report, script
from experiments.common.comparison import Ready, Seeds, answer, audited, originals, programs
from experiments.common.methods import grid_points
from experiments.common.outcome import LEAST_SPREAD, MEASURES, RETRAINED, Outcome
from experiments.common.scale import leads
from experiments.common.search import gaps_over_draws, tried
from experiments.quickstart import CLASSES, RANDOM, kinds_of_requests

RATES = (2e-3, 4e-3, 8e-3)
GRIDS: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {
    RANDOM: {
        "finetune": {"learning_rate": (3e-3, 1e-2, 2e-2, 3e-2)},
        "gradient_ascent": {"learning_rate": (1e-5, 3e-5, 1e-4, 2e-4)},
        "gradient_difference": {"learning_rate": RATES, "alpha": (0.92, 0.94, 0.95, 0.96, 0.97)},
        "scrub": {"learning_rate": RATES, "alpha": (0.1,), "forget_epochs": (3, 5, 10)},
    },
    CLASSES: {
        "finetune": {"learning_rate": (3e-3, 1e-2, 2e-2, 3e-2)},
        "gradient_ascent": {"learning_rate": (1e-5, 3e-5, 1e-4, 2e-4)},
        "gradient_difference": {"learning_rate": RATES, "alpha": (0.98, 0.99, 0.995, 0.998)},
        "scrub": {"learning_rate": RATES, "alpha": (0.1,), "forget_epochs": (3, 5, 10)},
    },
}
POINTS = [
    (kind, method, point) for kind, grids in GRIDS.items() for method, grid in grids.items() for point in grid_points(grid)
]


@dataclass
class Config(script.Unlearning):
    """Command line of the search."""

    seeds: int = 4
    random_requests: int = 16
    """Requests for random rows, of 8 to 64 rows."""
    draws: tuple[int, ...] = (1, 2, 3)
    """Seeds of rows, wrong labels and requests; the quickstart reports on draw 0."""
    out: Path = Path("out/tune_quickstart")


def main(config: Config) -> list[dict[str, Any]]:
    """Search and print; returns all points."""
    if config.smoke:
        config = replace(
            config, seeds=2, random_requests=2, rows=200, training_steps=5, unlearning_steps=2, draws=config.draws[:1]
        )
    points, names = POINTS, tuple(GRIDS[RANDOM])
    if config.smoke:  # the first point of one method, for both kinds of requests
        names = names[-1:]
        points = [next(point for point in POINTS if point[:2] == (kind, names[0])) for kind in GRIDS]
    mesh, console = script.begin(config)
    settings = [replace(config, draw=draw).setting() for draw in config.draws]
    settings = [setting._replace(model=settings[0].model) for setting in settings]
    bench = programs(settings[0], network=config.network, num_steps=config.unlearning_steps, scale=config.scale, mesh=mesh)
    ready: dict[str, list[Ready]] = {kind: [] for kind in GRIDS}
    references: dict[str, list[Outcome]] = {kind: [] for kind in GRIDS}
    records = []
    with script.progress(console, "searching", len(config.draws) + len(points)) as advance:
        for draw, setting in zip(config.draws, settings, strict=True):
            advance(f"draw {draw}")
            kinds = kinds_of_requests(setting, config.random_requests, draw)
            seeds = Seeds(draw, draw, draw, range(100 * draw, 100 * draw + config.seeds))
            models = originals(bench, kinds[RANDOM], seeds.training)
            for kind, scenario in kinds.items():
                ready[kind].append(Ready(scenario, models, seeds))
                references[kind].append(tried(bench, ready[kind][-1], RETRAINED, {}))
            advance(done=1)
        for kind, method, point in points:
            advance(f"{kind}: {method}")
            answers = [answer(bench, one, method, point) for one in ready[kind]]
            outcomes = [audited(bench, one, done)[0] for one, done in zip(ready[kind], answers, strict=True)]
            found = gaps_over_draws(outcomes, references[kind], MEASURES)
            if all(np.all(done.result.status == ju.Status.OK) for done in answers):  # others diverged and are not chosen
                # Spreads can be 0 (a forgotten class is never predicted): half a point counts as one for the choice.
                scaled = {name: gap / (width or LEAST_SPREAD) for name, (gap, width) in found.items()}
                gaps = {name: gap for name, (gap, _) in found.items()}
                records.append(
                    {"scenario": kind, "method": method, "settings": point, "gaps": gaps, "gaps_in_seed_spreads": scaled}
                )
            advance(done=1)
    for kind in GRIDS:
        for method in names:
            best = min((record for record in records if (record["scenario"], record["method"]) == (kind, method)), key=worst)
            shown = ", ".join(f"{name} {value:+.1f}" for name, value in best["gaps_in_seed_spreads"].items())
            console.print(f"{kind:14} {method:20} {best['settings']}  worst {worst(best):.1f} ({shown})")
    if leads():
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "tune_quickstart.json").write_text(report.compact_json(script.summary_of(config, points=records)))
    return records


def worst(record: dict[str, Any]) -> float:
    """Largest of the gaps of a grid point."""
    return max(map(abs, record["gaps_in_seed_spreads"].values()))


if __name__ == "__main__":
    script.run(main, Config, __doc__)
