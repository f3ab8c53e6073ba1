"""An audit of a method on a user's own model: ensembles, every metric with its floor, verdicts, false-positive rates.

It answers one question: is the *influence of these examples* gone, as it is from models that never saw them? It does not say
whether a concept can be brought back; for a forgotten class that is the other half of the question.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxunlearn import risk, tree
from jaxunlearn.audit.checks import require_disjoint, require_models, require_numbers
from jaxunlearn.audit.ensemble import Ensemble, ensemble
from jaxunlearn.audit.forgetting_quality import forgetting_quality
from jaxunlearn.audit.intervals import Interval
from jaxunlearn.audit.klom import klom
from jaxunlearn.audit.likelihood_ratio import u_lira
from jaxunlearn.audit.margin import margins
from jaxunlearn.audit.membership import auc, roc_curve, tpr_at_fpr
from jaxunlearn.audit.nulls import Judgement, Statistic, crossed_bootstrap, false_positive_rate, judge
from jaxunlearn.losses import jensen_shannon
from jaxunlearn.requests import empty_request
from jaxunlearn.status import Status
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, UnlearnFn, Variables

QUESTION = "influence of examples"
CONTROLLED = ("forget_accuracy", "klom_forget", "u_lira")  # metrics that look at forgotten rows alone, one of a kind
QUALITY_ROWS = 32  # forgotten rows that the competition's score looks at, which is slow

Observed: TypeAlias = dict[str, Float[Array, "n ..."]]  # what is known of each model


class Answers(NamedTuple):
    """What models say of some rows."""

    logits: Float[Array, "n e c"]
    targets: Int[Array, "n e"]  # the same for every model


class Metric(NamedTuple):
    """One row of an audit."""

    label: str
    definition: str
    statistic: Statistic  # of two `Observed`
    signed: bool  # a gap, whose two tails count; else a distance, larger is further
    by_model: bool  # whether one candidate model is enough


def _gap(name: str) -> Statistic:
    return lambda candidate, reference: jnp.mean(candidate[name]) - jnp.mean(reference[name])


def _klom(name: str) -> Statistic:
    return lambda candidate, reference: jnp.mean(klom(candidate[name], reference[name]))


def _divergence(candidate: Observed, reference: Observed) -> jax.Array:
    """Mean over models and rows of the divergence from the mean prediction of the reference."""
    centre = jnp.log(jnp.mean(reference["forget_probabilities"], axis=0))
    log = jnp.log(jnp.maximum(candidate["forget_probabilities"], 1e-30))
    return jnp.mean(jax.vmap(lambda logits: jensen_shannon(logits, jnp.maximum(centre, -69)))(log))


def _no_quality(candidate: Observed, reference: Observed) -> jax.Array:
    pair = (x["forget_margins"][:, :QUALITY_ROWS] for x in (candidate, reference))
    return 1 - forgetting_quality(*pair).score


METRICS: dict[str, Metric] = {
    "retain_accuracy": Metric("retain accuracy", "gap of accuracy on retained rows", _gap("retain_accuracy"), True, True),
    "forget_accuracy": Metric("forget accuracy", "gap of accuracy on forgotten rows", _gap("forget_accuracy"), True, True),
    "test_accuracy": Metric("test accuracy", "gap of accuracy on test rows", _gap("test_accuracy"), True, True),
    "attack_auc": Metric(
        "loss attack AUC", "gap of the area under the ROC curve of the loss, forgotten against test rows: an attack on the "
        "population", _gap("attack_auc"), True, True,
    ),
    "attack_tpr": Metric(
        "loss attack TPR at 1 % FPR", "gap of the true-positive rate of the same attack at its low end",
        _gap("attack_tpr"), True, True,
    ),
    "divergence": Metric(
        "JS divergence", "Jensen-Shannon divergence from the mean retrained prediction on forgotten rows, nats",
        _divergence, False, True,
    ),
    "klom_forget": Metric("KLoM forget", "KLoM of margins on forgotten rows, nats", _klom("forget_margins"), False, False),
    "klom_retain": Metric("KLoM retain", "KLoM of margins on retained rows, nats", _klom("retain_margins"), False, False),
    "klom_test": Metric("KLoM test", "KLoM of margins on test rows, nats", _klom("test_margins"), False, False),
    "no_quality": Metric(
        "1 - forgetting quality", f"one minus the 2023 competition's F on at most {QUALITY_ROWS} forgotten rows: an attack on "
        "each example", _no_quality, False, False,
    ),
    "u_lira": Metric(
        "U-LiRA accuracy", "balanced accuracy of the likelihood-ratio attack on each forgotten example; 0.5 is chance",
        lambda candidate, reference: u_lira(candidate["forget_margins"], reference["forget_margins"]).accuracy.estimate,
        False, False,
    ),
}  # fmt: skip


class Audit(NamedTuple):
    """What `run` returns; `jaxunlearn.audit.report` shows it."""

    judgements: dict[str, Judgement]  # by the name of the metric, see `METRICS`
    over_rows: dict[str, Interval]  # the same values, with intervals over models and rows
    controls: dict[str, Judgement]  # of doing nothing, on rows that training did not memorise; empty without them
    false_positives: dict[str, Interval]  # of the verdict on held-out retrained models
    means: dict[str, dict[str, float]]  # of plain measures, for original, unlearned and retrained models
    margins: dict[str, Float[np.ndarray, "n e"]]  # on forgotten rows, of each kind of model
    roc: dict[str, tuple[np.ndarray, np.ndarray]]  # of the loss attack, averaged over models
    settings: dict[str, Any]


def observe(answers: dict[str, Answers]) -> Observed:
    """What the metrics need to know of each model.

    Args:
        answers: of models to `forget`, `retain` and `test` rows.
    """
    seen: Observed = {}
    for name, (logits, targets) in answers.items():
        seen[f"{name}_accuracy"] = jnp.mean(jnp.argmax(logits, axis=-1) == targets, axis=1)
        seen[f"{name}_margins"] = margins(logits, targets)
    seen["forget_probabilities"] = jax.nn.softmax(answers["forget"].logits)
    attack = seen["forget_margins"], seen["test_margins"]  # the loss falls with the margin
    seen["attack_auc"] = jax.vmap(lambda a, b: auc(a, jnp.ones_like(a), b, jnp.ones_like(b)))(*attack)
    seen["attack_tpr"] = jax.vmap(lambda a, b: tpr_at_fpr(a, jnp.ones_like(a), b, jnp.ones_like(b), 0.01).estimate)(*attack)
    return seen


def run(
    model: Model,
    unlearn: UnlearnFn,
    retrain: UnlearnFn,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    key: PRNGKeyArray,
    *,
    num_models: int = 100,
    num_held_out: int | None = None,
    metrics: Sequence[str] | None = None,
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

    Trains `num_models` originals, unlearns each of them, retrains as many models without the rows and some more that are held
    out, and judges every metric of `METRICS` against its floor.

    Args:
        model: a classifier, logits [b, c].
        unlearn: the method.
        retrain: training from fresh weights, e.g. `jaxunlearn.retrain`; with an empty request it trains the originals.
        variables: tree, shapes and dtypes of the weights; no value of it is used where `retrain` starts afresh.
        data: integer targets; `data.extra["test"]` holds rows that no model sees.
        request: one request.
        key: of everything.
        num_models: of each kind; 100 for stable values, and `2 / alpha - 1` at least, which is 39 at 5 %.
        num_held_out: further retrained models, `num_models` by default and at least as many; for floors and false positives.
        metrics: names from `METRICS`, all of them by default.
        controls: forgotten rows that training does not memorise, as a negative control: on them doing nothing should be inside
            the floor. A verdict there means that they are memorised after all, or that the metric sees something else.
        max_rows: retained and test rows that are looked at, the first ones.
        alpha: level of every verdict.
        num_permutations: of every verdict.
        block, chunk, mesh, directory: see `jaxunlearn.audit.ensemble`; with a directory the audit resumes.
        progress: called with what is being made and how many models are done.

    Returns:
        `Audit`, on the host. Verdicts are not corrected for their number: at 5 %, eleven of them come to half a false one.

    Raises:
        ValueError: too few models, no test rows, test rows that are training rows as well, an empty request, targets that
            are not classes, models that diverged.

    Example:
        >>> audit = jaxunlearn.audit.run(model, unlearn, retrain, variables, data, request, key)  # doctest: +SKIP
        >>> print(jaxunlearn.audit.to_markdown(audit))  # doctest: +SKIP
    """
    chosen = list(METRICS) if metrics is None else list(metrics)
    unknown = [name for name in chosen if name not in METRICS]
    if unknown or not chosen:
        raise ValueError(f"run: unknown metrics {unknown}; choose from {', '.join(METRICS)}")
    if not 0 < alpha < 1:
        raise ValueError(f"run: alpha is a level such as 0.05, got {alpha}")
    require_models("run", num_models, _least(alpha))
    held = num_models if num_held_out is None else num_held_out
    require_models("run (held out)", held, num_models)
    rows = _rows(data, request, max_rows)
    if controls is not None:
        rows["control"] = controls
    keys = jax.random.split(key, 5)
    tell = progress or (lambda doing, count: None)

    def make(doing: str, function: UnlearnFn, start: Variables, asked: ForgetRequest, key: PRNGKeyArray, count: int, axes: Any):
        made = ensemble(
            model, function, start, data, asked, jax.random.split(key, count), rows,
            in_axes=axes, block=block, chunk=chunk, mesh=mesh, directory=directory, progress=partial(tell, doing),
        )  # fmt: skip
        broken = int(np.sum(np.asarray(made.status) == Status.NONFINITE))
        if broken:
            raise ValueError(f"run: {broken} of {count} {doing} models hold NaN or inf; lower a learning rate")
        require_numbers("run", **{f"logits of {doing} models": made.logits["forget"]})
        return made

    shared, own = (None, None, None, 0), (0, None, None, 0)
    originals = make("original", retrain, variables, empty_request(), keys[0], num_models, shared)
    unlearned = make("unlearned", unlearn, originals.variables, request, keys[1], num_models, own)
    retrained = make("retrained", retrain, variables, request, keys[2], num_models + held, shared)
    answers = {"original": _answers(originals, rows), "unlearned": _answers(unlearned, rows)}
    answers["retrained"] = jax.tree.map(lambda x: x[:num_models], _answers(retrained, rows))
    see = jax.jit(observe)
    seen = {"original": see(answers["original"]), "unlearned": see(answers["unlearned"])}
    everything = see(_answers(retrained, rows))
    seen["retrained"] = jax.tree.map(lambda x: x[:num_models], everything)
    held_out = jax.tree.map(lambda x: x[num_models:], everything)

    judgements, over_rows, controlled, false_positives = {}, {}, {}, {}
    on_controls = {kind: _on_controls(x) for kind, x in {**seen, "held out": held_out}.items()} if controls is not None else {}
    for place, name in enumerate(chosen):
        metric = METRICS[name]
        tell(f"judging {metric.label}", place)
        shift = None if metric.signed else _gap("forget_margins")
        decide = jax.jit(partial(judge, metric.statistic, shift=shift, alpha=alpha, num_permutations=num_permutations))
        judging, rating, resampling = jax.random.split(jax.random.fold_in(keys[3], place), 3)
        judgements[name] = decide(seen["unlearned"], seen["retrained"], seen["original"], judging, held_out=held_out)
        resample = jax.jit(partial(crossed_bootstrap, _of_answers(metric.statistic)))
        over_rows[name] = resample(answers["unlearned"], answers["retrained"], resampling)
        if on_controls and name in CONTROLLED:
            original, reference, others = (on_controls[kind] for kind in ("original", "retrained", "held out"))
            controlled[name] = decide(original, reference, original, judging, held_out=others)
        rate = partial(
            false_positive_rate, metric.statistic, two_sided=metric.signed, alpha=alpha,
            size=1 if metric.by_model else max(4, held // 2), num_permutations=_least(alpha),
        )  # fmt: skip
        false_positives[name] = jax.jit(rate)(held_out, seen["retrained"], rating)
    plain = ("retain_accuracy", "forget_accuracy", "test_accuracy", "attack_auc", "attack_tpr")
    kinds = ("original", "unlearned", "retrained")
    return Audit(
        judgements={name: jax.device_get(x) for name, x in judgements.items()},  # one by one, which keeps their order
        over_rows={name: jax.device_get(x) for name, x in over_rows.items()},
        controls={name: jax.device_get(x) for name, x in controlled.items()},
        false_positives={name: jax.device_get(x) for name, x in false_positives.items()},
        means={kind: {name: float(jnp.mean(seen[kind][name])) for name in plain} for kind in kinds},
        margins={kind: np.asarray(seen[kind]["forget_margins"]) for kind in kinds},
        roc={kind: _mean_roc(seen[kind]) for kind in kinds},
        settings={
            "question": QUESTION,
            "num_models": num_models,
            "num_held_out": held,
            "alpha": alpha,
            "num_permutations": num_permutations,
            "forgotten_rows": len(rows["forget"].targets),
            "retained_rows_looked_at": len(rows["retain"].targets),
            "test_rows": len(rows["test"].targets),
        },
    )


def _least(alpha: float) -> int:
    """Models, or random labels, with which a two-sided verdict can reach a level."""
    return math.ceil(2 / alpha) - 1


def _answers(made: Ensemble, rows: dict[str, Examples]) -> dict[str, Answers]:
    return {
        name: Answers(logits, jnp.broadcast_to(jnp.asarray(rows[name].targets), logits.shape[:2]))
        for name, logits in made.logits.items()
    }


def _of_answers(statistic: Statistic) -> Statistic:
    return lambda candidate, reference: statistic(observe(candidate), observe(reference))


def _rows(data: Data, request: ForgetRequest, most: int) -> dict[str, Examples]:
    tree.require_count("max_rows", most)
    test = data.extra.get("test")
    if test is None:
        raise ValueError("run needs rows that no model sees: data._replace(extra={**data.extra, 'test': Examples(...)})")
    if not np.issubdtype(np.asarray(data.train.targets).dtype, np.integer) or np.ndim(data.train.targets) != 1:
        raise ValueError("run audits classifiers: targets must be integer classes [n]")
    retained = np.asarray(risk.retain_weights(data, request)) > 0
    forgotten = (np.asarray(data.present) > 0) & ~retained
    if not forgotten.any() or not retained.any():
        raise ValueError(f"run: the request leaves {retained.sum()} rows and removes {forgotten.sum()}; it must do both")

    def take(examples: Examples, chosen: np.ndarray) -> Examples:
        return jax.tree.map(lambda x: jnp.asarray(x)[chosen], examples)

    chosen = {
        "forget": take(data.train, np.flatnonzero(forgotten)),
        "retain": take(data.train, np.flatnonzero(retained)[:most]),
        "test": take(test, np.arange(min(most, len(test.targets)))),
    }
    require_disjoint("run", members=take(data.train, np.flatnonzero(forgotten | retained)), nonmembers=chosen["test"])
    return chosen


def _on_controls(seen: Observed) -> Observed:
    return {**seen, "forget_accuracy": seen["control_accuracy"], "forget_margins": seen["control_margins"]}


def _mean_roc(seen: Observed) -> tuple[np.ndarray, np.ndarray]:
    grid = np.concatenate([[0], np.geomspace(1e-3, 1, 200)])
    curves = []
    for members, others in zip(seen["forget_margins"], seen["test_margins"], strict=True):
        curve = roc_curve(members, jnp.ones_like(members), others, jnp.ones_like(others))
        curves.append(np.interp(grid, np.asarray(curve.fpr), np.asarray(curve.tpr)))
    return grid, np.mean(curves, axis=0)
