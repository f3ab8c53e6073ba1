"""Train, unlearn and audit with data that stay on disk: no more rows in memory than some batches and one block.

    python experiments/large_data.py --data-dir DIR                    # MNIST as TFDS prepared it
    python experiments/large_data.py --data-dir DIR --dataset cifar10 --network cnn --method scrub
    python experiments/large_data.py --data-dir DIR --resume --out out/large_data      # after a kill: goes on where it was

A network is trained by `jaxunlearn.feed`, unlearns random rows by any method with steps, and is audited block by block. Rows
are read by their numbers ahead of the steps that need them. Both runs keep their progress in the folder `--out` and are resumed
to the same bits. Written there, too: `report.html` and `large_data.json`. With `--in-memory` both runs are made once more by
`iterate`, from the same rows in memory.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common import methods, script
from experiments.common.data import OnDisk, as_example, load, on_disk
from experiments.common.models import build
from experiments.common.report import Column, Section, Table
from jaxunlearn import sources
from jaxunlearn.audit.single.performance import row_results
from jaxunlearn.tree import content_digest

COLUMNS = [
    Column("model", "model"),
    Column("retain", "retain acc.", ".1%"),
    Column("forget", "forget acc.", ".1%"),
    Column("test", "test acc.", ".1%"),
    Column("auc", "attack AUC", ".3f"),
]
PACES = [
    Column("run", "run"),
    Column("steps", "steps of this call", "d"),
    Column("steps_per_second", "steps a second", ".3g"),
    Column("rows_per_second", "rows a second", ".3g"),
]


@dataclass
class Config(script.Base):
    """Command line of the script."""

    dataset: str = "mnist"
    """An image data set prepared by TFDS."""
    data_dir: str | None = None
    """Where TFDS finds prepared data."""
    network: str = "mlp"
    """mlp, cnn or resnet18."""
    method: str = "gradient_difference"
    """Any method of `jaxunlearn.METHODS` with steps."""
    learning_rate: float = 5e-4
    """Of the method, with Adam and a cosine schedule."""
    steps: int = 200
    """Steps of the method."""
    forget: int = 500
    """Random rows to forget."""
    training_steps: int = 2000
    """Steps of training."""
    training_learning_rate: float = 2e-3
    """Of training, with Adam and a cosine schedule."""
    batch_size: int = 64
    """Rows per step and side."""
    block: int = 2048
    """Rows of a block of the audit."""
    every: int = 200
    """Steps between two saves."""
    minutes: float = 5.0
    """Minutes after which a save is due anyway."""
    ahead: int = 2
    """Batches that are read ahead, by as many threads."""
    in_memory: bool = False
    """Also train and unlearn with all rows in memory, and compare."""
    resume: bool = False
    """Go on with what is in the folder of the results."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("out/large_data")


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, training_steps=6, steps=4, forget=min(config.forget, 3), batch_size=4, block=8, every=2)
    config = replace(config, method=methods.known(config.method), scale=replace(config.scale, mesh=False))
    _check(config)
    _, console = script.begin(config)
    data = on_disk(config.dataset, config.data_dir)
    index = sources.index(len(data.train))
    rows = np.random.default_rng(config.seed).choice(len(data.train), config.forget, replace=False)
    request = ju.merge(ju.from_indices(index, [rows]))
    model = build(config.network, data.shape, data.num_classes)
    assert model.init is not None  # of every network of `build`
    train_key, key = jax.random.split(jax.random.key(config.seed))
    rate = optax.cosine_decay_schedule(config.training_learning_rate, config.training_steps)
    training = ju.retrain(model, optax.adam(rate))
    fresh = jax.jit(model.init)(train_key)
    trained, first = _fed(config, console, "training", training, fresh, data, index, ju.empty_request(), train_key)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    method = ju.METHODS[config.method].factory(model, optax.adam(rate))
    unlearned, second = _fed(config, console, "unlearning", method, trained, data, index, request, key)
    models = {"trained": trained, "unlearned": unlearned}
    if config.in_memory:
        models |= _in_memory(config, (training, method), fresh, request, (train_key, key))
    found = {name: _audited(config, model, one, data, index, request) for name, one in models.items()}
    table = Table(COLUMNS, [{"model": name, **audit} for name, audit in found.items()], "Both models, with 95 % intervals")
    paces = Table(PACES, [first, second], "How fast it was; the step that compiles is left out")
    means = {name: {key: np.asarray(x, float).tolist() for key, x in audit.items()} for name, audit in found.items()}
    summary = script.summary_of(config, models=means, pace=[first, second], unlearned_weights=content_digest(unlearned))
    return script.finish(
        config, console, "large_data", summary,
        title="Unlearning with data on disk", intro=_intro(config, len(data.train)),
        sections=[Section("Before and after", "", [table]), Section("Pace", "", [paces])], tables=[table, paces],
    )  # fmt: skip


def _in_memory(
    config: Config, pair: tuple[ju.Unlearner, ju.Unlearner], fresh: ju.Variables, request: ju.ForgetRequest, keys: Any
) -> dict[str, ju.Variables]:
    """The same two runs by `iterate`: same rows, draws and keys."""
    data = ju.training_data(*load(config.dataset, config.data_dir).train)
    training, unlearning = (
        jax.jit(ju.iterate(method, num_steps=steps, batch_size=config.batch_size))
        for method, steps in zip(pair, (config.training_steps, config.steps), strict=True)
    )
    trained = ju.check(training(fresh, data, ju.empty_request(), keys[0]), allow=[ju.Status.EMPTY_REQUEST]).variables
    unlearned = ju.check(unlearning(trained, data, request, keys[1])).variables
    return {"trained in memory": trained, "unlearned in memory": unlearned}


def _check(config: Config) -> None:
    if not methods.has_steps(config.method):
        raise SystemExit(f"{config.method} has no steps: batches cannot be fed to it")
    if config.out.exists() and any(config.out.iterdir()) and not config.resume:
        raise SystemExit(f"{config.out} holds files already: choose another --out, or go on with it by --resume")


def _fed(
    config: Config, console: Any, name: str, method: ju.Unlearner, variables: ju.Variables, data: OnDisk, index: ju.Data,
    request: ju.ForgetRequest, key: jax.Array,
) -> tuple[ju.Variables, dict[str, Any]]:  # fmt: skip
    """One run with a progress bar; what it came to, and how fast it was."""
    num_steps = config.training_steps if name == "training" else config.steps
    sizes: dict[str, Any] = {"num_steps": num_steps, "batch_size": config.batch_size}
    source = sources.batches(method, data.train, index, request, key, parse=as_example, ahead=config.ahead, **sizes)
    kept = ju.checkpoint.Directory(config.out / name, every=config.every, minutes=config.minutes)
    paces: list[sources.Pace] = []
    with script.progress(console, name, num_steps) as advance:
        callback = _callback(num_steps, paces, advance)
        result = ju.feed(method, variables, source, request, key, num_steps=num_steps, checkpoint=kept, callback=callback)
    allowed = [ju.Status.EMPTY_REQUEST] if name == "training" else []
    rate = paces[-1].steps_per_second if len(paces) > 1 else 0.0  # of one step or none nothing is known
    made = paces[-1].steps - paces[0].steps + 1 if paces else 0
    # training reads retained rows alone
    sides = 1 if name == "training" else 2
    pace = {"run": name, "steps": made, "steps_per_second": rate, "rows_per_second": sides * config.batch_size * rate}
    return ju.check(result, allow=allowed).variables, pace


def _callback(
    num_steps: int, paces: list[sources.Pace], advance: script.Advance
) -> Callable[[int, dict[str, jax.Array]], None]:
    def tell(pace: sources.Pace) -> None:
        done = pace.steps - (paces[-1].steps if paces else 0)
        paces.append(pace)
        advance(f"{pace.steps_per_second:.0f} steps/s", done)

    return sources.paced(tell, num_steps)


def _audited(
    config: Config, model: ju.Model, variables: ju.Variables, data: OnDisk, index: ju.Data, request: ju.ForgetRequest
) -> dict[str, Any]:
    """Accuracies with intervals, and how well the loss tells the forget set from unseen rows; one pass over all rows."""
    unseen = sources.index(len(data.test))
    how: dict[str, Any] = {"size": config.block, "parse": as_example}
    parts = {
        "retain": sources.blocks(data.train, index, request=request, **how),
        "forget": sources.blocks(data.train, index, request=request, side="forget", **how),
        "test": sources.blocks(data.test, unseen, **how),
    }
    found = {
        name: sources.map_blocks(lambda rows: row_results(model, variables, rows), blocks) for name, blocks in parts.items()
    }
    figures = {name: ju.audit.clopper_pearson(np.sum(right), len(right)) for name, (right, _) in found.items()}
    (_, own), (_, others) = found["forget"], found["test"]
    area = ju.audit.auc(jnp.asarray(-own), jnp.ones(len(own)), jnp.asarray(-others), jnp.ones(len(others)))
    return {**figures, "auc": area}


def _intro(config: Config, count: int) -> str:
    return f"""\
{config.forget} of {count} rows of {config.dataset} were unlearned from a {config.network} by {config.method}. Rows stayed on
disk: they were read by their numbers, ahead of the steps that needed them.

No model was retrained, so nobody can tell from this table how much should have been forgotten: it shows that a run works on
data that do not fit. The attack tells the forget set from test rows by the loss."""


if __name__ == "__main__":
    script.run(main, Config, __doc__)
