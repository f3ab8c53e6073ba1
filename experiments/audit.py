"""Is a method's forgetting like retraining? One request, a hundred models of every kind, every metric beside its floor.

    python experiments/audit.py                                   # digits, offline
    python experiments/audit.py --method finetune --settings learning_rate 0.01
    python experiments/audit.py --method retrain                  # the oracle must pass its own audit
    python experiments/audit.py --dataset mnist --network cnn --data-dir DIR --rows 2000
    python experiments/audit.py --resume --out out/audit          # keeps every block of models, and goes on from there
    python experiments/audit.py --smoke                           # fewest models, for a first look whether it runs

A network learns 500 digits by heart, some with a wrong label. Rows that it memorises least, as models trained on random
halves tell, are the negative control: a signal on them is one of the audit. Written to the folder `--out`: `report.html`,
`audit.json`, `audit.md`.
"""

import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import numpy as np

import jaxunlearn as ju
from experiments.common import methods, report, script, study
from experiments.common.data import subset
from experiments.common.running import at
from experiments.common.scale import leads
from experiments.common.training import form
from experiments.quickstart import RANDOM, SETTINGS


@dataclass
class Config(script.Unlearning):
    """Command line of the script."""

    method: str = "gradient_difference"
    """Any method of `jaxunlearn.METHODS` that takes a model."""
    settings: Annotated[dict[str, float], script.unless_given("none")] = field(default_factory=dict)
    """Its hyper-parameters, by default those of the quickstart for random rows, or the first ones of its card's search."""
    num_models: int = 100
    """Models of each kind; twice as many are retrained, half of them held out."""
    forgotten: int = 48
    """Random rows of the request."""
    halves: int = 32
    """Models on random halves of the rows, for memorisation; the least memorised third of the request is the control."""
    metrics: Annotated[tuple[str, ...], script.unless_given("all")] = ()
    """Some of the metrics of `jaxunlearn.audit.run`; all of them by default."""
    permutations: int = 199
    """Random labels behind a verdict."""
    block: int = 25
    """Models in one compiled call."""
    resume: bool = False
    """Keep every block in OUT/models, and take from there what was computed before."""
    out: Path = Path("out/audit")


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        smaller = {"num_models": 39, "forgotten": 12, "halves": 4, "permutations": 39, "rows": 100, "training_steps": 5}
        some = ("forget_accuracy",)
        config = replace(config, **smaller, unlearning_steps=2, metrics=config.metrics or some)
    if config.scale.bf16:
        raise SystemExit("audits compare margins of single models, which bfloat16 rounds: leave --bf16 out")
    name = methods.known(config.method)
    mesh, console = script.begin(config)
    setting = config.setting()
    data = setting.data
    request = at(study.random_requests(data, [config.forgotten], config.request_seed), 0)
    retrain = setting.retrain()
    unlearn = retrain
    if name != "retrain":
        chosen = config.settings or SETTINGS[RANDOM].get(name) or methods.defaults(name)
        told: dict[str, Any] = {**methods.given(name, setting, config.network), **chosen}
        steps = {"num_steps": config.unlearning_steps, "batch_size": setting.batch_size}
        unlearn = methods.build(name, setting.model, **steps, **told)
    key = jax.random.key(config.training_seed)
    variables = form(setting.model)
    shared = {
        "block": config.block, "chunk": config.scale.chunk, "mesh": mesh,
        "directory": config.out / "models" if config.resume else None,
    }  # fmt: skip
    began = time.perf_counter()
    done: dict[str, int] = {}
    with script.progress(console, "audit", config.halves + 4 * config.num_models) as advance:

        def tell(doing: str, count: int) -> None:
            made = 0 if doing.startswith("judging") else count  # judging takes no time beside making models
            advance(doing, done=max(0, made - done.get(doing, 0)))
            done[doing] = made

        scores = memorisation(config, setting, data, variables, jax.random.fold_in(key, 1), shared, tell)
        rows = np.asarray(request.indices)[np.asarray(request.weights) > 0]
        least = rows[np.argsort(scores[rows])[: len(rows) // 3]]
        audit = ju.audit.run(
            setting.model, unlearn, retrain, variables, data, request, jax.random.fold_in(key, 2),
            test=setting.test, num_models=config.num_models, controls=subset(data.train, least),
            num_permutations=config.permutations, metrics=config.metrics or None,
            progress=tell, **shared,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    summary = script.summary_of(
        config,
        seconds=seconds,
        memorisation_of_the_controls=[float(x) for x in np.sort(scores[least])],
        **ju.audit.to_json(audit),
    )
    if leads():
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "audit.json").write_text(report.compact_json(summary))
        (config.out / "audit.md").write_text(ju.audit.to_markdown(audit))
        ju.audit.write_html(audit, config.out / "report.html", title=f"jaxunlearn audit: {config.method} on {config.dataset}")
        ju.audit.print_report(audit)
    console.print(f"{seconds:.0f} s; report: {config.out / 'report.html'}", soft_wrap=True)
    return summary


def memorisation(
    config: Config, setting: study.Study, data: ju.Data, variables: ju.Variables, key: Any, shared: dict[str, Any], tell: Any
) -> np.ndarray:
    """How much better each training row is known to models that saw it, by the probability of its label."""
    drawing, training_key = jax.random.split(key)
    members = ju.audit.random_halves(config.halves, config.rows, drawing)
    halves, in_axes = ju.audit.subsets(data, members)
    made = ju.audit.ensemble(
        setting.model, setting.retrain(), variables, halves, ju.empty_request(), jax.random.split(training_key, config.halves),
        {"train": data.train}, in_axes=in_axes, progress=lambda count: tell("models on random halves", count), **shared,
    )  # fmt: skip
    right = jax.nn.sigmoid(ju.audit.margins(made.logits["train"], data.train.targets))
    return np.asarray(ju.audit.memorisation(right, members).estimate)


if __name__ == "__main__":
    script.run(main, Config, __doc__)
