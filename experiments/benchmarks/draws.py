"""What the library's own sampler draws, for programs that must take the same steps elsewhere."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from jaxunlearn import sampling
from jaxunlearn.loop.iterate import step_keys
from jaxunlearn.types import BatchSizes


class LibraryDraws(NamedTuple):
    """Training rows of every step, and which kind of step it is."""

    forget: np.ndarray  # [R, steps, b]
    retain: np.ndarray  # [R, steps, b]
    phases: list[int]  # 1 where SCRUB forgets


def library_draws(
    unlearner: ju.Unlearner, variables: Any, data: ju.Data, requests: ju.ForgetRequest, keys: Any, steps: int, batch_size: int
) -> LibraryDraws:
    """What `jaxunlearn.iterate` draws for these keys, and the phase of each step."""

    def rows(request, key):
        init_key, split_key, loop_key = jax.random.split(key, 3)  # as `iterate` does
        context, state = unlearner.init(variables, data, request, init_key)
        split = sampling.split(data, request, split_key)

        def one(step):
            sample_key, _, step_key = step_keys(loop_key, step)
            batch = unlearner.sample(split, context, step, sample_key, BatchSizes(batch_size, batch_size))
            _, stats = unlearner.step(state, context, batch._replace(step=step, num_steps=steps), step_key)
            return request.indices[batch.forget.slots], batch.retain.slots, stats.get("phase", jnp.int32(0))

        return jax.vmap(one)(jnp.arange(steps, dtype=jnp.int32))

    forget, retain, phases = jax.jit(jax.vmap(rows))(requests, keys)
    return LibraryDraws(np.asarray(forget), np.asarray(retain), np.asarray(phases)[0].tolist())
