"""How every method begins and ends: the checks of a call, what an empty request gets, and the status."""

import jax
import jax.numpy as jnp

from jaxunlearn import checks, sampling, slots, status, tree
from jaxunlearn.loop.damage import strange_labels
from jaxunlearn.types import Data, ForgetRequest, OnEmpty, Result, Variables


def begin(variables: Variables, data: Data, request: ForgetRequest, key: jax.Array) -> tuple[Data, ForgetRequest]:
    """Check what is static about a call; rows, presence and request come back as JAX arrays."""
    checks.check_call(variables, data, request, key)
    slots.check_known(data.extra)
    (train, present), request = jax.tree.map(jnp.asarray, (data[:2], request))
    return data._replace(train=train, present=present), request


def finish(
    on_empty: OnEmpty,
    before: Variables,
    data: Data,
    request: ForgetRequest,
    result: Result,
    classes: int | None = None,
    may_rest: bool = False,
) -> Result:
    """The result of a method with its status, or the variables as they were where nothing was to be forgotten.

    With a number of classes, labels that are none of them are noticed, whether or not they make a loss NaN: -1 is read as the
    last class by most.
    """
    if not isinstance(result, Result):
        raise TypeError(f"a method returns Result(variables, status, stats, extra), this one returned {type(result).__name__}")
    checks.check_same(before, result.variables)
    if jnp.shape(result.status) != () or not jnp.issubdtype(jnp.result_type(result.status), jnp.integer):
        raise TypeError(f"Result.status is one integer, see status.combine; got {result.status!r}")
    used = request.weights > 0
    usable = sampling.usable_slots(data, request)
    after, told = result.variables, jnp.asarray(result.status, jnp.int32)
    idle = sampling.is_empty(request._replace(weights=usable.astype(request.weights.dtype)))
    if on_empty == "identity":
        after, told = tree.select(idle, before, after), jnp.where(idle, 0, told)  # nothing that a method found is used
    moved = tree.share_changed(before, after)
    strange = strange_labels(classes, data)
    code = status.combine(
        UNCHANGED=~idle & (moved == 0) & (not may_rest),
        EMPTY_REQUEST=sampling.is_empty(request),
        INVALID_ROWS=jnp.any(used & ~usable) | jnp.any((request.weights != 0) & (request.weights != 1)),
        INVALID_LABELS=strange,
        NOTHING_RETAINED=jnp.sum(usable) == jnp.sum(data.present > 0),
        NONFINITE=~tree.all_finite(after),
    )
    return result._replace(variables=after, status=jnp.maximum(code, told), stats={**result.stats, "moved": moved})
