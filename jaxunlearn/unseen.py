"""What a model would say of rows that it never saw, read from held-out rows.

A score says how well a model knows a row: the margin of its label, or minus the error of a number. Rows of the forget set that
were drawn like the held-out ones would, had training not seen them, have scores of the held-out rows' law. Which row has
which of them is unknown; the order of the scores at hand is kept, so that the hardest row stays the hardest one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn import checks
from jaxunlearn.evaluation import class_logits
from jaxunlearn.likelihoods import NUMBERS, family, num_classes
from jaxunlearn.margin import margins
from jaxunlearn.types import Examples, Model, Outputs


def scores(model: Model, outputs: Outputs, examples: Examples) -> Float[Array, "b m"]:
    """How well a model knows each row.

    Args:
        model: its likelihood, or its loss, tells classes and labels from counts.
        outputs: of the rows; logits [b, c] or [b] of a classifier, else of the targets' shape.
        examples: the rows. Integer targets [b] are classes, integer or bool ones of the logits' shape independent labels, and
            so are real ones where the loss is that of a Bernoulli law; other real ones are numbers.

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
    shape, real = jnp.shape(targets), is_real(targets)
    known = family(model, outputs, examples)
    refused = ("poisson", "product") if real else (*NUMBERS, "product")
    labels = real and known is None and checks.is_concrete(targets) and set(np.unique(np.asarray(targets))) == {0, 1}
    if logits.shape not in (shape, (*shape, 1)) or known in refused or labels:
        raise ValueError(
            f"no score is known for logits {logits.shape} and targets {jnp.result_type(targets)}{list(shape)}"
            f"{'' if known is None else f' of a {known} likelihood'}{', all of them 0 or 1' if labels else ''}: pass "
            "score=(outputs, examples) -> Float[b, m], high where a model knows the row well"
        )
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    rows = logits.reshape(logits.shape[0], -1).astype(wide)
    wanted = jnp.asarray(targets).reshape(rows.shape).astype(wide)
    return -jnp.abs(rows - wanted) if real and known != "bernoulli" else (2 * wanted - 1) * rows


def is_real(targets: Any) -> bool:
    """Whether targets are one array of real numbers."""
    return hasattr(targets, "dtype") and jnp.issubdtype(targets.dtype, jnp.floating)


def expected_scores(
    own: Float[Array, " k"],
    trained: Float[Array, " t"],
    counts: Bool[Array, " t"],
    held_out: Float[Array, " h"],
    *,
    groups: tuple[Int[Array, " k"], Int[Array, " t"], Int[Array, " h"]] | None = None,
) -> Float[Array, " k"]:
    """The score of each row had it not been seen: its place among trained rows, found again among held-out ones.

    The i-th of n trained scores stands at `(i + 1/2) / n`, others in between; a score that stands at `s` gets the quantile
    `s` of the held-out scores, and never more than its own.

    Args:
        own: scores of the forget set.
        trained: scores of rows that the model was trained on, forgotten ones among them.
        counts: those of them that count; at least one.
        held_out: scores of rows that it was not trained on.
        groups: of all three; rows are placed within their group. Groups without a trained or a held-out row take all rows.

    Returns:
        Float[k].

    Example:
        >>> from jaxunlearn.unseen import expected_scores
        >>> expected_scores(jnp.array([5.0, 9.0]), jnp.array([5.0, 9.0]), jnp.ones(2, bool), jnp.arange(4.0)).tolist()
        [0.5, 2.5]
    """
    named = (jnp.zeros(x.shape[0]) for x in (own, trained, held_out)) if groups is None else groups
    of_own, of_trained, of_others = (jnp.asarray(x).astype(jnp.int32) for x in named)  # labels may be of a few bits
    share, known = _places(own, trained, counts, of_own, of_trained)
    order = jnp.lexsort((held_out, of_others))
    start, end = (jnp.searchsorted(of_others[order], of_own, side=side).astype(jnp.int32) for side in ("left", "right"))
    within = _quantile(held_out[order], start, end, share)
    if groups is not None:
        share, _ = _places(own, trained, counts, jnp.zeros_like(of_own), jnp.zeros_like(of_trained))
        within = jnp.where(known & (end > start), within, _quantile(jnp.sort(held_out), 0, held_out.shape[0], share))
    return jnp.minimum(own, within)


def matched_scores(
    own: Float[Array, " k"], counts: Bool[Array, " k"], others: Float[Array, " h"], there: Bool[Array, " h"]
) -> Float[Array, " k"]:
    """The score among others that each row's rank among its own corresponds to; differentiable in `others`.

    A row of rank r among m gets the quantile `(r + 1/2) / m`, so that the mean squared difference is the squared
    2-Wasserstein distance between both sets of scores.

    Args:
        own, counts: scores of one set, and which of them count; the rest gets any number.
        others, there: of the other set, which must not be empty.

    Returns:
        Float[k].

    Example:
        >>> from jaxunlearn.unseen import matched_scores
        >>> others, there = jnp.array([1.0, 3.0, 0.0]), jnp.array([True, True, False])
        >>> matched_scores(jnp.array([9.0, 5.0]), jnp.ones(2, bool), others, there).tolist()
        [3.0, 1.0]
    """
    place = jnp.argsort(jnp.argsort(jnp.where(counts, jax.lax.stop_gradient(own), jnp.inf)))
    share = (place + 0.5) / jnp.maximum(jnp.sum(counts), 1)
    order = jnp.argsort(jnp.where(there, jax.lax.stop_gradient(others), jnp.inf))
    return _quantile(others[order], 0, jnp.maximum(jnp.sum(there), 1), share)


def _quantile(ascending: Float[Array, " h"], start: Any, end: Any, share: Float[Array, " k"]) -> Float[Array, " k"]:
    """Quantiles of `ascending[start:end]`, the i-th entry standing at `(i + 1/2) / count`, linear in between."""
    last = jnp.maximum(end - start - 1, 0)
    place = jnp.clip(share * (end - start) - 0.5, 0, last)
    below = jnp.floor(place).astype(jnp.int32)
    part = (place - below).astype(ascending.dtype)
    low, high = (ascending[jnp.minimum(start + x, ascending.shape[0] - 1)] for x in (below, jnp.minimum(below + 1, last)))
    return low + jnp.where(part > 0, part * (high - low), 0)


def _places(
    own: Float[Array, " k"], trained: Float[Array, " t"], counts: Bool[Array, " t"], of_own: Any, of_trained: Any
) -> tuple[Float[Array, " k"], Bool[Array, " k"]]:
    """Where each score stands among those of its group, the i-th of n at `(i + 1/2) / n` and linear in between, and whether it
    has a group. Without steps, since a row's own copy among the trained ones was computed in another batch."""
    everywhere = jnp.iinfo(jnp.int32).max  # rows that do not count stand behind all groups
    names, values = jnp.where(counts, of_trained, everywhere), jnp.where(counts, trained, 0)
    order = jnp.lexsort((values, names))
    names, values = names[order], values[order]
    start, end = (jnp.searchsorted(names, of_own, side=side).astype(jnp.int32) for side in ("left", "right"))
    rank = jnp.searchsorted(jnp.sort(values), values).astype(jnp.int32)  # as whole numbers scores can stand behind their group
    width = values.shape[0] + 1

    def standing(side: str) -> Float[Array, " k"]:
        place = jnp.searchsorted(jnp.sort(values), own, side=side).astype(jnp.int32)
        keys = jnp.where(names == everywhere, everywhere, names * width + rank)
        above = jnp.clip(jnp.searchsorted(keys, of_own * width + place).astype(jnp.int32), start, end)
        low, high = jnp.clip(above - 1, start, end - 1), jnp.clip(above, start, end - 1)
        gap = values[high] - values[low]
        part = jnp.where((gap > 0) & jnp.isfinite(gap), (own - values[low]) / jnp.where(gap > 0, gap, 1), 0)
        return low - start + 0.5 + jnp.clip(part, 0, 1) * (high - low)

    share = (standing("left") + standing("right")) / 2 / jnp.maximum(end - start, 1)
    return share, end > start
