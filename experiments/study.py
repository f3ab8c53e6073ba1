"""Unlearning for medical images: does it do what retraining does, for whom, and at what cost?

    python experiments/study.py                                       # digits with a synthetic group, twelve seeds
    python experiments/study.py --smoke                               # tiny, for a first look whether it runs
    python experiments/study.py --dataset breast_cancer --rows 400
    python experiments/study.py --dataset adult --rows 2000 --group-effect 1 --label-noise 0
    python experiments/study.py --dataset dermamnist.npz --rows 2000 --network cnn --positive 4
    python experiments/study.py --aim concept                         # whole classes; retraining is then no reference

The protocol of Nasirigerdeh, Razmi, Schnabel, Rueckert and Kaissis (Machine unlearning for medical imaging, 2024, arXiv
2407.07539): retain, forget and test accuracy of random relabelling and of SalUn beside exact retraining, for forget sets of
several sizes, of one group only, and of easy and hard rows; with the time that the choice of settings takes. The sizes, what
easy and hard means, and the rules that decide the findings are a reconstruction. Added: missed positives and a matrix of costs
(Falcao, Cordeiro, 2026), an attack on each group. Written to the folder `--out`: `report.html` and `study.json`.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import numpy as np
from jax.sharding import Mesh
from rich.console import Console

import jaxunlearn as ju
from experiments.common import findings, methods, protocol, scenarios, script, settings, study, study_page, tables
from experiments.common.augmentation import trivial
from experiments.common.comparison import Bench, Ready, Seeds, answer, audited, of_one_shape, originals, programs
from experiments.common.grouped import Grouped, load_grouped
from experiments.common.outcome import AGAIN, NOTHING, RETRAINED
from experiments.common.protocol import EASIEST, HARDEST, Asked, Figures, Rows, gaps, group_kind, share_kind


@dataclass
class Config(script.Unlearning):
    """Command line of the study."""

    dataset: str = "digits"
    """digits, breast_cancer, adult (synthetic), a MedMNIST file (.npz), or images prepared by TFDS."""
    aim: Literal["rows", "concept"] = "rows"
    """What is to be gone: the influence of rows, or a concept (a whole class)."""
    methods: tuple[str, ...] = ("random_label", "salun")
    """Which methods of `jaxunlearn.METHODS`."""
    seeds: int = 12
    label_noise: float = 0.05
    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)
    """Shares of the training rows that are forgotten."""
    requests: int = 2
    """Requests of each kind."""
    group_effect: float = 0.3
    """Strength of a synthetic group: its pattern in images, its effect on the label in `adult`."""
    group_share: float = 0.3
    """Share of the second group, where groups are synthetic."""
    positive: int = 0
    """The class that must not be missed (0 is malignant in breast_cancer)."""
    miss_cost: float = 10.0
    """What missing it costs; other mistakes cost 1."""
    costs: Path | None = None
    """JSON file of a matrix of costs, true class by predicted class, in place of the two above."""
    tolerance: float = 0.02
    """Gap of accuracy that counts as none."""
    augment: bool = False
    """Train, retrain and unlearn with one simple change per image (TrivialAugment)."""
    looks: int = 10
    """Checkpoints of a training for the difficulty of rows."""
    difficulty_seeds: int = 2
    """Trainings for the difficulty of rows; they are not judged."""
    points: int | None = None
    """Settings tried for each method, at most; all of its card by default."""
    tune_seeds: int = 2
    """Original models of the search for settings, on other rows."""
    tune_requests: int = 1
    """Requests of the search for each share."""
    out: Path = Path("out/study")


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.seeds < 2:
        raise SystemExit("--seeds must be at least 2: intervals are taken over seeds")
    if config.smoke:
        config = replace(
            config, methods=config.methods[:1], seeds=2, rows=120, training_steps=20, unlearning_steps=3, shares=(0.05, 0.3),
            requests=1, looks=2, difficulty_seeds=1, points=2, tune_seeds=1,
        )  # fmt: skip
    config = replace(config, methods=tuple(dict.fromkeys(map(methods.known, config.methods))))
    mesh, console = script.begin(config)
    try:
        grouped = load_grouped(
            config.dataset, config.data_dir, strength=config.group_effect, share=config.group_share, seed=config.draw
        )
        costs = costs_of(config, grouped.dataset.num_classes)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    setting, rows = on_rows(config, grouped, costs, config.draw)
    for name in config.methods:
        why = methods.left_out(name, setting, on_classes=config.aim == "concept", seeds=config.seeds)
        if why is not None:
            raise SystemExit(f"{name} {why}")
    bench = programs(setting, network=config.network, num_steps=config.unlearning_steps, scale=config.scale, mesh=mesh)
    if config.aim == "rows":
        found = of_rows(config, bench, setting, rows, grouped, mesh, console)
    else:
        found = of_concepts(config, bench, setting, console)
    verdicts = study_page.verdicts(found["findings"])
    summary = script.summary_of(
        config, groups=grouped.about, findings=[one._asdict() for one in found["findings"]],
        tables={part.title: study_page.as_json(part) for part in found["sections"]}, **found["json"],
    )  # fmt: skip
    return script.finish(
        config, console, "study", summary, title=f"jaxunlearn study: {Path(config.dataset).stem}", intro=INTRO,
        sections=[study_page.asked_for(config.aim, grouped.about, found["asked"]), verdicts, *found["sections"]],
        tables=[part.tables[0] for part in (verdicts, *found["sections"])], notes=study_page.in_words(found),
    )  # fmt: skip


def costs_of(config: Config, num_classes: int) -> np.ndarray:
    """Costs of mistakes, true class by predicted class."""
    if config.costs is None:
        return ju.audit.error_costs(num_classes, {config.positive: config.miss_cost})
    if not 0 <= config.positive < num_classes:
        raise ValueError(f"--positive names class {config.positive}, and there are {num_classes}")
    costs = np.asarray(json.loads(config.costs.read_text()), np.float32)
    if costs.shape != (num_classes, num_classes) or not np.isfinite(costs).all():
        raise ValueError(f"{config.costs} must hold {num_classes} lists of {num_classes} numbers, got shape {costs.shape}")
    return costs


def on_rows(config: Config, grouped: Grouped, costs: np.ndarray, draw: int, model: ju.Model | None = None) -> tuple:
    """The study on a draw of training rows, and what is known of its rows."""
    setting = study.overfitted(
        grouped.dataset, network=config.network, num_rows=min(config.rows, len(grouped.groups)),
        label_noise=config.label_noise, num_steps=config.training_steps, seed=draw,
    )  # fmt: skip
    setting = setting._replace(model=model or setting.model, augment=trivial if config.augment else None)
    assert setting.rows is not None
    return setting, Rows(grouped.groups[setting.rows], grouped.test_groups, costs)


def of_rows(
    config: Config, bench: Bench, setting: study.Study, rows: Rows, grouped: Grouped, mesh: Mesh | None, console: Console
) -> dict[str, Any]:
    """The whole protocol."""
    seeds = Seeds(config.draw, config.request_seed, 1, config.training_seeds())
    points = {name: protocol.points_of(name, config.points) for name in config.methods}
    models = config.seeds * (2 + len(config.methods)) + sum(map(len, points.values()))
    with script.progress(console, "study", models) as advance:
        advance("difficulty of rows")
        hard = protocol.difficulty_of(setting, range(10_000, 10_000 + config.difficulty_seeds), config.looks)
        order = np.asarray(ju.audit.from_easiest(hard))
        asked = protocol.draw_requests(
            setting.data, rows.groups, grouped.names, order, shares=config.shares, each=config.requests,
            seed=config.request_seed,
        )  # fmt: skip
        ready = ready_for(bench, setting, asked, seeds)
        run = protocol.examiner(bench.setting, len(grouped.names), chunk=config.scale.chunk, mesh=mesh)
        answers, figures = {NOTHING: answer(bench, ready, NOTHING, {})}, {}
        for name in (RETRAINED, AGAIN):
            advance(name, done=config.seeds)
            answers[name], seconds = protocol.retrained_and_again(bench, ready, name)
        searches = searched(config, bench, grouped, rows, run, points, seconds, advance)
        for name in config.methods:
            advance(name, done=config.seeds)
            chosen = protocol.settings_for(asked, searches[name].chosen, len(rows.groups))
            answers[name] = answer(bench, ready, name, chosen)
        advance("measuring")
        for name in (NOTHING, *config.methods, AGAIN, RETRAINED):
            figures[name] = protocol.examined(run, ready, rows, answers[name])
    costs = {
        name: findings.Cost(
            one.run_seconds, one.points * one.run_seconds,
            one.points * one.runs * one.run_seconds + one.judge_seconds, seconds, one.points,
        )
        for name, one in searches.items()
    }  # fmt: skip
    decided = decide(config, figures, asked, grouped.names, costs)
    costed = f"missing class {config.positive} costs {config.miss_cost:g}, another mistake 1"
    right = grouped.dataset.train.targets[setting.rows]
    pages = [
        study_page.utility(figures, asked, config.shares),
        study_page.generalisation(figures, asked, config.shares),
        study_page.by_groups(figures, asked, grouped.names, config.shares),
        study_page.by_difficulty(figures, asked, hard, order, np.asarray(setting.data.train.targets) != right),
        study_page.mistakes(
            figures, asked, config.shares, config.positive, costed if config.costs is None else f"costs of {config.costs.name}"
        ),
        study_page.cost_of(costs, seconds),
    ]
    chosen = {
        name: {
            share_kind(share): {**one.chosen[share], "average_gap": tables.rounded(one.average_gaps[share])}
            for share in config.shares
        }
        for name, one in searches.items()
    }
    rows_of = dict(zip(asked.kinds, asked.sizes, strict=True))
    return {"findings": decided, "asked": asked, "sections": pages, "json": {"requests": rows_of, "settings": chosen}}


def ready_for(bench: Bench, setting: study.Study, asked: Asked, seeds: Seeds) -> Ready:
    """Requests in the shape that all programs share, with their originals."""
    scenario = of_one_shape(protocol.scenario_of(setting, asked))
    return Ready(scenario, originals(bench, scenario, seeds.training), seeds)


def searched(
    config: Config, bench: Bench, grouped: Grouped, known: Rows, run: Any, points: dict, seconds: float, advance: Any
) -> dict[str, protocol.Search]:
    """Settings of every method and share, chosen on other rows, labels, seeds and requests."""
    draw = config.draw + 1
    setting, rows = on_rows(config, grouped, known.costs, draw, bench.setting.model)
    asked = protocol.draw_requests(
        setting.data, rows.groups, (), None, shares=config.shares, each=config.tune_requests, seed=100 + config.request_seed
    )
    seeds = Seeds(draw, 100 + config.request_seed, draw, range(20_000, 20_000 + config.tune_seeds))
    ready = ready_for(bench, setting, asked, seeds)
    reference = protocol.examined(run, ready, rows, protocol.retrained_and_again(bench, ready)[0])
    found = {}
    for name in config.methods:
        advance(f"settings of {name}")
        found[name] = protocol.search(
            bench, ready, rows, run, asked, name, reference, points[name], config.shares, retrain_seconds=seconds,
            tell=lambda count: advance(done=count),
        )  # fmt: skip
    return found


def decide(
    config: Config, figures: dict[str, Figures], asked: Asked, names: tuple[str, ...], costs: dict[str, findings.Cost]
) -> list[findings.Finding]:
    """The five findings."""
    reference, every = figures[RETRAINED], [place for share in config.shares for place in asked.of(share_kind(share))]

    def gap(name: str, field: str, places: list[int], part: int | None = None) -> np.ndarray:
        return gaps(figures[name], reference, field, places, part)

    def between_groups(name: str, other: int) -> dict[str, np.ndarray]:
        first, second = (asked.of(group_kind(names[number])) for number in (0, other))
        return {
            f"forget accuracy, only {names[other]} less only {names[0]}": (
                gap(name, "forget", second) - gap(name, "forget", first)
            ),
            f"test accuracy, {names[other]} less {names[0]}": (
                gap(name, "group_test", every, other) - gap(name, "group_test", every, 0)
            ),
        }

    shown = config.methods
    return [
        findings.performs_well(
            {
                name: {
                    field: {share: gap(name, field, asked.of(share_kind(share))) for share in config.shares}
                    for field in ("retain", "forget")
                }
                for name in shown
            },
            config.tolerance,
        ),
        findings.hurts_generalisation(
            {name: {share: gap(name, "test", asked.of(share_kind(share))) for share in config.shares} for name in shown},
            config.tolerance / 4,
        ),
        findings.treats_groups_alike(
            {
                name: {key: x for other in range(1, len(names)) for key, x in between_groups(name, other).items()}
                for name in shown
            },
            config.tolerance,
        ),
        findings.differs_by_difficulty(
            {name: (gap(name, "forget", asked.of(EASIEST)), gap(name, "forget", asked.of(HARDEST))) for name in shown},
            config.tolerance,
        ),
        findings.costs_more_than_it_looks(costs),
    ]


def of_concepts(config: Config, bench: Bench, setting: study.Study, console: Console) -> dict[str, Any]:
    """Whole classes: how much of the concept is left on rows that nobody listed."""
    try:
        scenario = of_one_shape(scenarios.classes(setting, num_requests=config.requests, request_seed=config.request_seed))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    seeds, found = Seeds(config.draw, config.request_seed, 1, config.training_seeds()), {}
    compared = (NOTHING, *config.methods, RETRAINED)
    with script.progress(console, "study", len(compared)) as advance:
        ready = Ready(scenario, originals(bench, scenario, seeds.training), seeds)
        for name in compared:
            advance(name, done=1)
            chosen = settings.load(settings.CONFIGS, name, "class", config.study_key)[0] if name in config.methods else {}
            found[name] = audited(bench, ready, answer(bench, ready, name, chosen))[0]
    return {"findings": findings.of_a_concept(), "asked": None, "sections": [study_page.concepts(found)], "json": {}}


INTRO = """\
A network was trained until it knew its training rows. People then asked for rows to be forgotten: random ones in several
numbers, rows of one group only, easy rows and hard rows. Every method answered, with settings chosen on other rows; models
retrained without the rows are the reference, and a second retraining is the floor of every gap.

This is a study of one network on one data set. Findings of the paper are about large networks on images of patients; what is
not reproduced here may be true there, and the other way round."""


if __name__ == "__main__":
    script.run(main, Config, __doc__)
