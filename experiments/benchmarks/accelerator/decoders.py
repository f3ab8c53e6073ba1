"""(i) A decoder whose layers are scanned: EK-FAC of it, and requests in adapters of low rank over one base."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.harness import Part, Size, compiled, furthest, mib, timed
from experiments.common import decoder
from jaxunlearn import frozen, tree

DAMPING, RANK, STEPS = 1e-3, 4, 5
ROUNDING = 1e-4  # of weights of adapters, side by side and alone


def run(part: Part, size: Size) -> None:
    """On random tokens."""
    width, layers, rows, length = size.decoder
    form = decoder.Config(64, width=width, layers=layers, heads=2, hidden=2 * width, remat=False)
    tokens = np.random.default_rng(0).integers(0, form.vocabulary, (rows, length + 1)).astype(np.int32)
    data = ju.training_data(tokens[:, :-1], tokens[:, 1:])
    base = jax.jit(partial(decoder.init, form))(jax.random.key(0))
    for name, measure in (("EK-FAC", ekfac), ("requests in adapters", adapters)):
        if part.fits(name):
            with part.attempt(name):
                measure(part, size, form, base, data)


def ekfac(part: Part, size: Size, form: decoder.Config, base: ju.Variables, data: ju.Data) -> None:
    """The fit, and one solve with it."""
    model = decoder.model(form)
    arguments = base, data.train, data.present, jax.random.key(1)
    fit = compiled(ju.curvature.ekfac(model, kind="empirical", chunk=min(32, len(data.present))), *arguments)
    done = timed(partial(fit.call, *arguments), size)
    part.row(what=f"fit of EK-FAC, {len(data.present)} rows", ms=1e3 * done.median, compile_s=fit.seconds,
             temporaries_mib=mib(fit.temporaries))  # fmt: skip
    solve = compiled(lambda made, b: made.solve(b, DAMPING), done.result, base.params)
    solved = timed(partial(solve.call, done.result, base.params), size)
    part.row(what="a solve", ms=1e3 * solved.median, compile_s=solve.seconds)
    image = jax.jit(lambda made, x: jax.tree.map(lambda y, x: y + DAMPING * x, made.matvec(x), x))(done.result, solved.result)
    error = tree.norm(jax.tree.map(jnp.subtract, image, base.params)) / tree.norm(base.params)
    part.row(what="relative residual of the solve", value=float(error))
    if not float(error) <= 1e-2:
        raise AssertionError(f"the solve leaves a relative residual of {float(error)}")


def adapters(part: Part, size: Size, form: decoder.Config, base: ju.Variables, data: ju.Data) -> None:
    """NPO: all requests in one call, and one call each."""
    model = decoder.model(form, ju.losses.sequence_log_loss(reduction="sum"))
    parts = frozen.lora(model, base, np.asarray(data.train.inputs[:1]), rank=RANK, targets=decoder.MATRICES)

    def make(model: ju.Model) -> ju.UnlearnFn:
        return ju.iterate(ju.npo(model, optax.sgd(1e-3)), num_steps=STEPS, batch_size=2, retain_batch_size=2)

    unlearn, count = frozen.on_base(parts, make), max(size.requests)
    held = ju.slots.BASE.put(data, base)
    requests = ju.ForgetRequest(2 * jnp.arange(count)[:, None] % len(data.present) + jnp.arange(2), jnp.ones((count, 2)))
    keys, start = jax.random.split(jax.random.key(2), count), parts.start(base, jax.random.key(3))
    together = compiled(ju.batched(unlearn, chunk=count), start, held, requests, keys)
    done = timed(partial(together.call, start, held, requests, keys), size)
    few = [(networks.entry(requests, place), keys[place]) for place in range(min(size.looped, count))]
    alone = compiled(unlearn, start, held, *few[0])
    loop = timed(lambda: [alone.call(start, held, *one) for one in few], size)
    apart = max(
        furthest(networks.entry(done.result.variables, place), answer.variables) for place, answer in enumerate(loop.result)
    )
    lines: dict[str, Any] = {"one call": (done.median / count, together), "a call each": (loop.median / len(few), alone)}
    for name, (seconds, program) in lines.items():
        part.row(what=f"{count} requests in adapters, {name}", ms_per_request=1e3 * seconds, compile_s=program.seconds,
                 temporaries_mib=mib(program.temporaries), largest_difference=apart)  # fmt: skip
    if not apart <= ROUNDING:
        raise AssertionError(f"side by side and alone differ by {apart}")
