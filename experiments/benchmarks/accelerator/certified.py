"""(e) Removals in float64 of many requests from one logistic regression, against dense Newton steps in NumPy."""

import math
from functools import partial

import jax
import numpy as np

import jaxunlearn as ju
from experiments.benchmarks import twins
from experiments.benchmarks.accelerator.harness import Part, Size, compiled, compiled_together, furthest, timed

L2 = 1e-3
TOLERANCE = 1e-10


def run(part: Part, size: Size) -> None:
    """Fit, factorise once, remove one row for each request."""
    generator, (count, width) = np.random.default_rng(0), size.convex
    rows = generator.normal(size=(count, width))
    rows = (0.999 * rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)  # float32 may round a norm of 1 up
    labels = (rows @ generator.normal(size=width) > 0).astype(np.int32)
    problem, data = ju.convex.logistic(L2), jax.device_put(ju.training_data(rows, labels))
    head = ju.convex.fit(problem, data)
    key, requests = jax.random.key(0), ju.from_indices(data, [[row] for row in range(size.removals)], capacity=1)
    keys = jax.random.split(key, size.removals)
    prepare = compiled(ju.convex.prepare(problem), head, data, key)
    factorised = timed(partial(prepare.call, head, data, key), size)
    part.row(what=f"shared factorisation, {count} x {width}", ms=1e3 * factorised.median, compile_s=prepare.seconds)
    wide, kernel = rows.astype(np.float64), np.asarray(head.params["kernel"])[:, 0]
    dense = timed(lambda: twins.newton_step(wide, labels, kernel, [0], L2), size._replace(repeats=2))
    part.row(what="one dense Newton step in NumPy", ms=1e3 * dense.median)
    programs = {
        "one step, bound from the data": ju.convex.woodbury_removal(problem, steps=1, measure=False),
        "two steps, exact residual": ju.convex.woodbury_removal(problem, steps=2),
    }
    arguments = (head, factorised.result, requests, keys)
    jobs = {name: partial(compiled, ju.batched(programs[name], chunk=size.removals), *arguments) for name in size.removal}
    expected = {place: twins.newton_step(wide, labels, kernel, [place], L2) for place in (0, size.removals - 1)}
    for name, program in compiled_together(part, jobs, part.left()).items():
        what = f"{size.removals} removals, {name}"
        if part.fits(what):
            with part.attempt(what):
                done = timed(partial(program.call, *arguments), size)
                found = np.asarray(ju.check(done.result).variables.params["kernel"])
                apart = max(furthest(found[place, :, 0], step) for place, step in expected.items())
                part.row(what=what, ms=1e3 * done.median, compile_s=program.seconds,
                         times_faster_than_numpy=size.removals * dense.median / done.median,
                         largest_distance_bound=float(np.max(np.asarray(done.result.stats["distance_bound"]))),
                         largest_difference_from_one_step=apart)  # fmt: skip
                tolerance = TOLERANCE if name.startswith("one step") else math.inf
                if not (apart <= tolerance and found.dtype == np.float64):
                    raise AssertionError(f"removals differ from dense steps by {apart}, in {found.dtype}")
