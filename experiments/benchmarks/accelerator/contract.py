"""(f) What every method promises under `vmap`, on this device: equal to single calls, independent requests, no padding seen.

All matrix products in full float32. What must be equal to the last bit has the tolerance 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.harness import Compiled, Part, Size, compiled, compiled_together, furthest

ROUNDING = 1e-5
ROWS = [[3, 4, 5], [0, 7, 14, 21, 22, 23, 24], [8], [9, 10]]
POISONED = 1  # the request whose rows become NaN
SLOTS = 8
PRECISION = "highest"


class Case(NamedTuple):
    """A method with two programs: all requests side by side, and the first of them alone and without padding."""

    name: str
    together: tuple  # arguments
    alone: tuple
    jobs: dict[str, Callable[[], Compiled]]


def run(part: Part, size: Size) -> None:
    """Every check of every method, in a table; any that does not hold makes the part fail."""
    cases = []
    for name in size.checked:
        with part.attempt(name):
            cases.append(case(name, size))
    jobs = {name: job for each in cases for name, job in each.jobs.items()}
    programs = compiled_together(part, jobs, 0.8 * part.left())
    for each in cases:
        if programs.keys() >= each.jobs.keys() and part.fits(each.name):
            with part.attempt(each.name):
                check(part, each, *(programs[name] for name in each.jobs))
    broken = [f"{row['method']}: {row['check']}" for row in part.record["rows"] if not row["holds"]]
    if broken:
        raise AssertionError(f"does not hold: {'; '.join(broken)}")


def case(name: str, size: Size) -> Case:
    """A method, its requests, and data for each request."""
    method, _, on_cnn = name.partition(" on a ")
    model, variables, data = networks.setting("cnn, native" if on_cnn else "mlp", size)
    unlearn = METHODS[method](model)
    ready = prepared(unlearn, variables, data)
    requests, keys = ju.from_indices(data, ROWS, capacity=SLOTS), jax.random.split(jax.random.key(3), len(ROWS))
    # The other requests would retain the rows that are poisoned, so they are removed there.
    gone = np.ones((len(ROWS), len(data.present)), np.float32)
    gone[np.ix_([place for place in range(len(ROWS)) if place != POISONED], ROWS[POISONED])] = 0
    together = variables, ready._replace(present=jnp.asarray(gone)), requests, keys
    own, request = ready._replace(present=jnp.asarray(gone[0])), networks.entry(ju.from_indices(data, ROWS[:1]), 0)
    alone = variables, own, request, keys[0]
    axes: Any = (None, ju.Data(None, 0, None), 0, 0)
    batched = ju.batched(unlearn, in_axes=axes, chunk=len(ROWS))
    jobs = {
        f"{name}, side by side": partial(compiled, batched, *together, precision=PRECISION),
        f"{name}, alone": partial(compiled, unlearn, *alone, precision=PRECISION),
    }
    return Case(name, together, alone, jobs)


def prepared(unlearn: ju.UnlearnFn, variables: ju.Variables, data: ju.Data) -> ju.Data:
    """Data with what the method reads."""
    arguments = variables, data, jax.random.key(2)
    return compiled(ju.prepare(unlearn), *arguments, precision=PRECISION).call(*arguments)


def check(part: Part, case: Case, together: Compiled, alone: Compiled) -> None:
    """Of one method."""
    variables, data, requests, keys = case.together

    def answer(data: ju.Data, requests: ju.ForgetRequest = requests) -> ju.Result:
        return jax.device_get(together.call(variables, data, requests, keys))

    def equal(check: str, one: Any, other: Any, tolerance: float = 0.0) -> None:
        apart = furthest(one, other)
        part.row(method=case.name, check=check, holds=apart <= tolerance, largest_difference=apart, tolerance=tolerance)

    def others(result: ju.Result) -> list[ju.Variables]:
        return [networks.entry(result.variables, place) for place in range(len(ROWS)) if place != POISONED]

    first = answer(data)
    moved = min(furthest(networks.entry(first.variables, place), variables) for place in range(len(ROWS)))
    part.row(method=case.name, check="every request moves the weights", holds=moved > 0, least_move=moved)
    equal("two runs are equal", first.variables, answer(data).variables)
    padded = np.where(np.asarray(requests.weights) > 0, requests.indices, data.present.shape[-1] - 1)
    otherwise = answer(data, requests._replace(indices=jnp.asarray(padded)))
    equal("what lies in padding slots is irrelevant", first.variables, otherwise.variables)
    images = np.array(data.train.inputs)
    images[ROWS[POISONED]] = np.nan
    after = answer(data._replace(train=data.train._replace(inputs=jnp.asarray(images))))
    equal("NaN in one request reaches no other", others(first), others(after))
    is_found = int(after.status[POISONED]) == ju.Status.NONFINITE
    part.row(method=case.name, check="NaN in one request is its status", holds=is_found)
    single = alone.call(*case.alone).variables
    equal("side by side and padded, as alone and unpadded", networks.entry(first.variables, 0), single, ROUNDING)


def _stepwise(name: str):
    return lambda model: ju.iterate(networks.unlearner(name, model), num_steps=4, batch_size=4)


METHODS = {
    "gradient_difference": _stepwise("gradient_difference"),
    "scrub": _stepwise("scrub"),
    "ssd": lambda model: ju.ssd(model, alpha=1.0),  # the published 10 selects nothing among rows of noise
    "influence": lambda model: ju.influence(model, damping=1.0),
}
