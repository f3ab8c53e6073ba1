"""Unlearn rows from a checkpoint of a network, and get a new checkpoint and a report.

    python experiments/unlearn_checkpoint.py --demo                         # trains a checkpoint on digits first
    python experiments/unlearn_checkpoint.py --checkpoint DIR --rows 3 14 15 --out out/request-1
    python experiments/unlearn_checkpoint.py --checkpoint DIR --rows-file ids.txt --network resnet18 --dataset cifar10 \\
        --data-dir DIR --method scrub --settings alpha 0.1 forget_epochs 5 --retrain --training-steps 20000
    python experiments/unlearn_checkpoint.py --module mine.py --checkpoint DIR --rows 3 14 15      # your model and data
    python experiments/unlearn_checkpoint.py --demo --auto --to-come 100    # method and settings are chosen, or it is retrained

The checkpoint is one that orbax wrote: `{"params": ..., "batch_stats": ...}` as linen's `init` returns them, or a train state
with such entries, of which nothing else is read. All rows are forgotten in one merged request. Written to the folder `--out`:
`checkpoint` (the new weights), `report.html` and `unlearn_checkpoint.json`; the last two do not say which rows.

`--module` takes a Python file with your model, of whatever library, and your data:

    import jax, jaxunlearn as ju, numpy as np

    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["w"])

    def model():                          # -> jaxunlearn.Model
        init = lambda key: ju.Variables({"w": jax.random.normal(key, (20, 2))})
        return ju.Model(forward, ju.losses.cross_entropy, init)

    def data():                           # -> (train, test), two jaxunlearn.Examples(inputs, targets)
        x = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
        y = (x[:, 0] > 0).astype(np.int32)
        return ju.Examples(x[:200], y[:200]), ju.Examples(x[200:], y[200:])

    def variables(checkpoint):            # optional; gets --checkpoint, or None without it -> jaxunlearn.Variables
        return ju.Variables(dict(np.load(checkpoint)))

    def save(path, variables):            # optional; path is new
        with open(path, "wb") as file:
            np.savez(file, **variables.params)

Without `variables`, checkpoints of orbax are read: of `Variables`, of linen's collections, of `nnx.state(module)`; for that
and for `--retrain` and `--demo` the model needs `init`. Without `save`, orbax writes `Variables`. Such a file for a network of
flax nnx: experiments/modules/digits_nnx.py.
"""

import inspect
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import optax

import jaxunlearn as ju
from experiments.common import methods, plots, script, source
from experiments.common.outcome import NOTHING, RETRAINED, as_json
from experiments.common.report import Column, Section, Table
from experiments.common.running import at, timed

UNLEARNED = "unlearned"
FILES = ("trained", "checkpoint", "report.html", "unlearn_checkpoint.json")
UNREPORTED = ("rows", "rows_file", "checkpoint", "module")  # who asked, and where things are on this machine
CHUNK = 1024  # rows that are audited side by side
COLUMNS = [
    Column("model", "model"),
    Column("retain_accuracy", "retain acc.", ".1%"),
    Column("forget_accuracy", "forget acc.", ".1%"),
    Column("test_accuracy", "test acc.", ".1%"),
    Column("auc", "attack AUC", ".3f"),
    Column("tpr", "TPR at 1 % FPR", ".1%"),
]
LOSSES = [Column(f"{split}_loss", f"{split} loss", ".3g") for split in ("retain", "forget", "test")]  # of real targets


@dataclass
class Config(script.Base):
    """Command line of the script."""

    checkpoint: Path | None = None
    """Folder of the trained checkpoint."""
    rows: Annotated[tuple[int, ...], script.unless_given("none")] = ()
    """Rows of the training split to forget, counted from 0."""
    rows_file: Path | None = None
    """A text file of such numbers, separated by white space; instead of --rows."""
    demo: bool = False
    """First train a checkpoint into OUT/trained; without rows, forget the first 32."""
    network: str | None = None
    """mlp (if not given), cnn or resnet18, as it was trained."""
    dataset: str | None = None
    """digits (if not given), or an image data set prepared by TFDS."""
    data_dir: str | None = None
    """Where TFDS finds prepared data."""
    module: Path | None = None
    """A Python file with your own model and data, in place of these three; see above."""
    standardise: bool = False
    """Pixels are standardised by channel instead of left in [0, 1]."""
    auto: bool = False
    """Choose between methods, settings and retraining, see `jaxunlearn.answer`; every other test row is used for that."""
    to_come: int = 0
    """With --auto: requests that will follow, which a search serves as well."""
    budget: float | None = None
    """With --auto: retrainings that may be spent; any number if not given."""
    method: str = "gradient_difference"
    """Any method of `jaxunlearn.METHODS` that takes a model."""
    learning_rate: float = 1e-3
    """Of a method with steps, with Adam and a cosine schedule."""
    steps: int = 100
    """Steps of the method."""
    batch_size: int = 64
    """Rows per step, of the forget set and of the retain set each; of training, too."""
    settings: Annotated[dict[str, str], script.unless_given("none")] = field(default_factory=dict)
    """Further hyper-parameters of the method, e.g. alpha 0.97."""
    retrain: bool = False
    """Also retrain without the rows, as a reference."""
    training_steps: int = 600
    """Steps of training (demo) and retraining; a reference only if the checkpoint was trained like that."""
    training_learning_rate: float = 2e-3
    """Of training and retraining, with Adam."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("out/unlearn_checkpoint")


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, steps=2, training_steps=2)
    config = replace(config, method=methods.known(config.method))
    _check(config)
    _, console = script.begin(config)
    keys: dict[str, Any] = dict(
        zip(("train", UNLEARNED, RETRAINED), jax.random.split(jax.random.key(config.seed), 3), strict=True)
    )
    origin = _source(config)
    model, data, test = origin.model, ju.training_data(*origin.train), jax.tree.map(jnp.asarray, origin.test)
    request = ju.merge(ju.from_indices(data, [_rows(config)]))
    procedures = {} if config.auto else {UNLEARNED: (_method(config, model), config.method)}
    if config.demo or config.retrain or config.auto:
        procedures[RETRAINED] = _retraining(config, model), "retraining"

    checkpoint = config.checkpoint
    if config.demo:
        checkpoint = config.out / "trained"
        console.print(f"training {origin.name}")
        assert model.init is not None  # as `_retraining` asks for
        fresh = jax.jit(model.init)(keys["train"])
        trained = jax.jit(procedures[RETRAINED][0])(fresh, data, ju.empty_request(), keys["train"])
        origin.write(checkpoint, ju.check(trained, allow=[ju.Status.EMPTY_REQUEST]).variables)
    variables = origin.read(checkpoint)

    num_rows = int(request.weights.sum())
    models, seconds, verdict, method = {NOTHING: variables}, {}, None, config.method
    if config.auto:
        console.print("looking for the cheapest good answer")
        choosing, test = (jax.tree.map(lambda x, first=first: x[first::2], test) for first in (0, 1))
        found = ju.answer(
            model, variables, data, request, _recipe(config), keys[UNLEARNED], unseen=choosing, to_come=config.to_come,
            budget=math.inf if config.budget is None else config.budget, num_steps=config.steps,
        )  # fmt: skip
        console.print(found.verdict)
        models[UNLEARNED], verdict = found.result.variables, found.verdict
        method = "retrain" if found.how == RETRAINED else found.how
        seconds[UNLEARNED] = {"seconds": found.seconds}
    for name, (function, doing) in procedures.items():
        if name == UNLEARNED or config.retrain:
            console.print(f"{doing} without {num_rows} of {len(data.present)} rows")
            ready = jax.jit(ju.prepare(function))(variables, data, keys["train"])
            done = timed(function, variables, ready, request, keys[name])
            models[name] = ju.check(done.result).variables
            seconds[name] = {"compile_seconds": done.compile_seconds, "run_seconds": done.run_seconds}
    console.print("auditing")
    audited = jax.device_get(jax.jit(_audit, static_argnums=0)(model, list(models.values()), data, request, test))
    audits, curves = ({name: at(part, place) for place, name in enumerate(models)} for part in audited)

    origin.write(config.out / "checkpoint", models[UNLEARNED])
    summary = script.summary_of(
        config,
        forgotten_rows=num_rows,
        guarantee=ju.METHODS[method].guarantee,
        verdict=verdict,
        models={name: {**as_json(audits[name]), **seconds.get(name, {})} for name in models},
    )
    summary["config"] = {name: value for name, value in summary["config"].items() if name not in UNREPORTED}
    summary["config"]["module"] = config.module.name if config.module else None
    columns = COLUMNS if "forget_accuracy" in audits[NOTHING] else [COLUMNS[0], *LOSSES, *COLUMNS[-2:]]
    table = Table(columns, [{"model": name, **audits[name]} for name in models], "Each model, with 95 % intervals over rows")
    notes = [*([verdict] if verdict else []), f"checkpoint: {config.out / 'checkpoint'}"]
    if config.demo:
        module = f"--module {config.module} " if config.module else ""
        notes.append(f"next: python {sys.argv[0]} {module}--checkpoint {checkpoint} --rows 3 14 15 --out {config.out}-2")
    return script.finish(
        config, console, "unlearn_checkpoint", summary, title="Rows unlearned from a checkpoint",
        intro=_intro(config, origin.name, num_rows, method, verdict),
        sections=[Section("Before and after", "", [table], _figures(audits, curves))],
        tables=[table], notes=notes,
    )  # fmt: skip


def _check(config: Config) -> None:
    beside = ("network", "dataset", "data_dir", "standardise")
    wrong = [f"--{name.replace('_', '-')}" for name in beside if getattr(config, name) not in (None, False)]
    if config.module is not None and wrong:
        raise SystemExit(f"--module has a model and data of its own: leave {', '.join(wrong)} out")
    if (config.demo and config.checkpoint) or not (config.demo or config.checkpoint or config.module):
        raise SystemExit("give either --checkpoint DIR, or --demo, which trains one first")
    if config.rows and config.rows_file is not None:
        raise SystemExit("give either --rows or --rows-file, not both")
    if not (config.rows or config.rows_file or config.demo):
        raise SystemExit("nothing to forget: give --rows 3 14 15, or --rows-file with one row number a line")
    if config.auto and (config.settings or config.method != Config.method):
        raise SystemExit("--auto chooses method and settings: leave --method and --settings out")
    if not config.auto and (config.to_come or config.budget is not None):
        raise SystemExit("--to-come and --budget belong to --auto")
    taken = [name for name in FILES if (config.out / name).exists()]
    if taken:
        raise SystemExit(f"{config.out} holds {', '.join(taken)} already, which is not overwritten: choose another --out")


def _source(config: Config) -> source.Source:
    if config.module is not None:
        return source.from_file(config.module)
    return source.by_name(config.network or "mlp", config.dataset or "digits", config.data_dir, standardise=config.standardise)


def _rows(config: Config) -> list[int]:
    if config.rows_file is None:
        return list(config.rows or range(32))
    if not config.rows_file.is_file():
        raise SystemExit(f"there is no file {config.rows_file}")
    words = config.rows_file.read_text(encoding="utf-8").split()
    wrong = [word for word in words if not word.isdecimal()]
    if wrong or not words:
        raise SystemExit(f"{config.rows_file} must hold row numbers, separated by white space, got {wrong[:5] or 'none'}")
    return list(map(int, words))


def _method(config: Config, model: ju.Model) -> ju.UnlearnFn:
    known = methods.settings_of(config.method)
    unknown = [name for name in config.settings if name not in known]
    if unknown:
        raise SystemExit(f"{config.method} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    missing = [name for name, default in known.items() if default is inspect.Parameter.empty and name not in config.settings]
    if missing:
        raise SystemExit(f"{config.method} needs {', '.join(missing)}: give --settings {missing[0]} VALUE")
    chosen: dict[str, Any] = {name: _number(value) for name, value in config.settings.items()}
    return methods.build(
        config.method,
        model,
        num_steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate if methods.needs_learning_rate(config.method) else None,
        **chosen,
    )


def _recipe(config: Config) -> ju.Recipe:
    return ju.Recipe(optax.adam, config.training_learning_rate, config.training_steps, config.batch_size)


def _retraining(config: Config, model: ju.Model) -> ju.UnlearnFn:
    if model.init is None:
        raise SystemExit(
            "training and retraining start from Model.init, which is None: leave --demo, --retrain and --auto out, or give it"
        )
    return _recipe(config).retrain(model)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _audit(
    model: ju.Model, models: list[ju.Variables], data: ju.Data, request: ju.ForgetRequest, test: ju.Examples
) -> tuple[dict[str, Any], ju.audit.Roc]:
    """Figures of each model and its ROC curve, with a leading axis for the models."""
    forgotten = jnp.sum(request.weights)
    sizes = {
        "retain": jnp.sum(data.present) - forgotten,
        "forget": forgotten,
        "test": jnp.float32(jax.tree.leaves(test)[0].shape[0]),
    }

    def one(variables: ju.Variables) -> tuple[dict[str, Any], ju.audit.Roc]:
        performance = ju.audit.performance(model, variables, data, request, test, chunk=CHUNK)
        attack = ju.audit.loss_attack(model, variables, data, request, test, chunk=CHUNK)
        scores = ju.audit.loss_scores(model, variables, data, request, test, chunk=CHUNK)
        figures: dict[str, Any] = {"auc": attack.auc, "tpr": attack.tpr}
        for part, size in sizes.items():
            if performance.accuracy is not None:
                right = jnp.round(getattr(performance.accuracy, part) * size)
                figures[f"{part}_accuracy"] = ju.audit.clopper_pearson(right, size)
            figures[f"{part}_loss"] = getattr(performance.loss, part)
        return figures, ju.audit.roc_curve(*scores)

    return jax.lax.map(one, jax.tree.map(lambda *x: jnp.stack(x), *models))


def _intro(config: Config, name: str, num_rows: int, method: str, verdict: str | None) -> str:
    guarantee = ju.METHODS[method].guarantee
    promise = "It guarantees nothing." if guarantee == "none" else f"Its guarantee is {guarantee}."
    reference = (
        "The aim is the row `retrained`, a model trained without the rows, not an accuracy or an attack as low as possible. "
        "It is one model: another seed would move it. It is a reference only if the checkpoint was trained in the same way."
        if config.retrain
        else "Without a retrained model (--retrain) nobody can tell from this table how much should have been forgotten."
    )
    return f"""\
{num_rows} rows were unlearned from {name}, by {method}. {promise}{f" {verdict}" if verdict else ""}

{reference}

Intervals are over the rows, the model is taken as it is. The attack tells the forget set from test rows by the loss. It is
a weak attack: what it does not find may still be there. The old checkpoint, its optimizer state and the rows themselves are
left where they are; deleting them is up to you."""


def _figures(audits: dict, curves: dict) -> list[tuple[Any, str]]:
    attack = plots.roc_curves(curves), "The loss attack."
    if "forget_accuracy" not in audits[NOTHING]:
        return [attack]
    splits = ("forget", "retain", "test")
    accuracy = plots.accuracy_bars(
        {name: {split: figures[f"{split}_accuracy"] for split in splits} for name, figures in audits.items()}
    )
    return [(accuracy, "Accuracy of each model. On the line of the retrained model is right; lower is not better."), attack]


if __name__ == "__main__":
    script.run(main, Config, __doc__)
