"""Fits of EK-FAC and influence of every row, against kronfluence."""

import tempfile
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch.utils.data import TensorDataset  # pyright: ignore[reportMissingImports]

from experiments.benchmarks import timing
from experiments.benchmarks.ekfac.peer import Kronfluence
from experiments.benchmarks.ekfac.setup import (
    BATCH,
    CHUNKS,
    CORRELATED,
    QUERIES,
    SAME_FACTORS,
    SUBSET,
    Config,
    Network,
    Problem,
    require,
    scores,
    seconds_of,
)
from jaxunlearn import curvature


def fit_and_scores(
    config: Config, network: Network, problem: Problem
) -> tuple[dict[str, Any], curvature.Kronecker, curvature.Kronecker, float]:
    """Both of them, with this library's factors, kronfluence's, and the damping."""
    model, variables, data = problem.model, problem.variables, problem.data
    chunk = config.chunk or CHUNKS[network]
    program = jax.jit(curvature.ekfac(model, kind="sampled", chunk=chunk))
    fit = partial(program, variables, data.train, data.present, jax.random.key(1))
    every = partial(jax.jit(curvature.ekfac(model, kind="fisher", chunk=chunk)), *fit.args)
    fits = {"jaxunlearn": fit, "all classes": every} if network == "mlp" else {"jaxunlearn": fit}
    times = timing.interleaved(fits, rounds=config.rounds, pause=config.pause)  # before PyTorch's threads are there
    made: Any = fit()
    damping = 0.1 * float(made.trace()) / sum(x.size for x in made.spectrum())
    queries = jax.tree.map(lambda x: x[:QUERIES], data.train)
    influence = jax.jit(partial(scores, model, damping=damping, chunk=chunk))

    with tempfile.TemporaryDirectory() as folder:
        theirs = Kronfluence(problem, config.torch_batch, folder)
        few = TensorDataset(problem.inputs[:BATCH], problem.targets[:BATCH])
        theirs.fit("warm", few)
        stages = theirs.fit("timed", theirs.dataset)
        read = theirs.factors("timed", made, variables.params)
        asked = TensorDataset(problem.inputs[:QUERIES], problem.targets[:QUERIES])
        expected, scores_seconds = seconds_of(partial(theirs.scores, "timed", "timed", asked, damping))

    ours = partial(influence, variables, queries, data.train, made)
    score_times = timing.interleaved({"jaxunlearn": ours}, rounds=config.rounds, pause=config.pause)
    with_theirs = np.asarray(influence(variables, queries, data.train, read))
    apart = float(np.linalg.norm(with_theirs - expected) / np.linalg.norm(expected))
    require(apart <= SAME_FACTORS, f"{network}: scores with the same factors differ by {apart:.1e}")
    found = np.asarray(ours())
    pairs = [(found[:, :SUBSET], expected[:, :SUBSET]), (found, expected)]
    correlations = [float(np.corrcoef(x.ravel(), y.ravel())[0, 1]) for x, y in pairs]
    least = min(float(np.corrcoef(x, y)[0, 1]) for x, y in zip(found, expected, strict=True))
    require(correlations[0] > CORRELATED, f"{network}: scores correlate by {correlations[0]:.2f} only")

    traces = {
        layer.name.split("/")[0]: [float(jnp.sum(x)), float(jnp.sum(y))]
        for layer, x, y in zip(made.layers, made.values, read.values, strict=True)
    }
    total = sum(stages.values())
    parts = {
        "fit": {
            "seconds": {**times.median, "kronfluence": total},
            "best_seconds": times.best,
            "first_call_seconds": times.first["jaxunlearn"],
            "kronfluence_stages": stages,
            "ratios": {"kronfluence": total / times.median["jaxunlearn"]},
            "eigenvalue_sums_ours_and_theirs": traces,
            "largest_relative_difference_of_sums": max(abs(x - y) / y for x, y in traces.values()),
        },
        "scores": {
            "seconds": {"jaxunlearn": score_times.median["jaxunlearn"], "kronfluence": scores_seconds},
            "best_seconds": score_times.best,
            "first_call_seconds": score_times.first["jaxunlearn"],
            "ratios": {"kronfluence": scores_seconds / score_times.median["jaxunlearn"]},
            "correlation_on_subset": correlations[0],
            "correlation": correlations[1],
            "least_correlation_of_a_query": least,
            "relative_difference_with_the_same_factors": apart,
        },
    }
    return parts, made, read, damping
