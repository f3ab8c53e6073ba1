"""Where float64 is needed, whatever the session's default."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import jax

F = TypeVar("F", bound=Callable)


def in_float64(function: F) -> F:
    """Run a function where float64 is on. Arrays that go in or out keep their dtypes."""

    @wraps(function)
    def run(*arguments, **options):
        with jax.enable_x64(True):
            return function(*arguments, **options)

    return run  # type: ignore[return-value]
