"""What a model would say of rows that it never saw, read from held-out rows.

A score says how well a model knows a row: the margin of its label, or minus the error of a number. Rows of the forget set that
were drawn like the held-out ones would, had training not seen them, have scores of the held-out rows' law. Which row has
which of them is unknown; the order of the scores at hand is kept, so that the hardest row stays the hardest one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn.evaluation import class_logits
from jaxunlearn.likelihoods import NUMBERS, family, num_classes
from jaxunlearn.margin import margins
from jaxunlearn.types import Examples, Model, Outputs


def scores(model: Model, outputs: Outputs, examples: Examples) -> Float[Array, "b m"]:
    """How well a model knows each row.

    Args:
        model: its likelihood, or its loss, tells classes and labels from counts.
        outputs: of the rows; logits [b, c] or [b] of a classifier, else of the targets' shape.
        examples: the rows. Integer targets [b] are classes, integer or bool ones of the logits' shape independent labels, real
            ones numbers.

    Returns:
        Margins of the class (m = 1, nats), signed logits of each label (nats), or minus the absolute error of each number.

    Raises:
        ValueError: targets that are none of these, e.g. tokens or counts; pass a score of your own.

    Example:
        >>> from jaxunlearn.unseen import scores
        >>> scores(model, model.forward(variables, x), data.train).shape
        (60, 1)
    """
    logits, targets = outputs.logits, examples.targets
    if num_classes(model, outputs, examples) is not None:
        return margins(class_logits(logits, targets), targets)[:, None]
    shape, real = jnp.shape(targets), jnp.issubdtype(jnp.result_type(targets), jnp.floating)
    known = family(model, outputs, examples)
    refused = ("poisson", "product") if real else (*NUMBERS, "product")
    if logits.shape not in (shape, (*shape, 1)) or known in refused:
        raise ValueError(
            f"no score is known for logits {logits.shape} and targets {jnp.result_type(targets)}{list(shape)}"
            f"{'' if known is None else f' of a {known} likelihood'}: pass score=(outputs, examples) -> Float[b, m], high "
            "where a model knows the row well"
        )
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    rows = logits.reshape(logits.shape[0], -1).astype(wide)
    wanted = jnp.asarray(targets).reshape(rows.shape).astype(wide)
    return -jnp.abs(rows - wanted) if real else (2 * wanted - 1) * rows


def expected_scores(
    own: Float[Array, " k"],
    counts: Bool[Array, " k"],
    held_out: Float[Array, " h"],
    *,
    groups: tuple[Int[Array, " k"], Int[Array, " h"]] | None = None,
) -> Float[Array, " k"]:
    """The score of each row had it not been seen: the quantile of its rank among held-out scores, never above its own.

    A row of rank r among m (ties share the mean of their ranks) gets the held-out quantile of `(r + 1/2) / m`.

    Args:
        own: scores of the forget set.
        counts: its rows that count; others get any number.
        held_out: scores of held-out rows.
        groups: of both; rows are ranked within their group and get its quantiles. Groups without a held-out row get those of
            all. None is one group.

    Returns:
        Float[k].

    Example:
        >>> from jaxunlearn.unseen import expected_scores
        >>> expected_scores(jnp.array([5.0, 9.0]), jnp.array([True, True]), jnp.arange(4.0)).tolist()
        [0.5, 2.5]
    """
    named = (jnp.zeros(x.shape[0]) for x in (own, held_out)) if groups is None else groups
    of_own, of_others = (jnp.asarray(x).astype(jnp.int32) for x in named)  # labels may be of a few bits
    share = _ranks(own, jnp.where(counts, of_own, jnp.iinfo(jnp.int32).max))
    order = jnp.lexsort((held_out, of_others))
    ascending, names = held_out[order], of_others[order]
    start, end = (jnp.searchsorted(names, of_own, side=side).astype(jnp.int32) for side in ("left", "right"))
    whole = jnp.sort(held_out)
    found = jnp.where(end > start, _quantile(ascending, start, end, share), _quantile(whole, 0, whole.shape[0], share))
    return jnp.minimum(own, found)


def _quantile(ascending: Float[Array, " h"], start: Any, end: Any, share: Float[Array, " k"]) -> Float[Array, " k"]:
    """Quantiles of `ascending[start:end]`, the i-th entry standing at `(i + 1/2) / count`, linear in between."""
    last = jnp.maximum(end - start - 1, 0)
    place = jnp.clip(share * (end - start) - 0.5, 0, last)
    below = jnp.floor(place).astype(jnp.int32)
    part = place - below
    low, high = (ascending[jnp.minimum(start + x, ascending.shape[0] - 1)] for x in (below, jnp.minimum(below + 1, last)))
    return low + jnp.where(part > 0, part * (high - low), 0)


def _ranks(values: Float[Array, " k"], groups: Int[Array, " k"]) -> Float[Array, " k"]:
    """`(rank + 1/2) / size` of every value within its group; ties share their mean."""
    order = jnp.lexsort((values, groups))
    ascending, names = values[order], groups[order]
    place = jnp.arange(values.shape[0], dtype=jnp.int32)

    def bounds(new):
        first = jax.lax.cummax(jnp.where(new, place, 0))
        is_last = jnp.concatenate([new[1:], jnp.ones(1, bool)])
        return first, jax.lax.cummin(jnp.where(is_last, place, place[-1]), reverse=True)

    other_group = jnp.concatenate([jnp.ones(1, bool), names[1:] != names[:-1]])
    other_value = other_group | jnp.concatenate([jnp.ones(1, bool), ascending[1:] != ascending[:-1]])
    (group_first, group_last), (tie_first, tie_last) = bounds(other_group), bounds(other_value)
    middle = (tie_first + tie_last + 1) / 2 - group_first
    share = middle / (group_last - group_first + 1)
    return jnp.zeros_like(share).at[order].set(share).astype(values.dtype)
