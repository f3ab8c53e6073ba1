"""Is filtering a request cheap, and does it keep the rows that matter? FUNU (2025, arXiv 2501.16614), ridge regression, MNIST.

    python experiments/benchmarks/funu.py --dataset mnist --data-dir DIR
    python experiments/benchmarks/funu.py --smoke

Requests for random rows are filtered in one compiled call with the features of a trained network. Two questions. How long does
it take beside one retraining of that network? And where only the kept rows of a request are taken out of a ridge regression on
the pixels, is it closer to the one without the whole request than if as many rows of the request had been chosen at random?
Ridge is solved exactly, in float64, so that nothing but the choice of rows is compared.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common import script
from experiments.common.report import Column, Section, Table
from experiments.common.running import timed
from experiments.common.study import Study, overfitted, random_requests

COLUMNS = [
    Column("mode", "mode"),
    Column("kept", "rows kept", ".1%"),
    Column("filter_ms", "filter, ms per request", ".2f"),
    Column("speedup", "retraining / filter", ".0f"),
    Column("kept_gap", "ridge, kept rows out", ".3g"),
    Column("random_gap", "ridge, random rows out", ".3g"),
    Column("closer", "requests where kept is closer", ".0%"),
]


@dataclass
class Config(script.OnData):
    """What is filtered."""

    rows: int = 10_000
    """Training rows."""
    requests: int = 50
    """Requests for random rows."""
    size: int = 500
    """Rows of each."""
    training_steps: int = 1000
    """Of the network; the weak one that says which rows are typical takes one pass over the rows."""
    draws: int = 20
    """Random choices of as many rows, for each request."""
    penalty: float = 1.0
    """Of ridge, for the sum over rows."""
    repeats: int = 5
    """Of what is timed."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("out/funu")


def main(config: Config) -> dict[str, Any]:
    """Filter, time, and solve; returns what is written."""
    if config.smoke:
        config = replace(config, rows=300, requests=3, size=20, training_steps=20, draws=3, repeats=1)
    _, console = script.begin(config)
    study = overfitted(
        config.dataset,
        config.data_dir,
        num_rows=config.rows,
        label_noise=0.0,
        num_steps=config.training_steps,
        seed=config.seed,
    )
    requests = random_requests(study.data, [config.size] * config.requests, config.seed)
    nothing, keys = ju.empty_request(), jax.random.split(jax.random.key(config.seed), 3)
    train = timed(study.retrain(), _fresh(study, keys[0]), study.data, nothing, keys[1], repeats=config.repeats)
    variables, typical = train.result.variables, _typical(study, keys[2])
    rows = []
    for mode in ("release", "consistent"):
        select = ju.funu(study.model, typical, mode=mode)

        def kept(variables, data, requests, key, select=select):
            return jax.vmap(select, (None, None, 0, None))(variables, data, requests, key)

        found = timed(kept, variables, study.data, requests, keys[0], repeats=config.repeats)
        milliseconds = 1e3 * found.run_seconds / config.requests
        rows.append({
            "mode": mode, "filter_ms": milliseconds, "speedup": 1e3 * train.run_seconds / milliseconds,
            **ridge(study, np.asarray(requests.indices), np.asarray(requests.weights) > 0, np.asarray(found.result), config),
        })  # fmt: skip
    title = f"{config.requests} requests for {config.size} of {config.rows} rows of {config.dataset}; one retraining: "
    table = Table(COLUMNS, rows, title + f"{train.run_seconds:.2f} s")
    summary = script.summary_of(config, rows=rows, retraining_seconds=train.run_seconds)
    return script.finish(
        config, console, "funu", summary, title="Filtering requests", intro=str(__doc__),
        sections=[Section("What is kept", "", [table], [])], tables=[table],
    )  # fmt: skip


def _fresh(study: Study, key: Any) -> ju.Variables:
    assert study.model.init is not None  # studies have one
    return jax.jit(study.model.init)(key)


def _typical(study: Study, key: Any) -> jax.Array:
    """Rows that a network gets right after one pass over them."""
    steps = max(1, len(study.data.present) // study.batch_size)
    weak = ju.iterate(ju.retrain(study.model, optax.adam(study.learning_rate)), num_steps=steps, batch_size=study.batch_size)
    variables = jax.jit(weak)(_fresh(study, key), study.data, ju.empty_request(), key).variables
    logits = jax.jit(study.model.forward)(variables, study.data.train.inputs).logits
    return jnp.argmax(logits, axis=1) == study.data.train.targets


def ridge(study: Study, indices: np.ndarray, used: np.ndarray, kept: np.ndarray, config: Config) -> dict[str, float]:
    """Distances of ridge solutions to the one without the whole request, mean over requests."""
    inputs = np.asarray(study.data.train.inputs, np.float64).reshape(config.rows, -1)
    targets = np.eye(study.num_classes)[np.asarray(study.data.train.targets)]
    gram, moment = inputs.T @ inputs + config.penalty * np.eye(inputs.shape[1]), inputs.T @ targets

    def without(rows: np.ndarray) -> np.ndarray:
        x = inputs[rows]
        return np.linalg.solve(gram - x.T @ x, moment - x.T @ targets[rows])

    generator = np.random.default_rng(config.seed)
    own, chance = [], []
    for rows, slots, keep in zip(indices, used, kept, strict=True):
        asked, chosen = rows[slots], rows[slots & keep]
        whole = without(asked)
        own.append(np.linalg.norm(without(chosen) - whole))
        others = (generator.choice(asked, len(chosen), replace=False) for _ in range(config.draws))
        chance.append(np.mean([np.linalg.norm(without(some) - whole) for some in others]))
    return {
        "kept": float(np.sum(kept & used) / np.sum(used)), "kept_gap": float(np.mean(own)),
        "random_gap": float(np.mean(chance)), "closer": float(np.mean(np.less(own, chance))),
    }  # fmt: skip


if __name__ == "__main__":
    script.run(main, Config, __doc__)
