"""How long compiled calls ran, compilation apart."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name of the event


def timed_call(function: Callable[..., Any], *args: Any) -> tuple[Any, float, float]:
    """Call a function that compiles itself when it must, and wait for it.

    Compilation counts until the largest program of the call is compiled, running from there.

    Args:
        function: a jitted function, or what lays its arguments out first.
        args: its arguments, waited for before the clock starts.

    Returns:
        What it returned, and the seconds of compiling and of running.

    Example:
        >>> from jaxunlearn.tuning.clock import timed_call
        >>> result, compiling, running = timed_call(jax.jit(jnp.sin), jnp.ones(5))
        >>> compiling > 0, running > 0
        (True, True)
    """
    jax.block_until_ready(args)
    with _compilations() as compiled:
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        end = time.perf_counter()
    begun = max(compiled, default=(0.0, start))[1]
    return result, begun - start, end - begun


@contextmanager
def _compilations() -> Iterator[list[tuple[float, float]]]:
    """Of every program that is compiled meanwhile: how long it took, and when it was done."""
    found: list[tuple[float, float]] = []

    def note(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == COMPILED:
            found.append((duration_secs, time.perf_counter()))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
