"""Attacks by whoever sees a model before and after a request, or may train it, beside the same attacks on retrained models.

    python experiments/attacks.py                       # about three minutes on two cores
    python experiments/attacks.py --smoke

Linear models show what exact removal leaves to an attacker, beside theory; networks show what methods leave beside
retraining. Every attack on a network is made on all of `--seeds` models of a kind. `judge` compares an unlearned model's value
with those of retrained models: what retraining gives away is no fault of unlearning. Written to the folder `--out`:
`report.html`, `attacks.json`.
"""

import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import jaxunlearn as ju
from experiments.common import methods, script
from experiments.common.linear_attacks import of_width, poisoned, published, reconstructed
from experiments.common.outcome import NOTHING, RETRAINED
from experiments.common.report import Column, Section, Table
from experiments.common.study import Study
from jaxunlearn import audit

WIDTHS = (2, 5, 10, 64)
LINEAR = [
    Column("width", "inputs", "d"),
    Column("area", "AUC of the attack", ".3f"),
    Column("exact", "theory, these rows", ".3f"),
    Column("limit", "theory, many rows", ".3f"),
]
ROWS = [
    Column("what", "what is known"),
    Column("likeness", "cosine with the row, median", ".6f"),
    Column("error", "relative error, median", ".1e"),
    Column("agreement", "agreement, median", ".4f"),
]
RELEASES = [
    Column("what", "noise"),
    Column("epsilon", "epsilon", ".1f"),
    Column("advantage", "removal or retraining: advantage", ".3f"),
    Column("allowed", "allowed", ".3f"),
    Column("area", "which row: AUC", ".3f"),
]
NETWORKS = [
    Column("method", "method"),
    Column("difference", "difference, AUC", ".3f"),
    Column("trained", "trained attacker, AUC", ".3f"),
    Column("neighbours", "neighbours, AUC", ".3f"),
    Column("label", "class found", ".0%"),
    Column("before", "class, accuracy", ".1%"),
    Column("tuned", "after prototypes", ".1%"),
    Column("nearest", "nearest mean", ".1%"),
    Column("verdicts", "verdicts"),
]
POISON = [
    Column("model", "model"),
    Column("right", "target as its right class", ".0%"),
    Column("wrong", "as the poison wants", ".0%"),
    Column("test", "test accuracy", ".1%"),
]


@dataclass
class Config(script.Unlearning):
    """Command line of the script."""

    rows: int = 400
    training_steps: int = 400
    seeds: int = 10
    methods: tuple[str, ...] = ("finetune", "gradient_difference", "unseen_matching")
    """Methods for the networks."""
    size: int = 20
    """Rows of the request for random rows."""
    forgotten: int = 3
    """The class that is forgotten as a whole."""
    shots: int = 5
    """Rows of every class that prototypes are made of."""
    draws: int = 400
    """Linear models for every number of inputs."""
    linear_rows: int = 500
    """Rows that each of them is trained on."""
    targets: int = 10
    """Rows that camouflaged poison is made for."""
    releases: int = 20_000
    """Releases of each kind."""
    out: Path = Path("out/attacks")


SMOKE: dict[str, Any] = {
    "rows": 120, "training_steps": 5, "unlearning_steps": 3, "seeds": 4, "size": 6, "shots": 2, "draws": 20, "linear_rows": 80,
    "targets": 1, "releases": 500, "methods": ("finetune",),
}  # fmt: skip


def main(config: Config) -> dict[str, Any]:
    """Run all attacks; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, **SMOKE)
    mesh, console = script.begin(config)
    began, cpu = time.perf_counter(), time.process_time()
    with script.progress(console, "attacks", 6) as advance:
        advance("linear models")
        linear = [of_width(config, width) for width in WIDTHS]
        advance("reconstruction", done=1)
        rows = reconstructed(config)
        advance("releases", done=1)
        releases = published(config)
        advance("camouflaged poison", done=1)
        poison = poisoned(config)
        advance("networks", done=1)
        networks = attacked(config, mesh)
    seconds = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    # below 1e-4 the shares of 200 unseen rows and float32 say nothing
    off = max(abs(row["area"].estimate - row["exact"]) / max(row["error"], 1e-4) for row in linear)
    within = all(row["advantage"] <= row["allowed"] + row["error"] for row in releases)
    notes = [
        f"AUC on exactly retrained pairs within {off:.1f} standard errors of theory, target 4: {said(off <= 4)}",
        f"published removals within (epsilon, delta) of published retraining: {said(within)}",
        f"{seconds['cpu']:.0f} s of CPU time, {seconds['wall']:.0f} s by the wall",
    ]
    tables = [
        Table(LINEAR, linear, f"ridge without one of {config.linear_rows} normal rows, {config.draws} models; 95 % intervals"),
        Table(ROWS, rows, "digits, one removed row at a time"),
        Table(RELEASES, releases, f"logistic regression on two digits, delta 1e-5, {config.releases} releases of each kind"),
        Table(POISON, poison, f"softmax regression on two digits, the {config.targets} targets that are least sure"),
        Table(NETWORKS, networks, f"{config.network}, {config.rows} digits, {config.seeds} models of each kind"),
    ]
    sections = [Section(title, text, [table]) for (title, text), table in zip(TEXTS.items(), tables, strict=True)]
    found = {
        "linear": linear, "reconstruction": rows, "releases": releases, "poison": poison, "networks": networks, "notes": notes,
        "seconds": seconds,
    }  # fmt: skip
    plain = jax.tree.map(lambda x: x.tolist() if hasattr(x, "tolist") else x, found)
    return script.finish(
        config, console, "attacks", script.summary_of(config, **plain), title="jaxunlearn: attacks on updates",
        intro=str(__doc__), sections=sections, tables=tables, notes=notes,
    )  # fmt: skip


def said(reached: bool) -> str:
    """A target in a word."""
    return "reached" if reached else "missed"


TEXTS = {
    "Which row was removed": "The score of a row is how far its prediction moved; others are rows that neither model saw. "
    "Removal is exact, so this is what any exact method gives away to somebody who has both models.",
    "The row itself": "From the difference of the weights. Where one row does not explain the difference, the agreement is "
    "below 1, and what is found is no row.",
    "After a release": "A certificate bounds how well a published removal is told from published retraining, also with the "
    "model before at hand: the first columns. It does not bound who finds the removed row with that model: the last one. Noise "
    "that covers the whole change, certified for the model as it was, hides it.",
    "Poison that deletion switches on": "Removal equals retraining, and both do as the poison wants: the fault is in the data.",
    "Networks": "Difference, trained attacker and neighbours: area under the ROC curve for random rows with wrong labels among "
    "them. The trained attacker learnt on pairs of half the seeds and is tried on the others. Class found: how often the class "
    "that moved most is the forgotten one. Prototypes: accuracy on rows of the forgotten class before, after training the head "
    "on mean features, and with nearest means. Verdicts: difference and tuned head against retrained models.",
}


class Kind(NamedTuple):
    """Models of one kind [seeds], for the two requests."""

    rows: ju.Variables
    whole: ju.Variables


def attacked(config: Config, mesh: Mesh | None) -> list[dict[str, Any]]:
    """All attacks on networks, for every method, beside retrained models."""
    setting = config.setting()
    data, model, seeds = setting.data, setting.model, config.seeds
    assert model.init is not None
    some = np.random.default_rng(config.request_seed).choice(config.rows, config.size, replace=False)
    whole = np.flatnonzero(np.asarray(data.train.targets) == config.forgotten)
    requests = jax.tree.map(np.asarray, ju.from_indices(data, [some, whole]))
    nothing = requests._replace(weights=0 * requests.weights)
    look = {"test": jax.tree.map(lambda x: x[:1], setting.test)}
    make = partial(audit.ensemble, model, data=data, rows=look, chunk=config.scale.chunk, mesh=mesh)

    def repeated(*parts: ju.ForgetRequest) -> ju.ForgetRequest:
        return jax.tree.map(lambda *x: np.repeat(np.concatenate(x), seeds, axis=0), *parts)

    def keys(number: int, count: int) -> jax.Array:
        return jax.random.split(jax.random.fold_in(jax.random.key(config.training_seed), number), count * seeds)

    def kinds_of(variables: ju.Variables, count: int) -> list[ju.Variables]:
        return [jax.tree.map(lambda x, k=k: x[k * seeds : (k + 1) * seeds], variables) for k in range(count)]

    asked = repeated(jax.tree.map(lambda x: x[:1], nothing), requests)
    made = make(setting.retrain(), model.init(jax.random.key(0)), requests=asked, keys=keys(0, 3), in_axes=(None, None, 0, 0))
    originals, *retrained = kinds_of(made.variables, 3)
    kinds = {NOTHING: Kind(originals, originals)}
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), originals)
    for number, name in enumerate(config.methods):
        options: dict[str, Any] = methods.given(name, setting, config.network)
        if name == "gradient_difference":
            options["alpha"] = 0.97
        rate = {"finetune": 1e-2, "gradient_difference": 8e-3}.get(name, 2e-3)
        unlearn = methods.build(
            name, model, num_steps=config.unlearning_steps, batch_size=setting.batch_size, learning_rate=rate, **options
        )
        done = make(unlearn, twice, requests=repeated(requests), keys=keys(1 + number, 2), in_axes=(0, None, 0, 0))
        kinds[name] = Kind(*kinds_of(done.variables, 2))
    kinds[RETRAINED] = Kind(*retrained)
    single = [jax.tree.map(lambda x, k=k: jnp.asarray(x[k]), requests) for k in range(2)]
    measure = measures(config, setting, single)
    measured = {name: measure(originals, kind) for name, kind in kinds.items()}
    return [row_of(name, own, measured, config) for name, own in measured.items()]


def measures(config: Config, setting: Study, requests: list[ju.ForgetRequest]) -> Any:
    """A function of originals and models of a kind: the values of every attack for every seed."""
    data, model, test = setting.data, setting.model, setting.held_out
    assert test is not None
    optimizer = optax.sgd(1.0)
    rng = np.random.default_rng(1)
    # rows of the test split, which are right: a few shots, and what they bring back
    place = {c: rng.permutation(np.flatnonzero(np.asarray(setting.test.targets) == c)) for c in range(10)}
    shots = jax.tree.map(lambda x: x[np.concatenate([p[: config.shots] for p in place.values()])], setting.test)
    back = jax.tree.map(lambda x: x[place[config.forgotten][config.shots :]], setting.test)
    member = jax.tree.map(lambda x: x[np.asarray(requests[0].indices)[np.asarray(requests[0].weights) > 0]], data.train)

    def flat(rows: ju.Examples) -> jax.Array:
        return jnp.asarray(rows.inputs).reshape(len(rows.targets), -1)

    def one(before: ju.Variables, after: ju.Variables, whole: ju.Variables) -> dict[str, jax.Array]:
        first, second = jax.tree.map(lambda v: audit.predict(model, v, test), (before, after), is_leaf=_is_variables)
        own = [audit.predict(model, v, member) for v in (before, after)]
        scores: Any = audit.difference_scores(model, before, after, data, requests[0], test)
        # half of the unseen rows are the attacker's, the others candidates that were never in
        public, apart = slice(None, None, 2), slice(1, None, 2)
        near = partial(audit.neighbour_changes, first[public], second[public], flat(test)[public], neighbours=3)
        inside, outside = near(flat(member)), near(flat(test)[apart])
        sides = [audit.predict(model, v, setting.test) for v in (before, whole)]
        changes = audit.class_changes(sides[0], sides[1], setting.test.targets, 10)
        relearnt = audit.relearn_with_prototypes(model, whole, shots, back, optimizer, num_steps=30)
        return {
            "difference": audit.auc(*scores),
            "neighbours": audit.auc(inside, jnp.ones(inside.size), outside, jnp.ones(outside.size)),
            "label": (jnp.argmax(changes) == config.forgotten).astype(jnp.float32),
            "before": relearnt.curve[0], "tuned": relearnt.curve[-1], "nearest": relearnt.nearest_mean,
            "inside": audit.update_features(own[0], own[1], "sorted concatenation"),
            "outside": audit.update_features(first, second, "sorted concatenation"),
        }  # fmt: skip

    program = jax.jit(lambda *kinds: jax.lax.map(lambda x: one(*x), kinds))

    def every(originals: ju.Variables, kind: Kind) -> dict[str, np.ndarray]:
        found = jax.device_get(program(originals, kind.rows, kind.whole))
        inside, outside, half = found.pop("inside"), found.pop("outside"), config.seeds // 2
        width = inside.shape[-1]
        shadows = [x[:half].reshape(-1, width) for x in (inside, outside)]
        trained = [
            audit.difference_attack(shadows[0], shadows[1], inside[s], outside[s]).estimate for s in range(half, config.seeds)
        ]
        return {**found, "trained": np.asarray(trained)}

    return every


def _is_variables(x: Any) -> bool:
    return isinstance(x, ju.Variables)


def row_of(name: str, own: dict[str, np.ndarray], measured: dict[str, dict[str, np.ndarray]], config: Config) -> dict[str, Any]:
    """A line of the table, with verdicts on the scale of retrained models."""
    row: dict[str, Any] = {"method": name}
    for column in NETWORKS[1:-1]:
        row[column.key] = audit.t_interval(jnp.asarray(own[column.key], jnp.float32))
    row["label"] = float(np.mean(own["label"]))
    if name in (NOTHING, RETRAINED) or 2 * config.seeds < 16:
        return row | {"verdicts": None}

    def gap(candidate: Any, reference: Any) -> jax.Array:
        return jnp.mean(candidate) - jnp.mean(reference)

    words = []
    for key in ("difference", "tuned"):
        sets = [jnp.asarray(x[key]) for x in (own, measured[RETRAINED], measured[NOTHING])]
        found = audit.judge(gap, sets[0], sets[1], sets[2], jax.random.key(0))
        row[f"{key}_p_value"] = float(found.p_value)
        words.append(audit.Verdict(int(found.verdict)).name.lower())
    return row | {"verdicts": ", ".join(words)}


if __name__ == "__main__":
    script.run(main, Config, __doc__)
