"""Where float64 is needed, whatever the session's default."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxunlearn import checks

F = TypeVar("F", bound=Callable)


def in_float64(function: F) -> F:
    """Run a function where float64 is on. Arrays that go in or out keep their dtypes.

    A `vmap` around a loop or a `jit` that was traced already traces it anew, outside of this scope, where float64 silently
    becomes float32. That is an error here.
    """

    @wraps(function)
    def run(*arguments, **options):
        with jax.enable_x64(True):
            # what goes in tells early, what comes out tells of values that the function closes over
            return jax.tree.map(_guarded, function(*jax.tree.map(_guarded, arguments), **options))

    return run  # type: ignore[return-value]


def _guarded(value):
    return value if checks.is_concrete(value) or not jnp.issubdtype(value.dtype, jnp.floating) else _guard.bind(value)


def _batched(values, axes):
    if jax.dtypes.canonicalize_dtype(jnp.float64) != jnp.float64:
        raise TypeError(
            "this function computes in float64, and a vmap around a loop or around a jit of it would compute in float32: let "
            "batched() take all requests in one vmap, chunk=number of requests, put jit outside of vmap, or turn float64 on "
            "everywhere with jax.config.update('jax_enable_x64', True)"
        )
    return _guard.bind(*values), axes[0]


_guard = Primitive("float64_guard")  # the identity, which refuses to be batched where float64 is off
_guard.def_impl(lambda x: x)
_guard.def_abstract_eval(lambda x: x)
mlir.register_lowering(_guard, lambda _, x: [x])
ad.deflinear(_guard, lambda cotangent: [cotangent])
batching.primitive_batchers[_guard] = _batched
