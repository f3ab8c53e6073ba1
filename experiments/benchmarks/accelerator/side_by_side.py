"""(b) `batched` against a loop over one jitted call and against `lax.map`.

Both loops answer one request after the other, so that their times grow with the number of requests: the first is timed on
`Size.looped` requests and scaled. The share of the ceiling is the least time of all steps (the larger of operations at the
measured rate and bytes at the measured bandwidth) over the time that was taken. All programs are compiled before the first is
timed, several at once.
"""

from functools import partial
from typing import Any, NamedTuple

import jax

import jaxunlearn as ju
from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.harness import Compiled, Part, Size, compiled, compiled_together, furthest, mib, timed

LOOP, BATCHED, MAP = "loop of jitted calls", "batched", "lax.map"
COMPILING = 0.5  # of this part's time, at most


class Case(NamedTuple):
    """One network and one method."""

    network: str
    method: str
    start: networks.Setting
    unlearn: ju.UnlearnFn
    requests: ju.ForgetRequest
    keys: jax.Array

    def inputs(self, count: int) -> tuple:
        """Arguments of a call for some of the requests."""
        return (*self.start[1:], networks.leading(self.requests, count), self.keys[:count])

    def one(self, place: int) -> tuple:
        """Arguments of a call for one request."""
        return (*self.start[1:], networks.entry(self.requests, place), self.keys[place])

    def named(self, variant: str, count: int) -> str:
        """How a program is called where it is missing."""
        return f"{variant}, {self.network}, {self.method}, requests: {count}"


class Loop(NamedTuple):
    """The loop over a jitted call: seconds of a request, and what it answered."""

    seconds: float
    answers: list[ju.Result]


def run(part: Part, size: Size) -> None:
    """Fill `part.shared["batched"]`: seconds by network, method and number of requests."""
    part.shared["batched"] = {}
    pairs = [(network, method) for method in size.methods for network in size.networks]
    pairs.sort(key=lambda pair: pair[0] != "mlp")  # both methods on the MLP come first, should the time not do
    cases = [case(*pair, size) for pair in pairs]
    jobs = {}
    for each in cases:
        jobs[each.named(LOOP, 1)] = partial(compiled, each.unlearn, *each.one(0))
        jobs |= {each.named(BATCHED, n): partial(compiled, side_by_side(each.unlearn), *each.inputs(n)) for n in size.requests}
    for each in cases[: size.mapped]:
        jobs |= {each.named(MAP, n): partial(compiled, mapped(each.unlearn), *each.inputs(n)) for n in size.requests}
    programs = compiled_together(part, jobs, COMPILING * part.left())
    loops: dict[int, Loop] = {}
    for place, each in enumerate(cases):
        if each.named(LOOP, 1) in programs and part.fits(f"{each.network}, {each.method}"):
            with part.attempt(f"{each.network}, {each.method}"):
                loops[place] = looped(part, size, each, programs)
                part.shared["batched"] |= grown(part, size, each, BATCHED, programs, loops[place])
    for place, each in enumerate(cases[: size.mapped]):
        if place in loops:
            grown(part, size, each, MAP, programs, loops[place])


def case(network: str, method: str, size: Size) -> Case:
    """What all variants start from."""
    start = networks.setting(network, size)
    unlearn = ju.iterate(networks.unlearner(method, start.model), num_steps=size.steps, batch_size=size.batch)
    return Case(network, method, start, unlearn, *networks.asked(start.data, max(size.requests)))


def looped(part: Part, size: Size, case: Case, programs: dict[str, Compiled]) -> Loop:
    """Time the loop."""
    program = programs[case.named(LOOP, 1)]
    few = [case.one(place) for place in range(min(size.looped, max(size.requests)))]
    done = timed(lambda: [program.call(*one) for one in few], size)
    loop = Loop(done.median / len(few), jax.device_get(done.result))
    report(part, size, case, Line(LOOP, 1, loop.seconds, program), loop)
    return loop


def grown(part: Part, size: Size, case: Case, variant: str, programs: dict[str, Compiled], loop: Loop) -> dict:
    """Time a variant for more and more requests, as long as the next one can be expected to fit."""
    found, expected = {}, 0.0
    for place, count in enumerate(size.requests):
        what = case.named(variant, count)
        if what not in programs or not part.fits(what, expected):
            continue
        with part.attempt(what):
            done = timed(partial(programs[what].call, *case.inputs(count)), size)
            together = jax.device_get(done.result.variables)
            pairs = [(loop.answers[i].variables, networks.entry(together, i)) for i in range(min(count, len(loop.answers)))]
            apart = max(furthest(one, other) for one, other in pairs)
            report(part, size, case, Line(variant, count, done.median, programs[what], apart), loop)
            found[case.network, case.method, count] = done.median
            expected = 3 * done.median * size.requests[min(place + 1, len(size.requests) - 1)] / count
    return found


class Line(NamedTuple):
    """What one line of the table is about."""

    variant: str
    requests: int
    seconds: float
    program: Compiled
    apart: float | None = None  # largest difference of a weight from the loop's


def report(part: Part, size: Size, case: Case, line: Line, loop: Loop) -> None:
    """A line of the table."""
    floor = networks.work(case.method, case.start.variables.params, networks.SIDE, size.batch).floor(part.shared)
    part.row(
        network=case.network,
        method=case.method,
        requests=line.requests,
        variant=line.variant,
        ms=1e3 * line.seconds,
        ms_per_request=1e3 * line.seconds / line.requests,
        times_faster_than_loop=loop.seconds * line.requests / line.seconds,
        share_of_ceiling=None if floor is None else floor * line.requests * size.steps / line.seconds,
        compile_s=line.program.seconds,
        temporaries_mib=mib(line.program.temporaries),
        largest_difference_from_loop=line.apart,
    )


def side_by_side(unlearn: ju.UnlearnFn) -> Any:
    """`batched` with all requests at once, which it does by itself on accelerators alone."""

    def program(variables, data, requests, keys):
        return ju.batched(unlearn, chunk=len(keys))(variables, data, requests, keys)

    return program


def mapped(unlearn: ju.UnlearnFn) -> Any:
    """One request after the other inside one program."""

    def program(variables, data, requests, keys):
        return jax.lax.map(lambda one: unlearn(variables, data, *one), (requests, keys))

    return program
