"""Maps between features and head: an affine one folds into the head, a deeper one is inserted into the model first."""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxunlearn import checks
from jaxunlearn.types import Head, Model, Outputs, Variables

MAPPED = "mapped"  # the layer behind an inserted map
Layers = list[dict[str, jax.Array]]  # kernel [in, out] and bias [out] of every layer, ReLU between them


class Mapped(NamedTuple):
    """Params of a model with a map between its features and its head."""

    model: PyTree
    map: Layers


class MapState(NamedTuple):
    """State of a model with a map."""

    model: PyTree
    in_use: Float[Array, ""]  # 0 until something was unlearned: the model is then exactly the one without a map


def insert_map(
    model: Model,
    variables: Variables,
    widths: tuple[int, ...],
    key: PRNGKeyArray | None = None,
    *,
    layer: str = "penultimate",
) -> tuple[Model, Variables]:
    """A model with a map between its features and its head, which equals the old one exactly until something is unlearned.

    Args:
        model: with a head.
        variables: trained.
        widths: of the hidden layers of the map, e.g. (512,); () makes it affine. Fresh weights are uniform within
            `1 / sqrt(inputs)`, as published, and so no identity; an affine map starts as one.
        key: of the fresh weights; an affine map needs none.
        layer: what the head acts on.

    Returns:
        The model and its variables: `params` is `Mapped(model, map)`, `state` is `MapState(model, in_use)`, plain trees that a
        checkpoint keeps. `forward` returns the features behind the map as `features["mapped"]`, beside those in front of it.

    Raises:
        ValueError: no head, no key for fresh weights, widths that are no positive integers, a map that was inserted before.

    Example:
        >>> mapped, mapped_variables = jaxunlearn.insert_map(headed, headed_variables, (16,), key)
        >>> after, before = mapped.forward(mapped_variables, x).logits, headed.forward(headed_variables, x).logits
        >>> bool(jnp.array_equal(after, before))
        True
    """
    head = require_head(model, "a map stands between features and head")
    if isinstance(variables.params, Mapped):
        raise ValueError("this model has a map already: unlearn with it, or insert another one into the model without it")
    for place, width in enumerate(widths):
        checks.require_count(f"widths[{place}]", width)
    if widths and key is None:
        raise ValueError("the hidden layers of a map start from fresh weights: pass a key")
    checks.check_variables(variables)
    width = head.get(variables)[0].shape[0]

    def wrapped(variables: Variables, key: PRNGKeyArray | None) -> Variables:
        params = Mapped(variables.params, fresh(width, widths, key))
        return Variables(params, MapState(variables.state, jnp.float32(0)))

    def forward(variables, inputs, *, train=False, key=None):
        inside = without_map(variables)
        outputs = model.forward(inside, inputs, train=train, key=key)
        features, in_use = layer_of(outputs, layer), variables.state.in_use > 0
        mapped = apply_map(variables.params.map, features)
        return Outputs(
            jnp.where(in_use, head.apply(inside, mapped.astype(outputs.features[layer].dtype)), outputs.logits),
            {**outputs.features, MAPPED: jnp.where(in_use, mapped, features)},
            variables.state._replace(model=outputs.state) if train else variables.state,
        )

    def init(key):
        assert model.init is not None
        model_key, map_key = jax.random.split(key)
        return wrapped(model.init(model_key), map_key)

    def put(variables, kernel, bias):
        inside = head.set(without_map(variables), kernel, bias)
        return variables._replace(params=variables.params._replace(model=inside.params))

    regularizer = model.regularizer
    return Model(
        forward,
        model.loss,
        None if model.init is None else init,
        Head(lambda v, z: head.apply(without_map(v), z), lambda v: head.get(without_map(v)), put),
        None if regularizer is None else lambda params: regularizer(params.model),
    ), wrapped(variables, key)


def without_map(variables: Variables) -> Variables:
    """Variables of the model that a map was inserted into.

    Args:
        variables: of a model with a map, or of any other model.

    Returns:
        What `insert_map` was given, up to what was unlearned since; variables of other models as they are.

    Example:
        >>> _, mapped_variables = jaxunlearn.insert_map(headed, headed_variables, ())
        >>> sorted(jaxunlearn.heads.without_map(mapped_variables).params)
        ['bias', 'body', 'head', 'shift']
    """
    return Variables(variables.params.model, variables.state.model) if isinstance(variables.params, Mapped) else variables


def fresh(width: int, widths: tuple[int, ...], key: PRNGKeyArray | None) -> Layers:
    """An identity for no widths, else uniform within `1 / sqrt(inputs)`."""
    if not widths or key is None:
        return identity(width)
    sizes = [width, *widths, width]
    layers = []
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        bound = 1 / np.sqrt(inputs)
        drawn = jax.random.uniform(jax.random.fold_in(key, place), (inputs + 1, outputs), minval=-bound, maxval=bound)
        layers.append({"kernel": drawn[:-1], "bias": drawn[-1]})
    return layers


def identity(width: int) -> Layers:
    """The affine map that changes nothing."""
    return [{"kernel": jnp.eye(width), "bias": jnp.zeros(width)}]


def current_map(variables: Variables, width: int) -> Layers:
    """Where unlearning starts: the inserted map, or the identity that will be folded into the head."""
    return variables.params.map if isinstance(variables.params, Mapped) else identity(width)


def affine_map(variables: Variables, width: int) -> tuple[Float[Array, "D D"], Float[Array, " D"]]:
    """Kernel and bias of the map that is there; ValueError if it is a deeper one."""
    layers = current_map(variables, width)
    if len(layers) > 1:
        raise ValueError("the inserted map is not affine: insert one with widths=(), or none at all")
    return layers[0]["kernel"], layers[0]["bias"]


def apply_map(layers: Layers, z: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """f(z)."""
    for place, layer in enumerate(layers):
        z = jnp.dot(z, layer["kernel"], precision="highest") + layer["bias"]
        z = jax.nn.relu(z) if place < len(layers) - 1 else z
    return z


def placed(head: Head, variables: Variables, layers: Layers) -> Variables:
    """Variables that use the map: inserted where there is a place for it, else folded into the head.

    logits = (z A + b) K + c = z (A K) + (b K + c)
    """
    if isinstance(variables.params, Mapped):
        kept = jax.tree.map(lambda new, old: new.astype(old.dtype), layers, variables.params.map)
        return Variables(variables.params._replace(map=kept), variables.state._replace(in_use=jnp.float32(1)))
    kernel, bias = head.get(variables)
    (layer,) = layers
    folded = jnp.dot(layer["kernel"], kernel.astype(layer["kernel"].dtype), precision="highest")
    moved = jnp.dot(layer["bias"], kernel.astype(layer["bias"].dtype), precision="highest") + bias
    return head.set(variables, folded.astype(kernel.dtype), moved.astype(bias.dtype))


def layer_of(outputs: Outputs, layer: str) -> Float[Array, "b D"]:
    """Features of a layer, at least in float32; ValueError unless they are one vector per row."""
    if layer not in outputs.features:
        there = ", ".join(outputs.features) or "none"
        raise ValueError(f"forward returns no features {layer!r} (it has: {there}); return them in Outputs.features")
    found = outputs.features[layer]
    if found.ndim != 2:
        raise ValueError(f"features {layer!r} must be one vector per row, got shape {found.shape}")
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))


def require_head(model: Model, reason: str) -> Head:
    """`model.head`; ValueError if there is none."""
    if model.head is None:
        raise ValueError(f"{reason}: give the model its last layer, Model(..., head=jaxunlearn.Head(apply, get, set))")
    return model.head
