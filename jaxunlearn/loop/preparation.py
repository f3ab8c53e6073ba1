"""What a method wants to have computed once for all requests."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
from jaxtyping import PRNGKeyArray

from jaxunlearn.types import Data, ForgetRequest, Prepare, Result, Unlearner, UnlearnFn, Variables

F = TypeVar("F", bound=Callable)


def prepared_by(unlearn: F, *preparations: Prepare | None) -> F:
    """The same function, which `prepare` will find the preparations of."""

    @wraps(unlearn)
    def method(variables, data, request, key):
        return unlearn(variables, data, request, key)

    found = [step for step in preparations if step is not None]
    method.prepare = _in_turn(found) if found else None  # type: ignore[attr-defined]
    return method  # type: ignore[return-value]


def preparation_of(method: Any) -> Prepare | None:
    """What `prepare` would run, None if the method needs nothing."""
    return getattr(method, "prepare", None)


def prepared_in_place(unlearn: UnlearnFn) -> UnlearnFn:
    """The method with what it reads prepared anew at the very weights that it unlearns from, in every call."""
    step = preparation_of(unlearn)
    if step is None:
        return unlearn

    def prepared(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        prepare_key, unlearn_key = jax.random.split(key)
        return unlearn(variables, step(variables, data, prepare_key), request, unlearn_key)

    return prepared


def prepare(method: UnlearnFn | Unlearner) -> Prepare:
    """What a method reads in `Data.extra`, computed once for all requests.

    The settings come from the method itself, so that what is prepared cannot differ from what is read. A method that needs
    nothing gives the data back, so that one line serves all of them.

    Args:
        method: any method of this library, finished or an `Unlearner`, or a composition of some.

    Returns:
        `(variables, data, key) -> Data`, which may be jitted. `variables` are the ones that will be unlearned from.

    Raises:
        TypeError: not a method: a factory, or what `batched` and `streamed` make of one.

    Example:
        >>> unlearn = jaxunlearn.ssd(model, alpha=2.0)
        >>> ready = jax.jit(jaxunlearn.prepare(unlearn))(variables, data, key)
        >>> list(ready.extra)
        ['importances']
        >>> result = jax.jit(unlearn)(variables, ready, request, key)
    """
    if not hasattr(method, "prepare"):
        shown = getattr(method, "__name__", type(method).__name__)
        raise TypeError(
            f"prepare takes a method such as jaxunlearn.ssd(model), got {shown}: call the factory first, and give prepare the "
            "method before it goes into batched, streamed or partial; functions of your own are made methods by one_shot"
        )
    return preparation_of(method) or _nothing


def _nothing(variables: Variables, data: Data, key: PRNGKeyArray) -> Data:
    return data


def _in_turn(steps: list[Prepare]) -> Prepare:
    if len(steps) == 1:
        return steps[0]

    def run(variables: Variables, data: Data, key: PRNGKeyArray) -> Data:
        for step, step_key in zip(steps, jax.random.split(key, len(steps)), strict=True):
            data = step(variables, data, step_key)
        return data

    return run
