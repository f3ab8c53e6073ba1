"""What a model answers, for an audit: classes, tokens, labels, or values that only its own loss can judge.

Metrics that look at single rows need one number that is the higher the better the row is known. For classes it is the margin,
see `jaxunlearn.audit.margins`. Elsewhere it is a *score*, a falling function of the model's own loss of the row, l:

    tokens and labels:  -log(e^l - 1), the log-odds of e^-l, which is the margin where l is the loss of one class
    values:             -log l, which another unit of the targets only shifts
    losses below 0:     -l

Losses of 0 count as the smallest positive one of all models, infinite ones as the largest finite one: scores are finite, and
the choice does not know which models are called unlearned, so that verdicts stay exact.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.audit.ensemble import Ensemble
from jaxunlearn.audit.metrics import METRICS, NEEDS, Told, fits
from jaxunlearn.evaluation import evaluate, map_rows
from jaxunlearn.types import Examples, Model, Variables

ROWS_TRIED = 8  # whether a loss treats rows by themselves
TOLERANCE = 0.02  # relative; models in half precision round otherwise one by one


class Task(NamedTuple):
    """What a model answers."""

    name: str  # a key of `TASKS`
    ignore: int | None = None  # target of positions that do not count


def task_of(model: Model, variables: Variables, rows: dict[str, Examples], ignore: int | None) -> Task:
    """The task that shapes and dtypes of logits and targets speak of; ValueError where they do not go together."""
    some = rows["forget"]
    logits = jax.eval_shape(lambda v, x: model.forward(v, x, train=False).logits, variables, some.inputs)
    name = _name(model, logits, [part.targets for part in rows.values()], ignore)
    if ignore is not None and name not in ("tokens", "labels"):
        raise ValueError(f"run: ignore={ignore} marks padding of tokens or labels, and the task here is {name}")
    if name != "classes":
        jax.eval_shape(partial(evaluate, model), variables, some)  # one loss per row, or it says what is wrong
        _require_rows_by_themselves(model, variables, some)
    return Task(name, ignore)


def _name(model: Model, logits: Any, targets: list[Any], ignore: int | None) -> str:
    first, family = targets[0], model.likelihood.name if model.likelihood is not None else None
    if not hasattr(first, "dtype") or not hasattr(logits, "shape") or family in ("gaussian", "poisson", "product"):
        return "values"
    seen = np.unique(np.concatenate([np.asarray(x).ravel() for x in targets]))
    counted = seen if ignore is None else seen[seen != ignore]
    discrete = jnp.issubdtype(first.dtype, jnp.integer) or first.dtype == bool
    if family == "bernoulli" or (discrete and logits.shape in (first.shape, (*first.shape, 1))):
        if not np.all(np.isin(counted, (0, 1))):
            return "values"  # counts, for instance
        return "classes" if discrete and first.ndim == 1 else "labels"
    if not discrete or logits.shape[:-1] != first.shape or logits.ndim < 2:
        return "values"
    if first.ndim == 1:
        return "classes"
    wrong = counted[(counted < 0) | (counted >= logits.shape[-1])]
    if len(wrong):
        raise ValueError(
            f"run: targets hold {wrong[0]}, which is none of {logits.shape[-1]} tokens; if it marks padding, pass "
            f"ignore={wrong[0]}"
        )
    return "tokens"


def _require_rows_by_themselves(model: Model, variables: Variables, some: Examples) -> None:
    """ValueError if the loss of a row is another one without the rows beside it."""
    if not all(hasattr(leaf, "__array__") for leaf in jax.tree.leaves(variables)):
        return
    few = jax.tree.map(lambda x: jnp.asarray(x[:ROWS_TRIED]), some)

    @jax.jit
    def losses(variables: Variables, few: Examples) -> tuple[jax.Array, jax.Array]:
        alone = jax.lax.map(lambda row: evaluate(model, variables, jax.tree.map(lambda x: x[None], row))[1][0], few)
        return evaluate(model, variables, few)[1], alone

    with jax.default_matmul_precision("highest"):
        together, alone = (np.asarray(x, np.float64) for x in losses(variables, few))
    finite = together[np.isfinite(together)]
    scale = float(np.max(np.abs(finite), initial=0))
    if not np.allclose(together, alone, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
        raise ValueError(
            "run: the loss of a row depends on the rows beside it; if logits are [b, 1] and targets [b], their difference is "
            "[b, b]: give both one shape"
        )


def choose(task: Task, metrics: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Names of the metrics to take, and why others are left out; ValueError for a metric that does not fit."""
    unfit = {name: f"needs {NEEDS[metric.needs or '']}" for name, metric in METRICS.items() if not fits(metric, task.name)}
    refused = [name for name in metrics or () if name in unfit]
    if refused:
        fit = ", ".join(name for name in METRICS if name not in unfit)
        raise ValueError(f"run: {refused[0]!r} {unfit[refused[0]]}; the task here is {task.name}: choose from {fit}")
    if metrics is not None:
        return list(metrics), {}
    return [name for name in METRICS if name not in unfit], {} if task.name == "classes" else unfit


def without_padding(rows: dict[str, Examples], task: Task) -> dict[str, Examples]:
    """The rows that hold more than padding; ValueError for others in the forget set, and where none is left."""
    if task.ignore is None:
        return rows
    kept = {}
    for name, part in rows.items():
        counts = np.any(np.asarray(part.targets != task.ignore).reshape(len(part.targets), -1), axis=1)
        if name == "forget" and not counts.all():
            raise ValueError(f"run: {np.sum(~counts)} rows of the request hold nothing but padding; leave them out of it")
        if not counts.any():
            raise ValueError(f"run: all rows of {name} hold nothing but padding")
        kept[name] = jax.tree.map(lambda x, c=counts: np.asarray(x)[c], part)
    return kept


class Measured(NamedTuple):
    """What is kept of a model on some rows."""

    losses: Float[Array, " e"]
    successes: Float[Array, " e"] | None  # share of tokens or labels that are right


def measuring(model: Model, task: Task) -> Callable[[Variables, Examples], Measured] | None:
    """What `ensemble` is to keep of each model; None stands for its logits."""
    if task.name == "classes":
        return None

    def measure(variables: Variables, examples: Examples) -> Measured:
        def of(part: Examples) -> Measured:
            outputs, losses = evaluate(model, variables, part)
            return Measured(losses.astype(jnp.float32), _successes(task, outputs.logits, part.targets))

        return map_rows(of, examples)

    return measure


def _successes(task: Task, logits: PyTree, targets: PyTree) -> Float[Array, " e"] | None:
    if task.name == "values":
        return None
    hits = jnp.argmax(logits, axis=-1) == targets if task.name == "tokens" else (logits.reshape(targets.shape) > 0) == targets
    counts = (jnp.ones_like(hits) if task.ignore is None else targets != task.ignore).reshape(hits.shape[0], -1)
    return jnp.sum(hits.reshape(counts.shape) & counts, axis=1) / jnp.maximum(jnp.sum(counts, axis=1), 1)


def told_by(kinds: dict[str, Ensemble], task: Task) -> tuple[dict[str, dict[str, Told]], dict[str, Any]]:
    """Losses, scores and successes of every kind of models on every set of rows, and what to say of the scores."""
    measured: dict[str, dict[str, Any]] = {kind: made.logits for kind, made in kinds.items()}
    losses = [np.asarray(x.losses, np.float64) for part in measured.values() for x in part.values()]
    pooled = np.concatenate([x.ravel() for x in losses])
    finite = pooled[np.isfinite(pooled)]
    if not len(finite):
        raise ValueError("run: every loss is infinite")
    infinite, largest = len(pooled) - len(finite), float(finite.max())
    positive = finite[finite > 0]
    smallest = float(positive.min()) if len(positive) else 1.0
    below = float(finite.min()) < -1e-6 * float(np.mean(np.abs(finite)))

    def score(loss: np.ndarray) -> np.ndarray:
        if below:
            return -loss
        loss = np.maximum(loss, smallest)
        return -np.log(loss) if task.name == "values" else -loss - np.log(-np.expm1(-loss))

    def tell(part: Measured) -> Told:
        loss: Any = np.minimum(np.asarray(part.losses, np.float64), largest)
        scores: Any = score(loss).astype(np.float32)
        successes: Any = None if part.successes is None else np.asarray(part.successes)
        return Told(scores, loss.astype(np.float32), successes)

    words = "minus the loss" if below else "-log(loss)" if task.name == "values" else "-log(exp(loss) - 1)"
    settings = {"score": words, **({"infinite_losses": infinite} if infinite else {})}
    return {kind: {name: tell(x) for name, x in part.items()} for kind, part in measured.items()}, settings


def count_rows(rows: Examples) -> int:
    """How many there are."""
    return tree.leading_axis(rows, "rows")
