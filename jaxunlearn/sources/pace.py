"""How fast a run is, and how long it will take; a callback for `jaxunlearn.feed`."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxunlearn import checks


class Pace(NamedTuple):
    """Where a run is."""

    steps: int  # made, those before a resume included
    num_steps: int  # in all
    steps_per_second: float  # by this call, its first step left out, which compiles; NaN after that one
    seconds_left: float  # at that rate


def paced(tell: Callable[[Pace], None], num_steps: int, *, seconds: float = 1.0) -> Callable[[int, dict[str, jax.Array]], None]:
    """A callback for `jaxunlearn.feed` that says how fast a run is.

    Args:
        tell: gets a `Pace`, e.g. to move a progress bar or to write a line into a log.
        num_steps: of the run, as `feed` gets it.
        seconds: between two of them; the first and the last step are told anyway. Only then the steps that run are waited for.

    Returns:
        `(step, stats) -> None`.

    Raises:
        ValueError: a number of steps that is not a positive integer.

    Example:
        >>> told = []
        >>> part = jaxunlearn.forget_rows(data, request)
        >>> method = jaxunlearn.gradient_difference(model, optax.sgd(0.1))
        >>> source, told_by = lambda step: jaxunlearn.Batch(part, part), jaxunlearn.sources.paced(told.append, 3)
        >>> result = jaxunlearn.feed(method, variables, source, request, key, num_steps=3, callback=told_by)
        >>> told[-1].steps, told[-1].seconds_left
        (3, 0.0)
    """
    checks.require_count("num_steps", num_steps)
    first: tuple[int, float] | None = None
    last = -float("inf")

    def callback(step: int, stats: dict[str, jax.Array]) -> None:
        nonlocal first, last
        ends = step + 1 == num_steps
        if not ends and time.monotonic() - last < seconds:
            return
        jax.block_until_ready(stats)
        last = now = time.monotonic()
        if first is None:
            first = step, now
        made, spent = step - first[0], now - first[1]
        rate = made / spent if made and spent > 0 else float("nan")
        tell(Pace(step + 1, num_steps, rate, 0.0 if ends else (num_steps - step - 1) / rate))

    return callback
