"""Attacks that never ask a model about the removed row: rows like it, and its class, move too.

Lists of attacks on unlearning name a class-neighbour attack and label recovery; the rules here are of this library.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn import checks
from jaxunlearn.audit.updates.difference import update_features


def class_changes(
    before: Float[Array, "n c"], after: Float[Array, "n c"], targets: Int[Array, " n"], num_classes: int
) -> Float[Array, " c"]:
    """How far posteriors moved, per class of public rows: the label of what was removed is read off its largest entry.

    Args:
        before, after: logits of both models for n rows that the attacker has.
        targets: their classes.
        num_classes: c, or fewer.

    Returns:
        Mean Euclidean distance of the posteriors for every class; -inf for one without a row, so that `argmax` works.

    Raises:
        ValueError: logits of different shapes.

    Example:
        >>> logits = jnp.zeros((2, 2))
        >>> jaxunlearn.audit.class_changes(logits, logits.at[1, 0].set(3.0), jnp.array([0, 1]), 2).argmax().item()
        1
    """
    moved = update_features(before, after, "distance")[:, 0]
    member = jnp.asarray(targets)[:, None] == jnp.arange(num_classes)
    count = jnp.sum(member, axis=0)
    mean = jnp.sum(jnp.where(member, moved[:, None], 0), axis=0) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, -jnp.inf)


def neighbour_changes(
    before: Float[Array, "n c"],
    after: Float[Array, "n c"],
    public: Float[Array, "n d"],
    candidates: Float[Array, "k d"],
    *,
    neighbours: int = 5,
    targets: Int[Array, " n"] | None = None,
    candidate_targets: Int[Array, " k"] | None = None,
) -> Float[Array, " k"]:
    """How far posteriors moved at the public rows nearest to every candidate; higher where the candidate was removed.

    Args:
        before, after: logits of both models for the public rows.
        public: inputs or features of n rows that the attacker has; no candidate may be among them.
        candidates: the same of k rows that may have been removed.
        neighbours: how many of the nearest are averaged.
        targets, candidate_targets: classes; where both are given only rows of the candidate's class are neighbours, as many as
            there are.

    Returns:
        Mean Euclidean distance of the posteriors; NaN where a candidate has no neighbour.

    Raises:
        ValueError: a number of neighbours that is not from 1 to n, classes of one side only.

    Example:
        >>> logits, public = jnp.zeros((3, 2)), jnp.array([[0.0], [1.0], [5.0]])
        >>> moved = logits.at[2, 0].set(3.0)
        >>> scores = jaxunlearn.audit.neighbour_changes(logits, moved, public, jnp.array([[0.2], [4.0]]), neighbours=1)
        >>> bool(scores[1] > scores[0])
        True
    """
    checks.require_count("neighbours", neighbours)
    if neighbours > public.shape[0]:
        raise ValueError(f"neighbour_changes: {neighbours} neighbours of {public.shape[0]} public rows")
    if (targets is None) != (candidate_targets is None):
        raise ValueError("neighbour_changes: give the classes of public rows and of candidates, or neither")
    moved = update_features(before, after, "distance")[:, 0]

    def of(row: Array, label: Array) -> Array:
        far = jnp.sum((public - row) ** 2, axis=1)
        if targets is not None:
            far = jnp.where(targets == label, far, jnp.inf)
        nearest, places = jax.lax.top_k(-far, neighbours)
        there = nearest > -jnp.inf
        mean = jnp.sum(jnp.where(there, moved[places], 0)) / jnp.maximum(jnp.sum(there), 1)
        return jnp.where(jnp.any(there), mean, jnp.nan)

    labels = jnp.zeros(candidates.shape[0], jnp.int32) if candidate_targets is None else candidate_targets
    return jax.lax.map(lambda one: of(*one), (candidates, labels))
