"""Equinox modules."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PRNGKeyArray, PyTree

from jaxunlearn import checks
from jaxunlearn.adapters.common import adopt, init_from
from jaxunlearn.types import ExampleLoss, Head, Model, Outputs, Variables


def from_equinox(
    module: Any,
    loss: ExampleLoss,
    *,
    state: Any = None,
    create: Callable[[PRNGKeyArray], Any] | None = None,
    axis_name: str = "batch",
    head: Head | None = None,
    regularizer: Callable | None = None,
) -> tuple[Model, Variables]:
    """Take an Equinox module apart into functions and weights.

    The module is called for one row, as `module(row)` or, with a state, as `module(row, state)`, which returns a pair with
    the new state; with `key=` if its `__call__` has that argument. It returns logits, or `(logits, features)` with a dict of
    named features. Training passes run in training mode with one key per row, others under `equinox.nn.inference_mode`.

    Args:
        module: a trained `equinox.Module`. Its floating-point arrays are the params, as a module with None elsewhere;
            everything else in it is constant.
        loss: `(outputs, examples) -> [b]`, one value per row.
        state: the `equinox.nn.State` of a module with stateful layers, which becomes `Variables.state`.
        create: `key -> module`, or `key -> (module, state)`, fresh ones of the same form; gives `Model.init`.
        axis_name: of the batch, as in `equinox.nn.BatchNorm(axis_name=...)`.
        head, regularizer: see `Model`.

    Returns:
        The model and the module's variables. `to_equinox` is the way back.

    Raises:
        ValueError: from `Model.init`, if `create` makes another form.

    Example:
        >>> import equinox as eqx
        >>> create = lambda key: eqx.nn.MLP(4, 3, 8, 1, key=key)
        >>> net, weights = jaxunlearn.adapters.from_equinox(create(key), jaxunlearn.losses.cross_entropy, create=create)
        >>> net.forward(weights, x).logits.shape
        (60, 3)
    """
    checks.require_extra("equinox", "equinox")
    import equinox as eqx

    def take(made: Any) -> Variables:
        module, state = made if isinstance(made, tuple) else (made, None)
        return Variables(eqx.filter(module, eqx.is_inexact_array), () if state is None else state)

    variables = take((module, state))
    constants = {train: _constants(eqx.nn.inference_mode(module, not train)) for train in (True, False)}
    takes_key = "key" in inspect.signature(module).parameters

    def forward(variables: Variables, inputs: PyTree, *, train: bool = False, key: Any = None) -> Outputs:
        copy = eqx.combine(variables.params, constants[train])

        def one(row: PyTree, state: Any, key: Any) -> tuple[Any, Any]:
            options = {"key": key} if takes_key else {}
            return (copy(row, **options), ()) if isinstance(state, tuple) else copy(row, state, **options)

        rows = jax.tree.leaves(inputs)[0].shape[0]
        keys = jax.random.split(key, rows) if train and key is not None else None
        out, moved = jax.vmap(one, (0, None, 0), (0, None), axis_name=axis_name)(inputs, variables.state, keys)
        logits, features = out if isinstance(out, tuple) else (out, {})
        return Outputs(logits, features, moved if train else variables.state)

    return Model(forward, loss, init_from(create, take, variables), head, regularizer), variables


def to_equinox(module: Any, variables: Variables) -> Any:
    """A new module like `module` with other weights; `variables.state` is the `equinox.nn.State` that goes with it.

    Args:
        module: as given to `from_equinox`.
        variables: e.g. `result.variables`.

    Returns:
        An `equinox.Module`.

    Raises:
        ValueError: params of another form, e.g. of many requests at once.

    Example:
        >>> import equinox as eqx
        >>> layer = eqx.nn.Linear(4, 3, key=key)
        >>> net, weights = jaxunlearn.adapters.from_equinox(layer, jaxunlearn.losses.cross_entropy)
        >>> half = weights._replace(params=jax.tree.map(lambda w: w / 2, weights.params))
        >>> bool(jnp.allclose(jaxunlearn.adapters.to_equinox(layer, half)(x[0]), layer(x[0]) / 2))
        True
    """
    checks.require_extra("equinox", "equinox")
    import equinox as eqx

    like = Variables(eqx.filter(module, eqx.is_inexact_array), variables.state)
    return eqx.combine(adopt(like, variables, "these variables do not fit the module").params, _constants(module))


def _constants(module: Any) -> Any:
    checks.require_extra("equinox", "equinox")
    import equinox as eqx

    return eqx.filter(module, eqx.is_inexact_array, inverse=True)
