"""Haiku functions."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from jaxunlearn import checks
from jaxunlearn.types import ExampleLoss, Head, Model, Outputs, Variables


def from_haiku(
    transformed: Any, loss: ExampleLoss, example_input: PyTree, *, head: Head | None = None, regularizer: Callable | None = None
) -> Model:
    """Wrap a transformed Haiku function that is called as `f(inputs, is_training=...)`.

    The function returns logits, or `(logits, features)` with a dict of named features. Haiku's params and state are
    `Variables.params` and `Variables.state`, `()` if there is no state; a training pass hands on its key.

    Args:
        transformed: what `haiku.transform_with_state` or `haiku.transform` returns.
        loss: `(outputs, examples) -> [b]`, one value per row.
        example_input: inputs from which `init` takes shapes. Haiku's BatchNorm also takes its first statistics from them, which
            the first training pass replaces: choose rows that nobody will ask to forget, and more than one.
        head, regularizer: see `Model`.

    Returns:
        The model. Its variables come from `model.init(key)`, or are `Variables(params, state)` of a training with Haiku.

    Raises:
        TypeError: the function was not transformed.

    Example:
        >>> import haiku as hk
        >>> def function(inputs, is_training):
        ...     return hk.Linear(3)(jax.nn.relu(hk.Linear(8)(inputs)))
        >>> net = jaxunlearn.adapters.from_haiku(hk.transform(function), jaxunlearn.losses.cross_entropy, x[:1])
        >>> net.forward(net.init(key), x).logits.shape
        (60, 3)
    """
    checks.require_extra("haiku", "haiku")
    import haiku as hk

    if isinstance(transformed, hk.Transformed):
        transformed = hk.with_empty_state(transformed)
    if not isinstance(transformed, hk.TransformedWithState):
        raise TypeError(f"expected what haiku.transform_with_state returns, got {type(transformed).__name__}")

    def forward(variables: Variables, inputs: PyTree, *, train: bool = False, key: Any = None) -> Outputs:
        rng = key if train else None
        out, moved = transformed.apply(variables.params, variables.state or {}, rng, inputs, is_training=train)
        logits, features = out if isinstance(out, tuple) else (out, {})
        return Outputs(logits, features, moved if train and variables.state else variables.state)

    def init(key: jax.Array) -> Variables:
        params, state = transformed.init(key, example_input, is_training=True)
        return Variables(params, state or ())

    return Model(forward, loss, init, head, regularizer)
