"""flax.linen modules."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from jaxunlearn.types import ExampleLoss, Head, Model, Outputs, Variables


def from_linen(
    module: Any, loss: ExampleLoss, example_input: PyTree, *, head: Head | None = None, regularizer: Callable | None = None
) -> Model:
    """Wrap a linen module that is called as `module(inputs, train=...)`.

    The module returns logits, or `(logits, features)` with a dict of named features. Collections other than `params`
    (such as `batch_stats`) become `Variables.state`; the key of a training pass serves as the `dropout` stream.

    Args:
        module: a `flax.linen.Module`.
        loss: `(outputs, examples) -> [b]`, one value per row.
        example_input: inputs of any batch size, from which `init` takes shapes.
        head, regularizer: see `Model`.

    Returns:
        The model. Its variables come from `model.init(key)`, or from a checkpoint of linen's collections as
        `Variables(collections["params"], {"batch_stats": collections["batch_stats"]})`.

    Example:
        >>> import flax.linen as nn
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, inputs, train):
        ...         return nn.Dense(3)(nn.relu(nn.Dense(8)(inputs)))
        >>> net = jaxunlearn.adapters.from_linen(Net(), jaxunlearn.losses.cross_entropy, x[:1])
        >>> net.forward(net.init(key), x).logits.shape
        (60, 3)
    """

    def forward(variables: Variables, inputs: PyTree, *, train: bool = False, key: Any = None) -> Outputs:
        collections = {"params": variables.params, **(variables.state or {})}
        rngs = {"dropout": key} if train and key is not None else {}
        mutable = list(variables.state) if train and variables.state else False
        out = module.apply(collections, inputs, train=train, rngs=rngs, mutable=mutable)
        out, state = out if mutable else (out, variables.state)
        logits, features = out if isinstance(out, tuple) else (out, {})
        return Outputs(logits, features, state)

    def init(key: jax.Array) -> Variables:
        collections = dict(module.init({"params": key}, example_input, train=False))
        params = collections.pop("params")
        return Variables(params, collections or ())

    return Model(forward, loss, init, head, regularizer)
