"""How fast is EK-FAC of a small transformer, beside kronfluence on the same one, and are the scores the same?

    pip install -e '.[benchmarks]'
    python experiments/benchmarks/curvature_decoder.py
    python experiments/benchmarks/curvature_decoder.py --smoke

A decoder of GPT-2's form learns rows of text without padding and is copied to PyTorch; logits are compared first. Both sides
fit EK-FAC with one token for every position drawn from the model, in float32, in turns, each in a process of its own; seconds
are those of the processor, of all threads, since other programs may run beside. This library's fit has blocks for embeddings
and norms too, which kronfluence leaves out; compile time stands apart. Scores are compared with the same factors, read from
kronfluence's files, and with factors of their own, whose tokens are drawn apart.
"""

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jaxunlearn as ju
from experiments.benchmarks import timing
from experiments.benchmarks.ekfac.setup import LOGITS, SAME_FACTORS, require, scores
from experiments.benchmarks.ekfac.transformer import MATRICES, factors, products_alone, serve
from experiments.common import decoder, text, training
from jaxunlearn import curvature


@dataclass
class Config:
    """Command line of the benchmark."""

    rows: int = 256
    """Training rows."""
    queries: int = 16
    """Rows whose losses are explained."""
    length: int = 64
    """Characters of a row."""
    width: int = 64
    """Of the decoder."""
    layers: int = 2
    """Of the decoder."""
    train_steps: int = 100
    """Steps of 16 rows."""
    chunk: int = 32
    """Rows in memory together, on both sides."""
    rounds: int = 5
    """Timed rounds."""
    threads: int = 2
    """Threads of PyTorch."""
    smoke: bool = False
    """Few rows, one round."""
    out: Path | None = None
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Check, time, print."""
    load_before = timing.load_per_core()
    if config.smoke:
        config = replace(config, rows=16, queries=2, length=8, width=8, layers=1, train_steps=2, chunk=8, rounds=1)
    form, model, rows, queries = built(config)
    variables = trained(config, form, model, rows)
    weights, keys = np.ones(config.rows, np.float32), iter(range(1, 10**6))
    program = jax.jit(curvature.ekfac(model, kind="sampled", chunk=config.chunk))
    start = time.process_time()
    compiled = program.lower(variables, rows, weights, jax.random.key(0)).compile()
    compiling = time.process_time() - start

    def fit() -> tuple[Any, float]:
        start = time.process_time()
        made = jax.block_until_ready(compiled(variables, rows, weights, jax.random.key(next(keys))))
        return made, time.process_time() - start

    made, _ = fit()
    alone = products_alone(made, variables.params)
    damping = tenth_of_mean(alone)
    as_torch = partial(jax.tree.map, lambda x: np.asarray(x).astype(np.int64))
    context, names = multiprocessing.get_context("spawn"), iter(f"timed_{place}" for place in range(config.rounds))
    with tempfile.TemporaryDirectory() as folder:
        line, other = context.Pipe()
        arguments = (other, form, jax.tree.map(np.asarray, variables.params), tuple(as_torch(rows)))
        peer = context.Process(target=serve, args=(*arguments, config.chunk, config.threads, folder), daemon=True)
        peer.start()
        logits, _ = line.recv()
        apart = float(np.max(np.abs(np.asarray(model.forward(variables, rows.inputs).logits) - logits)))
        require(apart <= LOGITS, f"logits differ by {apart:.1e}")

        def theirs(*call: Any) -> tuple[Any, float]:
            line.send(call)
            return line.recv()

        theirs("fit", "first")
        read = factors(theirs("tables", "first")[0], made, variables.params)
        seconds = in_turns({"jaxunlearn": fit, "kronfluence": lambda: theirs("fit", next(names))}, config.rounds)
        expected, _ = theirs("scores", "scores", "first", tuple(as_torch(queries)), damping)
        line.send(None)
        peer.join()
    influence = partial(jax.jit(partial(scores, model, damping=damping, chunk=config.chunk)), variables, queries, rows)
    same, own = np.asarray(influence(read)), np.asarray(influence(alone))
    difference = float(np.linalg.norm(same - expected) / np.linalg.norm(expected))
    require(difference <= SAME_FACTORS, f"scores with the same factors differ by {difference:.1e}")
    medians = {name: statistics.median(x) for name, x in seconds.items()}
    result = {
        "parameters": sum(x.size for x in jax.tree.leaves(variables.params)),
        "largest_difference_of_logits": apart,
        "damping": damping,
        "fit": {
            "cpu_seconds": seconds, "medians": medians, "ratio": medians["kronfluence"] / medians["jaxunlearn"],
            "cpu_seconds_of_compiling": compiling,
        },
        "scores": {
            "relative_difference_with_the_same_factors": difference,
            "correlation_with_the_same_factors": correlation(same, expected),
            "correlation_with_factors_of_their_own": correlation(own, expected),
        },
        "load_per_core_before": load_before,
        "environment": training.environment(),
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()},
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if config.out is not None:
        config.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def built(config: Config) -> tuple[decoder.Config, ju.Model, ju.Examples, ju.Examples]:
    """The decoder, training rows and queries, all without padding."""
    random = np.random.default_rng(0)
    texts = text.register(text.names(len(text.FIRST) * len(text.LAST), random), random)
    tokenizer = text.Characters("\n" + "".join(texts))
    whole = text.packed([tokenizer.encode(one) for one in texts], config.length, tokenizer.encode("\n")[0])
    train, queries = (
        jax.tree.map(lambda x, at=at: jnp.asarray(x[at]), whole)
        for at in (slice(config.rows), slice(config.rows, config.rows + config.queries))
    )
    form = decoder.Config(
        tokenizer.size, width=config.width, layers=config.layers, heads=4, hidden=4 * config.width, tied=False, norm="layer",
        mlp="gelu", rotary=False, length=config.length, biases=MATRICES, remat=False,
    )  # fmt: skip
    model = decoder.model(form, ju.losses.sequence_log_loss(reduction="sum"))
    return form, model._replace(likelihood=ju.likelihoods.categorical(ignore=text.PADDING)), train, queries


def trained(config: Config, form: decoder.Config, model: ju.Model, rows: ju.Examples) -> ju.Variables:
    """Some steps of Adam, so that scores are those of a model that knows something."""
    optimizer = optax.adam(3e-3)
    params = decoder.init(form, jax.random.key(0)).params
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        def loss(p):
            return jnp.mean(model.loss(model.forward(ju.Variables(p), batch.inputs), batch)) / config.length

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    random = np.random.default_rng(0)
    for _ in range(config.train_steps):
        at = random.integers(0, config.rows, 16)
        params, state = step(params, state, jax.tree.map(lambda x, at=at: x[at], rows))
    return ju.Variables(params)


def tenth_of_mean(made: curvature.Kronecker) -> float:
    """A tenth of the mean eigenvalue of the layers."""
    return 0.1 * float(sum(jnp.sum(x) for x in made.values)) / sum(x.size for x in made.values)


def in_turns(variants: dict[str, Callable[[], tuple[Any, float]]], rounds: int) -> dict[str, list[float]]:
    """The seconds that every call tells of itself, in turns whose order changes."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for place in range(rounds):
        for name in list(variants)[:: -1 if place % 2 else 1]:
            found[name].append(variants[name]()[1])
    return found


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Over all pairs of queries and rows."""
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
