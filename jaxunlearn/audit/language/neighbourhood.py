"""A text and its near neighbours: tokens replaced by others whose embeddings are close, and the losses of what comes out.

The perturbation of REMIND, see `jaxunlearn.audit.language.remind`. Embeddings may be a surrogate's: the audited model is asked
for losses only.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.evaluation import map_rows
from jaxunlearn.types import Examples, Scalar

LEAST_DISTANCE = 1e-8
Losses: TypeAlias = Callable[[Examples], Float[Array, " b"]]  # mean loss of every row
# (tokens [t], a variant of them [t], which tokens may be replaced [t]) -> how far they are apart, above 0
Distance: TypeAlias = Callable[[Int[Array, " t"], Int[Array, " t"], Bool[Array, " t"]], Float[Array, ""]]


class Neighbourhood(NamedTuple):
    """Losses of n texts and of k variants of each; several models are leading axes, or a `jax.vmap`."""

    original: Float[Array, " n"]
    variants: Float[Array, "n k"]  # in the order in which they were made
    distances: Float[Array, "n k"]


def neighbour_table(
    embeddings: Float[Array, "v d"], num_neighbours: int, *, allowed: Bool[Array, " v"] | None = None, block: int = 1024
) -> Int[Array, "v j"]:
    """For every token the j nearest others by the cosine of their embeddings, nearest first.

    Args:
        embeddings: one row for every token.
        num_neighbours: j; REMIND takes 20.
        allowed: tokens that may stand in a text; special tokens and padding are no neighbours. All by default.
        block: tokens whose cosines with all others are in memory together.

    Returns:
        Numbers of tokens; ties go to the smaller number. A token that is not allowed has neighbours too.

    Raises:
        ValueError: more neighbours than there are other tokens, shapes that do not fit.

    Example:
        >>> embeddings = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> jaxunlearn.audit.language.neighbour_table(embeddings, 1).tolist()
        [[1], [0], [1]]
    """
    embeddings = jnp.asarray(embeddings)
    checks.require_count("num_neighbours", num_neighbours)
    checks.require_count("block", block)
    tokens = embeddings.shape[0]
    counts = jnp.ones(tokens, bool) if allowed is None else jnp.asarray(allowed, bool)
    if embeddings.ndim != 2 or counts.shape != (tokens,):
        raise ValueError(f"neighbour_table: expected embeddings [v, d] and allowed [v], got {embeddings.shape}, {counts.shape}")
    most = tokens - 1 if not checks.is_concrete(counts) or allowed is None else int(np.sum(np.asarray(counts))) - 1
    if num_neighbours > most:
        raise ValueError(f"neighbour_table: {num_neighbours} neighbours of {most + 1} tokens; ask for at most {most}")
    known = _directions(embeddings)

    def nearest(rows: Int[Array, " b"]) -> Int[Array, "b j"]:
        cosines = jnp.dot(known[rows], known.T)
        others = counts & (rows[:, None] != jnp.arange(tokens))
        return jax.lax.top_k(jnp.where(others, cosines, -jnp.inf), num_neighbours)[1]

    return map_rows(nearest, jnp.arange(tokens), chunk=block)


def embedding_distance(embeddings: Float[Array, "v d"]) -> Distance:
    """Mean over the tokens that may be replaced of `1 - cos(E[token], E[its replacement])`, plus 1e-8.

    This library's choice, which needs no further model. REMIND measures the distance by a text encoder of its own.

    Args:
        embeddings: one row for every token.

    Returns:
        A `distance` for `neighbourhood`.

    Example:
        >>> distance = jaxunlearn.audit.language.embedding_distance(jnp.eye(3))
        >>> float(distance(jnp.array([0, 1]), jnp.array([0, 2]), jnp.array([True, True])))
        0.5
    """
    known = _directions(jnp.asarray(embeddings))

    def distance(tokens: Int[Array, " t"], variant: Int[Array, " t"], may_change: Bool[Array, " t"]) -> Float[Array, ""]:
        apart = 1 - jnp.sum(known[tokens] * known[variant], axis=-1)
        apart = jnp.where(may_change & (tokens != variant), jnp.maximum(apart, 0), 0)
        return jnp.sum(apart) / jnp.maximum(jnp.sum(may_change), 1) + LEAST_DISTANCE

    return distance


def perturb(
    tokens: Int[Array, " t"], may_change: Bool[Array, " t"], table: Int[Array, "v j"], key: PRNGKeyArray, *, rate: Scalar = 0.3
) -> Int[Array, " t"]:
    """Every token that may be replaced becomes, with probability `rate`, one of its j neighbours.

    Args:
        tokens: of one text.
        may_change: True at tokens that may be replaced: the question, or all of a raw text; not at answers, padding and
            special tokens.
        table: from `neighbour_table`.
        key: one typed key. What stands behind a text changes no draw.
        rate: in [0, 1], may be traced.

    Returns:
        Tokens of the same shape.

    Raises:
        ValueError: shapes that do not fit, a rate outside [0, 1].

    Example:
        >>> table = jaxunlearn.audit.language.neighbour_table(jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 1)
        >>> jaxunlearn.audit.language.perturb(jnp.array([0, 2]), jnp.array([True, False]), table, key, rate=1).tolist()
        [1, 2]
    """
    checks.check_range("rate", rate, low=0, high=1)
    if tokens.ndim != 1 or jnp.shape(may_change) != tokens.shape or table.ndim != 2:
        raise ValueError(
            f"perturb: expected tokens and may_change [t] and a table [v, j], got {tokens.shape}, {jnp.shape(may_change)}, "
            f"{table.shape}"
        )
    where, which = jax.random.uniform(key, (tokens.size, 2)).T
    neighbour = jnp.minimum(which * table.shape[1], table.shape[1] - 1).astype(jnp.int32)
    inside = jnp.where(may_change, tokens, 0)
    return jnp.where(may_change & (where < rate), table[inside, neighbour].astype(tokens.dtype), tokens)


def neighbourhood(
    losses: Losses,
    examples: Examples,
    may_change: Bool[Array, "n t"],
    table: Int[Array, "v j"],
    key: PRNGKeyArray,
    *,
    distance: Distance,
    num_variants: int = 15,
    rate: Scalar = 0.3,
    chunk: int | None = None,
) -> Neighbourhood:
    """Losses of texts and of random variants of them; a label that is a replaced token is replaced with it.

    The draws depend on key and row alone, so several models see the same variants.

    Args:
        losses: `Examples -> [b]`, mean loss of every row, e.g. `lambda part: -mean_log_probability(...)`.
        examples: inputs and targets Int[n, t], see `jaxunlearn.audit.language`.
        may_change: which tokens of the inputs may be replaced, see `perturb`.
        table: from `neighbour_table`.
        key: one typed key.
        distance: see `embedding_distance`.
        num_variants: k.
        rate: see `perturb`.
        chunk: texts that go through the model together, each with its k variants; `None` takes all.

    Returns:
        `Neighbourhood`.

    Raises:
        ValueError: shapes that do not fit, counts that are too small.

    Example:
        >>> embeddings, tokens = jnp.eye(4) + 0.1, jnp.array([[0, 1, 2]])
        >>> table = jaxunlearn.audit.language.neighbour_table(embeddings, 2)
        >>> found = jaxunlearn.audit.language.neighbourhood(
        ...     lambda part: jnp.mean(part.inputs, axis=1), jaxunlearn.Examples(tokens, tokens), tokens >= 0, table, key,
        ...     distance=jaxunlearn.audit.language.embedding_distance(embeddings), num_variants=5)
        >>> found.variants.shape
        (1, 5)
    """
    checks.require_count("num_variants", num_variants)
    checks.check_key(key)
    tokens, labels = jnp.asarray(examples.inputs), jnp.asarray(examples.targets)
    may_change = jnp.asarray(may_change, bool)
    if tokens.ndim != 2 or labels.shape != tokens.shape or may_change.shape != tokens.shape:
        raise ValueError(
            f"neighbourhood: expected tokens, labels and may_change [n, t], got {tokens.shape}, {labels.shape}, "
            f"{may_change.shape}"
        )

    def variants(row: Int[Array, ""], tokens: Array, labels: Array, may: Array) -> tuple[Examples, Float[Array, " k"]]:
        keys = jax.random.split(jax.random.fold_in(key, row), num_variants)
        made = jax.vmap(lambda key: perturb(tokens, may, table, key, rate=rate))(keys)
        read_next = (labels >= 0) & (labels == jnp.roll(tokens, -1)) & (jnp.arange(labels.size) < labels.size - 1)
        moved = jnp.where(read_next, jnp.roll(made, -1, axis=1), labels)
        return Examples(made, moved), jax.vmap(lambda one: distance(tokens, one, may))(made)

    def of(part: tuple) -> Neighbourhood:
        row, tokens, labels, may = part
        made, distances = jax.vmap(variants)(row, tokens, labels, may)
        flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), made)
        return Neighbourhood(losses(Examples(tokens, labels)), losses(flat).reshape(distances.shape), distances)

    return map_rows(of, (jnp.arange(len(tokens)), tokens, labels, may_change), chunk=chunk)


def _directions(z: Float[Array, "v d"]) -> Float[Array, "v d"]:
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), jnp.finfo(z.dtype).tiny)
