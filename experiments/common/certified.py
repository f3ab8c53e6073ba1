"""What experiments on certified removal share: streams of single removals with every bound checked, and accuracies of heads."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

import jaxunlearn as ju
from jaxunlearn.audit import Interval

ROUNDING = 1e-11  # of bounds that are compared
KEPT = 0.3  # fraction of every class that a stream leaves


class Stream(NamedTuple):
    """A stream of removals, each of one row."""

    last: ju.Result  # the end of the stream, as `jaxunlearn.end_of_stream` returns it
    left: ju.Data
    gone: ju.ForgetRequest  # all of them together
    stats: dict[str, np.ndarray]  # one number per removal
    seconds: float  # of the removals
    compile_seconds: float
    looked: list[Any]  # what `look` found behind every window
    look_seconds: float


def deletions(labels: Int[np.ndarray, " n"], number: int, seed: int, *, keep: float = KEPT) -> Int[np.ndarray, " number"]:
    """Random rows in random order that leave a fraction `keep` of every class, and two rows at least.

    Args:
        labels: of all rows.
        number: of rows; fewer come back where there are not enough.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    taken = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        taken[rows[: max(0, len(rows) - max(2, round(keep * len(rows))))]] = True
    return order[taken[order]][:number]


def stream(
    problem: ju.convex.Problem,
    data: ju.Data,
    head: ju.Variables,
    rows: Int[np.ndarray, " r"],
    *,
    steps: int,
    capacity: int,
    key: PRNGKeyArray,
    window: int | None = None,
    look: Callable[[ju.Result, ju.Data, ju.ForgetRequest], Any] | None = None,
) -> Stream:
    """Remove rows one after another in one compiled program, factorising anew whenever `capacity` columns are full.

    Args:
        window: rows between two looks, a divisor of the number of rows; all of them by default.
        look: `(result, data, request)` at the end of every window, with the rows of that window as one request; rows that
            went before are not present in the data.

    Raises:
        UnlearningError: a removal failed.
        AssertionError: a residual above its quartic bound, or a quartic above a data bound.
        ValueError: the window does not divide the number of rows.
    """
    window = len(rows) if window is None else window
    if len(rows) % window:
        raise ValueError(f"a window of {window} does not divide a stream of {len(rows)} rows")
    requests = ju.from_indices(data, [[row] for row in rows], capacity=1)
    unlearn = ju.convex.woodbury_removal(problem, steps=steps, carry=capacity)
    left = jax.jit(ju.prepare(unlearn))(head, data, key)
    keys, parts = jax.random.split(key, len(rows)), range(0, len(rows), window)

    def of(start):
        return jax.tree.map(lambda x: x[start : start + window], (requests, keys))

    start = time.perf_counter()
    program = jax.jit(ju.streamed(unlearn)).lower(head, left, *of(0)).compile()
    compile_seconds = time.perf_counter() - start
    last, found, looked, seconds, look_seconds = ju.Result(head, 0, {}), [], [], 0.0, 0.0  # type: ignore[arg-type]
    for first in parts:
        asked, own_keys = of(first)
        began = time.perf_counter()
        result = jax.block_until_ready(program(last.variables, left, asked, own_keys))
        done = time.perf_counter()
        found.append({name: np.asarray(value) for name, value in ju.check(result).stats.items()})
        last, left = ju.end_of_stream(result, left)
        if look is not None:
            looked.append(look(last, left, ju.merge(asked, capacity=window)))
        seconds, look_seconds = seconds + done - began, look_seconds + time.perf_counter() - done
    stats = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    require_order(stats)
    return Stream(last, left, ju.merge(requests), stats, seconds, compile_seconds, looked, look_seconds)


def require_order(stats: dict[str, np.ndarray]) -> None:
    """AssertionError unless residual <= quartic bound <= data bound at every removal."""
    for lower, upper in (("residual", "quartic_bound"), ("quartic_bound", "data_bound")):
        above = np.flatnonzero(~(stats[lower] <= stats[upper] + ROUNDING))
        if above.size:
            raise AssertionError(f"{lower} exceeds {upper} at removal {above[0]}: {stats[lower][above[0]]}")


def kernel_of(result: ju.Result | ju.Variables) -> Float[np.ndarray, "... d c"]:
    """The weights of a head, or of many."""
    variables = result.variables if isinstance(result, ju.Result) else result
    return np.asarray(variables.params["kernel"])


def accuracy(kernel: Float[Array | np.ndarray, "d c"], examples: ju.Examples) -> float:
    """Fraction of rows that a logistic or softmax head classifies right."""
    scores = np.asarray(examples.inputs) @ np.asarray(kernel)
    predicted = scores[:, 0] > 0 if scores.shape[1] == 1 else scores.argmax(axis=1)
    return float(np.mean(predicted == examples.targets))


def accuracy_of_releases(
    kernel: Float[np.ndarray, "d c"], noise_scale: float, examples: ju.Examples, *, draws: int, seed: int
) -> Interval:
    """Accuracy of what would be published: the mean over draws of the noise, and the limits of 95 % of single draws."""
    generator = np.random.default_rng(seed)
    found = [accuracy(kernel + noise_scale * generator.normal(size=kernel.shape), examples) for _ in range(draws)]
    return Interval(np.mean(found), *np.quantile(found, (0.025, 0.975)))  # type: ignore[arg-type]
