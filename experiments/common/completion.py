"""A small network that completes images with a hole, and how good what it fills in is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

import jaxunlearn as ju

Images = Float[Array, "b h w c"]
NEIGHBOURS = 5


class Completer(NamedTuple):
    """A model whose logits are completed images, and its parts; targets of the rows are not read."""

    model: ju.Model
    encode: Callable[[ju.Variables, Images], Float[Array, "b code"]]
    decode: Callable[[ju.Variables, Float[Array, "b code"]], Images]
    corrupt: Callable[[PRNGKeyArray | None, Images], Images]  # black in the hole; the key is not read
    hole: Bool[np.ndarray, "h w 1"]  # in the middle of every image


def build(shape: tuple[int, int, int], *, hole: int, width: int, code: int) -> Completer:
    """Encoder and decoder of two hidden layers each; every image has its hole in the middle.

    Args:
        shape: of an image.
        hole: its side, in pixels.
        width: of the hidden layers.
        code: numbers of an embedding.
    """
    height, across, channels = shape
    pixels = height * across * channels
    widths = {"encoder": (pixels, width, width, code), "decoder": (code, width, width, pixels)}

    top, left = (height - hole) // 2, (across - hole) // 2
    inside = np.zeros((height, across, 1), bool)
    inside[top : top + hole, left : left + hole] = True

    def corrupt(key: PRNGKeyArray | None, images: Images) -> Images:
        return jnp.where(inside, 0, images)

    def layers(params: Any, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
        for place, (kernel, bias) in enumerate(params):
            x = x @ kernel + bias
            x = jax.nn.relu(x) if place < len(params) - 1 else x
        return x

    def encode(variables: ju.Variables, seen: Images) -> Float[Array, "b code"]:
        return layers(variables.params["encoder"], seen.reshape(len(seen), -1))

    def decode(variables: ju.Variables, embedding: Float[Array, "b code"]) -> Images:
        return layers(variables.params["decoder"], embedding).reshape(-1, *shape)

    def forward(variables, inputs, *, train=False, key=None):
        drawn = decode(variables, encode(variables, corrupt(key, inputs)))
        return ju.Outputs(jnp.where(inside, drawn, inputs))

    def loss(outputs: ju.Outputs, examples: ju.Examples) -> Float[Array, " b"]:
        wrong = jnp.where(inside, (outputs.logits - examples.inputs) ** 2, 0)
        return jnp.sum(wrong, axis=(1, 2, 3)) / (hole**2 * channels)

    def init(key: PRNGKeyArray) -> ju.Variables:
        def fresh(key, sizes):
            keys = jax.random.split(key, len(sizes) - 1)
            shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
            return [(jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, jnp.zeros(b)) for k, a, b in shapes]

        keys = jax.random.split(key)
        return ju.Variables({name: fresh(k, widths[name]) for k, name in zip(keys, widths, strict=True)})

    return Completer(ju.Model(forward, loss, init), encode, decode, corrupt, inside)


def frechet(first: Float[Any, "n d"], second: Float[Any, "m d"]) -> float:
    """Frechet distance of two Gaussians with the means and covariances of two samples, squared as FID is."""
    means, covariances = zip(*((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (first, second)), strict=True)
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0)).sum()
    return float(np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared)


def classes_of_neighbours(queries: Float[Any, "n d"], known: Float[Any, "m d"], labels: Int[Any, " m"]) -> Int[Any, " n"]:
    """The class that most of the nearest rows have."""
    far = np.sum(queries**2, axis=1)[:, None] - 2 * queries @ known.T + np.sum(known**2, axis=1)
    nearest = labels[np.argpartition(far, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]]
    return np.argmax(np.eye(labels.max() + 1, dtype=int)[nearest].sum(axis=1), axis=1)
