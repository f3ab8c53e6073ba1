"""Do per-row attacks tell unlearned models from retrained ones? U-LiRA and RMIA, for a few methods and the retrained floor.

    python experiments/benchmarks/membership.py                                # regun beside gradient_difference, digits
    python experiments/benchmarks/membership.py --methods npo scrub
    python experiments/benchmarks/membership.py --smoke

One request; every model of a kind has an original of its own. U-LiRA guesses for each row whether a model unlearned it, 0.5 is
perfect. RMIA ranks the forget set among test rows by their ratio to retrained reference models, half of the test rows being its
population; its AUC is a mean over the attacked models. The floor is the same for retrained models that are no references.
Settings are those of `experiments/configs`, or the first point of a card's search.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.common import methods, script, settings
from experiments.common.data import subset
from experiments.common.report import Column, Section, Table
from experiments.common.running import at
from experiments.common.study import Study, random_requests
from experiments.common.training import form

COLUMNS = [
    Column("kind", "kind"),
    Column("settings", "settings"),
    Column("u_lira", "U-LiRA accuracy"),
    Column("rmia", "RMIA AUC"),
    Column("forget", "forget accuracy", ".1%"),
    Column("test", "test accuracy", ".1%"),
]


@dataclass
class Config(script.Unlearning):
    """What is attacked."""

    methods: tuple[str, ...] = ("regun", "gradient_difference")
    """Any methods of `jaxunlearn.METHODS` that take a model."""
    num_models: int = 60
    """Models of each kind; three times as many are retrained: attacked ones, references, and the floor of U-LiRA."""
    forgotten: int = 48
    """Random rows of the request."""
    block: int = 30
    """Models in one compiled call."""
    out: Path = Path("out/membership")


def main(config: Config) -> dict[str, Any]:
    """Make the models, attack them; returns what is written as JSON."""
    if config.smoke:
        config = replace(
            config, methods=config.methods[:1], num_models=4, forgotten=8, rows=80, training_steps=5, unlearning_steps=2
        )
    mesh, console = script.begin(config)
    study = config.setting()
    request = at(random_requests(study.data, [config.forgotten], config.request_seed), 0)
    rows = {"forget": subset(study.data.train, np.asarray(request.indices)), "test": study.test}
    variables, nothing, count = form(study.model), ju.empty_request(), config.num_models
    retrain, options = study.retrain(), {"block": config.block, "chunk": config.scale.chunk, "mesh": mesh}
    key = jax.random.key(config.training_seed)

    def keys(place: int, number: int) -> jax.Array:
        return jax.random.split(jax.random.fold_in(key, place), number)

    with script.progress(console, "membership", count * (4 + len(config.methods))) as advance:

        def made(
            doing: str,
            unlearn: ju.UnlearnFn,
            start: ju.Variables,
            asked: ju.ForgetRequest,
            place: int,
            number: int,
            in_axes: Any = (None, None, None, 0),
        ) -> ju.audit.Ensemble:
            advance(doing)
            found = ju.audit.ensemble(
                study.model, unlearn, start, study.data, asked, keys(place, number), rows, in_axes=in_axes, **options
            )
            advance(done=found.status.shape[0])
            return found

        originals = made("original", retrain, variables, nothing, 0, count)
        retrained = made("retrained", retrain, variables, request, 1, 3 * count)
        kinds = {"do nothing": ({}, originals)}
        for place, name in enumerate(config.methods):
            chosen, unlearn = built(name, config, study)
            each = made(name, unlearn, originals.variables, request, 2 + place, count, in_axes=(0, None, None, 0))
            ju.check(ju.Result(each.variables, each.status))  # a diverged model would be told apart for that
            kinds[name] = chosen, each
        kinds["retrained"] = {}, retrained._replace(logits={part: x[:count] for part, x in retrained.logits.items()})
    references = {part: x[count:] for part, x in retrained.logits.items()}
    found = [{"kind": kind, **attacked(each, references, rows), **shown(chosen)} for kind, (chosen, each) in kinds.items()]
    table = Table(COLUMNS, found, f"{config.forgotten} of {config.rows} rows of {config.dataset}, {count} models of each kind")
    return script.finish(
        config, console, "membership", script.summary_of(config, rows=found), title="Per-row attacks", intro=str(__doc__),
        sections=[Section("Attacks", "", [table], [])], tables=[table],
    )  # fmt: skip


def built(name: str, config: Config, study: Study) -> tuple[dict[str, Any], ju.UnlearnFn]:
    """A method with its settings."""
    chosen, _ = settings.load(settings.CONFIGS, methods.known(name), "random", config.study_key)
    given = methods.given(name, study, config.network)
    return chosen, methods.build(
        name, study.model, num_steps=config.unlearning_steps, batch_size=study.batch_size, **{**given, **chosen}
    )


def shown(chosen: dict[str, Any]) -> dict[str, str]:
    """Settings as a cell of the table."""
    return {"settings": ", ".join(f"{name} {value:g}" for name, value in chosen.items())}


def attacked(each: ju.audit.Ensemble, references: dict[str, jax.Array], rows: dict[str, ju.Examples]) -> dict[str, Any]:
    """Both attacks on models of one kind, with accuracies."""
    labels = {part: jnp.asarray(some.targets) for part, some in rows.items()}
    margins = ju.audit.margins(each.logits["forget"], labels["forget"])
    verdict = ju.audit.u_lira(margins, ju.audit.margins(references["forget"], labels["forget"])[: len(margins)])

    def probabilities(logits: jax.Array, part: str) -> jax.Array:
        return jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), labels[part][None, :, None], axis=-1)[..., 0]

    half = len(labels["test"]) // 2
    theirs = {part: probabilities(references[part], part) for part in rows}

    @jax.jit
    def ranks(forget: jax.Array, test: jax.Array) -> jax.Array:
        population = test[half:], theirs["test"][:, half:]
        members = ju.audit.rmia(forget, theirs["forget"], *population)
        others = ju.audit.rmia(test[:half], theirs["test"][:, :half], *population)
        return ju.audit.auc(members, jnp.ones_like(members), others, jnp.ones_like(others))

    own = {part: probabilities(each.logits[part], part) for part in rows}
    values = np.asarray(jax.lax.map(lambda pair: ranks(*pair), (own["forget"], own["test"])))
    spread = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    accuracy = {part: float(jnp.mean(jnp.argmax(each.logits[part], -1) == labels[part])) for part in rows}
    low, mean, high = (float(x) for x in (verdict.accuracy.low, verdict.accuracy.estimate, verdict.accuracy.high))
    return {
        "u_lira": f"{mean:.3f} [{low:.3f}, {high:.3f}]",
        "rmia": f"{values.mean():.3f} [{values.mean() - spread:.3f}, {values.mean() + spread:.3f}]",
        **accuracy,
    }


if __name__ == "__main__":
    script.run(main, Config, __doc__)
