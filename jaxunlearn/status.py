"""Value-level outcomes: what cannot be raised inside a traced program is returned as a code per request."""

from collections.abc import Collection
from enum import IntEnum

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from jaxunlearn.types import Result


class Status(IntEnum):
    """Outcome of one request. When several apply, the largest is reported."""

    OK = 0
    EMPTY_REQUEST = 1
    INVALID_ROWS = 2
    UNCHANGED = 3
    NOTHING_RETAINED = 4
    NOT_CONVERGED = 5
    INDEFINITE = 6
    STALE = 7
    DAMAGED = 8
    INVALID_LABELS = 9
    NONFINITE = 10


MESSAGES: dict[Status, str] = {
    Status.OK: "ok",
    Status.EMPTY_REQUEST: "the request holds no row and no target, so there was nothing to forget",
    Status.INVALID_ROWS: "some requested rows are out of range, duplicated or no longer present, and were left out; or "
    "weights of the request are neither 0 nor 1: what is above 0 counts as 1",
    Status.UNCHANGED: "not one weight changed: the step is below the rounding of their dtype, trained weights lie behind "
    "stop_gradient, or the method selected none; raise the learning rate, or keep the weights in float32",
    Status.NOTHING_RETAINED: "the request removes every present row, so there was nothing to train on",
    Status.NOT_CONVERGED: "the solver stopped before it reached its tolerance",
    Status.INDEFINITE: "the damped matrix that was solved with is not positive, so the step may point anywhere: raise the "
    "damping, or take a Gauss-Newton or Fisher matrix instead of the Hessian",
    Status.STALE: "what was prepared in data.extra belongs to other weights or other rows, and so does the result; run "
    "jaxunlearn.prepare(unlearn)(variables, data, key) on the variables that you unlearn from",
    Status.DAMAGED: "the model is damaged: the loss of retained rows (stats['retain_loss_after']) is above that of guessing "
    "and twice what it was before; lower the learning rate or the weight of the forget loss, or take fewer steps; if the "
    "model has BatchNorm, leave bn= at 'retain'",
    Status.INVALID_LABELS: "some present rows have labels that the model has no logit for, such as -1: number "
    "the classes from 0, and give one logit only to labels 0 and 1",
    Status.NONFINITE: "the new weights or the loss of retained rows are NaN or inf; lower the learning rate or the weight of "
    "the forget loss",
}


def combine(**conditions: jax.Array) -> Int[Array, ""]:
    """Largest code whose condition holds, e.g. `combine(EMPTY_REQUEST=is_empty, NONFINITE=is_bad)`."""
    codes = [jnp.where(condition, int(Status[name]), int(Status.OK)) for name, condition in conditions.items()]
    return jnp.max(jnp.stack(codes)).astype(jnp.int32)


class UnlearningError(RuntimeError):
    """At least one request did not end with an accepted status."""


def check(result: Result, *, allow: Collection[Status] = ()) -> Result:
    """Raise if a request failed; host only.

    Args:
        result: a `Result`, of one request or of many (any leading axes).
        allow: codes accepted besides `Status.OK`, e.g. `[Status.EMPTY_REQUEST]`.

    Returns:
        The same result, so that calls can be chained.

    Raises:
        UnlearningError: names the failing requests and what to do.
        TypeError: inside `jit` or `vmap`, where values are not known.

    Example:
        >>> result = jaxunlearn.output_perturbation(model, sigma=0.1)(variables, data, jaxunlearn.empty_request(), key)
        >>> jaxunlearn.check(result, allow=[jaxunlearn.Status.EMPTY_REQUEST]) is result
        True
    """
    if isinstance(result.status, Tracer):
        raise TypeError("check() reads values, so call it outside jit and vmap, on the returned Result")
    codes = np.atleast_1d(np.asarray(result.status))
    accepted = {int(Status.OK), *map(int, allow)}
    lines = []
    for code in np.unique(codes):
        if int(code) not in accepted:
            lanes = [tuple(map(int, lane)) if codes.ndim > 1 else int(lane[0]) for lane in np.argwhere(codes == code)]
            shown = ", ".join(map(str, lanes[:8])) + (f" and {len(lanes) - 8} more" if len(lanes) > 8 else "")
            lines.append(f"request {shown}: {Status(int(code)).name}: {MESSAGES[Status(int(code))]}")
    if lines:
        raise UnlearningError("\n".join(lines))
    return result
