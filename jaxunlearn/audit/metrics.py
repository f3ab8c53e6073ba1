"""The metrics of an audit: what each compares, and what must be known of every model for it.

No metric sees everything. Simulated with 39 models of each kind and 50 forgotten rows (`experiments/benchmarks/power.py`,
table in the README): margin gap and attack AUC see a shift of all rows by a quarter of a standard deviation, and rarely that
some rows are left and others driven out. JS divergence, KLoM and U-LiRA see that. One row of fifty escapes each of them in a
third of the cases or more. Models that agree more than retrained ones are told by U-LiRA and forgetting quality, and not by the
divergence. INSIDE says that *this* metric tells nothing, with this many models: look at several.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn.audit.ensembles.forgetting_quality import forgetting_quality
from jaxunlearn.audit.ensembles.klom import klom
from jaxunlearn.audit.ensembles.likelihood_ratio import u_lira
from jaxunlearn.audit.single.membership import auc, tpr_at_fpr
from jaxunlearn.audit.statistics.resampling import Statistic
from jaxunlearn.losses import jensen_shannon
from jaxunlearn.margin import margins

# metrics that look at the forget set alone, one of each kind
CONTROLLED = ("forget_accuracy", "klom_forget", "u_lira", "forget_loss")
QUALITY_ROWS = 32  # rows of the forget set that the competition's score looks at, which is slow

Observed: TypeAlias = dict[str, Float[Array, "n ..."]]  # what is known of each model


# what is known of models by their task, see `jaxunlearn.audit.tasks`; of all tasks it is a margin or score for each row
TASKS: dict[str, frozenset[str]] = {
    "classes": frozenset({"accuracy", "probabilities"}),
    "tokens": frozenset({"accuracy", "loss"}),
    "labels": frozenset({"accuracy", "loss"}),
    "values": frozenset({"loss"}),
}
NEEDS = {
    "accuracy": "targets that an answer hits or misses",
    "probabilities": "the probabilities of classes: logits [b, c] and integer targets [b]",
    "loss": "a task without classes; of classes, margins and accuracies say more",
}


class Answers(NamedTuple):
    """What classifiers say of some rows."""

    logits: Float[Array, "n e c"]
    targets: Int[Array, "n e"]  # the same for every model


class Told(NamedTuple):
    """What is known of other models on some rows."""

    scores: Float[Array, "n e"]  # the higher the better known, in place of margins
    losses: Float[Array, "n e"]
    successes: Float[Array, "n e"] | None = None  # share of tokens or labels that are right


class Metric(NamedTuple):
    """One row of an audit."""

    label: str
    definition: str
    statistic: Statistic  # of two `Observed`
    signed: bool  # a gap, whose two tails count; else a distance, where larger means further apart
    by_model: bool  # whether one candidate model is enough
    needs: str | None = None  # besides margins or scores, see `NEEDS`


def fits(metric: Metric, task: str) -> bool:
    """Whether a task, a key of `TASKS`, offers what a metric needs."""
    return metric.needs is None or metric.needs in TASKS[task]


def gap_of(name: str) -> Statistic:
    """The signed gap between the means of one thing that is observed."""
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
    "retain_accuracy": Metric(
        "retain accuracy", "gap of accuracy on the retain set", gap_of("retain_accuracy"), True, True, "accuracy",
    ),
    "forget_accuracy": Metric(
        "forget accuracy", "gap of accuracy on the forget set", gap_of("forget_accuracy"), True, True, "accuracy",
    ),
    "test_accuracy": Metric(
        "test accuracy", "gap of accuracy on test rows", gap_of("test_accuracy"), True, True, "accuracy",
    ),
    "attack_auc": Metric(
        "loss attack AUC", "gap of the area under the ROC curve of the loss, forget set against test rows: an attack on the "
        "population", gap_of("attack_auc"), True, True,
    ),
    "attack_tpr": Metric(
        "loss attack TPR at 1 % FPR", "gap of the true-positive rate of the same attack at its low end",
        gap_of("attack_tpr"), True, True,
    ),
    "divergence": Metric(
        "JS divergence", "Jensen-Shannon divergence from the mean retrained prediction on the forget set, nats",
        _divergence, False, True, "probabilities",
    ),
    "margin_gap": Metric(
        "margin gap", "gap of the mean margin on the forget set, nats",
        gap_of("forget_margins"), True, True,
    ),
    "klom_forget": Metric("KLoM forget", "KLoM of margins on the forget set, nats", _klom("forget_margins"), False, False),
    "klom_retain": Metric("KLoM retain", "KLoM of margins on the retain set, nats", _klom("retain_margins"), False, False),
    "klom_test": Metric("KLoM test", "KLoM of margins on test rows, nats", _klom("test_margins"), False, False),
    "no_quality": Metric(
        "1 - forgetting quality", f"one minus the 2023 competition's F on at most {QUALITY_ROWS} rows of the forget set: an "
        "attack on each example", _no_quality, False, False,
    ),
    "u_lira": Metric(
        "U-LiRA accuracy", "balanced accuracy of the likelihood-ratio attack on each forgotten example; 0.5 is chance",
        lambda candidate, reference: u_lira(candidate["forget_margins"], reference["forget_margins"]).accuracy.estimate,
        False, False,
    ),
    "retain_loss": Metric("retain loss", "gap of the mean loss on the retain set", gap_of("retain_loss"), True, True, "loss"),
    "forget_loss": Metric("forget loss", "gap of the mean loss on the forget set", gap_of("forget_loss"), True, True, "loss"),
    "test_loss": Metric("test loss", "gap of the mean loss on test rows", gap_of("test_loss"), True, True, "loss"),
}  # fmt: skip


def observe(answers: dict[str, Any]) -> Observed:
    """What the metrics need to know of each model.

    Args:
        answers: `Answers`, or `Told` for other tasks, of n models to rows named `forget`, `retain` and `test`, and
            perhaps others.

    Returns:
        For every name of rows, `NAME_margins` [n, e] (scores for other tasks), `NAME_accuracy` [n] where there is one and, but
        for classes, `NAME_loss` [n]; and `attack_auc` [n], `attack_tpr` [n] and, for classes, `forget_probabilities` [n, e, c].
    """
    seen: Observed = {}
    for name, said in answers.items():
        if isinstance(said, Told):
            seen[f"{name}_margins"], seen[f"{name}_loss"] = said.scores, jnp.mean(said.losses, axis=1)
            if said.successes is not None:
                seen[f"{name}_accuracy"] = jnp.mean(said.successes, axis=1)
            continue
        logits, targets = said
        seen[f"{name}_accuracy"] = jnp.mean(jnp.argmax(logits, axis=-1) == targets, axis=1)
        seen[f"{name}_margins"] = margins(logits, targets)
    if isinstance(answers["forget"], Answers):
        seen["forget_probabilities"] = jax.nn.softmax(answers["forget"].logits)
    attack = seen["forget_margins"], seen["test_margins"]  # the loss falls with the margin
    seen["attack_auc"] = jax.vmap(lambda a, b: auc(a, jnp.ones_like(a), b, jnp.ones_like(b)))(*attack)
    seen["attack_tpr"] = jax.vmap(lambda a, b: tpr_at_fpr(a, jnp.ones_like(a), b, jnp.ones_like(b), 0.01).tpr.estimate)(*attack)
    return seen
