"""Networks, requests and methods that several parts share, and the least work of a step."""

import math
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxunlearn as ju
from experiments.benchmarks.accelerator.harness import Size

SIDE, CLASSES, SLOTS = 8, 10, 16  # images, their classes, and rows of a request
LEARNING_RATE = 0.01
ALPHA = {"gradient_difference": 0.95, "scrub": 0.5}  # as in `experiments.benchmarks.torch_updates`
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {}),  # 64-128-128-10
    "cnn, native": ("cnn", {"implementation": "native"}),
    "cnn, matmul": ("cnn", {"implementation": "matmul"}),
}


class Setting(NamedTuple):
    """A network and the rows that it knows."""

    model: ju.Model
    variables: ju.Variables
    data: ju.Data


def noise_images(rows: int, side: int, channels: int = 1) -> ju.Data:
    """Images of Gaussian noise with random labels: time does not depend on what they show."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(rows, side, side, channels)).astype(np.float32)
    return jax.device_put(ju.training_data(images, generator.integers(CLASSES, size=rows).astype(np.int32)))


@cache
def setting(network: str, size: Size) -> Setting:
    """One of `NETWORKS` with fresh weights; made once for all parts."""
    from experiments.common.models import build  # imports flax

    name, options = NETWORKS[network]
    model = build(name, (SIDE, SIDE, 1), CLASSES, **options)
    assert model.init is not None  # models of the experiments have one
    return Setting(model, jax.jit(model.init)(jax.random.key(0)), noise_images(size.rows, SIDE))


def unlearner(method: str, model: ju.Model) -> ju.Unlearner:
    """With plain SGD, as on PyTorch's side."""
    return getattr(ju, method)(model, optax.sgd(LEARNING_RATE), alpha=ALPHA[method])


def asked(data: ju.Data, count: int) -> tuple[ju.ForgetRequest, jax.Array]:
    """Requests of `SLOTS` random rows each, and a key for each."""
    generator, rows = np.random.default_rng(1), len(data.present)
    lists = [generator.choice(rows, min(SLOTS, rows // 2), replace=False).tolist() for _ in range(count)]
    return jax.device_put(ju.from_indices(data, lists)), jax.random.split(jax.random.key(1), count)


class Work(NamedTuple):
    """The least that one step of one request can cost."""

    operations: float  # a multiplication and an addition count as two
    moved: float  # bytes: weights read and written once, rows read once

    def floor(self, shared: dict[str, Any]) -> float | None:
        """Seconds at the measured ceilings; None where those are missing."""
        rate, bandwidth = shared.get("flops", {}).get("float32 as jax comes"), shared.get("bandwidth")
        return None if rate is None or bandwidth is None else max(self.operations / rate, self.moved / bandwidth)


def work(method: str, params: Any, side: int, batch: int) -> Work:
    """Of one step: forward, gradient of the weights, and gradient of the inputs of all layers but the first."""
    layers = multiplications(params, side)
    trained = 6 * sum(layers) - 2 * layers[0]  # per row
    rows = 2 * batch if method == "gradient_difference" else batch
    teacher = 0 if method == "gradient_difference" else 2 * sum(layers)
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    return Work(float(rows * (trained + teacher)), 2.0 * weights + 4.0 * rows * side**2)


def multiplications(params: Any, side: int) -> list[int]:
    """Of a forward pass of one image through each layer of `experiments.common.models.MLP` or `SmallCNN`."""
    counts = []
    for name in layers_in_order(params):
        kernel = params[name]["kernel"]
        if kernel.ndim == 4:
            side = side if not counts else math.ceil(side / 2)  # all but the first have stride 2
            counts.append(kernel.size * side**2)
        else:
            counts.append(kernel.size)
    return counts


def layers_in_order(params: Any) -> list[str]:
    """Names of layers from the inputs to the logits."""
    return sorted(params, key=lambda name: (not name.startswith("Conv"), name == "head", name))


def leading(values: Any, count: int) -> Any:
    """The first entries of every leaf."""
    return jax.tree.map(lambda x: x[:count], values)


def entry(values: Any, place: int) -> Any:
    """One entry of every leaf."""
    return jax.tree.map(lambda x: x[place], values)
