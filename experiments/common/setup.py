"""What a comparison is made of: its flags, its training sets, and its scenarios with their originals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

import jaxunlearn as ju
from experiments.common import scenarios, script, settings, study
from experiments.common.comparison import Bench, Ready, Seeds, of_one_shape, originals
from experiments.common.data import load
from experiments.common.scenarios import NAMES
from experiments.common.study import Study


@dataclass
class Config(script.Unlearning):
    """Command line of the comparison."""

    dataset: str = "digits"
    """digits, breast_cancer, diabetes, or an image data set prepared by TFDS."""
    scenario: Annotated[tuple[scenarios.Name, ...], script.unless_given("all that fit")] = ()
    """Which scenarios; by default all that fit the data set."""
    methods: Annotated[tuple[str, ...], script.unless_given("all")] = ()
    """Which methods of `jaxunlearn.METHODS`; by default all that take a model."""
    seeds: int = 3
    requests: int = 8
    """Requests per scenario, at most."""
    audit_seed: int = 0
    """Of what only the audit sees: test rows, memorisation, unseen persons, the second retraining."""
    test_rows: int = 1000
    """Test rows; all rows of a smaller test set."""
    memorisation_models: int = 64
    """Models from which memorisation is estimated."""
    configs: Path = settings.CONFIGS
    """Folder of the settings, one file per method."""
    out: Path = Path("out/compare")
    tune: bool = False
    """Choose the settings instead: search on other draws and write what is best to --configs."""
    tune_draws: tuple[int, ...] = (1, 2)
    """Seeds of rows, labels, requests and training of the search; --draw must not be among them."""
    tune_seeds: int = 2
    """Original models per draw of the search."""
    tune_requests: int = 4
    """Requests per scenario and draw of the search, at most."""
    tune_minutes: float = math.inf
    """No further point is tried after so many minutes; what was found is written, with the number of points tried."""


def studies(config: Config, draw: int, audit_seed: int, model: ju.Model | None = None) -> tuple[Study, Study]:
    """The study with some wrong labels and the one with right labels, on the same rows and with one model."""
    loaded = load(config.dataset, config.data_dir, seed=draw)
    noise = config.label_noise if loaded.num_classes else 0.0
    noisy, clean = (
        study.overfitted(
            loaded, network=config.network, num_rows=min(config.rows, len(loaded.train.targets)), label_noise=x,
            num_steps=config.training_steps, seed=draw,
        )
        for x in (noise, 0.0)
    )  # fmt: skip
    order = np.random.default_rng(audit_seed).permutation(len(noisy.test.inputs))[: config.test_rows]
    shared = {"model": noisy.model if model is None else model, "test": jax.tree.map(lambda x: x[np.sort(order)], noisy.test)}
    return noisy._replace(**shared), clean._replace(**shared)


def chosen_scenarios(config: Config, setting: Study, console: Console) -> Sequence[scenarios.Name]:
    """The scenarios that fit, in order; those that do not are named with the reason.

    Raises:
        SystemExit: none fits.
    """
    shape = setting.data.train.inputs.shape[1:]
    reasons: dict[scenarios.Name, str | None] = {
        name: scenarios.why_not(name, setting.num_classes, shape) for name in config.scenario or NAMES
    }
    for name, reason in reasons.items():
        if reason is not None:
            console.print(f"scenario {name} is left out of {config.dataset}: it {reason}")
    fitting: list[scenarios.Name] = [name for name, reason in reasons.items() if reason is None]
    if not fitting:
        raise SystemExit(f"none of the scenarios {', '.join(reasons)} fits {config.dataset}")
    return fitting


def prepare(
    config: Config,
    bench: Bench,
    pair: tuple[Study, Study],
    name: scenarios.Name,
    seeds: Seeds,
    num_requests: int,
    mesh: Mesh | None,
) -> list[Ready]:
    """The scenarios of one name with their originals."""

    def values() -> np.ndarray:
        how: dict[str, Any] = {"chunk": config.scale.chunk, "mesh": mesh}
        return scenarios.memorisation(pair[0], num_models=config.memorisation_models, seed=seeds.audit, **how)

    built = scenarios.build(
        name, *pair, num_requests=num_requests, seed=seeds.draw, request_seed=seeds.request, audit_seed=seeds.audit,
        values=values,
    )  # fmt: skip
    built = [of_one_shape(scenario) for scenario in built]
    models = originals(bench, built[0], seeds.training)  # scenarios of one name share a study
    return [Ready(scenario, models, seeds) for scenario in built]


def tables_of(names: Sequence[scenarios.Name]) -> list[str]:
    """Names of all scenarios that are built from these."""
    return [table for name in names for table in NAMES[name]]
