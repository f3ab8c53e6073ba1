"""An audit of a method on a user's own model: ensembles, every metric with its floor, verdicts, false-positive rates.

It answers one question: is the *influence of these examples* gone, as it is from models that never saw them? Whether a concept
can be brought back is another question, which matters for a forgotten class.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from jaxunlearn import checks, sampling
from jaxunlearn.audit.ensemble import Ensemble, ensemble
from jaxunlearn.audit.metrics import CONTROLLED, METRICS, Answers, Observed, gap_of, observe
from jaxunlearn.audit.single.membership import Roc, roc_curve
from jaxunlearn.audit.statistics.checks import require_disjoint, require_models, require_numbers
from jaxunlearn.audit.statistics.resampling import Statistic, crossed_bootstrap
from jaxunlearn.audit.statistics.verdict import Judgement, false_positive_rate, judge
from jaxunlearn.audit.tasks import Measured, choose, count_rows, measuring, task_of, told_by, without_padding
from jaxunlearn.evaluation import class_logits
from jaxunlearn.loop.preparation import prepared_in_place
from jaxunlearn.proportions import Interval
from jaxunlearn.status import Status
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, UnlearnFn, Variables

QUESTION = "influence of examples"
REFUSED = {
    Status.NONFINITE: "hold NaN or inf; lower a learning rate",
    Status.STALE: "read values in data.extra of other weights, which it cannot prepare for each model; "
    "leave those slots empty, or audit a method that does not read them",
}


class Audit(NamedTuple):
    """What `run` returns; `jaxunlearn.audit.report` shows it."""

    judgements: dict[str, Judgement]  # by the name of the metric, see `METRICS`
    over_rows: dict[str, Interval]  # the same values, with intervals over models and rows
    controls: dict[str, Judgement]  # of doing nothing, on rows that training did not memorise; empty without such rows
    false_positives: dict[str, Interval]  # of the verdict on held-out retrained models
    means: dict[str, dict[str, float]]  # of plain measures, for original, unlearned and retrained models
    margins: dict[str, Float[np.ndarray, "n e"]]  # or scores, on the forget set, of each kind of model
    roc: dict[str, tuple[np.ndarray, np.ndarray]]  # false and true positive rates of the loss attack, averaged over models
    settings: dict[str, Any]
    left_out: dict[str, str]  # metrics that do not fit the task, and why; of classes nothing is left out


def run(
    model: Model,
    unlearn: UnlearnFn,
    retrain: UnlearnFn,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    key: PRNGKeyArray,
    *,
    test: Examples,
    num_models: int = 100,
    num_held_out: int | None = None,
    metrics: Sequence[str] | None = None,
    ignore: int | None = None,
    controls: Examples | None = None,
    max_rows: int = 250,
    alpha: float = 0.05,
    num_permutations: int = 199,
    block: int | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    directory: str | Path | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Audit:
    """Audit one method for one request on a model of yours.

    Trains `num_models` originals, unlearns each of them, retrains as many models without the forget set and some more that are
    held out, and judges every metric of `METRICS` against its floor. What the method reads in `Data.extra` is prepared for
    each original by itself, see `jaxunlearn.prepare`.

    Four tasks are told apart by shapes and dtypes. `classes`: integer targets [n], logits [b, c], or one logit of labels 0 and
    1. `tokens`: integer targets [n, t], logits [b, t, v]. `labels`: integer targets [n, k] of 0 and 1, logits of their shape.
    `values`: all others, real targets [n] or [n, k] above all. Margins are those of classes; elsewhere a score that falls with
    the model's own loss of a row stands in for them, see `jaxunlearn.audit.tasks`, and metrics that do not fit are left out.

    Args:
        model: any whose loss is one value per row.
        unlearn: the method.
        retrain: training from fresh weights, e.g. `jaxunlearn.retrain` in `jaxunlearn.iterate`; with an empty request it trains
            the originals.
        variables: tree, shapes and dtypes of the weights; no value of it is used where `retrain` starts afresh.
        data: training rows.
        request: one request.
        key: one typed key, for everything.
        test: rows that no model sees; the first `max_rows` of them are looked at.
        num_models: of each kind; 100 for stable values, and at least `2 / alpha - 1`, which is 39 at 5 %.
        num_held_out: further retrained models, by default and at least `num_models`; for floors and false positives.
        metrics: names from `jaxunlearn.audit.METRICS`, all that fit the task by default.
        ignore: target of tokens or labels that do not count, such as -100 for padding; the model's loss is to leave them out by
            itself. Retained and test rows of nothing else are not looked at.
        controls: rows of the forget set that training does not memorise, as a negative control: on them doing nothing should
            be inside the floor. A verdict there means that they are memorised after all, or that the metric sees something
            else.
        max_rows: how many retained and test rows are looked at, the first ones.
        alpha: level of every verdict, in (0, 1).
        num_permutations: random labels for every verdict.
        block, chunk, mesh, directory: see `jaxunlearn.audit.ensemble`; with a directory the audit resumes.
        progress: called with what is being made and how many models are done.

    Returns:
        `Audit`, on the host. Verdicts are not corrected for their number: at 5 %, a dozen of them come to half a
            false one and more.

    Raises:
        ValueError: too few models, test rows that are training rows as well, a request that is empty or leaves nothing,
            metrics that do not fit the task, targets that are no tokens, rows of the request that are padding, a loss that is
            NaN or depends on other rows, models that diverged, or prepared values that belong to other weights.
        TypeError: `unlearn` or `retrain` is an `Unlearner`, `test` is not `Examples`.

    Example:
        >>> retrain = jaxunlearn.iterate(jaxunlearn.retrain(model, optax.sgd(0.1)), num_steps=2, batch_size=8)
        >>> found = jaxunlearn.audit.run(
        ...     model, retrain, retrain, variables, data, request, key, test=test, num_models=39, metrics=["forget_accuracy"]
        ... )
        >>> list(found.judgements)
        ['forget_accuracy']
    """
    checks.require_unlearn_fn(unlearn, "audit.run")
    checks.require_unlearn_fn(retrain, "audit.run")
    asked_for = list(METRICS) if metrics is None else list(metrics)
    unknown = [name for name in asked_for if name not in METRICS]
    if unknown or not asked_for:
        raise ValueError(f"run: unknown metrics {unknown}; choose from {', '.join(METRICS)}")
    if not 0 < alpha < 1:
        raise ValueError(f"run: alpha is a level such as 0.05, got {alpha}")
    require_models("run", num_models, _least(alpha))
    held = num_models if num_held_out is None else num_held_out
    require_models("run (held out)", held, num_models)
    if jnp.ndim(request.indices) != 1:
        raise ValueError(f"run audits one request, got indices {jnp.shape(request.indices)}; call it for each one of them")
    rows = _rows(data, request, test, controls, max_rows)
    task = task_of(model, variables, rows, ignore)
    chosen, left_out = choose(task, metrics)
    rows = without_padding(rows, task)
    keys = jax.random.split(key, 4)
    tell = progress or (lambda doing, count: None)
    make = partial(
        ensemble, model, rows=rows, block=block, chunk=chunk, mesh=mesh, directory=directory, measure=measuring(model, task)
    )
    # originals and retrained models come from one program, which is compiled once
    asked = _with_empty(request, num_models, num_models + held)
    training = jnp.concatenate([jax.random.split(keys[0], num_models), jax.random.split(keys[2], num_models + held)])
    trained = make(retrain, variables, data, asked, training, in_axes=(None, None, 0, 0), progress=partial(tell, "trained"))
    original, retrained = _part(trained, 0, num_models), _part(trained, num_models, None)
    _check("original", original)
    _check("retrained", retrained)
    unlearned = make(
        prepared_in_place(unlearn), original.variables, data, request, jax.random.split(keys[1], num_models),
        in_axes=(0, None, None, 0), progress=partial(tell, "unlearned"),
    )  # fmt: skip
    _check("unlearned", unlearned)

    kinds = {
        "original": original, "unlearned": unlearned,
        "retrained": _part(retrained, 0, num_models), "held out": _part(retrained, num_models, None),
    }  # fmt: skip
    scoring: dict[str, Any] = {"score": "margin"}
    if task.name == "classes":
        answers: dict[str, Any] = {kind: _answers(made, rows) for kind, made in kinds.items()}
    else:
        answers, scoring = told_by(kinds, task)
    see = jax.jit(observe)
    seen = {kind: jax.device_get(see(said)) for kind, said in answers.items()}
    on_controls = {kind: _on_controls(x) for kind, x in seen.items()} if controls is not None else {}
    judgements, over_rows, controlled, false_positives = {}, {}, {}, {}
    side = gap_of("forget_margins")
    for place, name in enumerate(chosen):
        metric = METRICS[name]
        tell(f"judging {metric.label}", place)
        decide = partial(
            judge, metric.statistic, shift=None if metric.signed else side, alpha=alpha, num_permutations=num_permutations
        )
        judging, rating, resampling = (jax.random.fold_in(keys[3], 3 * place + turn) for turn in range(3))
        judgements[name] = decide(seen["unlearned"], seen["retrained"], seen["original"], judging, held_out=seen["held out"])
        over_rows[name] = crossed_bootstrap(
            _of_answers(metric.statistic), answers["unlearned"], answers["retrained"], resampling
        )
        if on_controls and name in CONTROLLED:
            nothing, reference, others = (on_controls[kind] for kind in ("original", "retrained", "held out"))
            controlled[name] = decide(nothing, reference, nothing, judging, held_out=others)
        rate = partial(
            false_positive_rate, metric.statistic, two_sided=metric.signed, alpha=alpha,
            size=1 if metric.by_model else max(4, held // 2), num_permutations=_least(alpha),
        )  # fmt: skip
        false_positives[name] = rate(seen["held out"], seen["retrained"], rating)
    known = [f"{name}_{what}" for what in ("accuracy", "loss") for name in ("retain", "forget", "test")]
    plain = [name for name in (*known, "attack_auc", "attack_tpr") if name in seen["retrained"]]
    shown = ("original", "unlearned", "retrained")
    return Audit(
        judgements={name: jax.device_get(x) for name, x in judgements.items()},  # one by one, which keeps their order
        over_rows={name: jax.device_get(x) for name, x in over_rows.items()},
        controls={name: jax.device_get(x) for name, x in controlled.items()},
        false_positives={name: jax.device_get(x) for name, x in false_positives.items()},
        means={kind: {name: float(np.mean(seen[kind][name])) for name in plain} for kind in shown},
        margins={kind: seen[kind]["forget_margins"] for kind in shown},
        roc={kind: _mean_roc(seen[kind]) for kind in shown},
        settings={
            "question": QUESTION,
            "num_models": num_models,
            "num_held_out": held,
            "alpha": alpha,
            "num_permutations": num_permutations,
            "forgotten_rows": count_rows(rows["forget"]),
            "retained_rows_looked_at": count_rows(rows["retain"]),
            "test_rows": count_rows(rows["test"]),
            "task": task.name,
            **scoring,
        },
        left_out=left_out,
    )


def _with_empty(request: ForgetRequest, empty: int, full: int) -> ForgetRequest:
    """Stacked requests: first some that ask for nothing, then the same one many times."""
    asks = jnp.arange(empty + full) >= empty
    return jax.tree.map(lambda x: jnp.where(asks.reshape(-1, *[1] * jnp.ndim(x)), x, jnp.zeros_like(x)), request)


def _part(made: Ensemble, start: int, end: int | None) -> Ensemble:
    return jax.tree.map(lambda x: x[start:end], made)


def _check(kind: str, made: Ensemble) -> None:
    status = np.asarray(made.status)
    for code, told in REFUSED.items():
        if failed := int(np.sum(status == code)):
            raise ValueError(f"run: {failed} of {len(status)} {kind} models {told}")
    for name, told in made.logits.items():
        if isinstance(told, Measured):
            require_numbers("run", **{f"losses of {kind} models on rows of {name}": told.losses})
        elif name == "forget":
            require_numbers("run", **{f"logits of {kind} models": told})


def _least(alpha: float) -> int:
    """Models, or random labels, with which a two-sided verdict can reach a level."""
    return math.ceil(2 / alpha) - 1


def _answers(made: Ensemble, rows: dict[str, Examples]) -> dict[str, Answers]:
    def of(name: str) -> Answers:
        logits: Any = np.asarray(made.logits[name])
        targets: Any = np.asarray(rows[name].targets)
        targets = np.broadcast_to(targets.astype(np.int32) if targets.dtype == bool else targets, logits.shape[:2])
        return Answers(class_logits(logits, targets), targets)

    return {name: of(name) for name in made.logits}


def _of_answers(statistic: Statistic) -> Statistic:
    return lambda candidate, reference: statistic(observe(candidate), observe(reference))


def _rows(data: Data, request: ForgetRequest, test: Examples, controls: Examples | None, most: int) -> dict[str, Examples]:
    checks.require_count("max_rows", most)
    checks.require_rows_like("test", test, data.train)
    if controls is not None:
        checks.require_rows_like("controls", controls, data.train)
    retained = np.asarray(sampling.retain_weights(data, request)) > 0
    forgotten = (np.asarray(data.present) > 0) & ~retained
    if not forgotten.any() or not retained.any():
        raise ValueError(f"run: the request leaves {retained.sum()} rows and removes {forgotten.sum()}; it must do both")

    def take(examples: Examples, chosen: np.ndarray) -> Examples:
        return jax.tree.map(lambda x: np.asarray(x)[chosen], examples)

    chosen = {
        "forget": take(data.train, np.flatnonzero(forgotten)),
        "retain": take(data.train, np.flatnonzero(retained)[:most]),
        "test": take(test, np.arange(min(most, count_rows(test)))),
    }
    if controls is not None:
        chosen["control"] = controls
    require_disjoint("run", members=take(data.train, np.flatnonzero(forgotten | retained)), nonmembers=chosen["test"])
    return chosen


def _on_controls(seen: Observed) -> Observed:
    whats = [name.removeprefix("control_") for name in seen if name.startswith("control_")]
    return {**seen, **{f"forget_{what}": seen[f"control_{what}"] for what in whats}}


def _mean_roc(seen: Observed) -> tuple[np.ndarray, np.ndarray]:
    grid = np.concatenate([[0], np.geomspace(1e-3, 1, 200)])
    curves = jax.device_get(_curves(seen["forget_margins"], seen["test_margins"]))
    found = [np.interp(grid, fpr, tpr) for fpr, tpr in zip(curves.fpr, curves.tpr, strict=True)]
    return grid, np.mean(found, axis=0)


@jax.jit
@jax.vmap
def _curves(members: Float[Array, " f"], others: Float[Array, " t"]) -> Roc:
    return roc_curve(members, jnp.ones_like(members), others, jnp.ones_like(others))
