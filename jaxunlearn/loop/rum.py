"""RUM, refined unlearning by memorisation (Zhao, Kurmanji, Barbulescu, Triantafillou, Triantafillou: What makes unlearning hard
and what to do about it, NeurIPS 2024, arXiv 2406.01257).

A request is split by how much training memorised its rows; each part gets a method of its own, or none, one after the other.
What was hardly memorised is as good as forgotten, and every method that touches it costs accuracy for nothing.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxunlearn import checks, sampling, tree
from jaxunlearn.loop.preparation import preparation_of, prepared_by
from jaxunlearn.status import Status, combine
from jaxunlearn.types import Data, ForgetRequest, Result, UnlearnFn, Variables


def rum(unlearners: Sequence[UnlearnFn | None], memorisation: Float[Array, " n"]) -> UnlearnFn:
    """Unlearn the parts of a request in order of their memorisation, lowest first.

    Parts are of equal size, up to one row; three of them are the paper's low, medium and high. Rows of one part are in nobody's
    retain set.

    Args:
        unlearners: finished methods, one per part, or None, which leaves the model as it is.
        memorisation: Float[n], one score per training row, e.g. `jaxunlearn.audit.memorisation(...).estimate`: higher is
            memorised more; a row whose score is NaN counts as memorised most.

    Returns:
        An `UnlearnFn`; `stats`: those of each method, prefixed with its place, e.g. `1/loss`, and `part` Int[k], the part of
        each slot, -1 for slots that are not used. The status is the gravest of all parts. `prepare` runs what all of them want.

    Raises:
        ValueError: no part at all; when it is called, scores of another shape.
        TypeError: an `Unlearner` among the methods.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.gradient_difference(model, optax.sgd(0.1)), num_steps=5, batch_size=8)
        >>> scores = jnp.linspace(0.0, 1.0, 60)
        >>> result = jaxunlearn.rum([None, unlearn], scores)(variables, data, request, key)
        >>> result.stats["part"][:2].tolist()  # the slots in use
        [0, 1]
    """
    unlearners = list(unlearners)
    if not unlearners:
        raise ValueError("rum needs one method or None per part, e.g. rum([None, first, second], memorisation)")
    for method in unlearners:
        if method is not None:
            checks.require_unlearn_fn(method, "rum")

    def unlearn(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        checks.check_call(variables, data, request, key)
        usable = sampling.usable_slots(data, request)
        part = parts(data, request, len(unlearners), memorisation)
        size = jnp.sum(usable)
        status = combine(
            EMPTY_REQUEST=(size == 0) & ~jnp.any(request.weights > 0), INVALID_ROWS=jnp.any((request.weights > 0) & ~usable)
        )
        stats: dict[str, Array] = {"part": part}
        extra: dict = {}
        keys = jax.random.split(key, len(unlearners))
        for place, method in enumerate(unlearners):
            if method is None:
                continue
            mine = part == place
            others = jnp.where(usable & ~mine, sampling.row_numbers(request), data.present.shape[0])
            rest = data._replace(
                present=jnp.asarray(data.present).at[others].set(0, mode="drop"), extra={**data.extra, **extra}
            )
            narrowed = request._replace(weights=jnp.where(mine, request.weights, 0))
            result = method(variables, rest, narrowed, keys[place])
            idle = ~jnp.any(mine)
            variables = tree.select(idle, variables, result.variables)
            status = jnp.maximum(status, jnp.where(idle, int(Status.OK), result.status))
            stats |= {f"{place}/{name}": value for name, value in result.stats.items()}
            extra |= result.extra
        return Result(variables, status, stats, extra)

    return prepared_by(unlearn, *map(preparation_of, unlearners))


def parts(data: Data, request: ForgetRequest, count: int, scores: Float[Array, " n"]) -> Int[Array, " k"]:
    """Part of each slot by the rank of its row's score within the request; -1 for slots that are not used."""
    if jnp.shape(scores) != jnp.shape(data.present):
        raise ValueError(f"rum needs one score per training row, shape {jnp.shape(data.present)}, got {jnp.shape(scores)}")
    usable = sampling.usable_slots(data, request)
    rows = jnp.where(usable, sampling.row_numbers(request), 0)
    # Rows of equal score go by their number, so that the order of slots does not matter; NaN sorts last.
    rank = jnp.argsort(jnp.lexsort((rows, jnp.asarray(scores)[rows], ~usable)))
    return jnp.where(usable, rank * count // jnp.maximum(jnp.sum(usable), 1), -1)
