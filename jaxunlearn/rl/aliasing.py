"""Whether the states of a revoked environment can be told from those of others at all."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn import checks
from jaxunlearn.sampling import forget_rows, is_requested, masked_mean
from jaxunlearn.types import Data, ForgetRequest


class AliasingWarning(UserWarning):
    """Many states of a revoked environment look like states that stay."""


def aliased_share(data: Data, request: ForgetRequest) -> Float[Array, ""]:
    """Share of the forget set whose inputs equal those of a row of the retain set, number by number.

    An agent must act alike where it sees the same. What it does there cannot both be forgotten and stay, so that forgetting an
    environment is only defined up to what observations distinguish.

    Args:
        data: rows are states, see `states`.
        request: the states of the revoked environment.

    Returns:
        Float[], NaN for an empty request.

    Example:
        >>> rows = jaxunlearn.training_data(jnp.array([[0.0], [1.0], [1.0], [2.0]]), jnp.zeros(4))
        >>> revoked = jaxunlearn.merge(jaxunlearn.from_indices(rows, [[0, 1]]))
        >>> float(jaxunlearn.rl.aliased_share(rows, revoked))
        0.5
    """
    part, count = forget_rows(data, request), data.present.shape[0]
    stays = (jnp.asarray(data.present) > 0) & ~is_requested(data, request, jnp.arange(count))

    def has_twin(row):
        equal = [
            jnp.all((jnp.asarray(x) == own).reshape(count, -1), axis=1)
            for x, own in zip(jax.tree.leaves(data.train.inputs), jax.tree.leaves(row), strict=True)
        ]
        return jnp.any(stays & jnp.all(jnp.stack(equal), axis=0))

    twins = jax.lax.map(has_twin, part.examples.inputs)
    return masked_mean(twins.astype(jnp.float32), part.weights, empty=jnp.nan)


def check_aliasing(data: Data, requests: ForgetRequest, *, limit: float = 0.1) -> Float[Array, " R"]:
    """Warn of requests whose states look like states that stay; call it once before unlearning, outside of `jit`.

    Args:
        data: rows are states.
        requests: stacked.
        limit: share above which a request is named.

    Returns:
        `aliased_share` of every request, Float[R].

    Raises:
        TypeError: called on traced values.

    Example:
        >>> rows = jaxunlearn.training_data(jnp.array([[0.0], [1.0], [1.0], [2.0]]), jnp.zeros(4))
        >>> jaxunlearn.rl.check_aliasing(rows, jaxunlearn.from_indices(rows, [[0], [3]])).tolist()
        [0.0, 0.0]
    """
    if not all(map(checks.is_concrete, jax.tree.leaves((data, requests)))):
        raise TypeError("check_aliasing warns on the host: call it outside of jit and vmap, or use aliased_share")
    shares = jax.jit(lambda requests: jax.lax.map(lambda request: aliased_share(data, request), requests))(requests)
    found = np.flatnonzero(np.asarray(shares) > limit)
    if len(found):
        worst = float(np.asarray(shares)[found].max())
        warnings.warn(
            f"requests {found[:10].tolist()}: up to {worst:.0%} of their states look like states that stay. Forgetting them "
            "changes what the agent does there, or fails: give it observations that tell the environments apart",
            AliasingWarning,
            stacklevel=2,
        )
    return shares
