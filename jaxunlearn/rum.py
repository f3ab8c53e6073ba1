"""RUM, refined unlearning by memorisation (Zhao, Kurmanji, Barbulescu, Triantafillou, Triantafillou: What makes unlearning hard
and what to do about it, NeurIPS 2024, arXiv 2406.01257).

A request is split by how much the training memorised its rows; each part gets an unlearner of its own, or none, one after the
other. What was hardly memorised is as good as forgotten, and every unlearner that touches it costs accuracy for nothing.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxunlearn import risk, tree
from jaxunlearn.status import Status, combine
from jaxunlearn.types import Data, ForgetRequest, Result, UnlearnFn, Variables

NAME = "memorisation"  # in Data.extra


def rum(unlearners: Sequence[UnlearnFn | None]) -> UnlearnFn:
    """Unlearn the parts of a request in order of their memorisation, lowest first.

    Reads `data.extra["memorisation"]`, one score a row [n], e.g. `jaxunlearn.audit.memorisation(...).estimate`, where higher is
    memorised more; a row whose score is NaN counts as memorised most. Parts are of equal size, up to one row; three of them are
    the paper's low, medium and high. No part retains rows of another one.

    Args:
        unlearners: one a part; None leaves the model as it is.

    Returns:
        An `UnlearnFn`; `stats`: those of each unlearner, prefixed with its place, and `part` Int[k], the part of each slot, -1
        for slots that are not used. The status is the gravest of all parts.

    Raises:
        ValueError: no unlearner, or scores that are missing or of another shape.

    Example:
        >>> scored = data._replace(extra={"memorisation": jnp.linspace(0, 1, 60)})
        >>> unlearn = jaxunlearn.gradient_difference(model, optax.sgd(0.1), num_steps=5, batch_size=8)
        >>> result = jaxunlearn.rum([None, unlearn])(variables, scored, request, key)
        >>> result.stats["part"][:2].tolist()  # the slots in use
        [0, 1]
    """
    unlearners = list(unlearners)
    if not unlearners:
        raise ValueError("rum needs an unlearner or None for every part, e.g. [None, finetune, gradient_difference]")

    def unlearn(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        tree.check_call(variables, data, request, key)
        usable = risk.usable_slots(data, request)
        part = parts(data, request, len(unlearners))
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
            others = jnp.where(usable & ~mine, risk.row_numbers(request), data.present.shape[0])
            rest = data._replace(present=data.present.at[others].set(0, mode="drop"), extra={**data.extra, **extra})
            narrowed = request._replace(weights=jnp.where(mine, request.weights, 0))
            result = method(variables, rest, narrowed, keys[place])
            idle = ~jnp.any(mine)
            variables = tree.select(idle, variables, result.variables)
            status = jnp.maximum(status, jnp.where(idle, int(Status.OK), result.status))
            stats |= {f"{place}/{name}": value for name, value in result.stats.items()}
            extra |= result.extra if isinstance(result.extra, dict) else {}
        return Result(variables, status, stats, extra)

    return unlearn


def parts(data: Data, request: ForgetRequest, count: int) -> Int[Array, "k"]:
    """Part of each slot by the rank of its row's memorisation within the request; -1 for slots that are not used."""
    scores: Float[Array, "n"] | None = data.extra.get(NAME)
    if scores is None or jnp.shape(scores) != jnp.shape(data.present):
        found = "nothing" if scores is None else f"shape {jnp.shape(scores)}"
        raise ValueError(f"rum needs data.extra['{NAME}'], one score a row {jnp.shape(data.present)}, got {found}")
    usable = risk.usable_slots(data, request)
    rows = jnp.where(usable, risk.row_numbers(request), 0)
    # Rows of equal score go by their number, so that the order of slots does not matter; NaN sorts last.
    rank = jnp.argsort(jnp.lexsort((rows, jnp.asarray(scores)[rows], ~usable)))
    return jnp.where(usable, rank * count // jnp.maximum(jnp.sum(usable), 1), -1)
