"""Representation Unlearning: its closed form beside its steps, and its steps beside eager PyTorch, on cached features.

    pip install -e '.[benchmarks]'
    python experiments/benchmarks/representation.py --data-dir DIR    # 10,000 rows of MNIST, 128 features
    python experiments/benchmarks/representation.py --smoke           # 300 digits, whether it runs

- *closed form*: 256 requests of 100 rows, 5 values of beta, one compiled call; against 100 steps of Adam for one request and
  beta, both on features that are there already. The expected losses of both are compared.
- *steps*: 100 steps of Adam on batches of 256, affine map, noise 0.1, one draw; against the same in eager PyTorch with the
  pairwise term in its exact mean form, and with all pairs, as the authors write it. Ours once with drawn noise, once with its
  mean in closed form.

The losses of a step with equal weights, rows and no noise must agree first. Each side has a process of its own, so that neither
waits for the other's threads; calls in turns, medians, compile time apart.
"""

import json
import multiprocessing
import sys
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
from rich.console import Console

import jaxunlearn as ju
from experiments.benchmarks import timing, torch_bottleneck
from experiments.common import training
from experiments.common.data import load
from experiments.common.models import build
from experiments.common.report import Column, Table, print_table

BETAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
BETA, NOISE, LEARNING_RATE = 0.01, 0.1, 1e-3
TARGETS = {"closed form": 100.0, "steps": 1.5, "steps, exact noise": 3.0}


@dataclass
class Config:
    """Command line of the benchmark."""

    data_dir: str | None = None
    """Where TFDS finds prepared MNIST; only a smoke run can do without."""
    rows: int = 10_000
    """Training rows."""
    requests: int = 256
    """Requests of the closed form."""
    request_size: int = 100
    """Rows of each."""
    steps: int = 100
    """Steps of Adam."""
    batch_size: int = 256
    """Rows of each side a step."""
    rounds: int = 7
    """Timed rounds."""
    threads: int = 2
    """Threads of PyTorch."""
    pause: float = 0.2
    """Seconds of rest after every call."""
    smoke: bool = False
    """Few rows, requests and steps."""
    out: Path | None = None
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Check, time, print."""
    load_before = timing.load_per_core()
    if config.smoke:
        config = replace(config, rows=300, requests=4, request_size=10, steps=5, batch_size=16, rounds=1)
    console = Console()
    name = "digits" if config.smoke and config.data_dir is None else "mnist"
    dataset = load(name, config.data_dir, max_rows=config.rows)
    model = build("mlp", dataset.train.inputs.shape[1:], dataset.num_classes, widths=(256, 128))
    data = ju.training_data(*jax.tree.map(jnp.asarray, dataset.train))
    key = jax.random.key(0)
    trained = training.train(model, data, optax.adam(1e-3), num_steps=400, batch_size=128, seeds=[0], key=key)
    variables = jax.tree.map(lambda x: x[0], trained)
    prepare = jax.jit(ju.heads.prepare(model))
    prepared = jax.block_until_ready(prepare(variables, data, key))
    generator = np.random.default_rng(1)
    asked = [generator.choice(config.rows, config.request_size, replace=False) for _ in range(config.requests)]
    requests = ju.from_indices(data, asked)
    keys = jax.random.split(key, config.requests)
    one = jax.tree.map(lambda x: x[0], requests)

    def sweep(variables, data, request, key):
        def at(beta):
            unlearn = ju.affine_representation_unlearning(model, beta=beta, noise_scale=NOISE)
            return unlearn(variables, data, request, key)

        return jax.vmap(at)(jnp.asarray(BETAS))

    closed = jax.jit(ju.batched(sweep, chunk=1))  # values of beta share the moments of a request

    def steps(noise: Any, beta: float = BETA, start: tuple[ju.Model, ju.Variables] = (model, variables)) -> Any:
        optimizer = optax.adam(LEARNING_RATE)
        method = ju.representation_unlearning(start[0], optimizer, beta=beta, noise_scale=NOISE, noise=noise)
        unlearn = ju.iterate(method, num_steps=config.steps, batch_size=config.batch_size)
        return partial(jax.jit(unlearn), start[1], prepared, one, key)

    z = np.array(ju.slots.FEATURES.get(prepared).value)
    context = multiprocessing.get_context("spawn")
    line, other = context.Pipe()
    settings = torch_bottleneck.Settings(config.steps, config.batch_size, LEARNING_RATE, BETA, NOISE, config.threads)
    peer = context.Process(target=torch_bottleneck.serve, args=(other, z, asked[0], settings), daemon=True)
    peer.start()
    torch_version = line.recv()

    def theirs(name: str) -> Any:
        line.send(name)
        return line.recv()

    apart = agreement(model, variables, prepared, one, asked[0], theirs)
    variants = {
        "closed form": partial(closed, variables, prepared, requests, keys),
        "steps": steps("sampled"),
        "steps, exact noise": steps("exact"),
        "PyTorch": partial(theirs, "run"),
    }
    times = timing.interleaved(variants, rounds=config.rounds, pause=config.pause)
    pairs = timing.interleaved({"PyTorch, all pairs": partial(theirs, "run over all pairs")}, rounds=1, pause=config.pause)
    line.send(None)
    peer.join()
    seconds = times.median | pairs.median
    each = seconds["closed form"] / (config.requests * len(BETAS))
    inserted = ju.insert_map(model, variables, ())
    losses = {}
    for beta in BETAS:
        unlearn = jax.jit(ju.affine_representation_unlearning(inserted[0], beta=beta, noise_scale=NOISE))
        both = {"closed form": unlearn(inserted[1], prepared, one, key), "steps": steps("sampled", beta, inserted)()}
        losses[beta] = {
            name: expected_loss(result.variables.params.map[0], ju.slots.FEATURES.get(prepared).value, asked[0], beta)
            for name, result in both.items()
        }
    ratios = {
        "closed form": seconds["steps"] / each,
        "steps": seconds["PyTorch"] / seconds["steps"],
        "steps, exact noise": seconds["PyTorch"] / seconds["steps, exact noise"],
    }
    rows = [{"what": what, "ratio": ratio, "target": TARGETS[what]} for what, ratio in ratios.items()]
    columns = [Column("what", "what"), Column("ratio", "times faster", ".2f"), Column("target", "target", ".1f")]
    print_table(Table(columns, rows, f"{config.rows} rows, {z.shape[1]} features"), console)
    expected = {str(beta): value for beta, value in losses.items()}
    console.print_json(data={"seconds": seconds, "of the closed form each": each, "losses": expected})
    valid = load_before <= timing.BUSY and not config.smoke
    console.print(f"load before: {load_before:.2f} per core{'' if valid else '; INVALID'}")
    summary = {
        "config": {**vars(config), "out": None, "data_dir": None},
        "environment": {**training.environment(), "torch": torch_version, "torch_threads": config.threads},
        "load_per_core_before": load_before,
        "valid": valid,
        "seconds": seconds,
        "seconds_of_the_closed_form_each": each,
        "first_call_seconds": times.first,
        "ratios": ratios,
        "expected_losses": expected,
        "losses_differ_by": apart,
    }
    if config.out is not None:
        config.out.write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def agreement(
    model: ju.Model, variables: ju.Variables, data: ju.Data, request: ju.ForgetRequest, rows: np.ndarray, theirs: Callable
) -> float:
    """Relative difference of the losses of one step without noise, on all forgotten rows, at the identity."""
    z = np.asarray(ju.slots.FEATURES.get(data).value, np.float64)
    method = ju.representation_unlearning(model, optax.sgd(0.0), beta=1.0, noise_scale=0.0)
    unlearn = ju.iterate(method, num_steps=1, batch_size=len(rows))
    ours = float(unlearn(variables, data, request, jax.random.key(0)).stats["loss"][0])
    over_pairs, centred = theirs("losses")
    some = z[:2000]
    exact = centred + float(np.mean(np.sum((some - some.mean(axis=0)) ** 2, axis=1)))
    if abs(over_pairs - exact) > 1e-4 * over_pairs:
        raise SystemExit(f"the mean over pairs {over_pairs} and its exact form {exact} differ: nothing was measured")
    centre = z.mean(axis=0)
    full = float(np.mean(np.sum((z[rows] - centre) ** 2, axis=1)) + np.mean(np.sum((z - centre) ** 2, axis=1)))
    apart = abs(ours - full) / full
    if apart > 1e-4:
        raise SystemExit(f"losses of both sides differ by {apart:.1e}: nothing was measured")
    return apart


def expected_loss(layer: dict[str, Any], z: np.ndarray, rows: np.ndarray, beta: float) -> float:
    """The loss of an affine map over all rows, the noise in its mean; float64."""
    kernel, bias = np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)
    z, gone = np.asarray(z, np.float64), np.isin(np.arange(len(z)), rows)
    moved, penalty, centre = z @ kernel + bias, NOISE**2 * np.sum(kernel**2), z.mean(axis=0)
    retain = np.mean(np.sum((moved - z)[~gone] ** 2, axis=1)) + penalty
    forget = np.mean(np.sum((moved[gone] - centre) ** 2, axis=1)) + np.mean(np.sum((z - centre) ** 2, axis=1)) + penalty
    return float(retain / z.shape[1] + beta * forget)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
