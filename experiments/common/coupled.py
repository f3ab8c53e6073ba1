"""Batches of a training that is repeated without some rows: the same ones, but for those rows.

Two trainings from one key that draw rows anew differ by the luck of their batches, and that is more than what a few rows move.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from jaxunlearn import sampling
from jaxunlearn.sampling import Split
from jaxunlearn.types import Batch, BatchSizes


def coupled(split: Split, context: Any, step: Int[Array, ""], key: PRNGKeyArray, sizes: BatchSizes) -> Batch:
    """Draw from all present rows, and where a row is to be forgotten draw another one from the retain set.

    So every row of the retain set is as likely as in `jaxunlearn.uniform`, the forgotten ones are never drawn, and with an
    empty request or without, most draws of a key are the same rows.

    Args:
        split, context, step, key, sizes: see `jaxunlearn.uniform`.

    Returns:
        A `Batch`.
    """
    batch = sampling.uniform(split, context, step, jax.random.fold_in(key, 1), sizes)
    count = jnp.maximum(split.present_before[-1], 1).astype(jnp.uint32)
    places = jax.lax.rem(jax.random.bits(key, (sizes.retain,), jnp.uint32), count).astype(jnp.int32)
    rows = sampling.up_to(split.present_before, places)
    rows = jnp.where(sampling.is_requested(split.data, split.request, rows), batch.retain.slots, rows)
    examples = jax.tree.map(lambda x: jnp.asarray(x)[rows], split.data.train)
    return batch._replace(retain=batch.retain._replace(examples=sampling.fill(examples, batch.retain.weights), slots=rows))
