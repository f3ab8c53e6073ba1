"""Which rows the steps of a method read, where they are of two kinds in turns or use a batch of the forget set again."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from jaxunlearn import sampling
from jaxunlearn.types import Batch, BatchSizes, Sampler, Scalar, Split


def forgets(batch: Batch, *, forget_steps: Scalar, retain_steps: Scalar, rounds: Scalar) -> Bool[Array, ""]:
    """Whether a step forgets: a round is `forget_steps` of this kind, then `retain_steps` of the other.

    It depends on the step only, so `lax.cond` on it stays a branch under `vmap` and the phase that is not run costs nothing.

    Args:
        batch: of the step.
        forget_steps, retain_steps: length of the two phases of a round, in steps.
        rounds: how many rounds there are; later steps are of the second kind.

    Returns:
        Bool[].

    Example:
        >>> from jaxunlearn.loop.phases import forgets
        >>> part = jaxunlearn.forget_rows(data, request)
        >>> steps = [jaxunlearn.Batch(part, part, step, 8) for step in range(8)]
        >>> [int(forgets(batch, forget_steps=1, retain_steps=2, rounds=2)) for batch in steps]
        [1, 0, 0, 1, 0, 0, 0, 0]
    """
    finished, position = jnp.divmod(batch.step, forget_steps + retain_steps)
    return (finished < rounds) & (position < forget_steps)


def in_turns(*, forget_steps: Scalar, retain_steps: Scalar, rounds: Scalar | None = None) -> Sampler:
    """A sampler whose passes over the forget set go on from one forget step to the next; in other steps no such row counts.

    `jaxunlearn.uniform` counts all steps. Where only some of them forget, parts of the forget set would never be read once
    batch size, number of rows and length of a round share factors.

    Args:
        forget_steps, retain_steps: length of the two phases of a round, in steps.
        rounds: how many rounds there are; None is no end.

    Returns:
        A sampler for `Unlearner.sample`.

    Example:
        >>> from jaxunlearn.loop.phases import in_turns
        >>> method = jaxunlearn.scrub(model, optax.sgd(0.1))._replace(sample=in_turns(forget_steps=1, retain_steps=1))
    """

    def sample(split: Split, context: Any, step: jax.Array, key: PRNGKeyArray, sizes: BatchSizes) -> Batch:
        finished, position = jnp.divmod(step, forget_steps + retain_steps)
        visit = finished * forget_steps + jnp.minimum(position, forget_steps)
        forget = sampling.draw_forget(split, jnp.asarray(visit, jnp.int32), sizes.forget)
        reads = (position < forget_steps) & (True if rounds is None else finished < rounds)
        return Batch(forget._replace(weights=forget.weights * reads), sampling.draw_retain(split, key, sizes.retain))

    return sample


def repeated(*, times: Scalar) -> Sampler:
    """A sampler that shows every batch of the forget set in some consecutive steps, with fresh rows of the retain set each.

    Args:
        times: how many steps, at least 1; may be traced.

    Returns:
        A sampler for `Unlearner.sample`.

    Example:
        >>> from jaxunlearn.loop.phases import repeated
        >>> method = jaxunlearn.npo(model, optax.sgd(0.1))._replace(sample=repeated(times=4))
    """

    def sample(split: Split, context: Any, step: jax.Array, key: PRNGKeyArray, sizes: BatchSizes) -> Batch:
        return Batch(sampling.draw_forget(split, step // times, sizes.forget), sampling.draw_retain(split, key, sizes.retain))

    return sample
