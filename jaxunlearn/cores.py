"""All cores of a CPU: XLA runs the operations of small models on one of them, so parts of a call run beside each other."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state
from jaxtyping import PyTree


def available() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def inside_a_program() -> bool:
    """Whether somebody traces, under `jit`, `vmap` or `grad`; a function may close over tracers that no argument shows."""
    (untraced,) = _beside(lambda _: get_opaque_trace_state(), [None])  # a new thread traces nothing
    return untraced != get_opaque_trace_state()


def is_on(name: str) -> bool:
    """Whether a switch of `jax.config` is on in this thread."""
    return getattr(jax.config, name)


def parts_of(lanes: int, chunk: int, leaves: Sequence[Any]) -> int:
    """In how many parts a call is worth splitting: one for each core that gets a whole chunk, on a CPU that is one device."""
    watched = is_on("jax_debug_nans") or is_on("jax_debug_infs")  # by this thread alone
    spread = any(isinstance(x, jax.Array) and len(x.sharding.device_set) > 1 for x in leaves)
    if jax.default_backend() != "cpu" or spread or watched or not jax.sharding.get_abstract_mesh().empty:
        return 1
    return min(available(), -(-lanes // chunk))


def run(program: Any, arguments: tuple, static: Any, lanes: int, parts: int) -> PyTree:
    """Run a jitted `program(first, size, static, *arguments)` for all lanes, in one thread for each part of that size.

    It is compiled in the thread of the caller, whose settings of JAX are thread-local, once for all parts: the last one begins
    earlier where they are uneven, and lanes that come twice are dropped. A program with effects, such as `jax.debug.print`, is
    run as a whole, since its lanes must come once and in their order.
    """
    if parts == 1:
        return program(_place(0), lanes, static, *arguments)
    size = -(-lanes // parts)
    begins = [min(start, lanes - size) for start in range(0, lanes, size)]
    # Once, and in the precision of the caller: other threads would make arrays of what is none in that of their own.
    arguments = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), arguments)
    traced = program.trace(_place(0), size, static, *arguments)
    if traced.jaxpr.effects:
        return program(_place(0), lanes, static, *arguments)
    compiled = traced.lower().compile()
    found = _beside(lambda first: jax.block_until_ready(compiled(first, *arguments)), list(map(_place, begins)))
    return _joined(found, tuple(begins))


def _beside(function: Callable[[Any], Any], places: list[Any]) -> list[Any]:
    """What a function gives for every place, in a thread for each, which waits for its part.

    A pool would give a thread that is free again the next part, which XLA runs behind its last one, and refuses work once the
    main thread of a process has ended.
    """
    futures: list[Future] = [Future() for _ in places]

    def work(future: Future, place: Any) -> None:
        try:
            future.set_result(function(place))
        except BaseException as error:
            future.set_exception(error)

    threads = [Thread(target=work, args=pair) for pair in zip(futures, places, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [future.result() for future in futures]


def _place(first: int) -> jax.Array:
    """The first lane of a part; put there by name, so that `jax.transfer_guard` lets it pass."""
    return jax.device_put(np.int32(first))


@partial(jax.jit, static_argnums=1)
def _joined(parts: list[PyTree], begins: tuple[int, ...]) -> PyTree:
    """Lanes of all parts in their order."""
    extra = begins[-2] + jax.tree.leaves(parts[0])[0].shape[0] - begins[-1]
    return jax.tree.map(lambda *x: jnp.concatenate([*x[:-1], x[-1][extra:]]), *parts)
