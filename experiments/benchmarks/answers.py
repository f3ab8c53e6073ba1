"""Does `jaxunlearn.answer` say the truth on data that nobody tuned on?

    python experiments/benchmarks/answers.py --data-dir DIR --out experiments/results/answers
    python experiments/benchmarks/answers.py --smoke

For each data set one model is trained, and many requests for random rows are answered without a setting. Some of them are then
retrained, and looked at with test rows that `answer` never saw: the largest gap to retrained models, root mean square over
requests, in spreads of one retrained model. A verdict is right if unlearned answers pass and are within the tolerance, or do
not pass and are not within it; answers that were rejected and retrained are looked at as well. Where nothing was unlearned
there is nothing to be right about.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common import script
from experiments.common.report import Column, Section, Table
from experiments.common.study import overfitted, random_requests
from jaxunlearn.tuning.calls import Bench, known_by, retrained
from jaxunlearn.tuning.judging import gaps_to, spreads_of
from jaxunlearn.tuning.proxies import described

ROWS = {"breast_cancer": 300, "diabetes": 250, "digits": 500, "mnist": 1000}  # of training
TOLERANCE = 2.0
COLUMNS = [
    Column("dataset", "data set"),
    Column("how", "answered by"),
    Column("passed", "passes"),
    Column("promised", "largest gap on proxies", ".1f"),
    Column("true", "of what was returned on the requests", ".1f"),
    Column("rejected", "of what was rejected on the requests", ".1f"),
    Column("right", "verdict is right"),
    Column("spent", "retrainings for the search", ".1f"),
    Column("seconds", "seconds", ".0f"),
]


@dataclass
class Config(script.Base):
    """Command line of the benchmark."""

    datasets: tuple[str, ...] = ("breast_cancer", "diabetes", "mnist")
    """Other than digits, on which everything was developed."""
    data_dir: str | None = None
    """Where TFDS finds prepared MNIST."""
    requests: int = 40
    """Requests for each data set."""
    size: int = 10
    """Rows of a request."""
    to_come: int = 0
    """Requests said to follow."""
    label_noise: float = 0.1
    """Share of wrong labels, where there are labels."""
    training_steps: int = 600
    """Of training and retraining, in batches of 64 with Adam at 0.002."""
    checked: int = 8
    """Requests that are retrained to see whether the verdict is right."""
    seeds: int = 4
    """Retrained models for each of them."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("out/answers")


def main(config: Config) -> dict[str, Any]:
    """Answer and check; returns what is written."""
    if config.smoke:
        config = replace(
            config, datasets=config.datasets[:1], requests=3, training_steps=20, checked=2, seeds=2, to_come=200
        )  # fmt: skip
    mesh, console = script.begin(config)
    rows = []
    with script.progress(console, "data sets", len(config.datasets)) as advance:
        for dataset in config.datasets:
            advance(dataset)
            rows.append(of_data(dataset, config, mesh))
            advance(done=1)
    notes = [f"{row['dataset']}: {row['verdict']}" for row in rows]
    table = Table(COLUMNS, rows, f"{config.requests} requests for {config.size} rows; gaps in spreads of a retrained model")
    return script.finish(
        config, console, "answers", script.summary_of(config, data=rows), title="Answers without a setting", intro=str(__doc__),
        sections=[Section("Verdicts", "; ".join(notes), [table], [])], tables=[table], notes=notes,
    )  # fmt: skip


def of_data(dataset: str, config: Config, mesh: Any) -> dict[str, Any]:
    """One data set."""
    noise = 0.0 if dataset == "diabetes" else config.label_noise
    study = overfitted(
        dataset, config.data_dir, num_rows=ROWS.get(dataset, 1000), label_noise=noise, num_steps=config.training_steps,
        seed=config.seed,
    )  # fmt: skip
    model, data, key = study.model, study.data, jax.random.key(config.seed)
    train_key, answer_key, check_key = jax.random.split(key, 3)
    recipe = ju.Recipe(optax.adam, study.learning_rate, study.num_steps, study.batch_size)
    assert model.init is not None  # studies have one
    trained = jax.jit(recipe.retrain(model))(jax.jit(model.init)(key), data, ju.empty_request(), train_key)
    trained = ju.check(trained, allow=[ju.Status.EMPTY_REQUEST]).variables
    every = jax.tree.map(lambda x: x[:2000], study.test)
    unseen, report = (jax.tree.map(lambda x, first=first: x[first::2], every) for first in (0, 1))
    requests = random_requests(data, [config.size] * config.requests, config.seed)
    found = ju.answer(
        model, trained, data, requests, recipe, answer_key, unseen=unseen, to_come=config.to_come, tolerance=TOLERANCE,
        chunk=config.scale.chunk, mesh=mesh,
    )  # fmt: skip

    some = jax.tree.map(lambda x: x[: config.checked], requests)
    asked = described(some, data, report, classes=study.num_classes or None)
    bench = Bench(
        model, trained, data, data.present, report, config.scale.chunk, mesh, None, lambda doing, done: None, [], {}
    )  # fmt: skip
    reference = retrained(bench, recipe.retrain(model), asked, config.seeds, check_key)
    spreads = spreads_of(reference, shares=study.num_classes > 0)

    def far(result: ju.Result | None) -> tuple[float, dict[str, float]] | tuple[None, None]:
        if result is None:
            return None, None
        some = jax.tree.map(lambda x: x[: config.checked], result.variables)
        own = known_by(model, some, data, asked, report)
        gaps = {name: float(np.mean(gap)) / spreads[name] for name, gap in gaps_to(own, reference).items()}
        return ju.worst_gap(own, reference, spreads), gaps

    (true, gaps), (rejected, rejected_gaps) = far(found.result), far(found.rejected)
    unlearned = true if found.how != "retrained" else rejected
    promised = None if found.tuned is None or found.tuned.settings is None else found.tuned.table[0].value
    return {
        "dataset": dataset, "how": found.how, "passed": found.passed, "verdict": found.verdict, "promised": promised,
        "true": true, "rejected": rejected, "spent": found.costs.search, "seconds": found.seconds,
        "right": None if unlearned is None else (found.how != "retrained" and found.passed) == (unlearned <= TOLERANCE),
        "gaps_in_spreads": gaps, "rejected_gaps_in_spreads": rejected_gaps,
        "promised_gaps_in_spreads": dict(found.gaps),
        "settings": None if found.tuned is None else found.tuned.settings, "costs": found.costs._asdict(),
    }  # fmt: skip


if __name__ == "__main__":
    script.run(main, Config, __doc__)
