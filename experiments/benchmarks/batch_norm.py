"""What BatchNorm does to a request for a class: the forget pass in training mode and in evaluation mode.

    python experiments/benchmarks/batch_norm.py --out experiments/results/batch_norm
    python experiments/benchmarks/batch_norm.py --smoke

A small residual network learns digits; each of some classes is to be forgotten. In training mode a batch of one class is
normalised by its own mean and variance, so that a method climbs on another loss than the one that is reported. Beside the
accuracies stands the forget loss that a method sees in its first step, and the one that evaluation says at that point.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common import models, script
from experiments.common.data import load
from experiments.common.report import Column, Section, Table
from experiments.common.study import Study, overfitted
from jaxunlearn.passes import BatchNormPolicy

COLUMNS = [
    Column("method", "method"),
    Column("bn", "bn"),
    Column("first", "forget loss, first step", ".3f"),
    Column("forget", "forget acc.", ".1%"),
    Column("retain", "retain acc.", ".1%"),
    Column("test", "test acc.", ".1%"),
]


@dataclass
class Config(script.Base):
    """Command line of the benchmark."""

    rows: int = 500
    """Training rows."""
    training_steps: int = 300
    """In batches of 64."""
    unlearning_steps: int = 50
    """In batches of 64 rows of each set."""
    learning_rate: float = 1e-3
    """Of unlearning, with Adam."""
    methods: tuple[str, ...] = ("npo",)
    """Methods whose first argument after the model is an optimizer, and that take `bn`."""
    classes: int = 4
    """Requests, one class each."""
    out: Path = Path("out/batch_norm")


def main(config: Config) -> dict[str, Any]:
    """Measure all; returns what is written."""
    if config.smoke:
        config = replace(config, rows=200, training_steps=5, unlearning_steps=3, classes=2)
    mesh, console = script.begin(config)
    study = setting(config)
    requests = ju.from_classes(study.data, [[label] for label in range(config.classes)], num_classes=study.num_classes)
    keys = jax.random.split(jax.random.key(1), config.classes)
    look = jax.jit(jax.vmap(partial(measured, study), in_axes=(0, 0)))
    rows: list[dict[str, Any]] = []
    policies = get_args(BatchNormPolicy)
    with script.progress(console, "policies", 1 + len(config.methods) * len(policies)) as advance:
        recipe = jax.jit(study.retrain())
        nothing = ju.empty_request(requests.indices.shape[1])._replace(
            target=jax.tree.map(lambda x: x[0] & False, requests.target)
        )
        assert study.model.init is not None
        start = study.model.init(jax.random.key(0))
        trained = recipe(start, study.data, nothing, jax.random.key(0)).variables
        references = ju.batched(study.retrain(), mesh=mesh) if mesh is not None else jax.jit(ju.batched(study.retrain()))
        many = jax.tree.map(lambda x: np.broadcast_to(x, (config.classes, *x.shape)), trained)
        rows.append({"method": "do nothing", "bn": "", **means(look(many, requests))})
        rows.append(
            {"method": "retrained", "bn": "", **means(look(references(start, study.data, requests, keys).variables, requests))}
        )
        advance(done=1)
        for name in config.methods:
            for policy in policies:
                advance(f"{name}, {policy}")
                method = ju.METHODS[name].factory(study.model, optax.adam(config.learning_rate), bn=policy)
                unlearn = ju.iterate(method, config.unlearning_steps, batch_size=64)
                run = ju.batched(unlearn, mesh=mesh) if mesh is not None else jax.jit(ju.batched(unlearn))
                result = run(trained, study.data, requests, keys)
                first = float(np.mean(result.stats["forget_loss"][:, 0])) if "forget_loss" in result.stats else None
                rows.append({"method": name, "bn": policy, **means(look(result.variables, requests)), "first": first})
                advance(done=1)
    table = Table(COLUMNS, rows, f"{config.classes} requests for a class, means")
    summary = script.summary_of(config, table=rows)
    return script.finish(
        config, console, "batch_norm", summary, title="BatchNorm and a class request", intro=str(__doc__),
        sections=[Section("Policies", "", [table], [])], tables=[table],
    )  # fmt: skip


def setting(config: Config) -> Study:
    """Digits and a residual network of two stages."""
    study = overfitted(load("digits"), num_rows=config.rows, label_noise=0.0, num_steps=config.training_steps)
    model = models.build("resnet18", study.data.train.inputs.shape[1:], study.num_classes, width=16, blocks=(1, 1))
    return study._replace(model=model)


def measured(study: Study, variables: ju.Variables, request: ju.ForgetRequest) -> dict[str, jax.Array]:
    """Of one model, in evaluation mode."""
    found = ju.audit.performance(study.model, variables, study.data, request, study.test)
    assert found.accuracy is not None
    sets = found.accuracy
    return {"forget": sets.forget, "retain": sets.retain, "test": sets.test, "first": found.loss.forget}


def means(values: dict[str, jax.Array]) -> dict[str, float]:
    """Over requests."""
    return {name: float(np.mean(value)) for name, value in values.items()}


if __name__ == "__main__":
    script.run(main, Config, __doc__)
