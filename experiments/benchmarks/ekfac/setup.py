"""What the parts of the benchmark share: settings, trained networks and their copies in PyTorch, small things."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra
from jaxtyping import Array, Float, PyTree

import jaxunlearn as ju
from experiments.common import training
from experiments.common.data import load
from experiments.common.models import build
from jaxunlearn import curvature
from jaxunlearn.tree import norm

Network = Literal["mlp", "cnn"]

QUERIES, REQUESTS, REMOVED, REQUESTED, BATCH, COMPARED = 64, 64, 8, 100, 64, 3
PUBLISHED = 4  # requests of SSD's published form, which take the time of all rows each
ALPHA, STRENGTH = 2.0, 1.0  # of the dampening
WIDTHS = (256, 128)
CHUNKS: dict[Network, int] = {"mlp": 1000, "cnn": 100}  # rows whose activations are in memory together
LOGITS, EQUAL, CORRELATED = 1e-4, 1e-4, 0.9  # what the two sides may differ by, and how far their scores must correlate
SAME_FACTORS = 1e-3  # scores with one set of factors, float32 in two libraries
SUBSET = 1000  # training rows whose scores are compared


@dataclass
class Config:
    """Command line of the benchmark."""

    data_dir: str | None = None
    """Where TFDS finds prepared MNIST; only a smoke run can do without."""
    networks: tuple[Network, ...] = ("mlp", "cnn")
    """Which networks."""
    rows: int = 10_000
    """Training rows."""
    train_steps: int = 400
    """Steps of 128 rows that the networks are trained for."""
    chunk: int | None = None
    """Rows in memory together on this side; by default 1000 for the MLP, 100 for the CNN."""
    torch_batch: int = 500
    """Rows of a batch of kronfluence."""
    cg_chunk: int | None = 1000
    """Rows in memory together in a product with the GGN."""
    cg_steps: int = 1000
    """Steps of conjugate gradients at most; three times as many for the converged ones."""
    cg_requests: int = 8
    """Requests of the 64 that conjugate gradients solve one after the other; a request takes their mean."""
    removal_damping: float = 1e-3
    """Damping of removals; at that of scores, a tenth of the mean eigenvalue, conjugate gradients need more than 500 steps."""
    ssd_lanes: int = 64
    """Requests side by side."""
    rounds: int = 5
    """Timed rounds."""
    threads: int = 2
    """Threads of PyTorch."""
    pause: float = 0.2
    """Seconds of rest after every call."""
    smoke: bool = False
    """Few rows, one round, few solves."""
    out: Path | None = None
    """JSON file."""


class Problem(NamedTuple):
    """One trained network and its rows on both sides."""

    model: ju.Model
    variables: ju.Variables
    data: ju.Data
    inputs: torch.Tensor
    targets: torch.Tensor
    build: Callable[[], torch.nn.Module]  # the same network in PyTorch, every time anew


class Flatten(torch.nn.Module):
    """Images with channels last, as flax flattens them."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def as_torch(network: Network, params: Any) -> torch.nn.Module:
    """The network with the same weights and names of layers."""

    def filled(layer, name: str, axes: tuple[int, ...]):
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(params[name]["kernel"]).transpose(axes)))
            layer.bias.copy_(torch.from_numpy(np.array(params[name]["bias"])))
        return layer

    def dense(name: str):
        return filled(torch.nn.Linear(*params[name]["kernel"].shape), name, (1, 0))

    layers: OrderedDict[str, Any] = OrderedDict()
    hidden = ["Dense_0", "Dense_1"] if network == "mlp" else ["Dense_0"]
    if network == "cnn":
        for place in range(3):
            name, stride = f"Conv_{place}", 1 if place == 0 else 2
            channels = params[name]["kernel"].shape[2:]
            layers[f"pad_{place}"] = torch.nn.ZeroPad2d((1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))  # SAME, for even sizes
            layers[name] = filled(torch.nn.Conv2d(channels[0], channels[1], 3, stride=stride), name, (3, 2, 0, 1))
            layers[f"relu_{name}"] = torch.nn.ReLU()
        layers["flatten"] = Flatten()
    for name in hidden:
        layers[name], layers[f"relu_{name}"] = dense(name), torch.nn.ReLU()
    layers["head"] = dense("head")
    return torch.nn.Sequential(layers).eval()


def scores(
    model: ju.Model,
    variables: ju.Variables,
    queries: ju.Examples,
    train: ju.Examples,
    made: curvature.Kronecker,
    *,
    damping: float,
    chunk: int,
) -> Float[Array, "q n"]:
    """Influence of every row on every query."""
    directions = jax.vmap(lambda g: made.solve(g, damping))(curvature.per_example_gradients(model, variables, queries))
    return curvature.gradient_products(model, variables, train, directions, chunk=chunk).T


def relative(found: PyTree, expected: PyTree, *, scaled: bool = False) -> float:
    """Relative distance; `scaled`, after multiplying what was found by the best number."""
    if scaled:
        products = jax.tree.map(lambda x, y: jnp.stack([jnp.vdot(x, y), jnp.vdot(x, x)]), found, expected)
        both = jnp.sum(jnp.stack(jax.tree.leaves(products)), axis=0)
        found = jax.tree.map(lambda x: x * both[0] / both[1], found)
    return float(norm(jax.tree.map(jnp.subtract, found, expected)) / norm(expected))


def lane(stacked: PyTree, place: int) -> PyTree:
    """One entry of every leaf."""
    return jax.tree.map(lambda x: x[place], stacked)


def require(holds: bool, message: str) -> None:
    """Stop before anything is timed that is not the same on both sides."""
    if not holds:
        raise AssertionError(message)


def seconds_of(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds; JAX arrays are waited for."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - start


def prepared(config: Config, network: Network) -> tuple[Problem, float]:
    """Data, a trained network and its copy, and the largest difference of their logits."""
    name = "digits" if config.smoke and config.data_dir is None else "mnist"
    dataset = load(name, config.data_dir, max_rows=config.rows)
    train = dataset.train
    options: dict[str, Any] = {"widths": WIDTHS} if network == "mlp" else {}
    model = build(network, train.inputs.shape[1:], dataset.num_classes, **options)
    data = ju.training_data(*jax.tree.map(jnp.asarray, train))
    trained = training.train(
        model, data, optax.adam(1e-3), num_steps=config.train_steps, batch_size=128, seeds=[0], key=jax.random.key(0)
    )
    variables = lane(trained, 0)
    images = np.asarray(train.inputs).transpose(0, 3, 1, 2) if network == "cnn" else train.inputs.reshape(config.rows, -1)
    inputs = torch.from_numpy(np.array(images, order="C"))
    targets = torch.from_numpy(np.asarray(train.targets).astype(np.int64))
    create = partial(as_torch, network, jax.tree.map(np.asarray, variables.params))
    with torch.no_grad():
        expected = create()(inputs[:SUBSET]).numpy()
    logits = np.asarray(model.forward(variables, data.train.inputs[:SUBSET], train=False).logits)
    apart = float(np.max(np.abs(logits - expected)))
    require(apart <= LOGITS, f"{network}: logits differ by {apart:.1e}")
    return Problem(model, variables, data, inputs, targets, create), apart
