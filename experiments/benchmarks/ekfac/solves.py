"""Errors of EK-FAC's solves, and 64 removals against conjugate gradients."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from rich.console import Console

from experiments.benchmarks import timing
from experiments.benchmarks.ekfac.setup import CHUNKS, COMPARED, REMOVED, REQUESTS, Config, Problem, lane, relative, seconds_of
from jaxunlearn import curvature


def solves(
    config: Config,
    problem: Problem,
    made: curvature.Kronecker,
    read: curvature.Kronecker,
    fit_seconds: float,
    console: Console,
) -> dict[str, Any]:
    """Errors against converged solves, and 64 removals both ways."""
    model, variables, data, damping = problem.model, problem.variables, problem.data, config.removal_damping
    rows = len(problem.targets)

    def solver(rtol: float, max_steps: int) -> tuple[Callable[[PyTree], curvature.Solved], float]:
        def solve(variables, train, present, b):
            product = curvature.ggn_vp(model, variables, train, present, chunk=config.cg_chunk)
            return curvature.cg(product, b, damping=damping, rtol=rtol, max_steps=max_steps)

        arguments = (variables, data.train, data.present)
        start = time.perf_counter()
        program = jax.jit(solve).lower(*arguments, variables.params).compile()
        return partial(program, *arguments), time.perf_counter() - start

    compared = 2 if config.smoke else COMPARED
    gradients = curvature.per_example_gradients(model, variables, jax.tree.map(lambda x: x[:compared], data.train))
    truth, _ = solver(1e-4, 3 * config.cg_steps)
    converged = [truth(lane(gradients, place)) for place in range(compared)]
    errors = {}
    drawn = jax.jit(curvature.ekfac(model, kind="sampled", chunk=config.chunk or CHUNKS["mlp"]))
    exact = jax.jit(curvature.ekfac(model, kind="fisher", chunk=config.chunk or CHUNKS["mlp"]))
    rows_of_fit = (variables, data.train, data.present)
    candidates = {"jaxunlearn": made, "kronfluence": read, "jaxunlearn, all classes": exact(*rows_of_fit, jax.random.key(1))}
    candidates |= {f"jaxunlearn, draw {seed}": drawn(*rows_of_fit, jax.random.key(seed)) for seed in range(2, 6)}
    for name, factors in candidates.items():
        found = jax.vmap(lambda g, factors=factors: factors.solve(g, damping))(gradients)
        errors[name] = [relative(lane(found, place), x.solution) for place, x in enumerate(converged)]
    errors["no curvature"] = [relative(lane(gradients, place), x.solution, scaled=True) for place, x in enumerate(converged)]
    console.print(f"errors of solves: {', '.join(f'{name} {statistics.median(x):.2f}' for name, x in errors.items())}")

    generator = np.random.default_rng(1)
    removed = np.stack([generator.choice(rows, REMOVED, replace=False) for _ in range(REQUESTS)])

    def pull(rows):
        part = jax.tree.map(lambda x: x[rows], data.train)
        return curvature.gradient_sum(model, variables, part, jnp.ones(REMOVED))

    pulls = jax.block_until_ready(jax.jit(jax.vmap(pull))(removed))
    shared = jax.jit(lambda made, pulls: jax.vmap(lambda b: made.solve(b, damping))(pulls))
    times = timing.interleaved({"ekfac": lambda: shared(made, pulls)}, rounds=config.rounds, pause=config.pause)
    alone, compile_seconds = solver(1e-3, config.cg_steps)
    lanes = range(config.cg_requests)
    solved, each = zip(*[seconds_of(partial(alone, lane(pulls, place))) for place in lanes], strict=True)
    steps = shared(made, pulls)
    one, cg = times.median["ekfac"] / REQUESTS, statistics.mean(each)
    return {
        "error": {
            "relative_errors": errors,
            "median_relative_error": {name: statistics.median(x) for name, x in errors.items()},
            "converged": [bool(x.converged) for x in converged],
            "residuals": [float(x.residual) for x in converged],
            "cg_steps": [int(x.num_steps) for x in converged],
        },
        "solves": {
            "seconds": {"ekfac": one, "cg": cg, "ekfac, fit included": one + fit_seconds / REQUESTS},
            "first_call_seconds": {"ekfac": times.first["ekfac"], "cg, compilation alone": compile_seconds},
            "median_seconds_of_cg": statistics.median(each),
            "ratios": {"cg": cg / one, "cg, fit included": cg / (one + fit_seconds / REQUESTS)},
            "requests_solved_by_cg": len(each),
            "cg_converged": sum(bool(x.converged) for x in solved),
            "cg_steps": [int(x.num_steps) for x in solved],
            "cg_largest_residual": max(float(x.residual) for x in solved),
            "median_distance_of_ekfac_from_cg": statistics.median(
                relative(lane(steps, place), x.solution) for place, x in enumerate(solved)
            ),
        },
    }
