"""CT, convolution transpose, an entry of the NeurIPS 2023 unlearning challenge, as it stands in the code of Cadet, Borovykh,
Malekzadeh, Ahmadi-Abhari, Haddadi: Deep Unlearn: benchmarking machine unlearning, 2024, arXiv 2410.01276: turn every filter
over its diagonal, then fine-tune.

    w[..., h, v, ...] <- w[..., v, h, ...]   for the kernels of 2-D convolutions
    w <- w - optimizer(grad mean_{retain} loss(w) + regularizer(w))

A transposed filter has its entries, and their sizes, in other places, so that training goes on from weights that are neither
trained nor fresh. Nothing looks at the forget set: what it left in 1 x 1 convolutions, in the head and in BatchNorm is as it
was until training moves it. That code trains with SGD at 1e-3, momentum 0.9, weight decay 5e-4 and a cosine over three
epochs.
"""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import tree
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, retain_objective
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.tree import Layers
from jaxunlearn.types import Model, Unlearner

METHOD = Method(
    summary="transpose the filters of convolutions, then keep training on the retain set",
    cites="cadet2024deep",
    family="objective",
    reads=frozenset({"retain"}),
    aliases=("ct",),
    search={"learning_rate": (0.001, 0.003, 0.01, 0.03)},
)


def convolution_transpose(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    axes: tuple[int, int],
    layers: Layers = "",
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Fine-tuning on the retain set, from weights whose convolutions were transposed in space.

    Args:
        model: with convolutions, so with parameters of four axes.
        optimizer: any optax transformation.
        axes: the two spatial axes of a kernel: (0, 1) in flax and Haiku, (2, 3) in Equinox.
        layers: which of the parameters with four axes, by a regular expression to be found in their paths or a predicate of it;
            all by default.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[]. An empty request changes nothing.

    Raises:
        ValueError: `axes` that are not two of four; at trace time, no parameter with four axes among `layers`, one that is
            not square along `axes`, or none that is larger than 1 there.
        TypeError: at trace time, `layers` is neither an expression nor a predicate.

    Example:
        >>> method = jaxunlearn.convolution_transpose(model, optax.sgd(0.1), axes=(0, 1))
    """
    if len(axes) != 2 or len({x % 4 for x in axes if -4 <= x < 4}) != 2:
        raise ValueError(f"axes must be the two spatial axes of a kernel with four, e.g. (0, 1), got {axes!r}")

    def start(variables, key):
        named = tree.matching(variables.params, layers)
        chosen = jax.tree.map(lambda x, name: name and jnp.ndim(x) == 4, variables.params, named)
        if not any(jax.tree.leaves(chosen)):
            forms = ", ".join(f"{name} {form}" for name, form in tree.form_of(variables.params).items())
            raise ValueError(f"convolution_transpose needs parameters of four axes, layers={layers!r} names none: {forms}")

        sides = [x.shape[axes[0]] for x, name in zip(*map(jax.tree.leaves, (variables.params, chosen)), strict=True) if name]
        if max(sides) == 1:
            raise ValueError(f"no kernel among layers={layers!r} is larger than 1 along axes {axes}: nothing to transpose")

        def turned(x, is_chosen):
            if not is_chosen:
                return x
            if x.shape[axes[0]] != x.shape[axes[1]]:
                raise ValueError(f"a kernel of shape {x.shape} is not square along axes {axes}: name the spatial axes")
            return jnp.swapaxes(x, *axes)

        return variables._replace(params=jax.tree.map(turned, variables.params, chosen))

    return descend(model, optimizer, retain_objective(model, bn), start=start, on_empty=METHOD.on_empty)
