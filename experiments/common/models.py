"""Image classifiers in flax.linen, as `jaxunlearn.Model`.

Every module is called as `module(inputs, train=...)` and returns `(logits, {"penultimate": features})`; its last layer
is a Dense named `head`, so that methods that act on features or on a head need no special case.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import jaxunlearn
from experiments.common.convolution import Conv, Implementation
from jaxunlearn.adapters import from_linen

Logits = tuple[Float[Array, "b c"], dict[str, Float[Array, "b D"]]]

# He, Zhang, Ren, Sun: Delving deep into rectifiers, 2015, arXiv 1502.01852.
KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class MLP(nn.Module):
    """Fully connected network; images are flattened.

    Attributes:
        widths: hidden widths; the last one is the number of features.
        num_classes: width of the head.
        activation: behind every hidden layer.
    """

    widths: Sequence[int] = (128, 128)
    num_classes: int = 10
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, inputs: Float[Array, "b ..."], train: bool = False) -> Logits:
        del train
        x = inputs.reshape(inputs.shape[0], -1)
        for width in self.widths:
            x = self.activation(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
        return nn.Dense(self.num_classes, name="head")(x), {"penultimate": x}


class SmallCNN(nn.Module):
    """Convolutions, all but the first with stride 2, and one hidden layer; without normalisation or state.

    Attributes:
        channels: channels of the convolutions.
        width: number of features.
        num_classes: width of the head.
        implementation: see `experiments.common.convolution.convolve`.
    """

    channels: Sequence[int] = (16, 32, 64)
    width: int = 128
    num_classes: int = 10
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w cin"], train: bool = False) -> Logits:
        del train
        x = inputs
        for layer, channels in enumerate(self.channels):
            strides = (1, 1) if layer == 0 else (2, 2)
            x = Conv(channels, strides=strides, kernel_init=nn.initializers.he_normal(), implementation=self.implementation)(x)
            x = nn.relu(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.width, kernel_init=nn.initializers.he_normal())(x))
        return nn.Dense(self.num_classes, name="head")(x), {"penultimate": x}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    channels: int
    strides: tuple[int, int]
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w cin"], train: bool = False) -> Float[Array, "b h2 w2 cout"]:
        conv = partial(Conv, self.channels, use_bias=False, kernel_init=KAIMING, implementation=self.implementation)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(conv(strides=self.strides)(inputs)))
        x = norm()(conv()(x))
        if x.shape != inputs.shape:
            inputs = norm(name="shortcut_norm")(conv(kernel_size=(1, 1), strides=self.strides, name="shortcut")(inputs))
        return nn.relu(x + inputs)


class ResNet18(nn.Module):
    """ResNet-18 for small images: 3x3 stem with stride 1, no max-pooling (He, Zhang, Ren, Sun, 2015, arXiv 1512.03385).

    Attributes:
        num_classes: width of the head.
        width: channels of the first stage, doubled from stage to stage; less than the published 64 makes a thin network.
        blocks: residual blocks a stage; less than the published (2, 2, 2, 2) makes a shallow one.
        implementation: see `experiments.common.convolution.convolve`.
    """

    num_classes: int = 10
    width: int = 64
    blocks: Sequence[int] = (2, 2, 2, 2)
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w cin"], train: bool = False) -> Logits:
        x = Conv(self.width, use_bias=False, kernel_init=KAIMING, implementation=self.implementation, name="stem")(inputs)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="stem_norm")(x))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                strides = (2, 2) if stage > 0 and block == 0 else (1, 1)
                x = ResidualBlock(self.width * 2**stage, strides, self.implementation)(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, name="head")(x), {"penultimate": x}


MODULES: dict[str, Callable[..., nn.Module]] = {"mlp": MLP, "cnn": SmallCNN, "resnet18": ResNet18}


def build(
    name: str, input_shape: Sequence[int], num_classes: int, *, weight_decay: float = 0.0, **options: Any
) -> jaxunlearn.Model:
    """A classifier with cross-entropy loss and its head.

    Args:
        name: `mlp`, `cnn` or `resnet18`.
        input_shape: of one row, e.g. (28, 28, 1).
        num_classes: width of the head.
        weight_decay: `weight_decay / 2 * ||w||^2` over all weights becomes part of the training objective.
        options: attributes of the module, e.g. `widths=(256, 128)` or `width=16`.

    Raises:
        ValueError: an unknown name, or images that are not [h, w, channels] for a convolutional network.
    """
    if name not in MODULES:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODULES)}")
    if name != "mlp" and len(input_shape) != 3:
        raise ValueError(f"{name} takes images of shape [height, width, channels], got input_shape={tuple(input_shape)}")
    module = MODULES[name](num_classes=num_classes, **options)

    def regularizer(params):
        return weight_decay / 2 * sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    return from_linen(
        module,
        jaxunlearn.losses.cross_entropy,
        jnp.zeros((1, *input_shape)),
        head=head_of(module),
        regularizer=regularizer if weight_decay else None,
    )


def head_of(module: nn.Module) -> jaxunlearn.Head:
    """The last layer of a module of this file, apart from its features.

    Raises:
        ValueError: the module has no `num_classes`, so its head cannot be told.
    """
    num_classes = getattr(module, "num_classes", None)
    if num_classes is None:
        raise ValueError(f"{type(module).__name__} has no attribute num_classes, the width of its Dense layer 'head'")
    dense = nn.Dense(num_classes)

    def apply(variables: jaxunlearn.Variables, features: jax.Array) -> jax.Array:
        return jnp.asarray(dense.apply({"params": variables.params["head"]}, features))

    def get(variables: jaxunlearn.Variables) -> tuple[jax.Array, jax.Array]:
        return variables.params["head"]["kernel"], variables.params["head"]["bias"]

    def put(variables: jaxunlearn.Variables, kernel: jax.Array, bias: jax.Array) -> jaxunlearn.Variables:
        return variables._replace(params={**variables.params, "head": {"kernel": kernel, "bias": bias}})

    return jaxunlearn.Head(apply, get, put)
