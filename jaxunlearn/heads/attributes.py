"""Attributes of rows, which a request may ask to forget: their values, how often they occur, their entropy."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn import sampling
from jaxunlearn.slots import ATTRIBUTES
from jaxunlearn.types import Data, ForgetRequest


def attributes_of(data: Data, request: ForgetRequest) -> tuple[Int[Array, "n A"], Bool[Array, " A"]]:
    """Attribute values of all rows and which attributes a request asks for; ValueError or TypeError if one is missing."""
    values, asked = jnp.asarray(ATTRIBUTES.get(data)), request.target
    num_rows = data.present.shape[0]
    if not jnp.issubdtype(values.dtype, jnp.integer) or values.ndim != 2 or values.shape[0] != num_rows:
        raise ValueError(f"data.extra['attributes'] must be integers [{num_rows}, A], got {values.dtype}{list(values.shape)}")
    width = values.shape[1]
    if not (hasattr(asked, "dtype") and asked.dtype == bool and jnp.shape(asked) == (width,)):
        got = f"{asked.dtype}{list(jnp.shape(asked))}" if hasattr(asked, "dtype") else repr(asked)
        raise ValueError(
            f"attribute_unlearning needs a request whose target says which of the {width} attributes to forget, Bool[{width}], "
            f"got {got}: make it with from_attributes"
        )
    return values, jnp.asarray(asked)


def frequencies(data: Data, request: ForgetRequest, values: Int[Array, "n A"], num_values: int) -> Float[Array, "A V"]:
    """How often each value occurs among the rows that are used; what depends on the data alone is counted once for a batch."""

    def count(values: Int[Array, "m A"], weights: Float[Array, " m"]) -> Float[Array, "A V"]:
        known = (values >= 0) & (values < num_values)
        columns = jnp.arange(values.shape[1])
        counts = jnp.where(known, weights[:, None], 0)
        return jnp.zeros((values.shape[1], num_values)).at[columns, jnp.where(known, values, 0)].add(counts)

    usable = sampling.usable_slots(data, request)
    named = values[jnp.where(usable, sampling.row_numbers(request), 0)]
    return count(values, (data.present > 0).astype(jnp.float32)) - count(named, usable.astype(jnp.float32))


def entropy_of(counts: Float[Array, "A V"]) -> Float[Array, " A"]:
    """Entropy of each row of counts, in nats; 0 where nothing was counted."""
    shares = counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1)
    return -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1)), 0), axis=-1)
