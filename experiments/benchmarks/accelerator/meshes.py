"""(h) Several devices: requests over all of them, rows of each request over two, and one request whose parameters lie in parts.

Every result is compared with that of one device.
"""

from functools import partial
from typing import Any

import jax

import jaxunlearn as ju
from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.harness import Part, Size, compiled, furthest, mib, timed

ROUNDING = 1e-4  # of float32, over the steps
METHOD = "gradient_difference"


def run(part: Part, size: Size) -> None:
    """On the MLP; nothing on a single device."""
    count = jax.device_count()
    if count < 2 or count % 2:
        part.leave_out("meshes", f"they need an even number of devices, and there are {count}")
        return
    start = networks.setting("mlp", size)
    unlearn = ju.iterate(networks.unlearner(METHOD, start.model), num_steps=size.steps, batch_size=size.shared_batch)
    requests = max(size.requests[-1], count)
    arguments = *start[1:], *networks.asked(start.data, requests)
    alone = compiled(ju.batched(unlearn, chunk=requests), *arguments)
    done = timed(partial(alone.call, *arguments), size)
    expected = jax.device_get(done.result.variables)
    part.row(what=f"{requests} requests, one device", ms=1e3 * done.median, temporaries_mib=mib(alone.temporaries))
    meshes = {"requests over all": ju.request_mesh(), "rows of a request over two": ju.request_mesh(data=2)}
    meshes["parameters of a request over two"] = ju.request_mesh(fsdp=2)
    for name, mesh in meshes.items():
        if part.fits(name):
            with part.attempt(name):
                answer = ju.batched(unlearn, mesh=mesh, chunk=requests)
                shared = timed(partial(answer, *arguments), size)
                compare(part, f"{requests} requests, {name}", shared, done.median, expected)
    if part.fits("one request in parts"):
        with part.attempt("one request in parts"):
            one = *start[1:], networks.entry(arguments[2], 0), arguments[3][0]
            in_parts(part, size, unlearn, one, networks.entry(expected, 0))


def in_parts(part: Part, size: Size, unlearn: ju.UnlearnFn, one: tuple, expected: Any) -> None:
    """A single request over all devices."""
    variables, *others = one
    whole = compiled(unlearn, *one)
    seconds = timed(partial(whole.call, *one), size).median
    part.row(what="one request, one device", ms=1e3 * seconds, temporaries_mib=mib(whole.temporaries))
    mesh = ju.request_mesh(fsdp=jax.device_count())
    placed = ju.shard(variables, mesh), *ju.replicate(tuple(others), mesh)
    with jax.set_mesh(mesh):
        program = compiled(unlearn, *placed)
    done = timed(partial(program.call, *placed), size)
    compare(part, "one request, in parts over all", done, seconds, expected, temporaries_mib=mib(program.temporaries))


def compare(part: Part, what: str, done: Any, alone: float, expected: Any, **more: Any) -> None:
    """A line of the table; AssertionError where the result is another one."""
    apart = furthest(jax.device_get(done.result.variables), expected)
    part.row(what=what, ms=1e3 * done.median, times_faster=alone / done.median, largest_difference=apart, **more)
    if not apart <= ROUNDING:
        raise AssertionError(f"{what}: a weight differs from that of one device by {apart}")
