"""Whether a run damaged the model, by the loss of some retained rows before and after it, and whether labels are classes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxunlearn import checks
from jaxunlearn.evaluation import evaluate, map_rows
from jaxunlearn.likelihoods import num_classes
from jaxunlearn.losses.sequences import are_tokens
from jaxunlearn.types import Data, Examples, Model, Scalar, Variables, Weighted

ROWS = 64  # retained rows that are looked at
TOGETHER = 2**22  # entries of their outputs that are in memory together, or one row: those of language models are large


def damage(
    model: Model, before: Variables, after: Variables, rows: Weighted, limit: Scalar | None
) -> tuple[dict[str, Float[Array, ""]], dict[str, Bool[Array, ""]]]:
    """Compare the loss of retained rows before and after a run.

    A model counts as damaged where that loss is above the limit: by default twice what it was, and that of guessing among
    classes or tokens, the model's own loss at logits of 0 (`log c` for a cross-entropy). Models whose targets are neither are
    only judged by a limit that is given.

    Args:
        model: in evaluation mode.
        before, after: its variables.
        rows: of the retain set; of none, nothing is said.
        limit: mean loss from which the model counts as damaged; None for the default.

    Returns:
        Statistics `retain_loss_before` and `retain_loss_after`, Float[], NaN without rows; conditions for `status.combine`.
    """
    some = jnp.any(rows.weights > 0)
    shapes = jax.eval_shape(lambda inputs: model.forward(before, inputs, train=False), rows.examples.inputs)
    size = sum(x.size for x in jax.tree.leaves((shapes.logits, shapes.features))) // rows.weights.shape[0]

    def look(part: Examples) -> tuple[Array, ...]:
        outputs, first = evaluate(model, before, part)
        last = evaluate(model, after, part)[1]
        if limit is not None:
            return first, last
        guesses = num_classes(model, outputs, part) is not None or are_tokens(outputs.logits, part.targets)
        guessing = outputs._replace(logits=jnp.zeros_like(outputs.logits))
        guess = checks.row_losses(model, guessing, part) if guesses else jnp.full_like(first, jnp.inf)
        return first, last, guess

    def mean(losses):
        total = jnp.sum(jnp.where(rows.weights > 0, losses.astype(jnp.float32), 0))
        return jnp.where(some, total / jnp.maximum(jnp.sum(rows.weights > 0), 1), jnp.nan)

    means = [mean(x) for x in map_rows(look, rows.examples, chunk=max(1, TOGETHER // max(size, 1)))]
    stats = {"retain_loss_before": means[0], "retain_loss_after": means[1]}
    if limit is None:
        limit = jnp.maximum(means[2], 2 * means[0])
    broken = some & ~jnp.isfinite(stats["retain_loss_after"])
    return stats, {"DAMAGED": stats["retain_loss_after"] > limit, "NONFINITE": broken}


def classes_of(model: Model | None, variables: Variables, data: Data) -> int | None:
    """How many classes the labels of a method's rows can have; None where it reads no labels, or labels are no classes."""
    return None if model is None else num_classes(model, checks.check_forward(model, variables, data.train.inputs), data.train)


def strange_labels(classes: int | None, data: Data) -> Bool[Array, ""]:
    """Whether a present row has a label that is none of so many classes."""
    if classes is None:
        return jnp.array(False)
    targets = jnp.asarray(data.train.targets)
    if targets.dtype.itemsize < 4:
        targets = targets.astype(jnp.int32)  # those of few bits cannot hold the number of classes
    return jnp.any((data.present > 0) & ((targets < 0) | (targets >= classes)))
