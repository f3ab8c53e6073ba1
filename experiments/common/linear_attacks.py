"""What exact removal leaves to an attacker, on linear models, where theory says it: see `experiments/attacks.py`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.common.data import load
from jaxunlearn import audit, certificates, convex, summation

if TYPE_CHECKING:
    from experiments.attacks import Config


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
