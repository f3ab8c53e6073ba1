"""What the models of all shards predict together."""

from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn import checks
from jaxunlearn.sisa.training import Shards
from jaxunlearn.types import Model, Outputs, Variables

By: TypeAlias = Literal["votes", "probabilities", "outputs"]
Weights: TypeAlias = Literal["equal", "rows"] | Float[Array, " S"]


def ensemble(model: Model, *, by: By = "votes", weights: Any = "equal") -> Model:
    """The models of all shards as one `Model`, for audits and predictions.

    Args:
        model: of one shard.
        by: "votes": each shard gives one to its likeliest class (the lowest of several), as in the paper. "probabilities": the
            mean of softmax probabilities, better for many classes. "outputs": the mean of logits, for real targets.
        weights: of shards: "equal", "rows" (by how many each has left), or numbers Float[S] of at least 0, e.g. 0 for shards
            that shall not count. A shard that lost all its rows counts for nothing.

    Returns:
        A `Model` of the variables of `sisa.fit`, with the loss of the one given. Its logits are logarithms of shares of votes
        or of mean probabilities, [b, ..., c], or mean outputs. A share of 0 counts as the smallest float.

    Raises:
        ValueError: an unknown rule, weights below 0 or not finite; at trace time, votes or probabilities of a model without
            classes, variables that `fit` did not make, weights of another number of shards, a pass in training mode.

    Example:
        >>> trainer = jaxunlearn.sisa.trainer(model, optax.sgd(0.1), epochs=4, batch_size=8)
        >>> partition = jaxunlearn.sisa.random_partition(data, key, shards=4, slices=2)
        >>> fitted = jaxunlearn.sisa.fit(trainer, data, partition, key)
        >>> jaxunlearn.sisa.ensemble(model).forward(fitted, x).logits.shape
        (60, 3)
    """
    if by not in get_args(By):
        raise ValueError(f"by must be one of {', '.join(get_args(By))}, got {by!r}")
    if isinstance(weights, str) and weights not in ("equal", "rows"):
        raise ValueError(f"weights must be 'equal', 'rows' or one number for each shard, got {weights!r}")
    if not isinstance(weights, str):
        checks.check_range("weights", weights, low=0, high=float(np.finfo(np.float32).max))

    def forward(variables: Variables, inputs: Any, *, train: bool = False, key: Any = None) -> Outputs:
        if train:
            raise ValueError("shards are trained by jaxunlearn.sisa.fit; the ensemble has no training mode")
        if not isinstance(variables.state, Shards):
            raise ValueError("an ensemble reads what jaxunlearn.sisa.fit returned: Variables(params, Shards)")
        shares = _shares(variables.state, weights)
        own = Variables(variables.params, variables.state.state)
        logits = jax.vmap(lambda one: model.forward(one, inputs, train=False).logits)(own)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return Outputs(_together(logits, shares.astype(logits.dtype), by), {}, variables.state)

    return Model(forward, model.loss)


def _shares(shards: Shards, weights: Any) -> Float[Array, " S"]:
    """Weights of shards that add up to 1; equal ones where no shard counts."""
    left = shards.partition.left
    if isinstance(weights, str):
        given = jnp.ones(left.shape) if weights == "equal" else left.astype(jnp.float32)
    elif jnp.shape(weights) == left.shape:
        given = jnp.asarray(weights)
    else:
        raise ValueError(f"weights must hold one number for each of the {left.shape[0]} shards, got {jnp.shape(weights)}")
    given = jnp.where(left > 0, given, 0)
    total = jnp.sum(given)
    return jnp.where(total > 0, given / jnp.where(total > 0, total, 1), 1 / left.shape[0])


def _together(logits: Float[Array, "S b ..."], shares: Float[Array, " S"], by: By) -> Array:
    if by == "outputs":
        return jnp.tensordot(shares, jnp.where(_like(shares, logits) > 0, logits, 0), axes=1, precision="highest")
    if logits.ndim < 3 or logits.shape[-1] < 2:
        raise ValueError(
            f"{by} need logits of at least two classes, got shape {logits.shape[1:]}: use by='outputs' for real targets, and "
            "for one logit z of two classes let forward return jnp.stack([jnp.zeros_like(z), z], axis=1)"
        )
    if by == "votes":
        given = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
    else:
        given = jax.nn.softmax(logits, axis=-1)
    given = jnp.sum(jnp.where(_like(shares, logits) > 0, given * _like(shares, logits), 0), axis=0)
    return jnp.log(jnp.maximum(given, jnp.finfo(logits.dtype).tiny))


def _like(shares: Float[Array, " S"], logits: Array) -> Array:
    return shares.reshape(-1, *[1] * (logits.ndim - 1))
