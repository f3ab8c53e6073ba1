"""flax.nnx modules."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from jaxunlearn import checks
from jaxunlearn.adapters.common import adopt, init_from
from jaxunlearn.types import ExampleLoss, Head, Model, Outputs, Variables


def from_nnx(
    module: Any,
    loss: ExampleLoss,
    *,
    create: Callable[[PRNGKeyArray], Any] | None = None,
    head: Head | None = None,
    regularizer: Callable | None = None,
) -> tuple[Model, Variables]:
    """Take an nnx module apart into functions and weights; the module itself is never changed.

    The module is called as `module(inputs)` and returns logits, or `(logits, features)` with a dict of named features. Its
    layers learn from `train()` and `eval()` how to run. `Variables.params` holds the `nnx.Param`s as nested dicts,
    `Variables.state` all other variables but the random streams, which a training pass seeds from its key. A module whose
    `__call__` has an argument `rngs`, for layers that keep no stream, gets an `nnx.Rngs` of that key in training, else None.

    Weights that orbax saved from `nnx.state(module)` are read by `jaxunlearn.checkpoint.load_variables(path, variables)`.

    Args:
        module: a trained `flax.nnx.Module`.
        loss: `(outputs, examples) -> [b]`, one value per row.
        create: `key -> module`, a fresh one of the same form, e.g. `lambda key: Net(rngs=nnx.Rngs(key))`; gives `Model.init`.
        head, regularizer: see `Model`.

    Returns:
        The model and the module's variables. `to_nnx` is the way back.

    Raises:
        ValueError: from `Model.init`, if `create` makes another form; from a training pass without a key, if the module has
            random streams.

    Example:
        >>> from flax import nnx
        >>> class Net(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.layer = nnx.Linear(4, 3, rngs=rngs)
        ...     def __call__(self, inputs):
        ...         return self.layer(inputs)
        >>> create = lambda key: Net(nnx.Rngs(key))
        >>> net, weights = jaxunlearn.adapters.from_nnx(create(key), jaxunlearn.losses.cross_entropy, create=create)
        >>> net.forward(weights, x).logits.shape
        (60, 3)
    """
    checks.require_extra("flax", "flax")
    from flax import nnx

    graph, _, streams, _ = nnx.split(module, nnx.Param, nnx.RngState, ...)
    variables = _take(module)
    names = sorted({leaf.tag for _, leaf in nnx.to_flat_state(streams)})
    takes_rngs = "rngs" in inspect.signature(module).parameters

    def forward(variables: Variables, inputs: PyTree, *, train: bool = False, key: Any = None) -> Outputs:
        copy = nnx.merge(graph, variables.params, streams, variables.state or {}, copy=True)
        options: dict[str, Any] = {"rngs": None} if takes_rngs else {}
        if not train:
            copy.eval()
        else:
            copy.train()
            if names and key is None:
                raise ValueError(f"the module draws from the random streams {names}: pass a key to forward(train=True)")
            keys: dict[str, Any] = {name: jax.random.fold_in(key, position) for position, name in enumerate(names)}
            nnx.reseed(copy, policy="match_shape", **keys)
            if takes_rngs and key is not None:
                options["rngs"] = nnx.Rngs(jax.random.fold_in(key, len(names)))
        out = copy(inputs, **options)
        logits, features = out if isinstance(out, tuple) else (out, {})
        return Outputs(logits, features, _take(copy).state if train else variables.state)

    return Model(forward, loss, init_from(create, _take, variables), head, regularizer), variables


def to_nnx(module: Any, variables: Variables) -> Any:
    """A new module like `module` with other weights and statistics; random streams are those of `module`.

    Args:
        module: as given to `from_nnx`; it is not changed.
        variables: e.g. `result.variables`.

    Returns:
        An `nnx.Module`.

    Raises:
        ValueError: variables of another form, e.g. of many requests at once.

    Example:
        >>> from flax import nnx
        >>> layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        >>> net, weights = jaxunlearn.adapters.from_nnx(layer, jaxunlearn.losses.cross_entropy)
        >>> half = weights._replace(params=jax.tree.map(lambda w: w / 2, weights.params))
        >>> bool(jnp.allclose(jaxunlearn.adapters.to_nnx(layer, half)(x), layer(x) / 2))
        True
    """
    checks.require_extra("flax", "flax")
    from flax import nnx

    # arrays of NumPy would be changed in place by `counter[...] += 1` in a module
    variables = jax.tree.map(jnp.asarray, variables)
    params, state = adopt(_take(module), variables, "these variables do not fit the module")
    graph, _, streams, _ = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return nnx.merge(graph, params, streams, state or {}, copy=True)


def _take(module: Any) -> Variables:
    checks.require_extra("flax", "flax")
    from flax import nnx

    _, params, _, state = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(state) or ())
