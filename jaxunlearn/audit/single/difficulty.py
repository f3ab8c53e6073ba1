"""How hard rows are for a training: when they are right for good, and their mean loss on the way.

Hard rows and easy ones call for opposite answers when they are forgotten. A retrained model knows easy rows without having seen
them, so that nothing needs to change; hard rows it does not know. Unlearning of one strength cannot be right for both. The two
measures are reconstructions: studies that group rows by difficulty do not agree on one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn import tree
from jaxunlearn.audit.single.performance import row_results
from jaxunlearn.types import Examples, Model, Variables


class Difficulty(NamedTuple):
    """What `difficulty` returns; larger is harder."""

    learned: Int[Array, " n"] | None  # checkpoints in front of the first from which on the row is right; None without classes
    mean_loss: Float[Array, " n"]  # over the checkpoints


def difficulty(model: Model, checkpoints: Variables, examples: Examples, *, chunk: int | None = None) -> Difficulty:
    """When a training learned each row, and the mean loss of the row while it ran.

    Args:
        model: what was trained.
        checkpoints: its variables at t points of the training, in order, stacked on a leading axis. Equal distances make
            `learned` a time; `jaxunlearn.iterate(active_steps=...)` stops one and the same training at any step.
        examples: n rows, as a rule the training rows.
        chunk: rows that go through the model together; None takes all.

    Returns:
        `Difficulty`: `learned` from 0 (right in every checkpoint) to t (wrong in the last one; a row with a NaN logit is
        wrong), and the mean loss, in the unit of the loss.

    Raises:
        ValueError: checkpoints without a common leading axis, a loss that is not one value per row, a bad chunk.

    Example:
        >>> checkpoints = jax.tree.map(lambda x: jnp.stack([0 * x, x]), variables)
        >>> found = jaxunlearn.audit.difficulty(model, checkpoints, data.train)
        >>> found.learned.shape, int(found.learned.max()) <= 2
        ((60,), True)
    """
    count = tree.leading_axis(checkpoints, "checkpoints")
    rows = tree.leading_axis(examples, "examples")

    def results(variables: Variables):
        return row_results(model, variables, examples, chunk=chunk)

    def look(carried, numbered):
        learned, total = carried
        place, variables = numbered
        correct, losses = results(variables)
        if correct is not None:
            learned = jnp.where(correct == 1, learned, place + 1)
        return (learned, total + losses.astype(jnp.float32)), None

    classifies = jax.eval_shape(results, jax.tree.map(lambda x: x[0], checkpoints))[0] is not None
    first = jnp.zeros(rows, jnp.int32) if classifies else None, jnp.zeros(rows)
    (learned, total), _ = jax.lax.scan(look, first, (jnp.arange(count, dtype=jnp.int32), checkpoints))
    return Difficulty(learned, total / count)


def from_easiest(found: Difficulty) -> Int[Array, " n"]:
    """Rows from the easiest to the hardest: by when they were learned, then by mean loss, then by number.

    Args:
        found: of `difficulty`; entries may be means over several trainings.

    Returns:
        Row numbers. A mean loss that is NaN comes last among those that were learned as late.

    Example:
        >>> found = jaxunlearn.audit.Difficulty(jnp.array([2, 0, 0]), jnp.array([0.1, 0.5, 0.4]))
        >>> jaxunlearn.audit.from_easiest(found).tolist()
        [2, 1, 0]
    """
    return jnp.lexsort((found.mean_loss,) if found.learned is None else (found.mean_loss, found.learned))
