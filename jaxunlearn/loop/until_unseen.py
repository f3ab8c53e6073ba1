"""Stop where the forget set looks unseen: a rule for every method with steps, since too many steps show as well as too few."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn import checks, sampling, unseen
from jaxunlearn.evaluation import map_rows
from jaxunlearn.likelihoods import num_classes
from jaxunlearn.loop.iterate import Look, Seen
from jaxunlearn.types import Examples, Model, Variables


def until_unseen(model: Model, held_out: Examples, *, chunk: int | None = None) -> Look:
    """Stop a run once the forget set is known no better than rows that training never saw, to be passed on as `stop=`.

    What is compared is the mean score of `jaxunlearn.unseen.scores`, margins for a classifier, under the model as it is at that
    step: a method that drives up the losses of unseen rows as well is stopped where it no longer tells both apart. Held-out
    rows are weighted so that their classes are as frequent as in the forget set. A class of which no row stays has no
    unseen rows to resemble; its rows are to have the margin of a guess, `-log(c - 1)`.

    It descends from the validation error that SCRUB+R rewinds to (Kurmanji, Triantafillou, Hayes, Triantafillou, NeurIPS 2023,
    arXiv 2302.09880). It reads the forget set, as every method does, and none of the rows that an audit reports.

    Args:
        model: as for `jaxunlearn.unseen.scores`.
        held_out: rows that training never saw and that no audit reports.
        chunk: rows that go through the model together; None takes all.

    Returns:
        `(variables, seen) -> Bool[]`, for `jaxunlearn.iterate`; every look costs a pass over the forget set and `held_out`.

    Raises:
        ValueError: when it is called, rows of another form than the training rows, or targets that have no score.

    Example:
        >>> stop = jaxunlearn.until_unseen(model, test)
        >>> method = jaxunlearn.gradient_difference(model, optax.sgd(0.5), alpha=0.5)
        >>> unlearn = jaxunlearn.iterate(method, num_steps=40, batch_size=8, stop=stop, look_every=2)
        >>> int(jax.jit(unlearn)(variables, data, request, key).stats["steps"]) <= 40
        True
    """
    held_out = jax.tree.map(jnp.asarray, held_out)

    def stop(variables: Variables, seen: Seen) -> jax.Array:
        checks.require_rows_like("held_out", held_out, seen.data.train)
        part = sampling.forget_rows(seen.data, seen.request)
        count: list[int | None] = []

        def known(rows: Examples) -> jax.Array:
            outputs = model.forward(variables, rows.inputs, train=False)
            count.append(num_classes(model, outputs, rows))
            return jnp.mean(unseen.scores(model, outputs, rows), axis=1)

        own, others = (map_rows(known, rows, chunk=chunk) for rows in (part.examples, held_out))
        level: Any = jnp.mean(others)
        if classes := count[0]:
            labels = held_out.targets.astype(jnp.int32)
            sums, sizes = (jnp.zeros(classes).at[labels].add(x) for x in (others, 1.0))
            by_class = jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), level)
            guess = -jnp.log(jnp.asarray(max(classes - 1, 1), own.dtype))
            gone = sampling.classes_gone(seen.data, seen.request, classes)
            level = jnp.where(gone, guess, by_class)[part.examples.targets.astype(jnp.int32)]
        return sampling.masked_mean(own - level, part.weights, empty=jnp.inf) <= 0

    stop.reads_forget_set = True  # type: ignore[attr-defined]
    return stop
