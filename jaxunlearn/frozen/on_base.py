"""Unlearning in a small part of a model, over a base that is held once for all requests.

The base lies in slot `base` of `Data.extra`: it is an argument of the compiled call, one copy per device however many requests
there are. It is not differentiated, not carried from step to step, and not part of a result. What is trained, carried and
returned are the variables of the part: adapters, or the leaves that were chosen.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from jaxunlearn import checks, slots, tree
from jaxunlearn.frozen.int8 import dense, is_int8
from jaxunlearn.loop.preparation import preparation_of, prepared_by
from jaxunlearn.tree import Layers
from jaxunlearn.types import Data, ForgetRequest, Model, Outputs, Result, UnlearnFn, Variables


class OnBase(NamedTuple):
    """A model in two parts: a frozen base, and a small part that is trained."""

    start: Callable[[Variables, PRNGKeyArray], Variables]  # (base, key): a part with which the model is the base
    on: Callable[[Variables], Model]  # the model of the part, over this base
    merge: Callable[[Variables, Variables], Variables]  # (base, part): plain variables of the whole model


def train_only(model: Model, like: Variables, layers: Layers) -> OnBase:
    """Train some leaves of a model and freeze the others.

    Args:
        model: the model.
        like: its variables, or their shapes (`jax.eval_shape`).
        layers: which leaves are trained: a regular expression that is searched for in their paths, e.g. `"head|lora_"`, or a
            function of the path.

    Returns:
        `OnBase` whose part holds the trained leaves by their paths, and the state. The model's regularizer is that of all
        weights, as before; its head is left out.

    Raises:
        ValueError: no leaf, or no leaf that is left out, has such a path.

    Example:
        >>> parts = jaxunlearn.frozen.train_only(model, variables, "head")
        >>> list(parts.start(variables, key).params)
        ['head']
    """
    names = jax.tree.map(lambda x: 0, like.params, is_leaf=is_int8)
    chosen = jax.tree.leaves(tree.matching(names, layers))
    paths = [tree.path_of(path) for path, _ in jax.tree.leaves_with_path(like.params, is_leaf=is_int8)]
    tree.require_own_paths(paths)
    if not any(chosen):
        raise ValueError(f"{layers!r} names no leaf; there are {', '.join(paths)}")
    if all(chosen):
        raise ValueError(f"{layers!r} names every leaf: nothing is frozen, and the model serves as it is")

    def start(base: Variables, key: PRNGKeyArray | None = None) -> Variables:
        leaves = map(dense, jax.tree.leaves(base.params, is_leaf=is_int8))
        return Variables({path: x for path, x, mine in zip(paths, leaves, chosen, strict=True) if mine}, base.state)

    def merge(base: Variables, part: Variables) -> Variables:
        leaves, treedef = jax.tree.flatten(base.params, is_leaf=is_int8)
        whole = [part.params[path] if path in part.params else dense(x) for path, x in zip(paths, leaves, strict=True)]
        return Variables(jax.tree.unflatten(treedef, whole), part.state)

    def init(key: PRNGKeyArray) -> Variables:
        assert model.init is not None
        return start(model.init(key))

    def on(base: Variables) -> Model:
        def forward(variables: Variables, inputs: PyTree, *, train: bool = False, key: PRNGKeyArray | None = None) -> Outputs:
            return model.forward(merge(base, variables), inputs, train=train, key=key)

        def regularizer(params: PyTree) -> jax.Array:
            assert model.regularizer is not None
            return model.regularizer(merge(base, Variables(params, base.state)).params)

        return Model(
            forward,
            model.loss,
            None if model.init is None else init,
            regularizer=None if model.regularizer is None else regularizer,
            likelihood=model.likelihood,
        )

    return OnBase(start, on, merge)


def on_base(parts: OnBase, make: Callable[[Model], UnlearnFn]) -> UnlearnFn:
    """A method that unlearns in the trained part of a model over a frozen base.

    Args:
        parts: of `jaxunlearn.frozen.lora` or `train_only`.
        make: `model -> method`, e.g. `lambda model: iterate(npo(model, optimizer), num_steps=50, batch_size=8)`.

    Returns:
        An `UnlearnFn` of the part's variables. It reads the base from slot `base`:
        `jaxunlearn.slots.BASE.put(data, variables)`. `stats` gains `unmoved` Int[], how many leaves of the part are what they
        were: 0 after a run that trains all of them. What was prepared over another base is
        `Status.STALE`.

    Raises:
        ValueError: when it is called, nothing in slot `base`.
        TypeError: when it is called, `make` returned no finished method.

    Example:
        >>> parts = jaxunlearn.frozen.train_only(model, variables, "head")
        >>> unlearn = jaxunlearn.frozen.on_base(
        ...     parts, lambda model: jaxunlearn.iterate(jaxunlearn.npo(model, optax.sgd(0.1)), num_steps=3, batch_size=8)
        ... )
        >>> based = jaxunlearn.slots.BASE.put(data, variables)
        >>> result = jax.jit(unlearn)(parts.start(variables, key), based, request, key)
        >>> int(result.stats["unmoved"]), jax.tree.map(jnp.shape, result.variables.params)
        (0, {'head': (8, 3)})
    """

    def method(data: Data) -> UnlearnFn:
        made = make(parts.on(slots.BASE.get(data)))
        checks.require_unlearn_fn(made, "frozen.on_base(make=...)")
        return made

    def unlearn(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        result = method(data)(variables, data, request, key)
        pairs = zip(jax.tree.leaves(variables.params), jax.tree.leaves(result.variables.params), strict=True)
        unmoved = sum(jnp.all(before == after).astype(jnp.int32) for before, after in pairs)
        return result._replace(stats={**result.stats, "unmoved": jnp.asarray(unmoved, jnp.int32)})

    def prepare(variables: Variables, data: Data, key: PRNGKeyArray) -> Data:
        step = preparation_of(method(data))
        return data if step is None else step(variables, data, key)

    return prepared_by(unlearn, prepare)
