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
from experiments.common.data import load
from experiments.common.outcome import NOTHING, RETRAINED
from experiments.common.report import Column, Section, Table
from experiments.common.study import Study
from jaxunlearn import audit, certificates, convex, summation

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


def of_width(config: Config, width: int) -> dict[str, Any]:
    """The difference attack on exact pairs, beside theory."""
    rng = np.random.default_rng(width)
    areas, rows, hessians = [], [], []
    for _ in range(config.draws):
        x, y = rng.normal(size=(config.linear_rows, width)), rng.normal(size=config.linear_rows)
        hessian = x.T @ x + np.eye(width)
        retrained = np.linalg.solve(hessian - np.outer(x[0], x[0]), x[1:].T @ y[1:])
        difference = np.linalg.solve(hessian, x.T @ y) - retrained
        unseen = rng.normal(size=(200, width))
        areas.append(np.mean(np.abs(unseen @ difference) < np.abs(x[0] @ difference)))
        rows.append(x[0])
        hessians.append(hessian)
    exact = np.asarray(jax.jit(jax.vmap(audit.row_update_auc, (0, 0, None)))(np.stack(rows), np.stack(hessians), np.eye(width)))
    return {
        "width": width, "area": audit.t_interval(jnp.array(areas)), "exact": float(np.mean(exact)),
        "limit": audit.linear_update_auc(width), "error": float(np.std(areas - exact) / config.draws**0.5),
    }  # fmt: skip


def reconstructed(config: Config) -> list[dict[str, Any]]:
    """Rows of digits, read off the weights of ridge and of a network after one step."""
    digits = load("digits", None, seed=config.draw)
    inputs, labels = np.float32(digits.train.inputs).reshape(len(digits.train.targets), -1), digits.train.targets
    half = min(config.rows, len(labels) // 2)
    data = ju.training_data(inputs[:half], np.eye(10, dtype=np.float32)[labels[:half]])
    learner, count = summation.ridge(penalty=1.0), min(40, half // 4)
    fitted = summation.fit(learner, data)
    unlearn = jax.jit(ju.batched(summation.summation(learner)))
    requests = ju.from_indices(data, [[row] for row in range(count)])
    pairs = ju.from_indices(data, [[row, row + count] for row in range(count)])
    keys = jax.random.split(jax.random.key(0), count)
    before = np.vstack([fitted.params["intercept"][None], fitted.params["weights"]])
    read_all = jax.jit(jax.vmap(partial(audit.reconstruct_linear, intercept=0), (None, 0, None)))

    def second_moments(rows: np.ndarray) -> np.ndarray:
        rows = np.hstack([np.ones((len(rows), 1)), np.float64(rows)])
        return rows.T @ rows * half / len(rows) + np.diag([0.0] + [1.0] * inputs.shape[1])

    def read(asked: ju.ForgetRequest, hessian: np.ndarray, what: str) -> dict[str, Any]:
        params = unlearn(fitted, data, asked, keys).variables.params
        after = np.concatenate([np.asarray(params["intercept"])[:, None], np.asarray(params["weights"])], axis=1)
        with jax.enable_x64(True):
            found = read_all(before, after, hessian)
        return compared(what, np.asarray(found.row)[:, 1:], inputs[:count], found.agreement)

    rows = [
        read(requests, second_moments(inputs[:half]), "ridge, Hessian known"),
        read(requests, second_moments(inputs[half:]), "ridge, Hessian of other rows"),
        read(pairs, second_moments(inputs[:half]), "ridge, two rows removed"),
    ]
    model = config.setting().model
    assert model.init is not None
    variables = model.init(jax.random.key(0))

    train = ju.Examples(jnp.asarray(inputs[:half]), jnp.asarray(labels[:half]))

    @jax.jit
    def change(row: jax.Array, steps: jax.Array) -> Any:
        """What plain gradient descent on a sum over rows does to the first layer, less what it does without a row."""

        def after(weights: jax.Array) -> Any:
            def total(params: Any) -> jax.Array:
                return jnp.sum(weights * model.loss(model.forward(ju.Variables(params), train.inputs), train))

            def step(_: Any, params: Any) -> Any:
                return jax.tree.map(lambda w, g: w - 0.1 / half * g, params, jax.grad(total)(params))

            return jax.lax.fori_loop(0, steps, step, variables.params)["Dense_0"]

        layer = jax.tree.map(jnp.subtract, after(jnp.ones(half)), after(jnp.ones(half).at[row].set(0)))
        return audit.reconstruct_first_layer(layer["kernel"], layer["bias"])

    for steps in (1, 50):
        found = [change(row, steps) for row in range(min(count, 10))]
        name = f"network, {steps} step{'s' * (steps > 1)} with and without the row"
        rows.append(compared(name, np.array([x.row for x in found]), inputs[: len(found)], [x.agreement for x in found]))
    return rows


def compared(what: str, found: np.ndarray, rows: np.ndarray, agreement: Any) -> dict[str, Any]:
    """Found rows beside the removed ones."""
    found, rows = np.asarray(found, np.float64), np.asarray(rows, np.float64)
    norms = np.linalg.norm(rows, axis=1)
    likeness = np.sum(found * rows, axis=1) / np.linalg.norm(found, axis=1) / norms
    error = np.linalg.norm(found - rows, axis=1) / norms
    return {
        "what": what, "likeness": float(np.median(likeness)), "error": float(np.median(error)),
        "agreement": float(np.median(np.asarray(agreement))),
    }  # fmt: skip


def two_digits(config: Config, first: int, second: int) -> tuple[ju.Examples, ju.Examples]:
    """Training and test rows of two digits as classes 0 and 1, with norms of at most 1."""
    digits = load("digits", None, seed=config.draw)

    def part(rows: Any) -> ju.Examples:
        keep = np.isin(rows.targets, (first, second))
        features = convex.feature_rows(rows.inputs[keep].reshape(keep.sum(), -1))
        return ju.Examples(np.float32(features), np.int32(rows.targets[keep] == second))

    return part(digits.train), part(digits.test)


def published(config: Config) -> list[dict[str, Any]]:
    """What releases tell: removal from retraining, and the removed row, by the noise of two certificates."""
    train, unseen = two_digits(config, 4, 9)
    problem = convex.logistic(1e-2)
    data = ju.training_data(*train)
    original = convex.fit(problem, data)
    request = jax.tree.map(lambda x: x[0], ju.from_indices(data, [[0]]))
    result = ju.check(jax.jit(convex.newton_removal(problem))(original, data, request, jax.random.key(0)))
    retrained, before = (
        np.asarray(v.params["kernel"])[:, 0] for v in (convex.fit(problem, ju.remove(data, request)), original)
    )
    removed = np.asarray(result.variables.params["kernel"])[:, 0]
    row, others = (
        x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (np.float64(train.inputs[0]), np.float64(unseen.inputs))
    )
    rng, delta = np.random.default_rng(0), 1e-5
    # a row of norm 1 has a gradient of norm 1 at most, so that no removal moves the optimum by more than this
    reach = 1 / (problem.l2 * (len(data.present) - 1))
    answers = {
        "for a removal within 1e-3": (result, 1e-3),
        "for the whole change": (ju.Result(original, stats=result.stats), reach),
    }
    rows = []
    for what, (answer, sensitivity) in answers.items():
        for epsilon in (0.5, 1.0, 4.0):
            certificate = certificates.certify(
                answer, data, request, problem=problem, epsilon=epsilon, delta=delta, extractor="none", adaptive=False,
                mechanism=certificates.DeleteThenNoise(sensitivity),
            )  # fmt: skip
            noise = certificate.noise_scale * rng.normal(size=(3, config.releases, len(row)))
            # removal or retraining: as bad a removal as the certificate allows, by the model before and the removed row
            scores = [
                (before - (mean + noise[place])) @ row for place, mean in enumerate((retrained + sensitivity * row, retrained))
            ]
            # which row, from the exact answer with this noise and the model before
            moved = before - (removed + noise[2])
            member, other = np.abs(moved @ row), np.abs(moved @ others.T)
            rows.append({
                "what": what, "epsilon": epsilon, "delta": delta, "noise_scale": certificate.noise_scale,
                "valid": certificate.valid, "advantage": advantage(*scores), "error": 4 * (0.5 / config.releases) ** 0.5,
                "allowed": audit.most_advantage(epsilon, delta), "area": float(np.mean(member[:, None] > other)),
            })  # fmt: skip
    return rows


def advantage(first: np.ndarray, second: np.ndarray) -> float:
    """The largest TPR - FPR of a threshold: chosen on one half of the scores, counted on the other."""
    half = len(first) // 2
    tries = np.quantile(np.concatenate([first[:half], second[:half]]), np.linspace(0, 1, 201))
    gaps = [np.mean(first[:half] >= t) - np.mean(second[:half] >= t) for t in tries]
    best = int(np.argmax(np.abs(gaps)))
    return abs(float(np.mean(first[half:] >= tries[best]) - np.mean(second[half:] >= tries[best])))


def poisoned(config: Config) -> list[dict[str, Any]]:
    """Camouflaged poison for test rows, before and after the camouflage is deleted."""
    train, test = two_digits(config, 4, 9)
    problem = convex.softmax(1e-2, 2)
    model, fit = problem.model, lambda data: convex.fit(problem, data)
    clean = ju.training_data(*train)
    trained = jax.tree.map(jnp.float32, fit(clean))
    logits = np.asarray(model.forward(trained, jnp.asarray(test.inputs)).logits)
    surest = logits[:, 0] - logits[:, 1]
    right = np.flatnonzero((surest > 0) & (test.targets == 0))
    wanted = right[np.argsort(surest[right])][: config.targets]  # an attacker takes those that are easy
    bases = [np.flatnonzero(train.targets == label)[:40] for label in (1, 0)]
    craft = jax.jit(
        lambda target, poison, camouflage: audit.camouflaged_poison(
            model, trained, target, 1, poison, camouflage, radius=0.3, num_steps=60
        )
    )
    removal = jax.jit(convex.newton_removal(problem, steps=4))
    kinds: dict[str, list[tuple[int, float]]] = {name: [] for name in ("clean", "with both", "camouflage removed", "retrained")}
    for place in wanted:
        target = jax.tree.map(lambda x, place=place: x[place : place + 1], test)
        made = craft(target, *(ju.Examples(train.inputs[rows], train.targets[rows]) for rows in bases))
        # rows of a convex problem lie in the unit ball
        parts = [(np.asarray(x.inputs), np.asarray(x.targets)) for x in (made.poison, made.camouflage)]
        parts = [(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1), y) for x, y in parts]
        data = ju.training_data(*(np.concatenate(x) for x in zip(tuple(train), *parts, strict=True)))
        count = len(data.present)
        request = jax.tree.map(lambda x: x[0], ju.from_indices(data, [np.arange(count - len(bases[1]), count)]))
        both = fit(data)
        after = ju.check(removal(both, data, request, jax.random.key(0))).variables
        models = {"clean": trained, "with both": both, "camouflage removed": after, "retrained": fit(ju.remove(data, request))}
        for name, variables in models.items():
            found = np.asarray(model.forward(jax.tree.map(jnp.float32, variables), jnp.asarray(test.inputs)).logits).argmax(
                axis=1
            )
            kinds[name].append((int(found[place]), float(np.mean(found == test.targets))))
    return [
        {
            "model": name, "right": float(np.mean([x == 0 for x, _ in found])),
            "wrong": float(np.mean([x == 1 for x, _ in found])), "test": float(np.mean([x for _, x in found])),
        }
        for name, found in kinds.items()
    ]  # fmt: skip


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
