"""What experiments on certified removal share: streams of single removals with every bound checked, and accuracies of heads."""

import time
from typing import NamedTuple

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
    seconds: float
    compile_seconds: float


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
) -> Stream:
    """Remove rows one after another in one compiled call, factorising anew whenever `capacity` columns are full.

    Raises:
        UnlearningError: a removal failed.
        AssertionError: a residual above its quartic bound, or a quartic above a data bound.
    """
    requests = ju.from_indices(data, [[row] for row in rows], capacity=1)
    unlearn = ju.convex.woodbury_removal(problem, steps=steps, carry=capacity)
    begun = jax.jit(ju.prepare(unlearn))(head, data, key)
    keys = jax.random.split(key, len(rows))
    run = jax.jit(ju.streamed(unlearn))
    start = time.perf_counter()
    program = run.lower(head, begun, requests, keys).compile()
    compiled = time.perf_counter()
    result = jax.block_until_ready(program(head, begun, requests, keys))
    seconds = time.perf_counter() - compiled
    stats = {name: np.asarray(value) for name, value in ju.check(result).stats.items()}
    require_order(stats)
    last, left = ju.end_of_stream(result, begun)
    return Stream(last, left, ju.merge(requests), stats, seconds, compiled - start)


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
