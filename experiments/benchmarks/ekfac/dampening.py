"""SSD for 64 requests, against its published form in eager PyTorch."""

import copy
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra
from jaxtyping import PyTree

from experiments.benchmarks import timing
from experiments.benchmarks.ekfac.setup import (
    ALPHA,
    BATCH,
    EQUAL,
    PUBLISHED,
    REQUESTED,
    REQUESTS,
    STRENGTH,
    Config,
    Problem,
    lane,
    require,
)
from jaxunlearn import curvature
from jaxunlearn.curvature.importances import dampened


def published_importances(network: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Squares of the mean gradients of batches, averaged, as published code accumulates them."""
    parameters = list(network.parameters())
    totals = [torch.zeros_like(x) for x in parameters]
    batches = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))
    for images, labels in batches:
        network.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        for total, parameter in zip(totals, parameters, strict=True):
            total += parameter.grad.pow(2)  # pyright: ignore[reportOptionalMemberAccess]
    return [total / len(batches) for total in totals]


def published_dampening(network: torch.nn.Module, everything: list[torch.Tensor], own: list[torch.Tensor]) -> None:
    """Select, and multiply by at most 1, in place."""
    with torch.no_grad():
        for parameter, whole, part in zip(network.parameters(), everything, own, strict=True):
            places = torch.where(part > whole * ALPHA)
            update = (whole * STRENGTH / part)[places]
            update[update > 1] = 1.0
            parameter[places] = parameter[places] * update


def dampening(config: Config, problem: Problem) -> dict[str, Any]:
    """SSD for 64 requests, both ways."""
    model, variables, data = problem.model, problem.variables, problem.data
    generator = np.random.default_rng(2)
    asked = np.stack([generator.choice(len(problem.targets), REQUESTED, replace=False) for _ in range(REQUESTS)])
    places, original = torch.from_numpy(asked), problem.build()
    squares = partial(curvature.batch_means, model, batch_size=BATCH)

    def of_request(variables, train, rows):
        return squares(variables, jax.tree.map(lambda x: x[rows], train), jnp.ones(REQUESTED))

    def request(variables, train, everything, rows):
        own = of_request(variables, train, rows)
        return dampened(variables.params, everything, own, alpha=ALPHA, strength=STRENGTH)

    @jax.jit
    def ours(variables, train, everything, requests):
        one = partial(request, variables, train, everything)
        if config.ssd_lanes >= REQUESTS:
            return jax.vmap(one)(requests)
        return jax.lax.map(one, requests, batch_size=config.ssd_lanes)

    def theirs(whole: list[torch.Tensor] | None, places: torch.Tensor = places) -> list[torch.nn.Module]:
        answers = []
        for rows in places:
            network = copy.deepcopy(original)
            own = published_importances(network, problem.inputs[rows], problem.targets[rows])
            everything = published_importances(network, problem.inputs, problem.targets) if whole is None else whole
            published_dampening(network, everything, own)
            answers.append(network)
        return answers

    everything = jax.jit(squares)(variables, data.train, data.present)
    whole = published_importances(original, problem.inputs, problem.targets)
    own = jax.jit(jax.vmap(of_request, in_axes=(None, None, 0)))(variables, data.train, asked)
    apart = furthest(everything, whole, original)
    for place, rows in enumerate(places):
        expected = published_importances(original, problem.inputs[rows], problem.targets[rows])
        apart = max(apart, furthest(lane(own, place), expected, original))
    require(apart <= EQUAL, f"importances differ by {apart:.1e}")
    del own

    program = partial(ours, variables, data.train, everything, asked)
    params, selected = program()
    answers = theirs(whole)
    moved = [furthest(lane(params, place), list(x.parameters()), original) for place, x in enumerate(answers)]
    few = places[:PUBLISHED]
    sides = {"jaxunlearn": program, "eager, shared": partial(theirs, whole), "eager, as published": partial(theirs, None, few)}
    times = timing.interleaved(sides, rounds=config.rounds, pause=config.pause)
    counts = dict.fromkeys(sides, REQUESTS) | {"eager, as published": PUBLISHED}
    seconds = {name: x / counts[name] for name, x in times.median.items()}
    return {
        "seconds": seconds,
        "best_seconds": {name: x / counts[name] for name, x in times.best.items()},
        "cores_busy_after": times.spinning,
        "ratios": {name: x / seconds["jaxunlearn"] for name, x in seconds.items() if name != "jaxunlearn"},
        "largest_relative_difference_of_importances": apart,
        "largest_relative_difference_of_weights": max(moved),
        "mean_share_selected": float(jnp.mean(selected)),
    }


def furthest(ours: PyTree, theirs: list[torch.Tensor], network: torch.nn.Module) -> float:
    """Largest relative distance of a parameter's values, by norms."""
    found = []
    for (name, _), theirs_value in zip(network.named_parameters(), theirs, strict=True):
        layer, kind = name.split(".")
        value = np.asarray(ours[layer]["bias" if kind == "bias" else "kernel"])
        expected = theirs_value.detach().numpy()
        if kind == "weight":
            value = value.transpose((1, 0) if value.ndim == 2 else (3, 2, 0, 1))
        found.append(float(np.linalg.norm(value - expected) / np.linalg.norm(expected)))
    return max(found)
